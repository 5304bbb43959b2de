//! What can be asked of a guest, and what is answered: one line of JSON each.

use serde::{Deserialize, Serialize};

use crate::process::run::Most;
use crate::process::vm::exits::Exits;
use crate::vcpu::translate::Checked;

/// A request: `"exits"`, `{"translate": {"pid": 1, "address": 4096}}`, `{"limits": {"memory": 67108864, "threads": null}}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Where an address leads to.
    Translate {
        /// In which process.
        pid: i32,
        /// The address.
        address: u64,
    },
    /// Why ring 3 was left so far.
    Exits,
    /// How the guest is doing.
    State,
    /// Other limits from now on.
    Limits(Most),
    /// One more process, described by the descriptors that come with it: standard input, output and error, its broker's
    /// socket, a file with a [`Command`](crate::process::Command) and whose it is.
    Exec,
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
    /// Of [`Request::State`].
    State(State),
    /// Of [`Request::Limits`], as they are now.
    Limited(Most),
    /// Of [`Request::Exec`], first: the process's id.
    Started(i32),
    /// Of [`Request::Exec`], last: the exit code, 128+n for signal n.
    Ended(i32),
    /// Of [`Request::Exec`], instead: why the process cannot be started.
    Failed {
        /// What was attempted, on what, and why it failed.
        message: String,
        /// What the command ends with: 127 not found, 126 not executable, 125 anything else.
        code: i32,
    },
    /// The request cannot be answered: why.
    Error(String),
}

/// A guest at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// How many processes it has.
    pub processes: usize,
    /// How many threads those have.
    pub threads: usize,
}
