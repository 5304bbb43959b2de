//! What a snapshot keeps of a device and its transport.

use serde::{Deserialize, Serialize};

use crate::devices::DeviceState;
use crate::devices::virtqueue::VirtqueueState;

/// The registers, the queues and the device behind them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioState {
    /// The `Status` register.
    pub status: u32,
    /// Which half of the device's features is shown.
    pub device_features_selector: u32,
    /// Which half of the driver's features is written.
    pub driver_features_selector: u32,
    /// What the driver accepted.
    pub driver_features: u64,
    /// The queue the queue registers speak of.
    pub queue_selector: u32,
    /// Every queue of the device.
    pub queues: Vec<VirtqueueState>,
    /// Interrupts not acknowledged yet.
    pub interrupt_status: u32,
    /// How often the configuration changed.
    pub config_generation: u32,
    /// The device.
    pub device: DeviceState,
}
