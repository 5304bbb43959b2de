//! The UART on the bus.

use std::fs::File;
use std::io::{self, Write};

use vm_superio::Trigger;
use vmm_sys_util::eventfd::EventFd;

use super::State;
use crate::devices::bus::BusDevice;

/// Where the guest's output goes.
pub enum Sink {
    /// Nowhere: the port is there and swallows everything.
    Discard,
    /// Into a descriptor, byte by byte as the guest writes; a reader that is slow slows the writing vCPU alone.
    File(File),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Discard => Ok(bytes.len()),
            Self::File(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The line to the interrupt controller: an eventfd registered as an irqfd.
pub struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The serial port.
pub struct Serial {
    uart: vm_superio::Serial<Line, vm_superio::serial::NoEvents, Sink>,
}

impl Serial {
    /// A port that raises `interrupt` and writes to `sink`.
    pub fn new(interrupt: EventFd, sink: Sink) -> Self {
        Self { uart: vm_superio::Serial::new(Line(interrupt), sink) }
    }

    /// How many bytes of input the receive buffer has room for.
    pub fn room(&self) -> usize {
        self.uart.fifo_capacity()
    }

    /// Puts `input`, at most [`Self::room`] bytes of which are taken, into the receive buffer; how many were taken.
    pub fn receive(&mut self, input: &[u8]) -> usize {
        let taken = input.len().min(self.room());
        // What fails here is the write to the interrupt's eventfd, which a full counter alone can refuse: then the
        // interrupt is pending already.
        self.uart.enqueue_raw_bytes(&input[..taken]).unwrap_or(taken)
    }

    /// The registers and what waits in the receive buffer.
    pub fn state(&self) -> State {
        State::from(&self.uart.state())
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        for (position, byte) in data.iter_mut().enumerate() {
            *byte = self.uart.read(offset as u8 + position as u8);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (position, &byte) in data.iter().enumerate() {
            // A console that went away is no reason to stop the guest; its output is lost, as on a real serial line.
            let _ = self.uart.write(offset as u8 + position as u8, byte);
        }
    }
}
