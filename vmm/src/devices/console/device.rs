//! The device.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::queue;
use super::state::ConsoleState;
use crate::devices::complaint::Complaint;
use crate::devices::virtqueue::Served;
use crate::devices::watch::Watch;
use crate::devices::{Activation, DeviceError, DeviceKind, DeviceState, VirtioDevice, read_config_bytes};

const QUEUE_SIZES: [u16; 2] = [16, 16];
/// To the guest.
const RECEIVE: u16 = 0;
/// From the guest.
const TRANSMIT: u16 = 1;

/// The configuration space tells the window's size.
const FEATURE_SIZE: u64 = 1 << 0;

const INPUT: u64 = 0;
const OUTPUT: u64 = 1;

/// A console to give to a guest.
#[derive(Debug)]
pub struct ConsoleConfig {
    /// Where what is typed comes from; without, nothing is.
    pub input: Option<OwnedFd>,
    /// Where the guest's output goes.
    pub output: OwnedFd,
}

/// A console.
#[derive(Debug)]
pub struct Console {
    input: Option<OwnedFd>,
    output: OwnedFd,
    watch: Watch,
    state: ConsoleState,
    complaint: Complaint,
    activation: Option<Activation>,
}

impl Console {
    /// The console over the descriptors of `config`. Fails where no descriptor is left.
    pub fn new(config: ConsoleConfig) -> io::Result<Self> {
        Self::restore(config, &ConsoleState::default())
    }

    /// Continues a saved console over the descriptors of `config`.
    pub fn restore(config: ConsoleConfig, state: &ConsoleState) -> io::Result<Self> {
        let ConsoleConfig { input, output } = config;
        let watch = Watch::new()?;
        let watched = input.iter().map(|input| (input, INPUT)).chain([(&output, OUTPUT)]);
        for (fd, token) in watched {
            match watch.changes(fd, token) {
                // A regular file is always ready: it is looked at when the guest rings.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                outcome => outcome?,
            }
        }
        Ok(Self { input, output, watch, state: *state, complaint: Complaint::default(), activation: None })
    }

    /// The window has a new size, in characters; the guest is told.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        (self.state.columns, self.state.rows) = (columns, rows);
        if let Some(activation) = &self.activation {
            activation.interrupt.signal_config();
        }
    }

    fn receive(&mut self) -> Result<(), DeviceError> {
        let Some(activation) = &mut self.activation else { return Ok(()) };
        activation.serve(RECEIVE, |chain| {
            let Some(fd) = &self.input else { return Served::Postponed };
            queue::receive(chain.writable, fd).unwrap_or_else(|error| {
                if error.kind() != io::ErrorKind::UnexpectedEof {
                    self.complaint.raise("reading a console's input", error);
                }
                // Ended or broken: there will be no more.
                self.input = None;
                Served::Postponed
            })
        })
    }

    fn transmit(&mut self) -> Result<(), DeviceError> {
        let Some(activation) = &mut self.activation else { return Ok(()) };
        activation.serve(TRANSMIT, |chain| {
            queue::transmit(chain.readable, &self.output, &mut self.state.sent).unwrap_or_else(|error| {
                // Nobody reads any more: the guest writes into the void.
                self.complaint.raise("writing a console's output", error);
                self.state.sent = 0;
                Served::Used(0)
            })
        })
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        FEATURE_SIZE
    }

    /// Section 5.3.4.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 12];
        config[..2].copy_from_slice(&self.state.columns.to_le_bytes());
        config[2..4].copy_from_slice(&self.state.rows.to_le_bytes());
        config[4] = 1; // max_nr_ports
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.activation = Some(activation);
        Ok(())
    }

    fn activation(&self) -> Option<&Activation> {
        self.activation.as_ref()
    }

    fn notify(&mut self, queue: u16) -> Result<(), DeviceError> {
        if queue == TRANSMIT { self.transmit() } else { self.receive() }
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watch.fd())
    }

    fn poll(&mut self) -> Result<(), DeviceError> {
        for token in self.watch.take().map_err(DeviceError::host("wait for a console's descriptors"))? {
            if token == OUTPUT {
                self.transmit()?;
            }
            // Input and output may be one terminal, and then one event stands for both.
            self.receive()?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.state.sent = 0;
        self.activation = None;
    }

    fn state(&self) -> DeviceState {
        DeviceState::Console(self.state)
    }
}
