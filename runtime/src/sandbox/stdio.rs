//! The standard streams of a sandbox's processes.

use std::fs::OpenOptions;
use std::io::pipe;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use nix::sys::stat::{SFlag, fstat, makedev};

use crate::attach::standard;
use crate::error::{Attempt as _, Result};

/// Standard input, output and error. What is left out is the sandbox's own `/dev/null`: whoever holds a descriptor of the
/// host's may be able to change its owner and mode.
pub type Stdio = [Option<OwnedFd>; 3];

/// Connects the streams that are given.
pub(super) fn connect(stdio: &Stdio) -> Result<()> {
    for (number, stream) in stdio.iter().enumerate() {
        if let Some(stream) = stream {
            put(stream, number)?;
        }
    }
    Ok(())
}

/// Connects the streams that are left out, from inside the sandbox's root. Where the caller's own are kept (`None`) that is
/// what the host's `/dev/null` gives way to.
pub(super) fn complete(stdio: Option<&Stdio>) -> Result<()> {
    let is_left_out = |number: &usize| match stdio {
        Some(stdio) => stdio[*number].is_none(),
        None => is_null(standard(*number as i32)).unwrap_or(false),
    };
    let mut null = None;
    for number in (0..3).filter(is_left_out) {
        let null = match &null {
            Some(null) => null,
            None => null.insert(own_null()?),
        };
        put(null, number)?;
    }
    Ok(())
}

/// The sandbox's `/dev/null`, or the end of a pipe that nobody else holds where it has none: not every sandbox has devices,
/// and a volume at `/dev` may have anything else there.
fn own_null() -> Result<OwnedFd> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    if let Ok(file) = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/null")
        && is_null(&file).attempt(|| "examine /dev/null")?
    {
        return Ok(file.into());
    }
    Ok(pipe().attempt(|| "make a pipe")?.0.into())
}

fn is_null(file: impl AsFd) -> nix::Result<bool> {
    let stat = fstat(file)?;
    let is_device = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
    Ok(is_device && stat.st_rdev == makedev(1, 3))
}

fn put(stream: &OwnedFd, number: usize) -> Result<()> {
    match number {
        0 => rustix::stdio::dup2_stdin(stream).attempt(|| "connect standard input"),
        1 => rustix::stdio::dup2_stdout(stream).attempt(|| "connect standard output"),
        _ => rustix::stdio::dup2_stderr(stream).attempt(|| "connect standard error"),
    }
}
