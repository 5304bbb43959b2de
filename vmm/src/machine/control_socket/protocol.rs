//! What can be asked of a machine at work, and what it answers: one line of JSON each.

use serde::{Deserialize, Serialize};

use crate::vcpu::exits::Exits;
use crate::vcpu::translate::Checked;

/// A request: `"exits"`, `"state"`, `{"balloon": {"bytes": 67108864}}`, `{"translate": {"vcpu": 0, "address": 4096}}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Where a guest-virtual address leads to.
    Translate {
        /// By the tables of which vCPU.
        vcpu: u8,
        /// The address.
        address: u64,
    },
    /// How much memory the guest is to keep; the rest goes into the balloon. Answered with the state at once: the guest takes
    /// its time.
    Balloon {
        /// Bytes, from [`MEMORY_MIN`](crate::machine::MEMORY_MIN) to all it was made with.
        bytes: u64,
    },
    /// The exits so far.
    Exits,
    /// What the machine is made of and how it is doing.
    State,
}

/// What a request is answered with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Of [`Request::Translate`].
    Translation {
        /// The walk, and KVM's answer beside it.
        #[serde(flatten)]
        checked: Box<Checked>,
        /// The same for people, several lines.
        text: String,
    },
    /// Of [`Request::Exits`].
    Exits(Exits),
    /// Of [`Request::State`] and [`Request::Balloon`].
    State(State),
    /// The request cannot be answered: why.
    Error(String),
}

/// A machine at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Bytes of memory it was made with.
    pub memory: u64,
    /// How many vCPUs it has.
    pub vcpus: usize,
    /// Its balloon, if it has one.
    pub balloon: Option<BalloonSize>,
}

/// How full the balloon is, told by what it leaves to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonSize {
    /// Bytes the guest is to keep.
    pub wanted: u64,
    /// Bytes it keeps, as it says itself.
    pub kept: u64,
    /// Whether the guest has a driver at work; without one nothing happens.
    pub has_driver: bool,
}
