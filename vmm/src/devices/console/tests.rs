//! The device against a well-behaved and an ill-behaved driver.

use std::io::{Write, pipe};

use super::{Console, ConsoleConfig};
use crate::devices::testing::ill_behaved;

/// Drives the device as `data` says; the fuzz target's body.
///
/// # Panics
/// Where the device misbehaves.
pub fn fuzz(data: &[u8]) {
    let ((input, mut typed), (_shown, output)) = (pipe().expect("pipe"), pipe().expect("pipe"));
    typed.write_all(&[b'x'; 10_000]).expect("room");
    // With nobody to read the output, a guest that writes enough is held up.
    let config = ConsoleConfig { input: Some(input.into()), output: output.into() };
    ill_behaved(Box::new(Console::new(config).expect("console")), data, |bytes| {
        vec![b'y'; bytes.length() as usize % 20_000]
    });
}

#[cfg(test)]
mod function {
    use std::io::{PipeReader, PipeWriter, Read};

    use super::*;
    use crate::devices::DeviceState;
    use crate::devices::testing::Driver;

    const RX: usize = 0;
    const TX: usize = 1;

    fn started() -> (Driver, PipeWriter, PipeReader) {
        let ((input, typed), (shown, output)) = (pipe().unwrap(), pipe().unwrap());
        let config = ConsoleConfig { input: Some(input.into()), output: output.into() };
        (Driver::start(Console::new(config).unwrap(), u64::MAX), typed, shown)
    }

    #[test]
    fn shows_and_takes_text() {
        let (mut driver, mut typed, mut shown) = started();
        driver.request(TX, &[b"login", b": "], &[]);
        let mut text = [0; 7];
        shown.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"login: ");
        driver.submit(RX, &[], &[2, 100]);
        driver.kick(RX);
        assert_eq!(driver.used(RX), None);
        typed.write_all(b"root\n").unwrap();
        driver.run();
        assert_eq!(driver.used(RX).unwrap().1, b"root\n");
    }

    #[test]
    fn what_is_typed_early_waits() {
        let (mut driver, mut typed, _shown) = started();
        typed.write_all(b"early").unwrap();
        driver.run();
        driver.submit(RX, &[], &[100]);
        driver.kick(RX);
        assert_eq!(driver.used(RX).unwrap().1, b"early");
        drop(typed);
        driver.submit(RX, &[], &[100]);
        driver.kick(RX);
        assert_eq!(driver.used(RX), None);
    }

    #[test]
    fn a_flood_waits_for_its_reader_and_arrives_whole() {
        let (mut driver, _typed, mut shown) = started();
        let text: Vec<u8> = (0..100_000u32).map(|i| (i / 3) as u8).collect();
        driver.submit(TX, &[&text], &[]);
        driver.kick(TX);
        assert_eq!(driver.used(TX), None, "a pipe holds 64 KiB");
        let (mut received, mut buffer) = (Vec::<u8>::new(), [0; 5000]);
        while received.len() < text.len() {
            let read = shown.read(&mut buffer).unwrap();
            received.extend(&buffer[..read]);
            driver.run();
        }
        assert_eq!(received, text);
        assert!(driver.used(TX).is_some());
    }

    #[test]
    fn a_reader_that_left_does_not_stop_the_guest() {
        let (mut driver, _typed, shown) = started();
        drop(shown);
        driver.request(TX, &[b"anyone?"], &[]);
        assert_eq!(driver.status(), 15);
    }

    #[test]
    fn files_will_do() {
        let (input, output) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let mut shown = output.try_clone().unwrap();
        let config = ConsoleConfig { input: Some(input.into()), output: output.into() };
        let mut driver = Driver::start(Console::new(config).unwrap(), u64::MAX);
        driver.request(TX, &[b"text"], &[]);
        std::io::Seek::rewind(&mut shown).unwrap();
        let mut text = String::new();
        shown.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
    }

    #[test]
    fn the_window_changes() {
        let (mut driver, _typed, _shown) = started();
        driver.transport.device_as::<Console>().unwrap().resize(80, 25);
        assert_eq!(driver.interrupts(), 2);
        assert_eq!(driver.read_config(0), [80, 0, 25, 0]);
    }

    #[test]
    fn half_a_chain_goes_on_after_restore() {
        let (mut driver, _typed, mut shown) = started();
        let text: Vec<u8> = (0..100_000u32).map(|i| (i / 3) as u8).collect();
        driver.submit(TX, &[&text], &[]);
        driver.kick(TX);
        let (mut shown_later, output) = pipe().unwrap();
        let driver = driver.migrate(|state| {
            let DeviceState::Console(state) = state else { panic!("{state:?}") };
            let config = ConsoleConfig { input: None, output: output.into() };
            Box::new(Console::restore(config, state).unwrap())
        });
        let mut received = Vec::new();
        shown.read_to_end(&mut received).unwrap();
        let mut driver = driver;
        driver.run();
        drop(driver);
        shown_later.read_to_end(&mut received).unwrap();
        assert_eq!(received, text);
    }
}
