//! Descriptors given by number.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use super::Error;

/// Takes ownership of the open descriptor `number`, which is for `what`.
///
/// Each number must be given once: the configuration says which descriptors are handed over.
pub fn take(number: RawFd, what: &'static str) -> Result<OwnedFd, Error> {
    // SAFETY: F_GETFD only asks.
    if number < 0 || unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
        let source = if number < 0 { io::Error::from_raw_os_error(libc::EBADF) } else { io::Error::last_os_error() };
        return Err(Error::Descriptor { what, descriptor: number, source });
    }
    // SAFETY: it is open, and whoever started this process gave it away by naming it in the configuration.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    Ok(descriptor)
}
