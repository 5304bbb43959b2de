//! Files: the root every path is resolved below, whose rights that takes, open files, and a process's descriptors.

mod authority;
mod broker;
pub mod credentials;
mod descriptors;
pub mod proc;
mod root;

pub use authority::Authority;
pub use broker::{Broker, receive};
pub use credentials::{Credentials, Ids};
pub use descriptors::{Descriptors, Kind, MOST_DESCRIPTORS, OpenFile};
pub use root::{Root, join, normal};
