//! Annotations in `config.json` by which a bundle asks for what the OCI runtime specification has no field for.
//! Every other OCI runtime ignores them.

/// The user as the person gave it (`name`, `uid`, `name:group`, `uid:gid`), looked up in the image's own
/// `/etc/passwd` and `/etc/group` *inside* the sandbox. It overrides `process.user`, and sets `HOME` unless the
/// environment already has it.
pub const USER: &str = "org.berth.user";

/// Supplementary groups, names or numbers joined by commas, looked up inside the sandbox as [`USER`] is and added to
/// `process.user.additionalGids`.
pub const GROUPS: &str = "org.berth.groups";

/// `true`: a small init is the sandbox's process 1; it reaps orphans and forwards signals to the command.
pub const INIT: &str = "org.berth.init";

/// The isolation of the sandbox: `container`, or another one by the program that [`crate::executor`] speaks of.
pub const ISOLATION: &str = "org.berth.isolation";
