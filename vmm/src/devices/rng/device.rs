//! The device.

use super::queue;
use super::state::RngState;
use crate::devices::{Activation, DeviceError, DeviceKind, DeviceState, VirtioDevice};

const QUEUE_SIZES: [u16; 1] = [64];
const REQUESTS: u16 = 0;

/// A source of entropy.
#[derive(Debug, Default)]
pub struct Rng {
    activation: Option<Activation>,
}

impl Rng {
    /// Continues a saved device.
    pub fn restore(_state: &RngState) -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.activation = Some(activation);
        Ok(())
    }

    fn activation(&self) -> Option<&Activation> {
        self.activation.as_ref()
    }

    fn notify(&mut self, _queue: u16) -> Result<(), DeviceError> {
        self.activation.as_mut().map_or(Ok(()), |activation| activation.serve(REQUESTS, queue::fill))
    }

    fn reset(&mut self) {
        self.activation = None;
    }

    fn state(&self) -> DeviceState {
        DeviceState::Rng(RngState::default())
    }
}
