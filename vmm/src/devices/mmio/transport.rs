//! The registers of one device.

use std::any::Any;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER as STATUS_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK as STATUS_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED as STATUS_FAILED, VIRTIO_CONFIG_S_FEATURES_OK as STATUS_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET as STATUS_NEEDS_RESET,
};
#[allow(clippy::wildcard_imports, reason = "the register map")]
use virtio_bindings::virtio_mmio::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::registers::{CONFIG, FEATURE_EVENT_INDEX, FEATURE_INDIRECT, FEATURE_VERSION_1, MAGIC, VENDOR};
use super::state::MmioState;
use crate::devices::virtqueue::VirtqueueState;
use crate::devices::{Activation, DeviceError, DeviceKind, Interrupt, Memory, VirtioDevice, Virtqueue};

/// A device with its registers. The machine keeps it behind a lock: vCPU threads read and write registers, the event
/// loop calls [`MmioTransport::notify`] and [`MmioTransport::poll`].
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: Memory,
    interrupt: Arc<Interrupt>,
    doorbells: Vec<Arc<EventFd>>,
    /// Registers of the queues; the truth until activation, after it the device's own queues are.
    queues: Vec<VirtqueueState>,
    status: u32,
    device_features_selector: u32,
    driver_features_selector: u32,
    driver_features: u64,
    queue_selector: u32,
}

impl MmioTransport {
    /// Puts `device` behind registers. Fails where no descriptor is left.
    pub fn new(device: Box<dyn VirtioDevice>, memory: Memory) -> io::Result<Self> {
        let doorbells = device.queue_sizes().iter().map(|_| Ok(Arc::new(EventFd::new(EFD_NONBLOCK)?)));
        let mut transport = Self {
            memory,
            interrupt: Arc::new(Interrupt::new()?),
            doorbells: doorbells.collect::<io::Result<_>>()?,
            queues: Vec::new(),
            status: 0,
            device_features_selector: 0,
            driver_features_selector: 0,
            driver_features: 0,
            queue_selector: 0,
            device,
        };
        transport.clear_registers();
        Ok(transport)
    }

    /// Continues from `state`: `device` must be the one restored from `state.device`. A device that was active
    /// is activated again and every queue is looked at, for a doorbell may have been under way.
    pub fn restore(device: Box<dyn VirtioDevice>, memory: Memory, state: &MmioState) -> io::Result<Self> {
        let mut transport = Self::new(device, memory)?;
        if transport.queues.len() != state.queues.len() {
            let (saved, now) = (state.queues.len(), transport.queues.len());
            return Err(io::Error::other(format!("the saved device has {saved} queues, this one has {now}")));
        }
        transport.status = state.status;
        transport.device_features_selector = state.device_features_selector;
        transport.driver_features_selector = state.driver_features_selector;
        transport.driver_features = state.driver_features;
        transport.queue_selector = state.queue_selector;
        transport.queues.clone_from(&state.queues);
        if transport.is_running() {
            transport.activate().map_err(|error| io::Error::other(format!("cannot resume the device: {error}")))?;
            for doorbell in &transport.doorbells {
                doorbell.write(1)?;
            }
        }
        transport.interrupt.restore(state.interrupt_status, state.config_generation);
        Ok(transport)
    }

    /// What a snapshot must keep. No vCPU may run meanwhile.
    pub fn state(&self) -> MmioState {
        let queues = match self.device.activation() {
            Some(activation) => activation.queues.iter().map(Virtqueue::state).collect(),
            None => self.queues.clone(),
        };
        MmioState {
            status: self.status,
            device_features_selector: self.device_features_selector,
            driver_features_selector: self.driver_features_selector,
            driver_features: self.driver_features,
            queue_selector: self.queue_selector,
            queues,
            interrupt_status: self.interrupt.status(),
            config_generation: self.interrupt.generation(),
            device: self.device.state(),
        }
    }

    /// Which device it is.
    pub fn kind(&self) -> DeviceKind {
        self.device.kind()
    }

    /// The device itself if it is a `D`, for what only its kind can do: a balloon's target, a new vsock stream.
    pub fn device_as<D: VirtioDevice>(&mut self) -> Option<&mut D> {
        let device: &mut dyn Any = &mut *self.device;
        device.downcast_mut()
    }

    /// The doorbell of each queue: KVM signals the descriptor when the guest writes the queue's number, 32 bits, to
    /// [`QUEUE_NOTIFY`]; the event loop answers with [`MmioTransport::notify`].
    pub fn doorbells(&self) -> &[Arc<EventFd>] {
        &self.doorbells
    }

    /// What to register with KVM as the device's irqfd.
    pub fn interrupt_line(&self) -> &EventFd {
        self.interrupt.line()
    }

    /// The descriptor the event loop must watch (level-triggered) to know when to call [`MmioTransport::poll`].
    pub fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.device.poll_fd()
    }

    /// The doorbell of `queue` rang. The event loop has read the descriptor before, so that no ring is lost.
    pub fn notify(&mut self, queue: u16) {
        if self.is_running() {
            let outcome = self.device.notify(queue);
            self.settle(outcome);
        }
    }

    /// The device's descriptor is readable.
    pub fn poll(&mut self) {
        let outcome = self.device.poll();
        self.settle(outcome);
    }

    /// The guest reads at `offset` in the window. What is no register reads as zero.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset >= CONFIG {
            return self.device.read_config(offset - CONFIG, data);
        }
        data.fill(0);
        if let Ok(register) = <&mut [u8; 4]>::try_from(data) {
            *register = self.read_register(offset as u32).to_le_bytes();
        }
    }

    /// The guest writes at `offset` in the window. What is no writable register, or not writable now, is ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= CONFIG {
            if self.status & STATUS_DRIVER != 0 && self.status & STATUS_NEEDS_RESET == 0 {
                self.device.write_config(offset - CONFIG, data);
            }
        } else if let Ok(register) = <[u8; 4]>::try_from(data) {
            self.write_register(offset as u32, u32::from_le_bytes(register));
        }
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => 2,
            VIRTIO_MMIO_DEVICE_ID => self.device.kind() as u32,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered_features(), self.device_features_selector),
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.queue_max_size().into(),
            VIRTIO_MMIO_QUEUE_READY => self.selected_queue().is_some_and(|queue| queue.ready).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            VIRTIO_MMIO_STATUS => self.status,
            VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.generation(),
            // There is no shared memory region.
            VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_selector = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_selector = value,
            VIRTIO_MMIO_DRIVER_FEATURES if self.status & (STATUS_DRIVER | STATUS_FEATURES_OK) == STATUS_DRIVER => {
                set_half(&mut self.driver_features, self.driver_features_selector, value);
            }
            VIRTIO_MMIO_QUEUE_SEL => self.queue_selector = value,
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                // Reached only where KVM has no ioeventfd for it: the work is the event loop's all the same.
                if let Some(doorbell) = self.doorbells.get(value as usize) {
                    let _ = doorbell.write(1);
                }
            }
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.write_status(value),
            _ => self.write_queue_register(offset, value),
        }
    }

    fn write_queue_register(&mut self, offset: u32, value: u32) {
        let configurable =
            self.status & (STATUS_FEATURES_OK | STATUS_DRIVER_OK | STATUS_NEEDS_RESET) == STATUS_FEATURES_OK;
        let max_size = self.queue_max_size();
        let Some(queue) = self.queues.get_mut(self.queue_selector as usize).filter(|_| configurable) else { return };
        match offset {
            VIRTIO_MMIO_QUEUE_READY => queue.ready = value == 1,
            // A queue that is in use does not move.
            _ if queue.ready => {}
            VIRTIO_MMIO_QUEUE_NUM => {
                if let Ok(size) = u16::try_from(value)
                    && size.is_power_of_two()
                    && size <= max_size
                {
                    queue.size = size;
                }
            }
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_half(&mut queue.descriptors, 0, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_half(&mut queue.descriptors, 1, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_half(&mut queue.available, 0, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_half(&mut queue.available, 1, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_half(&mut queue.used, 0, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_half(&mut queue.used, 1, value),
            _ => {}
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        // The driver adds bits, it never takes one away (section 2.1.1); NEEDS_RESET is the device's.
        let mut added = value & !self.status & !STATUS_NEEDS_RESET & 0xff;
        if added & STATUS_FEATURES_OK != 0 && !self.features_acceptable() {
            added &= !STATUS_FEATURES_OK;
        }
        if added & STATUS_DRIVER_OK != 0
            && (self.status | added) & (STATUS_FEATURES_OK | STATUS_FAILED | STATUS_NEEDS_RESET) != STATUS_FEATURES_OK
        {
            added &= !STATUS_DRIVER_OK;
        }
        self.status |= added;
        if added & STATUS_DRIVER_OK != 0 {
            let outcome = self.activate();
            self.settle(outcome);
        }
    }

    fn activate(&mut self) -> Result<(), DeviceError> {
        let event_index = self.driver_features & FEATURE_EVENT_INDEX != 0;
        let sizes = self.device.queue_sizes();
        let queues =
            self.queues.iter().zip(sizes).zip(&self.doorbells).enumerate().map(|(index, ((state, size), bell))| {
                Virtqueue::new(state, *size, event_index, &self.memory, bell.clone())
                    .map_err(|error| DeviceError::Queue { index: index as u16, error })
            });
        let queues = queues.collect::<Result<_, _>>()?;
        self.device.activate(Activation {
            memory: self.memory.clone(),
            queues,
            interrupt: self.interrupt.clone(),
            features: self.driver_features,
        })
    }

    /// The one place where a device ends: it is reset at once, so that it touches nothing any more, and tells the guest.
    fn settle(&mut self, outcome: Result<(), DeviceError>) {
        let Err(error) = outcome else { return };
        tracing::warn!(device = ?self.device.kind(), %error, "the device stopped; the guest must reset it");
        self.device.reset();
        self.status |= STATUS_NEEDS_RESET;
        self.interrupt.signal_config();
    }

    fn reset(&mut self) {
        self.device.reset();
        self.interrupt.acknowledge(u32::MAX);
        self.clear_registers();
    }

    fn clear_registers(&mut self) {
        let sizes = self.device.queue_sizes().iter();
        self.queues = sizes.map(|&size| VirtqueueState { size, ..VirtqueueState::default() }).collect();
        self.status = 0;
        self.device_features_selector = 0;
        self.driver_features_selector = 0;
        self.driver_features = 0;
        self.queue_selector = 0;
    }

    fn offered_features(&self) -> u64 {
        self.device.features() | FEATURE_VERSION_1 | FEATURE_EVENT_INDEX | FEATURE_INDIRECT
    }

    fn features_acceptable(&self) -> bool {
        self.driver_features & FEATURE_VERSION_1 != 0 && self.driver_features & !self.offered_features() == 0
    }

    fn is_running(&self) -> bool {
        self.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET) == STATUS_DRIVER_OK
    }

    fn selected_queue(&self) -> Option<&VirtqueueState> {
        self.queues.get(self.queue_selector as usize)
    }

    fn queue_max_size(&self) -> u16 {
        self.device.queue_sizes().get(self.queue_selector as usize).copied().unwrap_or(0)
    }
}

/// The low (0) or high (1) word of `value`; there is no other.
fn half(value: u64, selector: u32) -> u32 {
    match selector {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, selector: u32, half: u32) {
    match selector {
        0 => *value = *value & !0xffff_ffff | u64::from(half),
        1 => *value = *value & 0xffff_ffff | u64::from(half) << 32,
        _ => {}
    }
}
