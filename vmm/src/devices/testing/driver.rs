//! A small driver: does by hand what a guest's kernel does, through the registers and the rings.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::memory::GuardedMemory;
use crate::devices::mmio::MmioTransport;
use crate::devices::virtqueue::VirtqueueState;
use crate::devices::{Memory, VirtioDevice};

/// Descriptors in each of the driver's queues.
pub const RING_SIZE: u16 = 16;
/// Where the driver's buffers begin; the rings lie below.
pub const DATA: u64 = 0x1_0000;

const RING_AREA: u64 = 0x1000;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const DATA_END: u64 = super::LOW_SIZE as u64;
const WRITABLE: u16 = 2;
const NEXT: u16 = 1;

#[derive(Debug, Default)]
struct Ring {
    next_descriptor: u16,
    submitted: u16,
    taken: u16,
    /// For each chain's head: where its writable buffers are.
    answers: Vec<(u16, Vec<(u64, u32)>)>,
}

/// A device with its driver. The transport is declared first: it must go before the memory.
pub struct Driver {
    /// The device under test.
    pub transport: MmioTransport,
    /// The guest's memory.
    pub guest: GuardedMemory,
    rings: Vec<Ring>,
    next_data: u64,
}

#[allow(missing_docs, reason = "test support; names are the standard's")]
#[allow(clippy::missing_panics_doc, reason = "a failed expectation is a failed test")]
impl Driver {
    /// The device, reset, and memory nothing is in.
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let guest = GuardedMemory::new();
        let rings = device.queue_sizes().iter().map(|_| Ring::default()).collect();
        let transport = MmioTransport::new(device, guest.memory.clone()).unwrap();
        Self { transport, guest, rings, next_data: DATA }
    }

    /// The device initialised with all the features of `wanted` that it offers.
    pub fn start(device: impl VirtioDevice + 'static, wanted: u64) -> Self {
        let mut driver = Self::new(Box::new(device));
        driver.initialise(wanted);
        driver
    }

    /// The steps of virtio 1.2 section 3.1.1.
    pub fn initialise(&mut self, wanted: u64) {
        self.write_register(0x70, 0);
        self.write_register(0x70, 1);
        self.write_register(0x70, 3);
        let accepted = self.offered_features() & (wanted | 1 << 32);
        for (selector, half) in [(0, accepted as u32), (1, (accepted >> 32) as u32)] {
            self.write_register(0x24, selector);
            self.write_register(0x20, half);
        }
        self.write_register(0x70, 11);
        assert_eq!(self.status(), 11, "the device refuses its own features");
        for index in 0..self.rings.len() as u32 {
            self.rings[index as usize] = Ring::default();
            let base = Self::ring_base(index as usize);
            self.memory().write_slice(&[0; RING_AREA as usize], GuestAddress(base)).unwrap();
            self.write_register(0x30, index);
            self.write_register(0x38, RING_SIZE.into());
            self.write_register(0x80, base as u32);
            self.write_register(0x90, (base + AVAILABLE) as u32);
            self.write_register(0xa0, (base + USED) as u32);
            self.write_register(0x44, 1);
        }
        self.write_register(0x70, 15);
        assert_eq!(self.status(), 15, "the device did not start");
    }

    pub fn offered_features(&mut self) -> u64 {
        self.write_register(0x14, 0);
        let low = self.read_register(0x10);
        self.write_register(0x14, 1);
        u64::from(low) | u64::from(self.read_register(0x10)) << 32
    }

    pub fn memory(&self) -> &Memory {
        &self.guest.memory
    }

    pub fn status(&mut self) -> u32 {
        self.read_register(0x70)
    }

    pub fn read_register(&mut self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub fn write_register(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    pub fn read_config<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.transport.read(0x100 + offset, &mut bytes);
        bytes
    }

    /// Interrupts since the last call, as the bits of `InterruptStatus`, acknowledged.
    pub fn interrupts(&mut self) -> u32 {
        let status = self.read_register(0x60);
        self.write_register(0x64, status);
        status
    }

    pub fn ring_base(queue: usize) -> u64 {
        RING_AREA * (queue as u64 + 1)
    }

    /// Writes one descriptor.
    pub fn set_descriptor(&self, queue: usize, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let at = Self::ring_base(queue) + u64::from(index % RING_SIZE) * 16;
        let memory = self.memory();
        memory.write_obj(address, GuestAddress(at)).unwrap();
        memory.write_obj(length, GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes the chain at `head` available without ringing.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let base = Self::ring_base(queue) + AVAILABLE;
        let ring = &mut self.rings[queue];
        let slot = u64::from(ring.submitted % RING_SIZE);
        ring.submitted = ring.submitted.wrapping_add(1);
        let submitted = ring.submitted;
        self.memory().write_obj(head, GuestAddress(base + 4 + slot * 2)).unwrap();
        self.set_available_index(queue, submitted);
    }

    pub fn set_available_index(&mut self, queue: usize, index: u16) {
        self.rings[queue].submitted = index;
        self.memory().write_obj(index, GuestAddress(Self::ring_base(queue) + AVAILABLE + 2)).unwrap();
    }

    /// Allocates guest memory for a buffer; old buffers are overwritten sooner or later.
    pub fn allocate(&mut self, length: usize) -> u64 {
        if self.next_data + length as u64 > DATA_END {
            self.next_data = DATA;
        }
        let address = self.next_data;
        self.next_data += length as u64;
        assert!(self.next_data <= DATA_END, "a buffer larger than the test's memory");
        address
    }

    /// Puts a chain into the ring: buffers with these contents, then room for answers of these lengths. Returns the
    /// head. Does not ring.
    pub fn submit(&mut self, queue: usize, readable: &[&[u8]], writable: &[usize]) -> u16 {
        let mut buffers = Vec::new();
        for data in readable {
            let address = self.allocate(data.len());
            self.memory().write_slice(data, GuestAddress(address)).unwrap();
            buffers.push((address, data.len() as u32, 0));
        }
        for &length in writable {
            buffers.push((self.allocate(length), length as u32, WRITABLE));
        }
        let head = self.rings[queue].next_descriptor % RING_SIZE;
        for (index, &(address, length, flags)) in (0u16..).zip(&buffers) {
            let last = usize::from(index) + 1 == buffers.len();
            let next = (head + index + 1) % RING_SIZE;
            let flags = if last { flags } else { flags | NEXT };
            self.set_descriptor(queue, (head + index) % RING_SIZE, address, length, flags, next);
        }
        let ring = &mut self.rings[queue];
        ring.next_descriptor = (head + buffers.len() as u16) % RING_SIZE;
        ring.answers.retain(|(other, _)| *other != head);
        let answers = buffers.iter().filter(|buffer| buffer.2 == WRITABLE).map(|buffer| (buffer.0, buffer.1));
        ring.answers.push((head, answers.collect()));
        self.offer(queue, head);
        head
    }

    /// Rings the doorbell and lets the event loop run until it has nothing to do.
    pub fn kick(&mut self, queue: usize) {
        self.write_register(0x50, queue as u32);
        self.run();
    }

    /// What the event loop does, until nothing is ready. A device that is still busy after many rounds is at fault.
    pub fn run(&mut self) {
        for _ in 0..10_000 {
            if !self.turn(Duration::ZERO) {
                return;
            }
        }
        panic!("the device never comes to rest");
    }

    /// One round of the event loop. Returns whether there was anything to do within `patience`.
    pub fn turn(&mut self, patience: Duration) -> bool {
        let mut descriptors: Vec<_> =
            self.transport.doorbells().iter().map(|doorbell| pollfd(doorbell.as_raw_fd())).collect();
        descriptors.extend(self.transport.poll_fd().map(|fd| pollfd(fd.as_raw_fd())));
        let milliseconds = libc::c_int::try_from(patience.as_millis()).unwrap();
        // SAFETY: the array is valid for its length.
        let ready = unsafe { libc::poll(descriptors.as_mut_ptr(), descriptors.len() as libc::nfds_t, milliseconds) };
        if ready <= 0 {
            return false;
        }
        for (index, _) in descriptors.iter().enumerate().filter(|(_, descriptor)| descriptor.revents != 0) {
            if let Some(doorbell) = self.transport.doorbells().get(index) {
                doorbell.read().unwrap();
                self.transport.notify(index as u16);
            } else {
                self.transport.poll();
            }
        }
        true
    }

    /// Runs the event loop until `done` gives an answer; fails the test after ten seconds.
    pub fn wait_for<T>(&mut self, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(result) = done(self) {
                return result;
            }
            assert!(Instant::now() < deadline, "the device does not do what is waited for");
            self.turn(Duration::from_millis(20));
        }
    }

    /// The next chain the device gave back: its head, and the bytes it says it wrote.
    pub fn used(&mut self, queue: usize) -> Option<(u16, Vec<u8>)> {
        let base = GuestAddress(Self::ring_base(queue) + USED);
        let memory = self.memory().clone();
        let index: u16 = memory.read_obj(GuestAddress(base.0 + 2)).unwrap();
        let ring = &mut self.rings[queue];
        if index == ring.taken {
            return None;
        }
        let slot = u64::from(ring.taken % RING_SIZE);
        ring.taken = ring.taken.wrapping_add(1);
        let element: [u32; 2] = memory.read_obj(GuestAddress(base.0 + 4 + slot * 8)).unwrap();
        let [head, mut left] = element;
        let answers = ring.answers.iter().find(|(other, _)| u32::from(*other) == head);
        let mut written = Vec::new();
        for &(address, length) in answers.map_or(&[][..], |(_, buffers)| buffers) {
            let mut bytes = vec![0; left.min(length) as usize];
            memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
            left -= bytes.len() as u32;
            written.extend(bytes);
        }
        assert_eq!(left, 0, "the device claims more bytes than the chain has");
        Some((head as u16, written))
    }

    /// All the writable bytes of the chain at `head`, whatever the device says of them.
    pub fn room(&self, head: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        for ring in &self.rings {
            let answers = ring.answers.iter().filter(|(other, _)| *other == head);
            for &(address, length) in answers.flat_map(|(_, buffers)| buffers) {
                let start = bytes.len();
                bytes.resize(start + length as usize, 0);
                self.memory().read_slice(&mut bytes[start..], GuestAddress(address)).unwrap();
            }
        }
        bytes
    }

    /// One request and its answer.
    pub fn request(&mut self, queue: usize, readable: &[&[u8]], writable: &[usize]) -> Vec<u8> {
        let head = self.submit(queue, readable, writable);
        self.write_register(0x50, queue as u32);
        let (answered, bytes) = self.wait_for(|driver| driver.used(queue));
        assert_eq!(answered, head);
        bytes
    }

    /// A second device, as restored by `restore`, goes on where this one is: same memory, same rings.
    #[must_use]
    pub fn migrate(self, restore: impl FnOnce(&crate::devices::DeviceState) -> Box<dyn VirtioDevice>) -> Self {
        let state = serde_json::to_string(&self.transport.state()).unwrap();
        let Self { transport, guest, rings, next_data } = self;
        drop(transport);
        let state: crate::devices::mmio::MmioState = serde_json::from_str(&state).unwrap();
        let transport = MmioTransport::restore(restore(&state.device), guest.memory.clone(), &state).unwrap();
        assert_eq!(transport.state(), state, "what was restored is not what was saved");
        Self { transport, guest, rings, next_data }
    }

    /// The registers of a queue.
    pub fn queue_state(&self, queue: usize) -> VirtqueueState {
        self.transport.state().queues[queue]
    }
}

fn pollfd(fd: libc::c_int) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}
