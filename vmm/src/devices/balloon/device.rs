//! The device.

use std::io;

use super::queue;
use super::state::{BalloonState, BalloonStatistics};
use crate::devices::complaint::Complaint;
use crate::devices::virtqueue::Served;
use crate::devices::{Activation, DeviceError, DeviceKind, DeviceState, VirtioDevice, read_config_bytes};

/// Inflate, deflate, statistics, reporting.
const QUEUE_SIZES: [u16; 4] = [128, 128, 16, 64];
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
/// Exists, and stands before the next, only if its feature was accepted.
const STATISTICS: u16 = 2;

const FEATURE_STATISTICS: u64 = 1 << 1;
const FEATURE_DEFLATE_ON_OOM: u64 = 1 << 2;
const FEATURE_REPORTING: u64 = 1 << 5;

/// Where in the configuration space the guest writes how many pages are in the balloon.
const ACTUAL: u64 = 4;

/// A balloon to give to a guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct BalloonConfig {
    /// Pages of 4 KiB the guest is to put into it from the start.
    pub target_pages: u32,
    /// Whether a guest short of memory may take pages back rather than kill processes.
    pub deflate_on_oom: bool,
}

/// A memory balloon.
#[derive(Debug)]
pub struct Balloon {
    state: BalloonState,
    complaint: Complaint,
    activation: Option<Activation>,
}

impl Balloon {
    /// An empty balloon.
    pub fn new(config: BalloonConfig) -> Self {
        Self::restore(&BalloonState {
            target_pages: config.target_pages,
            actual_pages: 0,
            deflate_on_oom: config.deflate_on_oom,
            statistics_chain: None,
            statistics: BalloonStatistics::default(),
        })
    }

    /// Continues a saved balloon.
    pub fn restore(state: &BalloonState) -> Self {
        Self { state: *state, complaint: Complaint::default(), activation: None }
    }

    /// Asks the guest to have so many pages of 4 KiB in the balloon. It may take its time, or never get there.
    pub fn set_target(&mut self, pages: u32) {
        self.state.target_pages = pages;
        if let Some(activation) = &self.activation {
            activation.interrupt.signal_config();
        }
    }

    /// How many pages of 4 KiB the host wants in the balloon, and how many the guest says are.
    pub fn pages(&self) -> (u32, u32) {
        (self.state.target_pages, self.state.actual_pages)
    }

    /// What the guest last said of its memory.
    pub fn statistics(&self) -> BalloonStatistics {
        self.state.statistics
    }

    /// Asks the guest for new statistics. Returns whether it can be asked: not before it has answered the last time.
    pub fn request_statistics(&mut self) -> Result<bool, DeviceError> {
        let Some(Activation { memory, queues, interrupt, .. }) = &mut self.activation else { return Ok(false) };
        let Some(head) = self.state.statistics_chain.take() else { return Ok(false) };
        let queue = &mut queues[usize::from(STATISTICS)];
        let outcome = queue.push_used(memory, head, 0).and_then(|()| queue.interrupt(memory, interrupt));
        outcome.map(|()| true).map_err(DeviceError::queue(STATISTICS))
    }

    /// Serves `index`, whose chains give pages back: by number, or as they are.
    fn drop_pages(&mut self, index: u16) -> Result<(), DeviceError> {
        let Some(Activation { memory, queues, interrupt, .. }) = &mut self.activation else { return Ok(()) };
        let complaint = &mut self.complaint;
        let outcome = queues[usize::from(index)].serve(memory, interrupt, |chain| {
            let outcome: io::Result<()> = match index {
                INFLATE => queue::inflate(chain.readable, memory),
                // Nothing to be done: the pages come back when they are touched.
                DEFLATE => Ok(()),
                _ => queue::report(&chain.writable, memory),
            };
            if let Err(error) = outcome {
                complaint.raise("taking pages from the guest", error);
            }
            Served::Used(0)
        });
        outcome.map(drop).map_err(DeviceError::queue(index))
    }

    /// Keeps the newest chain of statistics for the next request.
    fn take_statistics(&mut self) -> Result<(), DeviceError> {
        let Some(Activation { memory, queues, interrupt, .. }) = &mut self.activation else { return Ok(()) };
        let queue = &mut queues[usize::from(STATISTICS)];
        let failed = DeviceError::queue(STATISTICS);
        // A driver has one such chain. One that offers more gets them back; a full ring of them at most at a time.
        for _ in 0..QUEUE_SIZES[usize::from(STATISTICS)] {
            let Some(chain) = queue.pop(memory).map_err(&failed)? else { break };
            self.state.statistics = queue::statistics(chain.readable);
            if let Some(older) = self.state.statistics_chain.replace(chain.head) {
                queue.push_used(memory, older, 0).map_err(&failed)?;
                queue.interrupt(memory, interrupt).map_err(&failed)?;
            }
        }
        Ok(())
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let deflate = if self.state.deflate_on_oom { FEATURE_DEFLATE_ON_OOM } else { 0 };
        FEATURE_STATISTICS | FEATURE_REPORTING | deflate
    }

    /// Section 5.5.4.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let words = [self.state.target_pages, self.state.actual_pages].map(u32::to_le_bytes);
        read_config_bytes(words.as_flattened(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(pages)) = (offset, data.try_into()) {
            self.state.actual_pages = u32::from_le_bytes(pages);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.activation = Some(activation);
        Ok(())
    }

    fn activation(&self) -> Option<&Activation> {
        self.activation.as_ref()
    }

    fn notify(&mut self, queue: u16) -> Result<(), DeviceError> {
        let has_statistics = self.activation.as_ref().is_some_and(|active| active.features & FEATURE_STATISTICS != 0);
        // Linux numbers the queues it uses without gaps, so without statistics the reports take their place.
        if queue == STATISTICS && has_statistics { self.take_statistics() } else { self.drop_pages(queue) }
    }

    fn reset(&mut self) {
        self.state.actual_pages = 0;
        self.state.statistics_chain = None;
        self.activation = None;
    }

    fn state(&self) -> DeviceState {
        DeviceState::Balloon(self.state)
    }
}
