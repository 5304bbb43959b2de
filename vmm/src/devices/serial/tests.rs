use std::io::Read;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::devices::bus::BusDevice;

fn serial() -> (Serial, EventFd) {
    let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
    (Serial::new(interrupt.try_clone().unwrap(), Sink::Discard), interrupt)
}

#[test]
fn what_the_guest_transmits_reaches_the_descriptor() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let file = std::os::fd::OwnedFd::from(writer).into();
    let mut serial = Serial::new(EventFd::new(EFD_NONBLOCK).unwrap(), Sink::File(file));
    for byte in b"hello" {
        serial.write(0, &[*byte]);
    }
    drop(serial);
    let mut output = String::new();
    reader.read_to_string(&mut output).unwrap();
    assert_eq!(output, "hello");
}

#[test]
fn input_raises_the_interrupt_once_enabled_and_is_read_back() {
    let (mut serial, interrupt) = serial();
    serial.write(1, &[1]);
    assert_eq!(serial.receive(b"ab"), 2);
    assert_eq!(interrupt.read().unwrap(), 1);
    let mut byte = [0];
    serial.read(0, &mut byte);
    assert_eq!(&byte, b"a");
    assert_eq!(serial.state().in_buffer, b"b");
}

#[test]
fn input_beyond_the_buffer_is_left_to_the_caller() {
    let (mut serial, _) = serial();
    let room = serial.room();
    assert_eq!(serial.receive(&vec![b'x'; room + 10]), room);
    assert_eq!(serial.receive(b"y"), 0);
}

#[test]
fn wide_and_wild_accesses_are_harmless() {
    let (mut serial, _) = serial();
    for offset in 0..8 {
        for length in 1..=(8 - offset) as usize {
            serial.write(offset, &vec![0xa5; length]);
            serial.read(offset, &mut vec![0; length]);
        }
    }
}
