//! Pages that come from outside one process: files, through the host's page cache, and memory shared after fork.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, Weak};

use nix::errno::Errno;
use nix::sys::stat::fstat;

use crate::paging::entry::PAGE_SIZE;
use crate::process::Result;
use crate::process::vm::{Vm, lock};

/// Pages of a file that are mapped over frames at once.
const CHUNK: u64 = 512;

/// A part of a file that stands over frames.
#[derive(Debug, Clone, Copy)]
struct Window {
    start: u64,
    pages: u64,
}

/// What tells mapped files apart: device, inode, and whether writes go to the file.
type Key = (u64, u64, bool);

/// The files that are mapped by any process.
#[derive(Debug, Default)]
pub struct MappedFiles(Mutex<HashMap<Key, Weak<MappedFile>>>);

/// A file that processes map.
#[derive(Debug)]
pub struct MappedFile {
    vm: Arc<Vm>,
    file: OwnedFd,
    shared: bool,
    /// Its path, as it was opened, for `/proc/self/maps`.
    pub path: Vec<u8>,
    /// By chunk; a second one where the file has grown since.
    windows: Mutex<BTreeMap<u64, Vec<Window>>>,
}

impl MappedFiles {
    /// The mapped file behind an open one; with `shared` it has to be open for writing if pages are to be written.
    pub fn get(&self, vm: &Arc<Vm>, file: &OwnedFd, shared: bool, path: &[u8]) -> Result<Arc<MappedFile>> {
        let status = fstat(file)?;
        let mut files = lock(&self.0);
        let key = (status.st_dev, status.st_ino, shared);
        if let Some(known) = files.get(&key).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let file = file.try_clone().map_err(|_| Errno::ENFILE)?;
        let (vm, windows) = (vm.clone(), Mutex::default());
        let mapped = Arc::new(MappedFile { vm, file, shared, path: path.to_vec(), windows });
        files.retain(|_, known| known.strong_count() > 0);
        files.insert(key, Arc::downgrade(&mapped));
        Ok(mapped)
    }
}

impl MappedFile {
    /// The frame of the page at `offset`, and how many pages follow it in the same window. `None` behind the end.
    pub fn frame(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        let page = offset / PAGE_SIZE;
        let (chunk, index) = (page / CHUNK, page % CHUNK);
        let mut windows = lock(&self.windows);
        let chunks = windows.entry(chunk).or_default();
        if let Some(window) = chunks.iter().find(|window| index < window.pages) {
            return Ok(Some((window.start + index * PAGE_SIZE, window.pages - index)));
        }
        let size = fstat(&self.file)?.st_size as u64;
        let pages = size.div_ceil(PAGE_SIZE).saturating_sub(chunk * CHUNK).min(CHUNK);
        if index >= pages {
            return Ok(None);
        }
        let start = self.vm.window(pages).ok_or(Errno::ENOMEM)?;
        let from = chunk * CHUNK * PAGE_SIZE;
        if let Err(error) = self.vm.arena.map_file(start, pages, self.file.as_fd(), from, self.shared) {
            self.vm.close_window(start, pages);
            return Err(Errno::from_raw(error.raw_os_error().unwrap_or(libc::ENODEV)));
        }
        chunks.push(Window { start, pages });
        Ok(Some((start + index * PAGE_SIZE, pages - index)))
    }

    /// How many pages the file has from `offset` on.
    pub fn pages_from(&self, offset: u64) -> Result {
        let size = fstat(&self.file)?.st_size as u64;
        Ok(size.saturating_sub(offset).div_ceil(PAGE_SIZE))
    }

    /// Reads from the file itself: its pages may vanish under a pointer.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let read = nix::sys::uio::pread(&self.file, buffer, offset as i64)?;
        buffer[read..].fill(0);
        Ok(())
    }

    /// Writes to the file itself, within its length.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let left = (fstat(&self.file)?.st_size as u64).saturating_sub(offset);
        let bytes = &bytes[..bytes.len().min(left as usize)];
        // SAFETY: the buffer is as long as said.
        let written = unsafe { libc::pwrite(self.file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), offset as i64) };
        Errno::result(written).map(|_| ())
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        for window in lock(&self.windows).values().flatten() {
            if self.vm.arena.unmap_file(window.start, window.pages).is_ok() {
                self.vm.close_window(window.start, window.pages);
            }
        }
    }
}

/// Memory that processes share after fork.
#[derive(Debug)]
pub struct SharedPages {
    vm: Arc<Vm>,
    frames: Mutex<BTreeMap<u64, u64>>,
}

impl SharedPages {
    /// Memory of zeroes.
    pub fn new(vm: Arc<Vm>) -> Arc<Self> {
        Arc::new(Self { vm, frames: Mutex::default() })
    }

    /// The frame of the page at `offset`, with one more use.
    pub fn frame(&self, offset: u64) -> Result<u64> {
        let mut frames = lock(&self.frames);
        let frame = if let Some(&frame) = frames.get(&(offset / PAGE_SIZE)) {
            frame
        } else {
            let frame = self.vm.allocate(1).ok_or(Errno::ENOMEM)?;
            frames.insert(offset / PAGE_SIZE, frame);
            frame
        };
        self.vm.share(frame);
        Ok(frame)
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        self.vm.release(lock(&self.frames).values().copied().collect());
    }
}
