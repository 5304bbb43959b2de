//! The device.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use super::queue::Header;
use super::state::VsockState;
use super::streams::Streams;
use crate::devices::virtqueue::Served;
use crate::devices::{Activation, DeviceError, DeviceKind, DeviceState, VirtioDevice, read_config_bytes};

const QUEUE_SIZES: [u16; 3] = [128, 128, 16];
/// To the guest.
const RECEIVE: u16 = 0;
/// From the guest.
const TRANSMIT: u16 = 1;
/// What happened to the device itself.
const EVENT: u16 = 2;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`: all connections are gone.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// Sockets to give to a guest.
#[derive(Debug)]
pub struct VsockConfig {
    /// The guest's context id, 3 or more.
    pub guest_cid: u64,
    /// Where processes of the host connect to.
    pub listener: Option<UnixListener>,
    /// The guest's connections to host port n go to the unix socket `<path>_<n>`; without, they are refused.
    pub path: Option<PathBuf>,
}

/// The sockets of one guest.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u64,
    streams: Streams,
    /// The guest must hear that its connections are gone.
    was_restored: bool,
    activation: Option<Activation>,
}

impl Vsock {
    /// No connections yet. Fails where no descriptor is left.
    pub fn new(config: VsockConfig) -> io::Result<Self> {
        let VsockConfig { guest_cid, listener, path } = config;
        let streams = Streams::new(guest_cid, listener, path)?;
        Ok(Self { guest_cid, streams, was_restored: false, activation: None })
    }

    /// Continues a saved device; the guest is told that all its connections are gone.
    pub fn restore(config: VsockConfig, state: &VsockState) -> io::Result<Self> {
        let vsock = Self::new(VsockConfig { guest_cid: state.guest_cid, ..config })?;
        Ok(Self { was_restored: true, ..vsock })
    }

    /// A stream to `guest_port`, for the VMM itself. Legal at any time: a guest that is not ready is asked when it is. The
    /// stream ends at once if nothing in the guest listens. Fails where descriptors or connections are exhausted.
    pub fn connect(&mut self, guest_port: u32) -> io::Result<UnixStream> {
        let stream = self.streams.connect(guest_port)?;
        self.wake();
        Ok(stream)
    }

    /// A stream that becomes connected when the guest connects to `host_port`, for the VMM itself; once. What is
    /// written before waits. Fails where no descriptor is left.
    pub fn listen(&mut self, host_port: u32) -> io::Result<UnixStream> {
        self.streams.listen(host_port)
    }

    /// Has the event loop look for packets to the guest.
    fn wake(&self) {
        if let Some(queue) = self.activation.as_ref().and_then(|activation| activation.queues.first()) {
            queue.ring();
        }
    }

    fn transmit(&mut self) -> Result<(), DeviceError> {
        let Some(activation) = &mut self.activation else { return Ok(()) };
        activation.serve(TRANSMIT, |mut chain| {
            if self.streams.is_congested() {
                return Served::Postponed;
            }
            // A chain without a whole header is no packet.
            if let Ok(header) = Header::read(&mut chain.readable) {
                self.streams.receive(&header, chain.readable);
            }
            Served::Used(0)
        })
    }

    fn receive(&mut self) -> Result<(), DeviceError> {
        let Some(activation) = &mut self.activation else { return Ok(()) };
        let was_congested = self.streams.is_congested();
        let outcome = activation
            .serve(RECEIVE, |chain| self.streams.supply(chain.writable).map_or(Served::Postponed, Served::Used));
        if was_congested && !self.streams.is_congested() {
            activation.queues[usize::from(TRANSMIT)].ring();
        }
        outcome
    }

    /// Tells a restored guest, once it has room for it.
    fn report_reset(&mut self) -> Result<(), DeviceError> {
        let Some(activation) = &mut self.activation else { return Ok(()) };
        activation.serve(EVENT, |mut chain| {
            if !self.was_restored {
                return Served::Postponed;
            }
            self.was_restored = false;
            let written = chain.writable.write(&TRANSPORT_RESET).map_or(0, |()| TRANSPORT_RESET.len());
            Served::Used(written as u32)
        })
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// None: streams are what a device without features has.
    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.activation = Some(activation);
        self.wake();
        Ok(())
    }

    fn activation(&self) -> Option<&Activation> {
        self.activation.as_ref()
    }

    fn notify(&mut self, queue: u16) -> Result<(), DeviceError> {
        match queue {
            TRANSMIT => {
                self.transmit()?;
                self.receive()
            }
            EVENT => self.report_reset(),
            _ => self.receive(),
        }
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.streams.epoll().as_fd())
    }

    fn poll(&mut self) -> Result<(), DeviceError> {
        self.streams.poll().map_err(DeviceError::host("wait for sockets"))?;
        self.receive()
    }

    fn reset(&mut self) {
        self.streams.forget();
        self.was_restored = false;
        self.activation = None;
    }

    fn state(&self) -> DeviceState {
        DeviceState::Vsock(VsockState { guest_cid: self.guest_cid })
    }
}
