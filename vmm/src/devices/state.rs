//! What a snapshot keeps of a device.

use serde::{Deserialize, Serialize};

use super::balloon::BalloonState;
use super::block::BlockState;
use super::console::ConsoleState;
use super::net::NetState;
use super::rng::RngState;
use super::vsock::VsockState;

/// The state of any device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// See [`super::balloon`].
    Balloon(BalloonState),
    /// See [`super::block`].
    Block(BlockState),
    /// See [`super::console`].
    Console(ConsoleState),
    /// See [`super::net`].
    Net(NetState),
    /// See [`super::rng`].
    Rng(RngState),
    /// See [`super::vsock`].
    Vsock(VsockState),
}
