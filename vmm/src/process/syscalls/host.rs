//! Calls of the host on behalf of the guest. Buffers are always the VMM's own: nothing of the guest's memory is ever
//! passed, so that no other thread of the guest can change what the host looks at.

use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};

use nix::errno::Errno;

use crate::process::Result;
use crate::process::task::gate::{self, Flag};

/// An argument of a call.
#[derive(Debug)]
pub enum Arg<'a> {
    /// A number, flags, a descriptor that only this process needs.
    Word(u64),
    /// A descriptor, which the call may be made with elsewhere.
    Descriptor(RawFd),
    /// A buffer the call reads.
    In(&'a [u8]),
    /// A buffer the call fills.
    Out(&'a mut [u8]),
}

impl Arg<'_> {
    fn raw(&mut self) -> u64 {
        match self {
            Self::Word(word) => *word,
            Self::Descriptor(fd) => i64::from(*fd).cast_unsigned(),
            Self::In(bytes) => bytes.as_ptr() as u64,
            Self::Out(bytes) => bytes.as_mut_ptr() as u64,
        }
    }
}

impl From<u64> for Arg<'_> {
    fn from(word: u64) -> Self {
        Self::Word(word)
    }
}

impl From<i32> for Arg<'_> {
    fn from(word: i32) -> Self {
        Self::Word(i64::from(word).cast_unsigned())
    }
}

impl From<BorrowedFd<'_>> for Arg<'_> {
    fn from(fd: BorrowedFd<'_>) -> Self {
        Self::Descriptor(fd.as_raw_fd())
    }
}

impl<'a> From<&'a [u8]> for Arg<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::In(bytes)
    }
}

impl<'a> From<&'a mut [u8]> for Arg<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        Self::Out(bytes)
    }
}

impl<'a, const N: usize> From<&'a mut Option<[u8; N]>> for Arg<'a> {
    fn from(bytes: &'a mut Option<[u8; N]>) -> Self {
        bytes.as_mut().map_or(Self::Word(0), |bytes| Self::Out(bytes))
    }
}

impl<'a, const N: usize> From<&'a mut [u8; N]> for Arg<'a> {
    fn from(bytes: &'a mut [u8; N]) -> Self {
        Self::Out(bytes)
    }
}

/// Makes a call that may block; it ends with `EINTR` when `flag` is set and the thread woken.
///
/// A handler's buffers have to be as long as the call takes them to be: every call site passes the length from the
/// buffer, or a buffer of the structure's size.
pub fn blocking<const N: usize>(flag: &Flag, number: i64, arguments: [Arg; N]) -> Result {
    let mut raw = [0; 6];
    for (to, mut from) in raw.iter_mut().zip(arguments) {
        *to = from.raw();
    }
    // SAFETY: the buffers are borrowed for the call, and as long as it takes them to be.
    unsafe { gate::call(flag, number, raw) }
}

/// Makes a call that does not block.
pub fn call<const N: usize>(number: i64, mut arguments: [Arg; N]) -> Result {
    borrowed(number, &mut arguments)
}

/// As [`call`], with arguments that may be needed again.
pub fn borrowed(number: i64, arguments: &mut [Arg]) -> Result {
    let mut raw = [0; 6];
    for (to, from) in raw.iter_mut().zip(arguments) {
        *to = from.raw();
    }
    // SAFETY: as above.
    unsafe { gate::plain(number, raw) }
}

/// A path with its terminating zero.
///
/// # Errors
/// `EINVAL` where there is a zero within it.
pub fn terminated(path: &[u8]) -> Result<Vec<u8>> {
    if path.contains(&0) {
        return Err(Errno::EINVAL);
    }
    Ok([path, b"\0"].concat())
}
