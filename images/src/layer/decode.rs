//! Decompression on a thread of its own: reads the blob, checks both digests, and hands the archive's bytes over in
//! chunks that circulate between the two threads, so memory stays at a few chunks whatever the layer's size.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use flate2::bufread::MultiGzDecoder;

use super::{LayerError, Limits};
use crate::digest::{Digest, Hashing};
use crate::media::Compression;

/// Bytes a chunk holds: large enough that hand-over costs nothing, small enough to stay in the CPU's cache.
const CHUNK: usize = 256 << 10;
/// Chunks waiting for the consumer.
const QUEUE: usize = 6;

/// Both digests and lengths of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    pub blob: Digest,
    pub diff_id: Digest,
    /// Bytes of the uncompressed archive.
    pub unpacked: u64,
}

/// Why decoding ended early.
#[derive(Debug)]
pub enum Stop {
    Failed(LayerError),
    /// The consumer went away; it has the reason.
    ConsumerGone,
}

/// The producing end.
pub struct Producer {
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
}

/// The consuming end, read as one stream. It ends early if the producer fails.
pub struct Consumer {
    full: Receiver<Vec<u8>>,
    empty: Sender<Vec<u8>>,
    current: Vec<u8>,
    used: usize,
}

/// A pair of connected ends.
pub fn pipe() -> (Producer, Consumer) {
    let (full, filled) = sync_channel(QUEUE);
    let (emptied, empty) = channel();
    (Producer { full, empty }, Consumer { full: filled, empty: emptied, current: Vec::new(), used: 0 })
}

impl BufRead for Consumer {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used == self.current.len()
            && let Ok(next) = self.full.recv()
        {
            let spent = std::mem::replace(&mut self.current, next);
            self.used = 0;
            // The producer may be done already.
            let _ = self.empty.send(spent);
        }
        Ok(&self.current[self.used..])
    }

    fn consume(&mut self, amount: usize) {
        self.used += amount;
    }
}

impl Read for Consumer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// Decompresses `blob` into `producer`, to the last byte of both.
pub fn decode(blob: impl Read, limits: &Limits, producer: &Producer) -> Result<Decoded, Stop> {
    let mut blob = BufReader::with_capacity(CHUNK, Hashing::new(blob));
    let compression = Compression::sniff(blob.fill_buf().map_err(read_failed)?);
    let mut hash = Hashing::new(io::sink());
    match compression {
        Compression::None => pump(&mut blob, |blob| blob.get_ref().count(), limits, producer, &mut hash)?,
        Compression::Gzip => {
            let mut decoder = MultiGzDecoder::new(&mut blob);
            pump(&mut decoder, |decoder| decoder.get_ref().get_ref().count(), limits, producer, &mut hash)?;
        }
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(&mut blob).map_err(read_failed)?;
            pump(&mut decoder, |decoder| decoder.get_ref().get_ref().count(), limits, producer, &mut hash)?;
        }
    }
    io::copy(&mut blob, &mut io::sink()).map_err(read_failed)?;
    let (_, blob, _) = blob.into_inner().finish();
    let (_, diff_id, unpacked) = hash.finish();
    Ok(Decoded { blob, diff_id, unpacked })
}

fn pump<R: Read>(
    source: &mut R,
    consumed: impl Fn(&R) -> u64,
    limits: &Limits,
    producer: &Producer,
    hash: &mut Hashing<io::Sink>,
) -> Result<(), Stop> {
    loop {
        let mut chunk = producer.empty.try_recv().unwrap_or_default();
        chunk.clear();
        chunk.reserve_exact(CHUNK);
        let read = source.by_ref().take(CHUNK as u64).read_to_end(&mut chunk).map_err(read_failed)?;
        if read == 0 {
            return Ok(());
        }
        io::copy(&mut &chunk[..], hash).map_err(read_failed)?;
        check_growth(hash.count(), consumed(source), limits).map_err(Stop::Failed)?;
        producer.full.send(chunk).map_err(|_| Stop::ConsumerGone)?;
    }
}

fn check_growth(unpacked: u64, consumed: u64, limits: &Limits) -> Result<(), LayerError> {
    if unpacked > limits.max_unpacked {
        return Err(LayerError::TooLarge(format!("the limit of {} bytes", limits.max_unpacked)));
    }
    if unpacked > limits.ratio_floor && unpacked / limits.max_ratio > consumed {
        return Err(LayerError::TooLarge(format!("{} times its compressed size", limits.max_ratio)));
    }
    Ok(())
}

#[allow(clippy::needless_pass_by_value, reason = "the shape map_err wants")]
fn read_failed(error: io::Error) -> Stop {
    Stop::Failed(match error.kind() {
        io::ErrorKind::UnexpectedEof => LayerError::Truncated,
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other => {
            LayerError::Damaged(error.to_string())
        }
        _ => LayerError::io("read", b"the blob")(error),
    })
}
