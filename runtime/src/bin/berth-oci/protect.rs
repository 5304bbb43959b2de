//! The binary itself: a process in a container must not be able to open it for writing through `/proc/PID/exe`
//! (CVE-2019-5736). `berth` starts it through a read-only clone of its mount; started plainly, it does so itself.

use std::ffi::CString;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStringExt as _;

use berth_runtime::error::{Attempt as _, Error, Result};
use berth_runtime::sandbox::read_only_file;
use nix::sys::statvfs::{FsFlags, statvfs};

/// Executes the program again through a read-only mount, unless it already runs from one.
pub fn own_binary() -> Result<()> {
    let path = "/proc/self/exe";
    let mount = statvfs(path).attempt(|| format!("examine {path}"))?;
    if mount.flags().contains(FsFlags::ST_RDONLY) {
        // A program that was started by its descriptor is called by the descriptor's number.
        return nix::sys::prctl::set_name(c"berth-oci").attempt(|| "take the name berth-oci");
    }
    // A caller without the right to clone mounts cannot make containers that could write to a file of root's either.
    let Ok(file) = read_only_file(path.as_ref()) else { return Ok(()) };
    let strings = |values: Vec<std::ffi::OsString>| -> Result<Vec<CString>> {
        let zero = |_| Error::Invalid("an argument contains a zero byte".into());
        values.into_iter().map(|value| CString::new(value.into_vec()).map_err(zero)).collect()
    };
    let arguments = strings(std::env::args_os().collect())?;
    let environment = strings(
        std::env::vars_os()
            .map(|(mut key, value)| {
                key.push("=");
                key.push(value);
                key
            })
            .collect(),
    )?;
    let program = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
    let Err(errno) = nix::unistd::execve(&program, &arguments, &environment);
    Err(errno).attempt(|| "execute berth-oci through a read-only mount")
}
