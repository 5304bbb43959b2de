//! A Linux guest seen from outside: what it boots from, and how it is told what to run.
//!
//! ```text
//!  host                                     guest
//!  berth-vmm run  ◀──── vsock, port 1 ────  init: connects once, when its kernel is up
//!        Start (with `machine`) ──────────▶ root, mounts, network; then the first process
//!        Stdin, Signal, Resize ──────────▶
//!        ◀──────── Stdout, Stderr … Exited  everything else is ended, disks are synced, power off
//!
//!  berth-vmm exec ───── vsock, port 1 ────▶ init: listens; one connection is one more process
//! ```
//!
//! [`frame`] is what goes over the wire, [`start`] what a process and a machine are made of, [`link`] a connection,
//! [`client`] the host's end of it; the other end is the program `berth-guest-init`. [`initramfs`] packs that program and the
//! modules it loads.

pub mod client;
pub mod frame;
pub mod initramfs;
pub mod link;
pub mod linux;
pub mod start;

/// The vsock port of both ends: the init listens on it, and connects to it on the host for the first process.
pub const PORT: u32 = 1;
