//! One request (virtio 1.2 section 5.2.6): a header, data in either direction, and a byte for the outcome.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::FallocateFlags;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::devices::buffers::Buffers;
use crate::devices::complaint::Complaint;
use crate::devices::virtqueue::Chain;

/// The unit of addresses on a disk, in bytes.
pub const SECTOR: u64 = 512;
/// The most bytes the driver may put into one descriptor.
pub const SIZE_MAX: u32 = 128 << 10;
/// The most descriptors with data in one request.
pub const SEG_MAX: u32 = 126;
/// Bytes `GET_ID` answers with.
pub const SERIAL_LENGTH: usize = VIRTIO_BLK_ID_BYTES as usize;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IO_ERROR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPPORTED: u8 = VIRTIO_BLK_S_UNSUPP as u8;

/// The disk behind the requests.
#[derive(Debug)]
pub struct Disk {
    /// Where the sectors are.
    pub file: File,
    /// Sectors in it.
    pub sectors: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether each write must reach the medium before it is answered: the driver never flushes.
    pub write_through: bool,
    /// Padded with zeros.
    pub serial: [u8; SERIAL_LENGTH],
    /// What the host refused, kept within bounds.
    pub complaint: Complaint,
}

/// A request taken apart.
pub struct Request<'m> {
    kind: u32,
    sector: u64,
    from_driver: Buffers<'m>,
    to_driver: Buffers<'m>,
    status: Buffers<'m>,
}

impl<'m> Request<'m> {
    /// Takes `chain` apart. `None` where there is no header or nowhere to put the outcome.
    pub fn parse(mut chain: Chain<'m>) -> Option<Self> {
        let mut header = [0; 16];
        chain.readable.read(&mut header).ok()?;
        let [kind, _, sector_low, sector_high] = words(header);
        let to_driver = chain.writable.take(chain.writable.len().checked_sub(1)?).ok()?;
        Some(Self {
            kind,
            sector: u64::from(sector_high) << 32 | u64::from(sector_low),
            from_driver: chain.readable,
            to_driver,
            status: chain.writable,
        })
    }

    /// Bytes to move, for the rate limit.
    pub fn bytes(&self) -> u64 {
        match self.kind {
            VIRTIO_BLK_T_IN => self.to_driver.len() as u64,
            VIRTIO_BLK_T_OUT => self.from_driver.len() as u64,
            _ => 0,
        }
    }

    /// Does what is asked and reports the outcome to the driver. Returns the bytes written into the chain.
    pub fn execute(mut self, disk: &mut Disk) -> u32 {
        let room = self.to_driver.len();
        let (status, written) = match self.kind {
            VIRTIO_BLK_T_IN => (self.read(disk), room),
            VIRTIO_BLK_T_OUT => (self.write(disk), 0),
            VIRTIO_BLK_T_FLUSH => (disk.report("flushing a disk", disk.file.sync_data()), 0),
            VIRTIO_BLK_T_GET_ID => {
                let length = room.min(SERIAL_LENGTH);
                let done = self.to_driver.write(&disk.serial[..length]);
                (if done.is_ok() { OK } else { IO_ERROR }, length)
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => (self.clear(disk), 0),
            _ => (UNSUPPORTED, 0),
        };
        if self.status.write(&[status]).is_err() {
            return 0;
        }
        // What the chain holds before the status byte is promised only where all of it was written.
        let whole = room == written && status == OK;
        if room == 0 || whole { (written + 1) as u32 } else { 0 }
    }

    /// The offset of a transfer of `length` bytes, if the disk has them.
    fn offset(&self, disk: &Disk, length: usize) -> Option<u64> {
        let length = length as u64;
        let whole = length.is_multiple_of(SECTOR) && length <= u64::from(SIZE_MAX) * u64::from(SEG_MAX);
        let end = self.sector.checked_add(length / SECTOR)?;
        (whole && end <= disk.sectors).then(|| self.sector * SECTOR)
    }

    fn read(&mut self, disk: &mut Disk) -> u8 {
        let Some(offset) = self.offset(disk, self.to_driver.len()) else { return IO_ERROR };
        let outcome = std::mem::take(&mut self.to_driver).read_from(disk.file.as_fd(), offset);
        disk.report("reading a disk", outcome)
    }

    fn write(&mut self, disk: &mut Disk) -> u8 {
        let Some(offset) = self.offset(disk, self.from_driver.len()) else { return IO_ERROR };
        if disk.read_only {
            return IO_ERROR;
        }
        let mut outcome = std::mem::take(&mut self.from_driver).write_to(disk.file.as_fd(), offset);
        if disk.write_through && outcome.is_ok() {
            outcome = disk.file.sync_data();
        }
        disk.report("writing a disk", outcome)
    }

    /// Discards or zeroes the one segment the driver is told it may name.
    fn clear(&mut self, disk: &mut Disk) -> u8 {
        let mut segment = [0; 16];
        if self.from_driver.len() != segment.len() || self.from_driver.read(&mut segment).is_err() || disk.read_only {
            return IO_ERROR;
        }
        let [low, high, count, flags] = words(segment);
        if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || (self.kind == VIRTIO_BLK_T_DISCARD && flags != 0) {
            return UNSUPPORTED;
        }
        self.sector = u64::from(high) << 32 | u64::from(low);
        if self.sector.checked_add(count.into()).is_none_or(|end| end > disk.sectors) {
            return IO_ERROR;
        }
        if count == 0 {
            return OK;
        }
        let (offset, length) = (self.sector * SECTOR, u64::from(count) * SECTOR);
        let punch = || {
            rustix::fs::fallocate(&disk.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)
        };
        let outcome = if self.kind == VIRTIO_BLK_T_DISCARD || flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
            punch()
        } else {
            // tmpfs and others know no zeroing but by punching holes.
            let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&disk.file, flags, offset, length).or_else(|_| punch())
        };
        match outcome {
            // The guest does without, or writes zeros itself.
            Err(rustix::io::Errno::OPNOTSUPP) => UNSUPPORTED,
            outcome => disk.report("clearing sectors of a disk", outcome.map_err(io::Error::from)),
        }
    }
}

impl Disk {
    fn report(&mut self, attempt: &str, outcome: io::Result<()>) -> u8 {
        match outcome {
            Ok(()) => OK,
            Err(error) => {
                let serial = String::from_utf8_lossy(&self.serial);
                let serial = serial.trim_end_matches('\0');
                self.complaint.raise(&format!("{attempt} (\"{serial}\"); the guest sees an I/O error"), error);
                IO_ERROR
            }
        }
    }
}

fn words(bytes: [u8; 16]) -> [u32; 4] {
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    [word(0), word(4), word(8), word(12)]
}
