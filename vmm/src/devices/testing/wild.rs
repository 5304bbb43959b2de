//! A driver that follows no rule: bytes, from a fuzzer or a property test, decide what it does.

use std::time::Duration;

use vm_memory::{Bytes as _, GuestAddress};

use super::driver::{DATA, Driver, RING_SIZE};
use super::memory::{HIGH_BASE, HIGH_SIZE, LOW_SIZE};
use crate::devices::VirtioDevice;

const NEEDS_RESET: u32 = 64;

/// What the fuzzer gives, taken from the front; endless zeros follow.
pub struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    /// Decisions from `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether anything is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    /// Up to eight bytes as a number.
    pub fn number(&mut self, bytes: u32) -> u64 {
        (0..bytes).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    /// A length: mostly plausible.
    pub fn length(&mut self) -> u32 {
        let byte = self.byte();
        match byte % 8 {
            0 => 0,
            1 => byte.into(),
            2 => 1,
            3 => 16,
            4 => 512 * u32::from(byte),
            5 => 44,
            6 => 4096,
            _ => self.number(4) as u32,
        }
    }

    /// A guest physical address: mostly one of a few buffers, often at the edge of memory, sometimes anything.
    pub fn address(&mut self) -> u64 {
        let byte = self.byte();
        match byte % 8 {
            0..4 => DATA + u64::from(byte / 8) * 0x400,
            4 => LOW_SIZE as u64 - u64::from(byte),
            5 => HIGH_BASE + HIGH_SIZE as u64 - u64::from(byte),
            6 => HIGH_BASE - u64::from(byte / 8),
            _ => self.number(8),
        }
    }
}

/// Drives `device` as `data` says. `header` writes what the device takes for the beginning of a request, plausible
/// enough to get past its first checks.
///
/// # Panics
/// Where the device writes outside guest memory, claims to have written more than it was given room for, or panics itself.
pub fn ill_behaved(device: Box<dyn VirtioDevice>, data: &[u8], mut header: impl FnMut(&mut Bytes<'_>) -> Vec<u8>) {
    let mut bytes = Bytes::new(data);
    let queues = device.queue_sizes().len();
    let mut driver = Driver::new(device);
    driver.initialise(bytes.number(8));
    while !bytes.is_empty() {
        // A device that has stopped does nothing more: start it again, though not always.
        if driver.status() & NEEDS_RESET != 0 && bytes.byte() & 3 != 0 {
            driver.initialise(bytes.number(8));
        }
        let action = bytes.byte();
        let queue = usize::from(action / 16) % queues;
        match action % 16 {
            0..4 => {
                let (index, flags, next) = (bytes.byte().into(), bytes.byte().into(), bytes.byte() % 20);
                driver.set_descriptor(queue, index, bytes.address(), bytes.length(), flags, next.into());
            }
            4..6 => well_formed(&mut driver, &mut bytes, queue, &mut header),
            6 => driver.offer(queue, (bytes.byte() % 20).into()),
            7 => driver.set_available_index(queue, bytes.number(2) as u16),
            8 => {
                let content = header(&mut bytes);
                // Most addresses are no guest memory; then nothing is written.
                let _ = driver.memory().write_slice(&content, GuestAddress(bytes.address()));
            }
            9 => drop(driver.memory().write_obj(bytes.number(8), GuestAddress(bytes.address()))),
            10 => driver.write_register(bytes.number(2) & 0x1ff, bytes.number(4) as u32),
            11 => {
                let mut answer = [0; 16];
                let length = usize::from(bytes.byte() % 17);
                driver.transport.read(bytes.number(2), &mut answer[..length]);
            }
            12 => {
                let length = usize::from(bytes.byte() % 9);
                driver.transport.write(0x100 + bytes.number(1), &bytes.number(8).to_le_bytes()[..length]);
            }
            13 => driver.initialise(bytes.number(8)),
            14 => drop(driver.transport.state()),
            _ => driver.write_register(0x50, queue as u32),
        }
        // Some work may remain: a device that is busy must not keep the test from going on.
        for _ in 0..4 {
            if !driver.turn(Duration::ZERO) {
                break;
            }
        }
    }
    assert!(driver.guest.is_intact(), "the device wrote outside guest memory");
}

/// A chain as it should be, so that the device gets beyond parsing it.
fn well_formed(
    driver: &mut Driver,
    bytes: &mut Bytes<'_>,
    queue: usize,
    header: &mut impl FnMut(&mut Bytes<'_>) -> Vec<u8>,
) {
    let content = header(bytes);
    let shape = bytes.byte();
    let mut readable: Vec<&[u8]> = if shape & 1 == 0 { vec![&content] } else { Vec::new() };
    let payload = vec![bytes.byte(); usize::from(bytes.byte()) * 32];
    readable.extend((shape & 2 != 0).then_some(&payload[..]));
    let writable = [bytes.length() as usize % 0x4000, 1];
    driver.submit(queue, &readable, &writable[..usize::from(shape >> 2) % 3]);
    if shape & 0x80 != 0 {
        driver.write_register(0x50, queue as u32);
    }
    debug_assert!(readable.len() + writable.len() < usize::from(RING_SIZE));
}
