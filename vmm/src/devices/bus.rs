//! The bus: which device answers at an address, for ports and for memory alike.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What a vCPU's access to a device's range of ports or memory does.
///
/// `offset` is relative to the range and `offset + data.len()` never exceeds it. The guest chooses both at will, and the
/// length may be any from 1 to 8: what a string instruction does comes as single accesses.
pub trait BusDevice: Send {
    /// Fills `data`; what a device does not define reads as zero.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes `data`; what a device does not define is ignored.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A range is empty, beyond the address space, or taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the range of {length:#x} at {base:#x} is empty, wraps, or overlaps another device's")]
pub struct Overlap {
    /// First address of the refused range.
    pub base: u64,
    /// Its length.
    pub length: u64,
}

/// Ranges of addresses with a device behind each. vCPU threads share it unchanged; each device has a lock of its own.
#[derive(Default)]
pub struct Bus {
    ranges: BTreeMap<u64, (u64, Arc<Mutex<dyn BusDevice>>)>,
}

impl Bus {
    /// Puts `device` behind the `length` addresses from `base` on.
    pub fn insert(&mut self, base: u64, length: u64, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), Overlap> {
        let refused = Overlap { base, length };
        let end = base.checked_add(length).filter(|_| length > 0).ok_or(refused)?;
        if let Some((start, (taken, _))) = self.ranges.range(..end).next_back()
            && start + taken > base
        {
            return Err(refused);
        }
        self.ranges.insert(base, (length, device));
        Ok(())
    }

    /// Reads `data.len()` bytes at `address`; `false`, and all ones as from an empty bus, if nothing is there.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
            true
        } else {
            data.fill(0xff);
            false
        }
    }

    /// Writes `data` at `address`; `false` if nothing is there.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let found = self.find(address, data.len());
        if let Some((offset, device)) = found {
            device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        }
        found.is_some()
    }

    fn find(&self, address: u64, length: usize) -> Option<(u64, &Mutex<dyn BusDevice>)> {
        let (base, (size, device)) = self.ranges.range(..=address).next_back()?;
        let offset = address - base;
        let end = offset.checked_add(length as u64)?;
        (end <= *size).then_some((offset, device.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    #[test]
    fn an_access_reaches_the_device_it_lies_in() {
        let (mut bus, device) = (Bus::default(), Arc::new(Mutex::new(Recorder::default())));
        bus.insert(0x1000, 0x10, device.clone()).unwrap();
        let mut data = [0; 2];
        assert!(bus.read(0x100e, &mut data));
        assert_eq!(data, [0xe, 0xe]);
        assert!(bus.write(0x1004, &[7]));
        assert_eq!(device.lock().unwrap().0, [(4, vec![7])]);
    }

    #[test]
    fn what_is_not_wholly_inside_reaches_nobody() {
        let mut bus = Bus::default();
        bus.insert(0x1000, 0x10, Arc::new(Mutex::new(Recorder::default()))).unwrap();
        let mut data = [0; 2];
        for address in [0, 0xfff, 0x100f, 0x1010, u64::MAX] {
            assert!(!bus.read(address, &mut data), "{address:#x}");
            assert_eq!(data, [0xff, 0xff]);
            assert!(!bus.write(address, &data));
        }
    }

    #[test]
    fn ranges_do_not_overlap() {
        let mut bus = Bus::default();
        let device = || Arc::new(Mutex::new(Recorder::default()));
        bus.insert(0x1000, 0x10, device()).unwrap();
        for (base, length) in [(0x1000, 1), (0xfff, 2), (0x100f, 1), (0, 0x10000), (0x2000, 0), (u64::MAX, 2)] {
            assert_eq!(bus.insert(base, length, device()), Err(Overlap { base, length }));
        }
        bus.insert(0x1010, 1, device()).unwrap();
        bus.insert(0xfff, 1, device()).unwrap();
    }
}
