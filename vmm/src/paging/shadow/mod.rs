//! A model of shadow paging, small enough to read: what a KVM without EPT or NPT does behind the guest's back.
//!
//! ```text
//!  guest's CR3 --> guest tables (guest-physical)      what the guest wrote and sees
//!                       |  filled from, on a fault
//!                       v
//!  real CR3 ----> shadow tables (host addresses)      what the processor walks
//! ```
//!
//! - **Fill.** The shadow starts empty. An access that the shadow does not allow faults; the handler walks the guest's
//!   tables. Where they forbid the access too, the fault is the guest's; otherwise the flags are set that the processor
//!   would have set, the entries of the walk are copied with guest-physical addresses turned into host addresses, and
//!   the access is made again.
//! - **Accessed, dirty.** An entry is shadowed only after its accessed flag is set, and a page is writable in the shadow
//!   only after its dirty flag is set: the access that has to set a flag always faults.
//! - **Large pages** are cut into 4 KiB pages ("direct" shadow pages), since host memory need not be contiguous.
//! - **Write protection.** A frame that is shadowed as a table is mapped read-only wherever else the shadow maps it (the
//!   reverse map knows where). A guest's write to it faults; the handler makes the write itself and drops what had been
//!   copied from the entry. The shadow is therefore never stale, and a load of CR3 only picks another root.
//! - **Emulation.** What the shadow cannot express is done by the handler: writes to tables, supervisor writes to
//!   read-only pages with CR0.WP clear, accesses to addresses without memory.
//!
//! What such a KVM does *not* see are writes by the VMM to the guest's tables. [`Shadow::table_written`] and
//! [`Shadow::forget_backing`] are the two ways to tell it: KVM offers a VMM only the second (by `madvise` or `mprotect`
//! on the memory behind the page).

mod cache;
mod mmu;

pub use mmu::{Counters, Reached, Shadow};

#[cfg(test)]
mod tests;
