//! The ids of user namespaces: how they are mapped, and what has to be done for a process in one by the host's root,
//! whose rights it does not have (`user_namespaces(7)`).

use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};

use nix::sched::CloneFlags;
use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Pid, Uid};
use oci_spec::runtime::LinuxIdMapping;

use super::channel::{Channel, Message};
use super::namespace::{Cloned, clone3};
use super::stdio::Stdio;
use crate::error::{Attempt as _, Error, Result};

/// Writes the id maps of a new user namespace.
pub(super) fn write(pid: Pid, uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<()> {
    let text = |maps: &[LinuxIdMapping]| -> String {
        let line = |map: &LinuxIdMapping| format!("{} {} {}", map.container_id(), map.host_id(), map.size());
        maps.iter().map(line).collect::<Vec<_>>().join("\n")
    };
    for (file, maps) in [("gid_map", gids), ("uid_map", uids)] {
        let path = format!("/proc/{pid}/{file}");
        fs::write(&path, text(maps)).attempt(|| format!("write {path}: `{}`", text(maps).replace('\n', ", ")))?;
    }
    Ok(())
}

/// Makes a user namespace in which nobody is, for its id maps alone.
pub(super) fn namespace_of(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<OwnedFd> {
    let (outside, inside) = Channel::pair()?;
    let (pid, _pidfd) = match clone3(CloneFlags::CLONE_NEWUSER, None)? {
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
        Cloned::Child => {
            drop(outside);
            let _ = inside.receive();
            // SAFETY: `_exit` ends this process without running what belongs to the maker it was copied from.
            unsafe { libc::_exit(0) }
        }
    };
    let namespace = write(pid, uids, gids).and_then(|()| open(pid));
    // That it has ended already is no error.
    let _ = outside.send(&Message::Go);
    let _ = waitpid(pid, None);
    namespace
}

/// The user namespace of a process.
pub(super) fn open(pid: Pid) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/user");
    File::open(&path).map(OwnedFd::from).attempt(|| format!("open {path}"))
}

/// What ids of a user namespace are outside.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct IdMaps {
    uids: Vec<[u32; 3]>,
    gids: Vec<[u32; 3]>,
}

impl IdMaps {
    /// Maps as a bundle has them.
    pub(super) fn new(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Self {
        let numbers =
            |maps: &[LinuxIdMapping]| maps.iter().map(|map| [map.container_id(), map.host_id(), map.size()]).collect();
        Self { uids: numbers(uids), gids: numbers(gids) }
    }

    /// The maps of a process's user namespace.
    pub(super) fn of(pid: Pid) -> Result<Self> {
        let read = |file: &str| -> Result<Vec<[u32; 3]>> {
            let path = format!("/proc/{pid}/{file}");
            Ok(parse(&fs::read_to_string(&path).attempt(|| format!("read {path}"))?))
        };
        Ok(Self { uids: read("uid_map")?, gids: read("gid_map")? })
    }

    /// The host's id of a user inside.
    pub(super) fn uid(&self, inside: u32) -> Result<Uid> {
        look_up(&self.uids, inside).map(Uid::from_raw).ok_or_else(|| unmapped("user", inside))
    }

    /// The host's id of a group inside.
    pub(super) fn gid(&self, inside: u32) -> Result<Gid> {
        look_up(&self.gids, inside).map(Gid::from_raw).ok_or_else(|| unmapped("group", inside))
    }

    /// Lets the process inside give its standard streams to its user: it may do so only with what is root's inside.
    /// `stdio`: as it was given; none: this process's own.
    pub(super) fn give_stdio(&self, stdio: Option<&Stdio>) -> Result<()> {
        let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let streams = match stdio {
            Some(given) => given.each_ref().map(|stream| stream.as_ref().map(OwnedFd::as_fd)),
            None => [Some(input.as_fd()), Some(output.as_fd()), Some(error.as_fd())],
        };
        // Both ids: over a file whose group is unknown inside, nobody inside has any right.
        let (user, group) = (self.uid(0)?, self.gid(0)?);
        for stream in streams.into_iter().flatten() {
            if super::process::can_change_hands(stream) {
                // A stream that cannot change hands still works; only its path in /proc cannot be opened again.
                let _ = nix::unistd::fchown(stream, Some(user), Some(group));
            }
        }
        Ok(())
    }
}

fn unmapped(kind: &str, id: u32) -> Error {
    Error::Invalid(format!("{kind} {id} has no id outside the user namespace; give it one in `linux.{kind}Mappings`"))
}

/// The lines of `/proc/PID/uid_map`: first id inside, first id outside, how many.
fn parse(text: &str) -> Vec<[u32; 3]> {
    let line = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(|number| number.parse().ok());
        Some([numbers.next()??, numbers.next()??, numbers.next()??])
    };
    text.lines().filter_map(line).collect()
}

fn look_up(map: &[[u32; 3]], inside: u32) -> Option<u32> {
    map.iter().find_map(|&[first, host, count]| {
        let offset = inside.checked_sub(first).filter(|offset| *offset < count)?;
        host.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_looked_up_in_their_range() {
        let map = parse("         0     200000      1000\n      5000       1000          1\n");
        assert_eq!(map, [[0, 200_000, 1000], [5000, 1000, 1]]);
        for (inside, outside) in [(0, Some(200_000)), (999, Some(200_999)), (1000, None), (5000, Some(1000))] {
            assert_eq!(look_up(&map, inside), outside, "{inside}");
        }
        assert_eq!(parse("0 x 1\n\n0 1\n"), Vec::<[u32; 3]>::new());
    }
}
