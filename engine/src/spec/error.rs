//! What can be wrong with a wish for a container before anything of it is made.

use std::io;
use std::path::PathBuf;

/// Why no OCI configuration can be made of the options.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither the image nor the person names a command.
    #[error("the image names no command: give one after the image, for example 'sh'")]
    NoCommand,
    /// The working directory is not absolute.
    #[error("working directory '{path}' is not absolute: give the path from '/', for example --workdir /srv")]
    WorkingDir {
        /// As it was given.
        path: String,
    },
    /// No such capability.
    #[error("no capability is called '{name}'{}", suggestion(.near))]
    UnknownCapability {
        /// As it was given.
        name: String,
        /// Names like it.
        near: Vec<String>,
    },
    /// The capability is known but not ours to give.
    #[error(
        "capability '{name}' cannot be given: berth itself does not hold it (see CapPrm in /proc/self/status); \
         run berth with it, or leave it out"
    )]
    MissingCapability {
        /// Its name without `CAP_`.
        name: String,
    },
    /// Two options exclude each other.
    #[error("{one} cannot be combined with {other}: {reason}")]
    Conflict {
        /// The first flag.
        one: &'static str,
        /// The second flag.
        other: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// A sysctl that would change the host.
    #[error("--sysctl '{key}': {reason}")]
    Sysctl {
        /// The key.
        key: String,
        /// Why it is refused.
        reason: &'static str,
    },
    /// No such resource limit.
    #[error("--ulimit '{name}': no such limit; one of {known}")]
    UnknownUlimit {
        /// As it was given.
        name: String,
        /// All names.
        known: String,
    },
    /// A limit outside its bounds.
    #[error("{flag} {value}: {reason}")]
    Limit {
        /// The flag.
        flag: &'static str,
        /// What was asked for.
        value: String,
        /// The bound, and what to give instead.
        reason: String,
    },
    /// Two mounts want the same place.
    #[error("two mounts want '{target}': give each its own path in the container")]
    DuplicateMount {
        /// The path in the container.
        target: String,
    },
    /// A path in the container that nothing can be mounted on.
    #[error("nothing can be mounted on '{target}': give an absolute path other than '/', for example /data")]
    MountTarget {
        /// As it was given.
        target: String,
    },
    /// A device cannot be looked up.
    #[error("--device '{}': {source}; give a device node of this host, for example /dev/fuse", path.display())]
    Device {
        /// Path on the host.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Neither a device node nor a directory with some.
    #[error("--device '{}': not a device; to show a file in the container use --volume", path.display())]
    NotADevice {
        /// Path on the host.
        path: PathBuf,
    },
    /// The seccomp profile cannot be used.
    #[error("--security-opt 'seccomp={}': {reason}", path.display())]
    SeccompProfile {
        /// The profile.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A fact of the host could not be read.
    #[error("cannot read {what} of this host: {source}")]
    Host {
        /// What was read.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Refuses the first that is asked for of what cannot be combined with `one`.
pub fn refuse(one: &'static str, others: &[(bool, &'static str)], reason: &'static str) -> Result<(), Error> {
    match others.iter().find(|(is_asked, _)| *is_asked) {
        Some((_, other)) => Err(Error::Conflict { one, other, reason }),
        None => Ok(()),
    }
}

fn suggestion(names: &[String]) -> String {
    if names.is_empty() {
        String::from(": see capabilities(7) for the names, for example NET_ADMIN")
    } else {
        format!(": did you mean {}?", names.join(" or "))
    }
}
