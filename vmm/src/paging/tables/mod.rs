//! Writes page tables into guest memory: boot code's tables, and those of a guest whose kernel is the VMM.
//!
//! [`AddressSpace`] is one root with its structures; [`Frames`] gives it guest-physical frames to build from. Rights
//! are decided in the entry that maps the page: entries above allow everything.
//!
//! # What an edit means to a vCPU that runs
//! A processor may keep what it has read (4.10 "Caching translation information"), and a KVM that keeps shadow tables
//! does not notice what the VMM writes. An edit that only *gives* (maps a page, adds a right) needs nothing: the vCPU
//! faults, and the tables are read again. An edit that *takes away* shows only once the host has dropped its own
//! mapping of the page behind it, so every edit returns a [`Change`] that says whether it took something away.
//!
//! Two rules follow from the same cause, since nothing tells KVM about an entry that refers to another structure:
//! - a structure stays linked where it was linked first, until the whole space is given up;
//! - a page is never mapped over a structure nor a structure over a page ([`EditError::Occupied`]): unmap first, and
//!   map again with the same size.

mod change;
mod frames;
mod space;

pub use change::Change;
pub use frames::{FramePool, Frames};
pub use space::{AddressSpace, EditError, Mapping, Rights};

#[cfg(test)]
mod tests;
