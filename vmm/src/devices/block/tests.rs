//! The device against a well-behaved and an ill-behaved driver.

use std::fs::File;

use super::{Block, BlockConfig};
use crate::devices::rate::RateLimit;
use crate::devices::testing::{Bytes, ill_behaved};

/// A disk of `sectors` sectors in memory.
fn memfd(sectors: u64) -> File {
    let file = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd"));
    file.set_len(sectors * 512).expect("memory");
    file
}

fn config(file: File) -> BlockConfig {
    BlockConfig { file, read_only: false, serial: "root".to_owned(), rate: RateLimit::default() }
}

/// Drives the device as `data` says; the fuzz target's body.
///
/// # Panics
/// Where the device misbehaves.
pub fn fuzz(data: &[u8]) {
    let file = memfd(64);
    let length = file.metadata().expect("memfd").len();
    let handle = file.try_clone().expect("descriptor");
    let device = Block::new(BlockConfig { read_only: data.len() % 4 == 3, ..config(file) }).expect("block");
    ill_behaved(Box::new(device), data, header);
    assert_eq!(handle.metadata().expect("memfd").len(), length, "the disk changed its size");
}

/// A request's header, and a segment of a discard behind it.
fn header(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let kind = [0, 1, 4, 8, 11, 13, 0, 1, 2][usize::from(bytes.byte()) % 9];
    let sector = if bytes.byte() < 200 { bytes.number(1) % 80 } else { bytes.number(8) };
    let mut header = [u64::from(kind as u32), sector].map(u64::to_le_bytes).concat();
    if kind > 8 && bytes.byte() < 200 {
        header.extend(bytes.number(1).to_le_bytes());
        header.extend((bytes.number(1) | u64::from(bytes.byte() & 3) << 32).to_le_bytes());
    }
    header
}

#[cfg(test)]
mod function {
    use std::io::Read;
    use std::num::NonZeroU64;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::time::Instant;

    use super::*;
    use crate::devices::DeviceState;
    use crate::devices::rate::Rate;
    use crate::devices::testing::Driver;

    const OK: u8 = 0;
    const IO_ERROR: u8 = 1;
    const UNSUPPORTED: u8 = 2;

    fn head(kind: u32, sector: u64) -> Vec<u8> {
        [u64::from(kind), sector].map(u64::to_le_bytes).concat()
    }

    fn start(config: BlockConfig) -> Driver {
        Driver::start(Block::new(config).unwrap(), u64::MAX)
    }

    /// Makes a request and returns the whole writable part: data, then status.
    fn ask(driver: &mut Driver, readable: &[&[u8]], writable: &[usize]) -> Vec<u8> {
        let head = driver.submit(0, readable, writable);
        driver.kick(0);
        assert_eq!(driver.used(0).unwrap().0, head);
        driver.room(head)
    }

    #[test]
    fn writes_and_reads_back_over_scattered_buffers() {
        let file = memfd(64);
        let mut driver = start(config(file.try_clone().unwrap()));
        assert_eq!(u64::from_le_bytes(driver.read_config(0)), 64);
        let data: Vec<u8> = (0..1536u32).map(|i| i as u8 ^ (i >> 8) as u8).collect();
        assert_eq!(driver.request(0, &[&head(1, 5), &data[..100], &data[100..]], &[1]), [OK]);
        let mut stored = [0; 1536];
        file.read_exact_at(&mut stored, 5 * 512).unwrap();
        assert_eq!(stored[..], data);
        // Header split in two, status in one buffer with the data: any framing is legal (section 2.7.4.1).
        let header = head(0, 5);
        let answer = driver.request(0, &[&header[..7], &header[7..]], &[1000, 537]);
        assert_eq!(answer[..1536], data);
        assert_eq!(answer[1536..], [OK]);
    }

    #[test]
    fn flushes_and_tells_its_serial() {
        let mut driver = start(config(memfd(8)));
        assert_eq!(driver.request(0, &[&head(4, 0)], &[1]), [OK]);
        let answer = driver.request(0, &[&head(8, 0)], &[20, 1]);
        assert_eq!(&answer, b"root\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn refuses_what_the_disk_does_not_have() {
        let mut driver = start(config(memfd(8)));
        let sector = [7; 512];
        for (request, status) in [
            (head(1, 8), IO_ERROR),
            (head(1, u64::MAX), IO_ERROR),
            (head(1, 1 << 60), IO_ERROR),
            (head(99, 0), UNSUPPORTED),
        ] {
            assert_eq!(ask(&mut driver, &[&request, &sector], &[1]), [status], "{request:?}");
        }
        assert_eq!(ask(&mut driver, &[&head(1, 7), &sector, &sector], &[1]), [IO_ERROR], "one sector too many");
        assert_eq!(ask(&mut driver, &[&head(1, 0), &sector[..511]], &[1]), [IO_ERROR], "no whole sector");
        assert_eq!(ask(&mut driver, &[&head(0, 8)], &[512, 1])[512], IO_ERROR);
        assert_eq!(driver.status(), 15, "none of this ends the device");
    }

    #[test]
    fn a_request_without_header_or_status_is_given_back() {
        let mut driver = start(config(memfd(8)));
        assert!(ask(&mut driver, &[&head(0, 0)], &[]).is_empty());
        assert_eq!(ask(&mut driver, &[b"short"], &[1]), [0]);
        assert_eq!(ask(&mut driver, &[], &[1]), [0]);
    }

    #[test]
    fn a_read_only_disk_stays_as_it_is() {
        let file = memfd(8);
        let mut driver = start(BlockConfig { read_only: true, ..config(file.try_clone().unwrap()) });
        assert_eq!(driver.offered_features() & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
        assert_eq!(ask(&mut driver, &[&head(1, 0), &[1; 512]], &[1]), [IO_ERROR]);
        let segment = [0, 1u64].map(u64::to_le_bytes).concat();
        for kind in [11, 13] {
            assert_eq!(ask(&mut driver, &[&head(kind, 0), &segment], &[1]), [IO_ERROR]);
        }
        let mut content = Vec::new();
        (&file).read_to_end(&mut content).unwrap();
        assert!(content.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn discards_and_zeroes_give_memory_back() {
        let file = memfd(64);
        file.write_all_at(&vec![1; 64 * 512], 0).unwrap();
        let before = file.metadata().unwrap().blocks();
        let mut driver = start(config(file.try_clone().unwrap()));
        let segment =
            |sector: u64, count: u64, flags: u64| [sector, count | flags << 32].map(u64::to_le_bytes).concat();
        assert_eq!(ask(&mut driver, &[&head(11, 0), &segment(0, 16, 0)], &[1]), [OK]);
        assert_eq!(ask(&mut driver, &[&head(13, 0), &segment(16, 3, 0)], &[1]), [OK]);
        assert_eq!(ask(&mut driver, &[&head(13, 0), &segment(32, 8, 1)], &[1]), [OK]);
        let mut content = vec![0; 64 * 512];
        file.read_exact_at(&mut content, 0).unwrap();
        for (sector, bytes) in content.chunks(512).enumerate() {
            let cleared = matches!(sector, 0..19 | 32..40);
            assert!(bytes.iter().all(|&byte| byte == u8::from(!cleared)), "sector {sector}");
        }
        assert!(file.metadata().unwrap().blocks() < before);
        for (segment, status) in [
            (segment(0, 1, 2), UNSUPPORTED),
            (segment(0, 1, 1), UNSUPPORTED),
            (segment(60, 5, 0), IO_ERROR),
            (segment(u64::MAX, 2, 0), IO_ERROR),
            (vec![0; 15], IO_ERROR),
            (vec![0; 32], IO_ERROR),
        ] {
            assert_eq!(ask(&mut driver, &[&head(11, 0), &segment], &[1]), [status], "{segment:?}");
        }
    }

    #[test]
    fn a_disk_that_vanishes_is_an_io_error() {
        let file = memfd(8);
        let mut driver = start(config(file.try_clone().unwrap()));
        file.set_len(512).unwrap();
        assert_eq!(ask(&mut driver, &[&head(0, 0)], &[512, 1])[512], OK);
        assert_eq!(ask(&mut driver, &[&head(0, 1)], &[512, 1])[512], IO_ERROR);
        assert_eq!(ask(&mut driver, &[&head(0, 0)], &[1024, 1])[1024], IO_ERROR);
        assert_eq!(driver.status(), 15);
    }

    #[test]
    fn a_disk_that_is_full_is_an_io_error() {
        // Every write to it fails with ENOSPC.
        let full = std::fs::OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
        let mut device = Block::new(config(full)).unwrap();
        device.disk.sectors = 8;
        let mut driver = Driver::start(device, u64::MAX);
        assert_eq!(ask(&mut driver, &[&head(1, 0), &[1; 512]], &[1]), [IO_ERROR]);
    }

    #[test]
    fn operations_are_limited() {
        let rate = Rate { per_second: NonZeroU64::new(50).unwrap(), burst: NonZeroU64::new(2).unwrap() };
        let limit = RateLimit { bytes: None, operations: Some(rate) };
        let mut driver = start(BlockConfig { rate: limit, ..config(memfd(8)) });
        let begun = Instant::now();
        for _ in 0..7 {
            driver.submit(0, &[&head(0, 0)], &[513]);
        }
        driver.write_register(0x50, 0);
        for _ in 0..7 {
            driver.wait_for(|driver| driver.used(0));
        }
        // Two at once, five more at 20 ms each.
        assert!(begun.elapsed().as_millis() >= 100, "{:?}", begun.elapsed());
    }

    #[test]
    fn goes_on_after_restore() {
        let file = memfd(8);
        let mut driver = start(config(file.try_clone().unwrap()));
        driver.request(0, &[&head(1, 3), &[9; 512]], &[1]);
        let mut driver = driver.migrate(|state| {
            let DeviceState::Block(state) = state else { panic!("{state:?}") };
            assert!(Block::restore(config(memfd(9)), state).is_err(), "another disk");
            Box::new(Block::restore(config(file.try_clone().unwrap()), state).unwrap())
        });
        assert_eq!(driver.request(0, &[&head(0, 3)], &[512, 1])[..512], [9; 512]);
    }
}
