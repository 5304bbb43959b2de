//! The sandbox: an OCI bundle becomes namespaces, a cgroup, mounts, capabilities and a seccomp filter.
//!
//! Start reading at [`annotations`] for what berth adds to the OCI configuration, and at [`monitor`] for
//! the process that looks after one container.

pub mod annotations;
pub mod attach;
pub mod bundle;
pub mod cgroup;
pub mod confine;
pub mod error;
pub mod executor;
pub mod monitor;
pub mod relay;
pub mod sandbox;
pub mod seccomp;
pub mod span;
