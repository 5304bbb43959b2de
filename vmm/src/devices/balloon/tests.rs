//! The device against a well-behaved and an ill-behaved driver.

use super::{Balloon, BalloonConfig};
use crate::devices::testing::{Bytes, ill_behaved};

/// Drives the device as `data` says; the fuzz target's body.
pub fn fuzz(data: &[u8]) {
    let balloon = Balloon::new(BalloonConfig { target_pages: 9, deflate_on_oom: data.len().is_multiple_of(2) });
    ill_behaved(Box::new(balloon), data, header);
}

/// Page numbers, many of them memory, or statistics.
fn header(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut content = Vec::new();
    for _ in 0..bytes.byte() % 40 {
        match bytes.byte() % 4 {
            0 => content.extend((bytes.number(4) as u32).to_le_bytes()),
            1 => content.extend([bytes.byte() % 12, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
            _ => content.extend(u32::from(bytes.byte()).to_le_bytes()),
        }
    }
    content
}

#[cfg(test)]
mod function {
    use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

    use super::*;
    use crate::devices::DeviceState;
    use crate::devices::testing::{Driver, HIGH_BASE, LOW_SIZE};

    const PAGE: u64 = 4096;

    fn started() -> Driver {
        Driver::start(Balloon::new(BalloonConfig { target_pages: 100, deflate_on_oom: true }), u64::MAX)
    }

    /// Writes to every page of low memory above the first buffers, so that the host has to hold them.
    fn touch(driver: &Driver) {
        for page in 20..LOW_SIZE as u64 / PAGE {
            driver.memory().write_obj(page, GuestAddress(page * PAGE)).unwrap();
        }
    }

    /// Whether the host holds the page at `address`.
    fn is_resident(driver: &Driver, address: u64) -> bool {
        let slice = driver.memory().get_slices(GuestAddress(address), PAGE as usize, Permissions::Read).unwrap();
        let slice = slice.last().unwrap().unwrap();
        let mut resident = 0u8;
        // SAFETY: one page of a mapping, and one byte for the answer.
        let outcome = unsafe { libc::mincore(slice.ptr_guard_mut().as_ptr().cast(), PAGE as usize, &raw mut resident) };
        assert_eq!(outcome, 0);
        resident & 1 != 0
    }

    fn numbers(pages: &[u32]) -> Vec<u8> {
        pages.iter().flat_map(|page| page.to_le_bytes()).collect()
    }

    #[test]
    fn pages_in_the_balloon_are_the_hosts_again() {
        let mut driver = started();
        touch(&driver);
        assert!(is_resident(&driver, 30 * PAGE));
        driver.request(0, &[&numbers(&[30, 31, 32, 40, 39, 50])], &[]);
        for (page, resident) in [(29, true), (30, false), (31, false), (32, false), (33, true), (38, true), (39, false)]
        {
            assert_eq!(is_resident(&driver, page * PAGE), resident, "page {page}");
        }
        assert!(!is_resident(&driver, 40 * PAGE) && !is_resident(&driver, 50 * PAGE));
        driver.request(1, &[&numbers(&[30])], &[]);
        assert_eq!(driver.memory().read_obj::<u64>(GuestAddress(30 * PAGE)).unwrap(), 0);
        driver.memory().write_obj(1u64, GuestAddress(30 * PAGE)).unwrap();
        assert!(is_resident(&driver, 30 * PAGE));
    }

    #[test]
    fn pages_that_are_no_memory_are_ignored() {
        let mut driver = started();
        let hole = (LOW_SIZE as u64 / PAGE) as u32;
        driver.request(0, &[&numbers(&[hole, hole - 1, u32::MAX, (HIGH_BASE / PAGE) as u32 - 1])], &[]);
        driver.request(0, &[b"odd"], &[]);
        assert_eq!(driver.status(), 15);
        assert!(driver.guest.is_intact());
    }

    #[test]
    fn the_target_is_told_and_the_answer_kept() {
        let mut driver = started();
        assert_eq!(driver.read_config(0), [100, 0, 0, 0]);
        driver.transport.device_as::<Balloon>().unwrap().set_target(200);
        assert_eq!(driver.interrupts(), 2);
        assert_eq!(driver.read_config(0), [200, 0, 0, 0]);
        driver.write_register(0x104, 150);
        assert_eq!(driver.transport.device_as::<Balloon>().unwrap().pages(), (200, 150));
    }

    #[test]
    fn statistics_are_asked_for_and_answered() {
        let mut driver = started();
        let entries = |free: u64| {
            let entry = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
            [entry(4, free), entry(99, 1), entry(5, 1 << 20)].concat()
        };
        assert!(!driver.transport.device_as::<Balloon>().unwrap().request_statistics().unwrap());
        let head = driver.submit(2, &[&entries(7)], &[]);
        driver.kick(2);
        assert_eq!(driver.used(2), None, "the chain is kept for the next request");
        let balloon = driver.transport.device_as::<Balloon>().unwrap();
        assert_eq!(balloon.statistics().free_memory, Some(7));
        assert_eq!(balloon.statistics().total_memory, Some(1 << 20));
        assert!(balloon.request_statistics().unwrap());
        assert!(!balloon.request_statistics().unwrap());
        assert_eq!(driver.used(2).unwrap().0, head);
        driver.submit(2, &[&entries(8)], &[]);
        driver.kick(2);
        assert_eq!(driver.transport.device_as::<Balloon>().unwrap().statistics().free_memory, Some(8));
    }

    #[test]
    fn free_pages_are_reported() {
        for (features, queue) in [(u64::MAX, 3), (1 << 5, 2)] {
            let mut driver = Driver::start(Balloon::new(BalloonConfig::default()), features);
            touch(&driver);
            driver.set_descriptor(queue, 0, 30 * PAGE, 4 * PAGE as u32, 2, 0);
            driver.offer(queue, 0);
            driver.kick(queue);
            assert!(driver.used(queue).is_some());
            for page in 29..35 {
                assert_eq!(is_resident(&driver, page * PAGE), !(30..34).contains(&page), "page {page}");
            }
        }
    }

    #[test]
    fn a_part_of_a_page_stays() {
        let mut driver = started();
        touch(&driver);
        driver.set_descriptor(3, 0, 30 * PAGE + 8, 2 * PAGE as u32 - 16, 2, 0);
        driver.offer(3, 0);
        driver.kick(3);
        assert!(is_resident(&driver, 30 * PAGE) && is_resident(&driver, 31 * PAGE));
    }

    #[test]
    fn goes_on_after_restore() {
        let mut driver = started();
        driver.write_register(0x104, 42);
        let head = driver.submit(2, &[&[4, 0, 9, 0, 0, 0, 0, 0, 0, 0]], &[]);
        driver.kick(2);
        let mut driver = driver.migrate(|state| {
            let DeviceState::Balloon(state) = state else { panic!("{state:?}") };
            Box::new(Balloon::restore(state))
        });
        let balloon = driver.transport.device_as::<Balloon>().unwrap();
        assert_eq!(balloon.pages(), (100, 42));
        assert_eq!(balloon.statistics().free_memory, Some(9));
        assert!(balloon.request_statistics().unwrap());
        assert_eq!(driver.used(2).unwrap().0, head);
    }
}
