//! The process guest: a microVM without a guest kernel. The image's programs run in ring 3 of one VM; their system calls
//! and faults leave the VM and are served here, by a process that sits in the sandbox.
//!
//! ```text
//!  ring 3     busybox          python3            one page-table root a process, one vCPU a running thread
//!                | syscall        | page fault
//!  stub       out %al,$0x10       | (on PVM an empty IDT: a shutdown exit, RIP and CR2 are valid)
//!  -----------|-------------------|------------------------------------------------------------------ KVM_RUN returns
//!  task/      Task::run: one host thread for each guest thread
//!  syscalls/  one file a category                memory/  areas -> page tables, copy on write, file windows
//!  files/     descriptors below one root         vm/      guest-physical memory, frames, vCPUs, the stub
//! ```
//!
//! # Threads and blocking
//! A guest thread is a host thread with a vCPU of its own ([`task`]). A call that blocks blocks the host thread in the
//! host's own call, so pipes, sockets, terminals and epoll are the host's, and their scheduling too. What must be
//! interrupted (a guest signal arrives, the process exits) is interrupted by a host signal; a gate of a few
//! instructions ([`task::gate`]) closes the race between looking for a signal and entering the call.
//!
//! # Leaving ring 3
//! `LSTAR` points at a stub page that every address space maps. With hardware virtualization `syscall` enters ring 0 there; on a
//! PVM host it stays in ring 3. Either way the next instruction is an `out` that leaves the VM, RCX holds where to go on and
//! R11 the flags, and the answer is written into the sync registers.
//!
//! On a PVM host the interrupt table is empty. Every fault is a triple fault and leaves the VM as a shutdown, with the
//! registers as the instruction found them. CR2 is set to a mark beforehand: if it is still there, it was no page fault.
//! Where there is a ring 0 it has a gate for each exception, behind which is an `out` too ([`vm::supervisor`]). What the
//! VMM sees of a thread is the same: [`vm::vcpu::Exit`], and the registers the program had.
//!
//! # Memory
//! Guest-physical memory is one sparse memfd ([`vm::arena`]), given to KVM slot by slot as it grows, and cut into frames
//! that are counted ([`vm::frames`]). Pages of files are *windows*: the host's page cache mapped over a part of the arena,
//! so that text is shared between processes and sandboxes and costs nobody a copy.
//!
//! A process's memory ([`memory`]) is a map of areas; its page tables are filled on demand from that. What a page is
//! stands in the page-table entry alone; there is no second book. Two facts about KVM's shadow tables shape it:
//!
//! - An edit that takes something away stays unseen until the host drops its mapping of the memory behind the page.
//!   With a memfd `MADV_DONTNEED` does exactly that and loses nothing ([`vm::arena::Arena::zap`]). Freed frames are
//!   punched out of the file, which does the same.
//! - Entries that refer to other tables are never seen to change. So a table stays where it was linked first, and the
//!   tables of processes that are gone serve again only after all shadow tables were dropped, which happens once for
//!   many processes (by removing and adding a slot of one page).
//!
//! # Files
//! Every path is resolved by `openat2` below the descriptor of the root, with `RESOLVE_IN_ROOT`; the VMM uses no other
//! path. One guest descriptor is one host descriptor behind a table, so offsets, locks and flags are the kernel's.
//!
//! # What is not here yet
//! See [`syscalls`] for the table of what is served. Not yet: `/proc` beyond a few files, ptrace, namespaces, `io_uring`
//! (refused for good).

pub mod files;
pub mod loader;
pub mod memory;
pub mod outside;
pub mod plain;
pub mod sandboxed;
pub mod syscalls;
pub mod task;
pub mod vm;

mod confine;
mod run;

pub use run::{Command, Config, Most, RunError, run};

/// The result of a system call or of a part of one.
pub type Result<T = u64> = std::result::Result<T, nix::errno::Errno>;
