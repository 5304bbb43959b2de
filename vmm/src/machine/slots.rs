//! Virtio devices' places: a page of addresses, an interrupt line, doorbells.

use std::sync::{Arc, Mutex};

use kvm_ioctls::{IoEventAddress, VmFd};
use vm_memory::GuestMemoryMmap;

use super::error::{Attempt, Error};
use crate::boot::acpi::MmioDevice;
use crate::boot::layout::{FIRST_IRQ, LAST_IRQ, MMIO, MMIO_SIZE};
use crate::devices::VirtioDevice;
use crate::devices::bus::{Bus, BusDevice};
use crate::devices::mmio::{MmioTransport, QUEUE_NOTIFY};

/// The most virtio devices: each has an interrupt line of its own.
pub const DEVICES_MAX: usize = (LAST_IRQ - FIRST_IRQ + 1) as usize;

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        Self::read(self, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        Self::write(self, offset, data);
    }
}

/// Where the first `count` devices are.
pub fn places(count: usize) -> Result<Vec<MmioDevice>, Error> {
    if count > DEVICES_MAX {
        return Err(Error::Devices { asked: count, max: DEVICES_MAX });
    }
    let place = |number| MmioDevice { address: MMIO as u32 + number * MMIO_SIZE as u32, irq: FIRST_IRQ + number };
    Ok((0..count as u32).map(place).collect())
}

/// Puts `device` at `place`: on the bus, with its doorbells and its interrupt connected to `vm`.
pub fn attach(
    vm: &VmFd,
    bus: &mut Bus,
    memory: &GuestMemoryMmap,
    device: Box<dyn VirtioDevice>,
    place: MmioDevice,
) -> Result<Arc<Mutex<MmioTransport>>, Error> {
    let transport = MmioTransport::new(device, memory.clone()).attempt("creating a virtio device's eventfds")?;
    let address = u64::from(place.address);
    let doorbell = IoEventAddress::Mmio(address + QUEUE_NOTIFY);
    for (queue, bell) in (0u32..).zip(transport.doorbells()) {
        vm.register_ioevent(bell, &doorbell, queue).attempt("connecting a virtio device's doorbell")?;
    }
    vm.register_irqfd(transport.interrupt_line(), place.irq).attempt("connecting a virtio device's interrupt")?;
    let transport = Arc::new(Mutex::new(transport));
    bus.insert(address, MMIO_SIZE, transport.clone())?;
    Ok(transport)
}
