//! What `virtio-bindings` does not say of the registers (virtio 1.2 section 4.2.2).

use virtio_bindings::{virtio_config, virtio_mmio, virtio_ring};

/// Bytes of guest physical address space one device takes.
pub const WINDOW: u64 = 0x1000;
/// The doorbell: where a 32-bit write of a queue's number notifies it.
pub const QUEUE_NOTIFY: u64 = virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY as u64;
/// Where the device's own configuration space begins.
pub(super) const CONFIG: u64 = virtio_mmio::VIRTIO_MMIO_CONFIG as u64;

/// "virt", little-endian.
pub(super) const MAGIC: u32 = 0x7472_6976;
/// "brth", little-endian. Nothing interprets it.
pub(super) const VENDOR: u32 = 0x6874_7262;

pub(super) const FEATURE_VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
/// Interrupts and doorbells only where the other side asked to hear.
pub(super) const FEATURE_EVENT_INDEX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
pub(super) const FEATURE_INDIRECT: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
