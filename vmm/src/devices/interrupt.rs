//! The interrupt line of one device, and why it was raised.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Raises the device's interrupt. Lock-free, so that a device can signal while a vCPU acknowledges.
#[derive(Debug)]
pub struct Interrupt {
    status: AtomicU32,
    generation: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    /// A line nothing has been raised on. Fails where no descriptor is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { status: AtomicU32::new(0), generation: AtomicU32::new(0), line: EventFd::new(EFD_NONBLOCK)? })
    }

    /// The descriptor to register with KVM as an irqfd (edge-triggered).
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// The device put something into a used ring.
    pub fn signal_used(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// The configuration space changed.
    pub fn signal_config(&self) {
        self.generation.fetch_add(1, Ordering::Release);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The `InterruptStatus` register.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// A write to the `InterruptACK` register.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// The `ConfigGeneration` register.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Continues where a saved device was; an interrupt that was pending is raised again.
    pub(super) fn restore(&self, status: u32, generation: u32) {
        self.generation.store(generation, Ordering::Release);
        self.raise(status);
    }

    fn raise(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::AcqRel);
        // Fails only when the counter would overflow, and then the interrupt is pending anyway.
        let _ = self.line.write(1);
    }
}
