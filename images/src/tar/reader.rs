//! The stream of entries.

use std::io::BufRead;

use super::header::{BLOCK, Header};
use super::pax::Pax;
use super::sparse::{self, MapInData};
use super::{Entry, Error, Kind, MAX_LONG_NAME, MAX_PAX, Result};

/// Reads one archive from front to back.
pub struct Reader<R> {
    input: R,
    position: u64,
    /// Bytes of the current entry's data not read yet.
    remaining: u64,
    /// Bytes from the end of the data to the next block.
    padding: u64,
}

impl<R: BufRead> Reader<R> {
    pub fn new(input: R) -> Self {
        Self { input, position: 0, remaining: 0, padding: 0 }
    }

    /// Where in the archive the next byte of data is.
    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn into_inner(self) -> R {
        self.input
    }

    /// The next entry; what is left of the previous one's data is skipped. `None` after the last.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut long_path = None;
        let mut long_link = None;
        let mut pax: Option<Pax> = None;
        loop {
            self.skip_data()?;
            let mut block = [0; BLOCK];
            if !self.read_block(&mut block)? || block.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let header = Header::new(&block)?;
            let size = header.size()?;
            match header.type_flag() {
                b'L' => long_path = Some(self.long_name(size)?),
                b'K' => long_link = Some(self.long_name(size)?),
                b'x' => {
                    pax = Some(Pax::parse(&self.small_data(size, MAX_PAX, "a PAX header")?)?);
                }
                // Global headers carry comments in practice; as docker, their content is not applied.
                b'g' => {
                    self.small_data(size, MAX_PAX, "a PAX header")?;
                }
                _ => {
                    return self.entry(&header, size, long_path, long_link, pax).map(Some);
                }
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header<'_>,
        size: u64,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        pax: Option<Pax>,
    ) -> Result<Entry> {
        let path = long_path.unwrap_or_else(|| header.path());
        let flag = header.type_flag();
        let kind = match flag {
            // Before ustar, a trailing slash was a directory's only mark.
            0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => Kind::Unknown(other),
        };
        let device = match kind {
            Kind::CharDevice | Kind::BlockDevice => header.device()?,
            _ => (0, 0),
        };
        let mut entry = Entry {
            path,
            link: long_link.unwrap_or_else(|| header.link()),
            kind,
            mode: header.mode()?,
            uid: header.uid()?,
            gid: header.gid()?,
            mtime: header.mtime()?,
            mtime_nanos: 0,
            size,
            extents: None,
            real_size: size,
            device,
            xattrs: Vec::new(),
        };
        // Links and devices carry no data, whatever size old writers put there.
        let stored = if matches!(flag, b'1'..=b'6') { 0 } else { pax.as_ref().and_then(Pax::size).unwrap_or(size) };
        if stored > i64::MAX as u64 {
            return Err(Error::damaged("an entry's size is out of range"));
        }
        if flag == b'S' && header.is_gnu() {
            self.gnu_sparse(header, &mut entry)?;
        }
        self.remaining = stored;
        self.padding = stored.next_multiple_of(BLOCK as u64) - stored;
        if let Some(pax) = pax {
            let map_in_data = pax.has_map_in_data();
            pax.apply(&mut entry);
            entry.size = stored;
            if map_in_data && kind == Kind::File {
                self.map_in_data(&mut entry)?;
            }
        }
        entry.size = self.remaining;
        match &entry.extents {
            Some(extents) if kind == Kind::File => {
                sparse::check(extents, entry.size, entry.real_size)?;
            }
            _ => (entry.extents, entry.real_size) = (None, entry.size),
        }
        Ok(entry)
    }

    fn gnu_sparse(&mut self, header: &Header<'_>, entry: &mut Entry) -> Result<()> {
        let mut extents = Vec::new();
        let (fields, mut more) = header.gnu_sparse();
        sparse::push_gnu(fields, &mut extents)?;
        let mut block = [0; BLOCK];
        while more {
            self.read_exact(&mut block)?;
            more = sparse::extension(&block, &mut extents)?;
        }
        entry.extents = Some(extents);
        entry.real_size = header.gnu_real_size()?;
        Ok(())
    }

    fn map_in_data(&mut self, entry: &mut Entry) -> Result<()> {
        let mut map = MapInData::default();
        let mut block = [0; BLOCK];
        loop {
            if self.remaining < BLOCK as u64 {
                return Err(Error::damaged("a sparse map is malformed"));
            }
            self.read_exact(&mut block)?;
            self.remaining -= BLOCK as u64;
            if map.feed(&block)? {
                break;
            }
        }
        entry.extents = Some(map.extents());
        Ok(())
    }

    /// Hands up to `limit` bytes of the entry's data to `sink`, in pieces as they come.
    /// Returns how many there were.
    pub fn read_data<E: From<Error>>(
        &mut self,
        limit: u64,
        mut sink: impl FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<u64, E> {
        let mut left = limit.min(self.remaining);
        let total = left;
        while left > 0 {
            let available = self.input.fill_buf().map_err(Error::from)?;
            if available.is_empty() {
                return Err(Error::Truncated.into());
            }
            let count = available.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            sink(&available[..count])?;
            self.input.consume(count);
            left -= count as u64;
            self.position += count as u64;
            self.remaining -= count as u64;
        }
        Ok(total)
    }

    fn skip_data(&mut self) -> Result<()> {
        self.remaining += std::mem::take(&mut self.padding);
        self.read_data::<Error>(u64::MAX, |_| Ok(()))?;
        Ok(())
    }

    /// Data that belongs to a header and must be short.
    fn small_data(&mut self, size: u64, limit: u64, what: &str) -> Result<Vec<u8>> {
        if size > limit {
            return Err(Error::damaged(format!("{what} of {size} bytes is longer than the {limit} allowed")));
        }
        self.remaining = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        let mut data = Vec::new();
        self.read_data::<Error>(size, |piece| {
            data.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(data)
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut name = self.small_data(size, MAX_LONG_NAME, "a name")?;
        if let Some(end) = name.iter().position(|byte| *byte == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    /// Reads one block; `false` at the end of the input.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        if self.input.fill_buf()?.is_empty() {
            return Ok(false);
        }
        self.read_exact(block)?;
        Ok(true)
    }

    fn read_exact(&mut self, block: &mut [u8; BLOCK]) -> Result<()> {
        self.input.read_exact(block).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::Truncated,
            _ => Error::Io(error),
        })?;
        self.position += BLOCK as u64;
        Ok(())
    }
}
