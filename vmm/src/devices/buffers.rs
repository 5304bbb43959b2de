//! The memory one descriptor chain names, checked once to lie in guest memory.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::{ByteValued, VolatileSlice};

/// A stretch of bytes scattered over guest memory, consumed from the front.
///
/// The guest can change the bytes at any time: what is decided upon must be read once.
#[derive(Clone, Debug, Default)]
pub struct Buffers<'m> {
    slices: VecDeque<VolatileSlice<'m>>,
    length: usize,
}

/// The chain holds fewer bytes than the request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the descriptor chain is too short for the request")]
pub struct TooShort;

impl<'m> Buffers<'m> {
    pub(super) fn push(&mut self, slice: VolatileSlice<'m>) {
        self.length += slice.len();
        self.slices.push_back(slice);
    }

    /// Bytes left.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether no byte is left.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The pieces, in order.
    pub fn slices(&self) -> impl Iterator<Item = &VolatileSlice<'m>> {
        self.slices.iter()
    }

    /// Takes the first `length` bytes off.
    pub fn take(&mut self, length: usize) -> Result<Buffers<'m>, TooShort> {
        if length > self.length {
            return Err(TooShort);
        }
        let mut taken = Buffers::default();
        while taken.length < length {
            let slice = self.slices.pop_front().ok_or(TooShort)?;
            self.length -= slice.len();
            let wanted = (length - taken.length).min(slice.len());
            let (front, back) = slice.split_at(wanted).map_err(|_| TooShort)?;
            taken.push(front);
            if !back.is_empty() {
                self.length += back.len();
                self.slices.push_front(back);
            }
        }
        Ok(taken)
    }

    /// Reads bytes the driver wrote, filling `data`.
    pub fn read(&mut self, data: &mut [u8]) -> Result<(), TooShort> {
        let taken = self.take(data.len())?;
        let mut rest = data;
        for slice in &taken.slices {
            let copied = slice.copy_to(rest);
            rest = &mut rest[copied..];
        }
        Ok(())
    }

    /// Reads one plain structure.
    pub fn read_object<T: ByteValued + Default>(&mut self) -> Result<T, TooShort> {
        let mut object = T::default();
        self.read(object.as_mut_slice())?;
        Ok(object)
    }

    /// Writes all of `data` to the guest.
    pub fn write(&mut self, data: &[u8]) -> Result<(), TooShort> {
        let taken = self.take(data.len())?;
        let mut rest = data;
        for slice in &taken.slices {
            let (now, later) = rest.split_at(slice.len());
            slice.copy_from(now);
            rest = later;
        }
        Ok(())
    }

    /// Reads from `file` at `offset` straight into all of these bytes. What a file that has become shorter no longer
    /// holds is `UnexpectedEof`.
    pub fn read_from(self, file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
        self.transfer(offset, |vectors, offset| {
            // SAFETY: the vectors lie in guest memory, which `self` keeps mapped, and the kernel checks nothing else.
            unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int, offset) }
        })
    }

    /// Writes all of these bytes to `file` at `offset`.
    pub fn write_to(self, file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
        self.transfer(offset, |vectors, offset| {
            // SAFETY: as in `read_from`; the kernel only reads from them.
            unsafe { libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int, offset) }
        })
    }

    /// One `readv(2)`: a datagram from a tap device or whatever a stream holds just now. Returns the bytes read.
    pub fn receive(&self, file: BorrowedFd<'_>) -> io::Result<usize> {
        let vectors = self.vectors();
        // SAFETY: the vectors lie in guest memory, which `self` keeps mapped.
        let read = unsafe { libc::readv(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    /// One `writev(2)` of all of these bytes. Returns the bytes written.
    pub fn send(&self, file: BorrowedFd<'_>) -> io::Result<usize> {
        let vectors = self.vectors();
        // SAFETY: the vectors lie in guest memory, which `self` keeps mapped; the kernel only reads from them.
        let written = unsafe { libc::writev(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    fn vectors(&self) -> Vec<libc::iovec> {
        // IOV_MAX: the kernel takes no more at once. Queues are far smaller, so this never cuts anything off.
        let slices = self.slices.iter().take(libc::UIO_MAXIOV as usize);
        slices
            .map(|slice| libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() })
            .collect()
    }

    fn transfer(
        mut self,
        mut offset: u64,
        mut operation: impl FnMut(&[libc::iovec], libc::off_t) -> libc::ssize_t,
    ) -> io::Result<()> {
        while !self.is_empty() {
            let position = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
            match usize::try_from(operation(&self.vectors(), position)) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(done) => {
                    self.take(done).map_err(io::Error::other)?;
                    offset += done as u64;
                }
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}
