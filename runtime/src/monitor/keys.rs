//! Ctrl-C and Ctrl-\ in a container's terminal. The terminal sends their signals to the processes in its foreground, of
//! which process 1 of a pid namespace is spared what it does not handle. The monitor finds out, and ends it as anywhere else.

use std::os::fd::AsFd;

use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, SpecialCharacterIndices as Key, tcgetattr};
use nix::unistd::{Pid, getpgid, tcgetpgrp};

use crate::sandbox;

/// The signal, of those that the terminal behind the pty `master` makes of what is `typed`, that `pid` should have died of
/// and does not.
pub(super) fn unheard(master: impl AsFd, typed: &[u8], pid: Pid) -> Option<Signal> {
    let terminal = tcgetattr(&master).ok().filter(|terminal| terminal.local_flags.contains(LocalFlags::ISIG))?;
    let signal = [(Key::VINTR, Signal::SIGINT), (Key::VQUIT, Signal::SIGQUIT)]
        .into_iter()
        .find_map(|(key, signal)| typed.contains(&terminal.control_chars[key as usize]).then_some(signal))?;
    let in_foreground = tcgetpgrp(master).ok()? == getpgid(Some(pid)).ok()?;
    (in_foreground && sandbox::is_deaf_to(pid.as_raw(), signal as i32)).then_some(signal)
}
