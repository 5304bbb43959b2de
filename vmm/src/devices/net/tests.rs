//! The device against a well-behaved and an ill-behaved driver. A datagram socket stands in for the tap: it too has
//! messages with bounds, which are cut off when the reader has too little room.

use std::os::unix::net::UnixDatagram;

use super::{Net, NetConfig};
use crate::devices::rate::RateLimit;
use crate::devices::testing::{Bytes, ill_behaved};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn config(tap: UnixDatagram) -> NetConfig {
    let unlimited = RateLimit::default();
    NetConfig { tap: tap.into(), mac: MAC, mtu: Some(1400), receive: unlimited, transmit: unlimited }
}

/// Drives the device as `data` says; the fuzz target's body.
///
/// # Panics
/// Where the device misbehaves.
pub fn fuzz(data: &[u8]) {
    let (ours, theirs) = UnixDatagram::pair().expect("socket pair");
    theirs.set_nonblocking(true).expect("socket");
    for length in [60, 12, 1514, 0, 3, 9000] {
        theirs.send(&vec![1; length]).expect("room");
    }
    ill_behaved(Box::new(Net::new(config(ours)).expect("net")), data, header);
}

/// A header and the beginning of a frame.
fn header(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut header = bytes.number(8).to_le_bytes().to_vec();
    header.resize(12 + usize::from(bytes.byte()), 1);
    header
}

#[cfg(test)]
mod open_tap;
#[cfg(test)]
mod tap;

#[cfg(test)]
mod function {
    use std::num::NonZeroU64;
    use std::time::Instant;

    use super::*;
    use crate::devices::DeviceState;
    use crate::devices::rate::Rate;
    use crate::devices::testing::Driver;

    const RX: usize = 0;
    const TX: usize = 1;

    fn started(change: impl FnOnce(&mut NetConfig)) -> (Driver, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut config = config(ours);
        change(&mut config);
        (Driver::start(Net::new(config).unwrap(), u64::MAX), theirs)
    }

    fn frame(length: usize) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend((0..length).map(|i| i as u8));
        frame
    }

    #[test]
    fn tells_its_address_and_mtu() {
        let (mut driver, _tap) = started(|_| {});
        let config: [u8; 12] = driver.read_config(0);
        assert_eq!(config[..6], MAC);
        assert_eq!(config[10..], 1400u16.to_le_bytes());
    }

    #[test]
    fn sends_frames_from_scattered_buffers() {
        let (mut driver, tap) = started(|_| {});
        let sent = frame(1000);
        driver.request(TX, &[&sent[..12], &sent[12..100], &sent[100..]], &[]);
        let mut received = [0; 2000];
        assert_eq!(tap.recv(&mut received).unwrap(), sent.len());
        assert_eq!(received[..sent.len()], sent);
    }

    #[test]
    fn what_is_no_frame_is_given_back_unsent() {
        let (mut driver, tap) = started(|_| {});
        driver.request(TX, &[&[0; 12]], &[]);
        driver.request(TX, &[&[0; 5]], &[]);
        driver.request(TX, &[&vec![0; 70_000]], &[]);
        driver.request(TX, &[], &[64]);
        assert!(tap.recv(&mut [0; 9]).is_err());
        assert_eq!(driver.status(), 15);
    }

    #[test]
    fn receives_frames_when_there_is_room() {
        let (mut driver, tap) = started(|_| {});
        tap.send(&frame(100)).unwrap();
        tap.send(&frame(200)).unwrap();
        driver.run();
        for length in [100, 200] {
            driver.submit(RX, &[], &[12, 1514]);
            driver.kick(RX);
            let (_, received) = driver.used(RX).unwrap();
            let mut expected = frame(length);
            expected[10] = 1;
            assert_eq!(received, expected);
        }
        driver.submit(RX, &[], &[1526]);
        driver.kick(RX);
        assert_eq!(driver.used(RX), None);
        tap.send(&frame(300)).unwrap();
        driver.run();
        assert_eq!(driver.used(RX).unwrap().1.len(), 312);
    }

    #[test]
    fn a_frame_longer_than_its_buffer_is_cut_off() {
        let (mut driver, tap) = started(|_| {});
        driver.submit(RX, &[], &[64]);
        tap.send(&frame(1000)).unwrap();
        driver.kick(RX);
        assert_eq!(driver.used(RX).unwrap().1.len(), 64);
        assert!(driver.guest.is_intact());
    }

    #[test]
    fn frames_that_came_before_the_driver_are_delivered() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let net = Net::new(config(ours)).unwrap();
        theirs.send(&frame(50)).unwrap();
        let mut driver = Driver::new(Box::new(net));
        driver.run();
        driver.initialise(u64::MAX);
        driver.submit(RX, &[], &[1526]);
        driver.kick(RX);
        assert_eq!(driver.used(RX).unwrap().1.len(), 62);
    }

    #[test]
    fn both_directions_are_limited() {
        let rate = Rate { per_second: NonZeroU64::new(10_000).unwrap(), burst: NonZeroU64::new(100).unwrap() };
        let limit = RateLimit { bytes: Some(rate), operations: None };
        let (mut driver, tap) = started(|config| (config.receive, config.transmit) = (limit, limit));
        for queue in [RX, TX] {
            let begun = Instant::now();
            for _ in 0..4 {
                if queue == TX {
                    driver.submit(TX, &[&frame(500)], &[]);
                } else {
                    tap.send(&frame(500)).unwrap();
                    driver.submit(RX, &[], &[1526]);
                }
            }
            driver.write_register(0x50, queue as u32);
            for _ in 0..4 {
                driver.wait_for(|driver| driver.used(queue));
            }
            // The fourth goes when three times 512 bytes, less the burst, have been paid off.
            assert!(begun.elapsed().as_millis() >= 140, "{:?}", begun.elapsed());
        }
    }

    #[test]
    fn goes_on_after_restore() {
        let (driver, _tap) = started(|_| {});
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let mut driver = driver.migrate(|state| {
            let DeviceState::Net(state) = state else { panic!("{state:?}") };
            Box::new(Net::restore(NetConfig { mac: [0; 6], ..config(ours) }, state).unwrap())
        });
        assert_eq!(driver.read_config(0), MAC);
        driver.request(TX, &[&frame(60)], &[]);
        assert_eq!(theirs.recv(&mut [0; 100]).unwrap(), 72);
    }
}
