//! The transport's state machine and the queues' defences, with the simplest of devices behind them.

use crate::devices::rng::Rng;
use crate::devices::testing::{DATA, Driver, HIGH_BASE, HIGH_SIZE, LOW_SIZE};

const NEEDS_RESET: u32 = 64;

fn running() -> Driver {
    Driver::start(Rng::default(), u64::MAX)
}

#[test]
fn identifies_itself() {
    let mut driver = Driver::new(Box::new(Rng::default()));
    let identity = [0x0, 0x4, 0x8].map(|offset| driver.read_register(offset));
    assert_eq!(identity, [0x7472_6976, 2, 4]);
    assert_eq!(driver.read_register(0x34), 64, "QueueNumMax");
    driver.write_register(0x30, 1);
    assert_eq!(driver.read_register(0x34), 0, "there is no second queue");
    assert_eq!(driver.read_register(0xb0), u32::MAX, "there is no shared memory");
}

#[test]
fn registers_are_read_and_written_by_words_only() {
    let mut driver = Driver::new(Box::new(Rng::default()));
    let mut byte = [7];
    driver.transport.read(0, &mut byte);
    assert_eq!(byte, [0]);
    driver.transport.write(0x70, &[1]);
    assert_eq!(driver.status(), 0);
}

#[test]
fn refuses_features_it_did_not_offer() {
    let mut driver = Driver::new(Box::new(Rng::default()));
    for (selector, half, agreed) in [(1, 1, true), (1, 0, false), (0, 1, false), (1, 3, false)] {
        driver.write_register(0x70, 0);
        driver.write_register(0x70, 3);
        driver.write_register(0x24, 1);
        driver.write_register(0x20, 1);
        driver.write_register(0x24, selector);
        driver.write_register(0x20, half);
        driver.write_register(0x70, 11);
        assert_eq!(driver.status() == 11, agreed, "half {selector} is {half:#x}");
    }
}

#[test]
fn does_not_start_before_features_are_agreed() {
    let mut driver = Driver::new(Box::new(Rng::default()));
    driver.write_register(0x70, 7);
    assert_eq!(driver.status(), 3);
}

#[test]
fn status_bits_are_never_taken_away_but_by_reset() {
    let mut driver = running();
    driver.write_register(0x70, 1);
    assert_eq!(driver.status(), 15);
    driver.write_register(0x70, 0);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.read_register(0x44), 0, "no queue is ready after a reset");
}

#[test]
fn queues_stay_where_they_are_once_running() {
    let mut driver = running();
    let before = driver.queue_state(0);
    for offset in [0x38, 0x44, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4] {
        driver.write_register(offset, 4);
    }
    assert_eq!(driver.queue_state(0), before);
}

#[test]
fn rings_outside_memory_stop_the_device() {
    for (register, value) in [(0x84, 1), (0x94, 0xffff_ffff), (0xa0, HIGH_BASE as u32 - 64), (0x80, 8), (0xa0, 2)] {
        let mut driver = Driver::new(Box::new(Rng::default()));
        for (offset, value) in
            [(0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x80, 0x1000), (0x90, 0x2000), (0xa0, 0x3000)]
        {
            driver.write_register(offset, value);
        }
        driver.write_register(register, value);
        driver.write_register(0x44, 1);
        driver.write_register(0x70, 15);
        assert_eq!(driver.status(), 15 | NEEDS_RESET, "register {register:#x} = {value:#x}");
        assert_eq!(driver.interrupts(), 2, "the driver is told");
        driver.initialise(0);
        assert_eq!(driver.request(0, &[], &[8]).len(), 8, "a reset mends it");
    }
}

/// Descriptors as (address, length, flags, next); the chain begins at the first.
fn stops(descriptors: &[(u64, u32, u16, u16)]) {
    let mut driver = running();
    for (index, &(address, length, flags, next)) in (0u16..).zip(descriptors) {
        driver.set_descriptor(0, index, address, length, flags, next);
    }
    driver.offer(0, 0);
    driver.kick(0);
    assert_eq!(driver.status(), 15 | NEEDS_RESET, "{descriptors:x?}");
    assert_eq!(driver.used(0), None);
    assert!(driver.guest.is_intact());
    driver.initialise(0);
    assert_eq!(driver.request(0, &[], &[8]).len(), 8, "a reset mends it");
}

#[test]
fn broken_chains_stop_the_device() {
    stops(&[(DATA, 8, 3, 0)]); // loops
    stops(&[(DATA, 8, 3, 1), (DATA, 8, 3, 0)]); // loops by two
    stops(&[(DATA, 8, 3, 16)]); // leads outside the table
    stops(&[(DATA, 8, 3, 1), (DATA, 8, 0, 0)]); // readable after writable
    stops(&[(LOW_SIZE as u64 - 4, 8, 2, 0)]); // into the hole
    stops(&[(HIGH_BASE + HIGH_SIZE as u64 - 4, 8, 2, 0)]); // beyond the end
    stops(&[(u64::MAX, 2, 2, 0)]); // wraps
    stops(&[(DATA, u32::MAX, 2, 0)]); // longer than memory
    stops(&[(DATA, 24, 4, 0)]); // an indirect table that is no multiple of a descriptor
    stops(&[(HIGH_BASE - 64, 32, 4, 0)]); // an indirect table outside memory
    stops(&[(DATA, 0x10_0000, 4, 0)]); // an indirect table of 65,536 descriptors
}

#[test]
fn an_indirect_chain_is_no_longer_than_the_queue() {
    use vm_memory::{Bytes, GuestAddress};
    let mut driver = running();
    for index in 0..17u64 {
        let descriptor: [u64; 2] = [0x2_0000, 4 | 2 << 32 | u64::from(index < 16) << 32 | (index + 1) << 48];
        driver.memory().write_obj(descriptor, GuestAddress(DATA + index * 16)).unwrap();
    }
    driver.set_descriptor(0, 0, DATA + 16, 16 * 16, 4, 0);
    driver.set_descriptor(0, 1, DATA, 17 * 16, 4, 0);
    // Relative to the table, the sixteen descriptors from the second on lead outside of it: first mend their links.
    for index in 1..17u64 {
        let descriptor: [u64; 2] = [0x2_0000, 4 | 2 << 32 | u64::from(index < 16) << 32 | index << 48];
        driver.memory().write_obj(descriptor, GuestAddress(DATA + index * 16)).unwrap();
    }
    driver.offer(0, 0);
    driver.kick(0);
    assert_eq!(driver.status(), 15, "sixteen are the queue's size");
    let first: [u64; 2] = [0x2_0000, 4 | 3 << 32 | 1 << 48];
    driver.memory().write_obj(first, GuestAddress(DATA)).unwrap();
    driver.offer(0, 1);
    driver.kick(0);
    assert_eq!(driver.status(), 15 | NEEDS_RESET, "seventeen are too many");
}

#[test]
fn a_chain_may_straddle_nothing_but_memory() {
    let mut driver = running();
    driver.set_descriptor(0, 0, HIGH_BASE + HIGH_SIZE as u64 - 8, 8, 2, 0);
    driver.offer(0, 0);
    driver.kick(0);
    assert_eq!(driver.status(), 15);
    assert!(driver.guest.is_intact());
}

#[test]
fn wild_ring_indexes_stop_the_device() {
    let mut driver = running();
    driver.set_available_index(0, 1000);
    driver.kick(0);
    assert_eq!(driver.status(), 15 | NEEDS_RESET);
    let mut driver = running();
    driver.offer(0, 99);
    driver.kick(0);
    assert_eq!(driver.status(), 15 | NEEDS_RESET);
}

#[test]
fn doorbells_of_queues_that_do_not_exist_ring_nothing() {
    let mut driver = running();
    for queue in [1, 2, 0xffff, 0xffff_ffff] {
        driver.write_register(0x50, queue);
    }
    driver.run();
    driver.transport.notify(9);
    assert_eq!(driver.status(), 15);
}

#[test]
fn an_endless_ring_yields() {
    let mut driver = running();
    for _ in 0..16 {
        driver.submit(0, &[], &[8 << 10]);
    }
    driver.kick(0);
    assert_eq!(std::iter::from_fn(|| driver.used(0)).count(), 16);
}

#[test]
fn state_survives_json() {
    let mut driver = running();
    driver.request(0, &[], &[8]);
    driver.submit(0, &[], &[8]);
    // The doorbell has not been answered when the state is saved: the restored device looks by itself.
    let mut driver = driver.migrate(|_| Box::new(Rng::default()));
    let (_, bytes) = driver.wait_for(|driver| driver.used(0));
    assert_eq!(bytes.len(), 8);
}
