//! From a guest-virtual address to the byte on the host, and every table in between.
//!
//! ```text
//! guest-virtual --(guest page tables)--> guest-physical --(memory slots)--> host-virtual
//!        \____________________ shadow page tables ____________________________/
//! ```
//!
//! - [`walk`](mod@walk) reads the guest's tables as the processor does and says what an access would meet;
//! - [`translation`] adds the memory slots: the whole way, printable and serialisable;
//! - [`tables`] writes page tables into guest memory: the boot tables, and those of a guest without a kernel;
//! - [`shadow`] is a model of what a KVM without EPT or NPT does: it folds both steps into one set of tables.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3A, chapter "Paging" (chapter 4 in
//! most editions; newer ones put a chapter before it). Sections are cited by number and title as in the former, for
//! example 4.5 "4-level paging and 5-level paging", 4.6 "Access rights", 4.7 "Page-fault exceptions", 4.8 "Accessed
//! and dirty flags".
//!
//! Not covered: 32-bit and PAE paging (berth's guests run in 64-bit mode), protection keys (4.6.2; berth offers the
//! guest no PKU), control-flow enforcement's shadow-stack pages (not offered either) and linear-address masking.

pub mod access;
pub mod entry;
pub mod mode;
pub mod shadow;
pub mod tables;
pub mod translation;
pub mod walk;

pub use access::{Access, ErrorCode, Fault, Operation, Privilege};
pub use entry::{Entry, Level, PageSize};
pub use mode::Mode;
pub use translation::Translation;
pub use walk::{Walk, access, walk};

#[cfg(test)]
mod tests;
