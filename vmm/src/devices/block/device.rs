//! The device.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::BorrowedFd;
use std::time::Instant;

use virtio_bindings::virtio_blk;

use super::queue::{Disk, Request, SECTOR, SEG_MAX, SERIAL_LENGTH, SIZE_MAX};
use super::state::BlockState;
use crate::devices::complaint::Complaint;
use crate::devices::rate::{RateLimit, RateLimiter, RateState};
use crate::devices::virtqueue::Served;
use crate::devices::{Activation, DeviceError, DeviceKind, DeviceState, VirtioDevice, read_config_bytes};

const QUEUE_SIZES: [u16; 1] = [128];
const REQUESTS: u16 = 0;

const FEATURE_SIZE_MAX: u64 = 1 << virtio_blk::VIRTIO_BLK_F_SIZE_MAX;
const FEATURE_SEG_MAX: u64 = 1 << virtio_blk::VIRTIO_BLK_F_SEG_MAX;
const FEATURE_READ_ONLY: u64 = 1 << virtio_blk::VIRTIO_BLK_F_RO;
const FEATURE_FLUSH: u64 = 1 << virtio_blk::VIRTIO_BLK_F_FLUSH;
const FEATURE_DISCARD: u64 = 1 << virtio_blk::VIRTIO_BLK_F_DISCARD;
const FEATURE_WRITE_ZEROES: u64 = 1 << virtio_blk::VIRTIO_BLK_F_WRITE_ZEROES;

/// A disk to give to a guest.
#[derive(Debug)]
pub struct BlockConfig {
    /// Holds the sectors; its length, rounded down to whole sectors, is the disk's. Opened for writing unless `read_only`.
    pub file: File,
    /// Whether the guest's writes are refused.
    pub read_only: bool,
    /// By which the guest finds the disk: at most 20 bytes, the rest is cut off.
    pub serial: String,
    /// How much the guest may do.
    pub rate: RateLimit,
}

/// A disk.
#[derive(Debug)]
pub struct Block {
    pub(super) disk: Disk,
    serial: String,
    limiter: RateLimiter,
    activation: Option<Activation>,
}

impl Block {
    /// The disk in `config.file`. Fails where its length cannot be found out.
    pub fn new(config: BlockConfig) -> io::Result<Self> {
        Self::with_rate(config, &RateState::default())
    }

    /// Continues a saved disk with the file of `config`, which must be as long as before.
    pub fn restore(config: BlockConfig, state: &BlockState) -> io::Result<Self> {
        let config = BlockConfig { read_only: state.read_only, serial: state.serial.clone(), ..config };
        let block = Self::with_rate(config, &state.rate)?;
        if block.disk.sectors == state.sectors {
            return Ok(block);
        }
        let (now, saved) = (block.disk.sectors, state.sectors);
        Err(io::Error::other(format!("the disk \"{}\" had {saved} sectors when saved, has {now} now", state.serial)))
    }

    fn with_rate(config: BlockConfig, rate: &RateState) -> io::Result<Self> {
        let BlockConfig { mut file, read_only, serial: name, rate: limit } = config;
        // Works for files and block devices alike, where the length in the metadata is zero.
        let sectors = file.seek(SeekFrom::End(0))? / SECTOR;
        let mut serial = [0; SERIAL_LENGTH];
        let length = name.len().min(SERIAL_LENGTH);
        serial[..length].copy_from_slice(&name.as_bytes()[..length]);
        let disk = Disk { file, sectors, read_only, write_through: false, serial, complaint: Complaint::default() };
        Ok(Self { disk, serial: name, limiter: RateLimiter::new(&limit, rate)?, activation: None })
    }

    fn serve(&mut self) -> Result<(), DeviceError> {
        let Some(activation) = &mut self.activation else { return Ok(()) };
        activation.serve(REQUESTS, |chain| {
            if !self.limiter.admits(Instant::now()) {
                return Served::Postponed;
            }
            let Some(request) = Request::parse(chain) else {
                self.limiter.spend(0);
                return Served::Used(0);
            };
            self.limiter.spend(request.bytes());
            Served::Used(request.execute(&mut self.disk))
        })
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let direction = if self.disk.read_only { FEATURE_READ_ONLY } else { FEATURE_DISCARD | FEATURE_WRITE_ZEROES };
        FEATURE_SIZE_MAX | FEATURE_SEG_MAX | FEATURE_FLUSH | direction
    }

    /// Section 5.2.4.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 60];
        let mut put = |at: usize, value: u32| config[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(0, self.disk.sectors as u32);
        put(4, (self.disk.sectors >> 32) as u32);
        put(8, SIZE_MAX);
        put(12, SEG_MAX);
        if !self.disk.read_only {
            put(36, u32::MAX); // max_discard_sectors
            put(40, 1); // max_discard_seg
            put(44, 8); // discard_sector_alignment
            put(48, u32::MAX); // max_write_zeroes_sectors
            put(52, 1); // max_write_zeroes_seg
            put(56, 1); // write_zeroes_may_unmap
        }
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.disk.write_through = activation.features & FEATURE_FLUSH == 0;
        self.activation = Some(activation);
        Ok(())
    }

    fn activation(&self) -> Option<&Activation> {
        self.activation.as_ref()
    }

    fn notify(&mut self, _queue: u16) -> Result<(), DeviceError> {
        self.serve()
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.limiter.timer()
    }

    fn poll(&mut self) -> Result<(), DeviceError> {
        self.limiter.acknowledge();
        self.serve()
    }

    fn reset(&mut self) {
        self.activation = None;
    }

    fn state(&self) -> DeviceState {
        DeviceState::Block(BlockState {
            sectors: self.disk.sectors,
            read_only: self.disk.read_only,
            serial: self.serial.clone(),
            rate: self.limiter.state(),
        })
    }
}
