//! Files: the root every path is resolved below, open files, and a process's descriptors.

mod descriptors;
pub mod proc;
mod root;

pub use descriptors::{Descriptors, Kind, MOST_DESCRIPTORS, OpenFile};
pub use root::{Root, check_program, join, normal};
