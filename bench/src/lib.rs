//! What isolation costs: starts, density and work of all back ends and of what else is installed, side by side in one run.
//!
//! ```text
//! targets ──▶ startup, density, work ──▶ document ──▶ table (cli), JSON, CSV, report
//! peers   ──▶    │ timed: one run seen from outside; spans: its phases from inside
//! ```
//!
//! Everything that is measured is started as a person would start it: as `berth run …`, in a process of its own. Start reading at
//! [`startup`]; [`document`] is what comes out.

#![expect(
    clippy::cast_precision_loss,
    reason = "times and sizes become figures for people, far below where a float skips numbers"
)]

pub mod csv;
pub mod density;
pub mod document;
mod error;
pub mod host;
pub mod interrupt;
mod memory;
mod peers;
pub mod report;
mod room;
pub mod spans;
pub mod startup;
pub mod statistics;
pub mod targets;
mod timed;
pub mod work;

pub use error::{Error, Result};
pub use room::{Progress, Room};
