//! The job framework: it keeps the jobs that people submit running on what a master offers. To the master it is one
//! framework among others.
//!
//! ```text
//! people ── JSON over a socket ──▶ server ─┐
//!                                          ├─▶ process (one loop) ─▶ store
//! master ◀── scheduler API ──▶ link ───────┘
//! ```
//!
//! Start reading at [`manifest`], which says what a job is, and then [`scheduler`], which decides everything and is as pure as
//! the master's core. `placement` is the part of it that fits tasks into offers.

mod link;
pub mod manifest;
mod placement;
mod process;
pub mod scheduler;
mod server;
pub mod state;
mod store;
mod task;
mod view;
pub mod wire;

pub use process::{Config, Error, run};
pub use server::{PATH, Request};
pub use view::Until;
