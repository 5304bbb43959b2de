//! The microVM: a minimal KVM monitor that runs inside a sandbox made by `berth-oci`.
//!
//! Start reading at [`machine`] for a whole VM, at [`devices`] for what the guest sees, at [`paging`] for how an address in
//! the guest becomes one on the host, at [`guest`] for how a Linux guest is told what to run, at
//! [`process`] for guests without a kernel.

pub mod boot;
pub mod devices;
pub mod guest;
pub mod host;
pub mod machine;
pub mod paging;
pub mod process;
pub mod vcpu;
