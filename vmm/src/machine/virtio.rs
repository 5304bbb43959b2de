//! From the configuration to virtio devices.

use std::fs::File;
use std::os::unix::net::UnixListener;

use super::config::MachineConfig;
use super::descriptor::take;
use super::error::{Attempt, Error};
use super::memory::PAGE;
use crate::devices::VirtioDevice;
use crate::devices::balloon::{Balloon, BalloonConfig};
use crate::devices::block::{Block, BlockConfig};
use crate::devices::console::{Console, ConsoleConfig};
use crate::devices::net::{Net, NetConfig};
use crate::devices::rng::Rng;
use crate::devices::vsock::{Vsock, VsockConfig};

/// The devices `config` asks for, in the order the guest finds them: disks first, so that their names are those of the
/// configuration's order. A source of entropy is always there.
pub fn devices(config: &MachineConfig) -> Result<Vec<Box<dyn VirtioDevice>>, Error> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for disk in &config.disks {
        let disk = BlockConfig {
            file: File::from(take(disk.file, "a disk")?),
            read_only: disk.read_only,
            serial: disk.serial.clone(),
            rate: disk.rate,
        };
        devices.push(Box::new(Block::new(disk).attempt("opening a disk")?));
    }
    for net in &config.nets {
        let net = NetConfig {
            tap: take(net.tap, "a network interface")?,
            mac: net.mac,
            mtu: net.mtu,
            receive: net.receive,
            transmit: net.transmit,
        };
        devices.push(Box::new(Net::new(net).attempt("opening a network interface")?));
    }
    if let Some(vsock) = &config.vsock {
        let listener = vsock.listener.map(|fd| take(fd, "the vsock listener")).transpose()?;
        let vsock =
            VsockConfig { guest_cid: vsock.cid, listener: listener.map(UnixListener::from), path: vsock.path.clone() };
        devices.push(Box::new(Vsock::new(vsock).attempt("making the vsock device")?));
    }
    if let Some(terminal) = config.terminal {
        let terminal = ConsoleConfig {
            input: terminal.input.map(|fd| take(fd, "the terminal's input")).transpose()?,
            output: take(terminal.output, "the terminal's output")?,
        };
        devices.push(Box::new(Console::new(terminal).attempt("making the console")?));
    }
    if let Some(balloon) = config.balloon {
        let pages = balloon.target.min(config.memory) / PAGE;
        let balloon = BalloonConfig { target_pages: pages as u32, deflate_on_oom: balloon.deflate_on_oom };
        devices.push(Box::new(Balloon::new(balloon)));
    }
    devices.push(Box::new(Rng::default()));
    Ok(devices)
}
