//! The sandbox: an OCI bundle becomes namespaces, a cgroup, mounts, capabilities and a seccomp filter.
//!
//! Start reading at [`annotations`] for what berth adds to the OCI configuration, and at [`monitor`] for
//! the process that looks after one container.

pub mod annotations;
pub mod cgroup;
pub mod monitor;
pub mod seccomp;
