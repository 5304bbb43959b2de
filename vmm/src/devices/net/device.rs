//! The device.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use virtio_bindings::virtio_net;

use super::queue;
use super::state::NetState;
use crate::devices::complaint::Complaint;
use crate::devices::rate::{RateLimit, RateLimiter, RateState};
use crate::devices::virtqueue::Served;
use crate::devices::watch::{Watch, set_nonblocking};
use crate::devices::{Activation, DeviceError, DeviceKind, DeviceState, VirtioDevice, read_config_bytes};

const QUEUE_SIZES: [u16; 2] = [256, 256];
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// The guest may leave checksums to the device.
const FEATURE_CHECKSUM: u64 = 1 << virtio_net::VIRTIO_NET_F_CSUM;
/// The guest takes frames whose checksum is left to it.
const FEATURE_GUEST_CHECKSUM: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_CSUM;
const FEATURE_MTU: u64 = 1 << virtio_net::VIRTIO_NET_F_MTU;
const FEATURE_MAC: u64 = 1 << virtio_net::VIRTIO_NET_F_MAC;
/// The guest may leave segmentation of TCP over IPv4 to the device.
const FEATURE_HOST_TSO4: u64 = 1 << virtio_net::VIRTIO_NET_F_HOST_TSO4;
/// And over IPv6.
const FEATURE_HOST_TSO6: u64 = 1 << virtio_net::VIRTIO_NET_F_HOST_TSO6;

/// `TUNSETOFFLOAD` of `linux/if_tun.h`: what the reader of a tap takes over from the host's kernel.
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0_u32 as libc::Ioctl;
const TUN_F_CSUM: libc::c_ulong = 1;

const TAP: u64 = 0;
const RECEIVE_TIMER: u64 = 1;
const TRANSMIT_TIMER: u64 = 2;

/// An interface to give to a guest.
#[derive(Debug)]
pub struct NetConfig {
    /// An open tap device: `IFF_TAP`, `IFF_NO_PI`, `IFF_VNET_HDR`, with `TUNSETVNETHDRSZ` 12.
    pub tap: OwnedFd,
    /// The hardware address of the guest's interface.
    pub mac: [u8; 6],
    /// The largest payload of a frame, in bytes, where the network takes less than 1500.
    pub mtu: Option<u16>,
    /// How much the guest may receive.
    pub receive: RateLimit,
    /// How much the guest may send.
    pub transmit: RateLimit,
}

/// A network interface.
#[derive(Debug)]
pub struct Net {
    tap: OwnedFd,
    mac: [u8; 6],
    mtu: Option<u16>,
    receive_limiter: RateLimiter,
    transmit_limiter: RateLimiter,
    watch: Watch,
    complaint: Complaint,
    activation: Option<Activation>,
}

impl Net {
    /// The interface on `config.tap`, which is made non-blocking. Fails where no descriptor is left, or the tap cannot be
    /// watched.
    pub fn new(config: NetConfig) -> io::Result<Self> {
        Self::with_rates(config, &RateState::default(), &RateState::default())
    }

    /// Continues a saved interface on the tap of `config`.
    pub fn restore(config: NetConfig, state: &NetState) -> io::Result<Self> {
        Self::with_rates(NetConfig { mac: state.mac, mtu: state.mtu, ..config }, &state.receive, &state.transmit)
    }

    fn with_rates(config: NetConfig, receive: &RateState, transmit: &RateState) -> io::Result<Self> {
        let receive_limiter = RateLimiter::new(&config.receive, receive)?;
        let transmit_limiter = RateLimiter::new(&config.transmit, transmit)?;
        set_nonblocking(&config.tap)?;
        let watch = Watch::new()?;
        watch.changes(&config.tap, TAP)?;
        for (limiter, token) in [(&receive_limiter, RECEIVE_TIMER), (&transmit_limiter, TRANSMIT_TIMER)] {
            if let Some(timer) = limiter.timer() {
                watch.changes(timer, token)?;
            }
        }
        Ok(Self {
            tap: config.tap,
            mac: config.mac,
            mtu: config.mtu,
            receive_limiter,
            transmit_limiter,
            watch,
            complaint: Complaint::default(),
            activation: None,
        })
    }

    fn receive(&mut self) -> Result<(), DeviceError> {
        let Some(activation) = &mut self.activation else { return Ok(()) };
        activation.serve(RECEIVE, |chain| {
            if !self.receive_limiter.admits(Instant::now()) {
                return Served::Postponed;
            }
            let served = queue::receive(chain.writable, self.tap.as_fd()).unwrap_or_else(|error| {
                self.complaint.raise("receiving from a tap device", error);
                Served::Postponed
            });
            if let Served::Used(length) = served {
                self.receive_limiter.spend(length.into());
            }
            served
        })
    }

    fn transmit(&mut self) -> Result<(), DeviceError> {
        let Some(activation) = &mut self.activation else { return Ok(()) };
        activation.serve(TRANSMIT, |chain| {
            if !self.transmit_limiter.admits(Instant::now()) {
                return Served::Postponed;
            }
            let sent = queue::transmit(&chain.readable, self.tap.as_fd()).unwrap_or_else(|error| {
                self.complaint.raise("sending to a tap device", error);
                0
            });
            self.transmit_limiter.spend(sent as u64);
            Served::Used(0)
        })
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let mtu = if self.mtu.is_some() { FEATURE_MTU } else { 0 };
        FEATURE_CHECKSUM | FEATURE_GUEST_CHECKSUM | FEATURE_MAC | FEATURE_HOST_TSO4 | FEATURE_HOST_TSO6 | mtu
    }

    /// Section 5.1.4.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let offload = if activation.features & FEATURE_GUEST_CHECKSUM == 0 { 0 } else { TUN_F_CSUM };
        // SAFETY: the request takes a number, no pointer; on a descriptor that is no tap it changes nothing.
        let outcome = unsafe { libc::ioctl(self.tap.as_raw_fd(), TUNSETOFFLOAD, offload) };
        if outcome != 0 {
            // Then the host's kernel computes the checksums it would have left to the guest.
            self.complaint.raise("leaving checksums to the guest", io::Error::last_os_error());
        }
        self.activation = Some(activation);
        // What came before is not announced again.
        self.receive()
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
        for token in self.watch.take().map_err(DeviceError::host("wait for a tap device"))? {
            match token {
                TRANSMIT_TIMER => {
                    self.transmit_limiter.acknowledge();
                    self.transmit()?;
                }
                RECEIVE_TIMER => {
                    self.receive_limiter.acknowledge();
                    self.receive()?;
                }
                _ => self.receive()?,
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.activation = None;
    }

    fn state(&self) -> DeviceState {
        DeviceState::Net(NetState {
            mac: self.mac,
            mtu: self.mtu,
            receive: self.receive_limiter.state(),
            transmit: self.transmit_limiter.state(),
        })
    }
}
