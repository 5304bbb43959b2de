//! The device against a well-behaved and an ill-behaved driver.

use super::Rng;
use crate::devices::testing::ill_behaved;

/// Drives the device as `data` says; the fuzz target's body.
pub fn fuzz(data: &[u8]) {
    ill_behaved(Box::new(Rng::default()), data, |bytes| bytes.number(8).to_le_bytes().to_vec());
}

#[cfg(test)]
mod function {
    use crate::devices::rng::Rng;
    use crate::devices::testing::Driver;

    #[test]
    fn fills_what_it_is_given() {
        let mut driver = Driver::start(Rng::default(), u64::MAX);
        let (first, second) = (driver.request(0, &[], &[300, 17]), driver.request(0, &[], &[317]));
        assert_eq!((first.len(), second.len()), (317, 317));
        assert_ne!(first, second);
        assert!(first.iter().any(|&byte| byte != 0));
        assert_eq!(driver.interrupts(), 1);
    }

    #[test]
    fn one_request_gets_no_more_than_its_share() {
        let mut driver = Driver::start(Rng::default(), 0);
        assert_eq!(driver.request(0, &[], &[100 << 10]).len(), 64 << 10);
    }

    #[test]
    fn a_request_without_room_is_given_back_empty() {
        let mut driver = Driver::start(Rng::default(), 0);
        assert!(driver.request(0, &[b"what is this"], &[]).is_empty());
    }

    #[test]
    fn goes_on_after_restore() {
        let mut driver = Driver::start(Rng::default(), u64::MAX);
        driver.request(0, &[], &[8]);
        let mut driver = driver.migrate(|state| match state {
            crate::devices::DeviceState::Rng(state) => Box::new(Rng::restore(state)),
            other => panic!("{other:?}"),
        });
        assert_eq!(driver.request(0, &[], &[8]).len(), 8);
    }
}
