//! What a machine is to be made of. `berth-oci` writes it; descriptors are given by number and already open.

use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::control::Stop;
use crate::boot::Protocol;
use crate::devices::rate::RateLimit;
use crate::vcpu::exits::Exits;

/// A machine's configuration, as JSON in the file or descriptor `berth-vmm run` is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// `/dev/kvm`.
    pub kvm: RawFd,
    /// The kernel: an ELF vmlinux or a bzImage.
    pub kernel: RawFd,
    /// The initramfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<RawFd>,
    /// Added to the kernel's command line, after what berth puts there.
    #[serde(default)]
    pub command_line: String,
    /// How the kernel is entered; by default with Linux' 64-bit protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Bytes of guest memory.
    pub memory: u64,
    /// How many vCPUs.
    pub vcpus: u8,
    /// Where the serial console's output goes; without it the guest has no serial port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<RawFd>,
    /// Where the [`Report`] goes when the machine has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<RawFd>,
    /// A listening unix socket on which the machine answers [`Request`](super::control_socket::Request)s while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<RawFd>,
    /// The disks, `/dev/vda` first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskConfig>,
    /// The network interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<NetConfig>,
    /// Sockets between the host and the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// By which memory is taken from the guest and given back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonConfig>,
    /// A virtio console, `/dev/hvc0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalConfig>,
}

/// What is left to say of a machine that has ended, as one line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Why it ended.
    pub stop: Stop,
    /// Its exits by reason.
    pub exits: Exits,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// The file or block device that holds its sectors.
    pub file: RawFd,
    /// Whether the guest's writes are refused.
    #[serde(default)]
    pub read_only: bool,
    /// By which the guest finds it, at most 20 bytes.
    #[serde(default)]
    pub serial: String,
    /// How much the guest may do.
    #[serde(default)]
    pub rate: RateLimit,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// An open tap device with `IFF_VNET_HDR`.
    pub tap: RawFd,
    /// The guest's hardware address.
    pub mac: [u8; 6],
    /// The largest payload of a frame in bytes, where the network takes less than 1500.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// How much the guest may receive.
    #[serde(default)]
    pub receive: RateLimit,
    /// How much the guest may send.
    #[serde(default)]
    pub transmit: RateLimit,
}

/// Sockets between the host and the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, 3 or more.
    pub cid: u64,
    /// A listening unix socket by which processes of the host reach the guest. Whoever hands it over must close its own copy:
    /// as long as anybody has the socket open, a connection to a machine that is gone waits instead of failing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener: Option<RawFd>,
    /// Connections of the guest to host port n go to the unix socket `<path>_<n>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// A balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// Bytes the guest is to give back from the start.
    #[serde(default)]
    pub target: u64,
    /// Whether a guest short of memory may take some back rather than kill processes.
    #[serde(default)]
    pub deflate_on_oom: bool,
}

/// A virtio console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalConfig {
    /// What is typed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<RawFd>,
    /// What is shown.
    pub output: RawFd,
}
