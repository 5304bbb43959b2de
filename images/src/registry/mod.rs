//! The registry client: pull, push, login, after the OCI distribution specification 1.1.
//!
//! It speaks HTTP through `reqwest` directly. The `oci-client` crate hides what is needed here:
//! the `Retry-After` header of a 429, bodies bounded while they arrive, and a response's status on resuming a blob.
//!
//! Everything a registry says is taken with suspicion: documents are read to 4 MiB at most, blobs to the size their
//! descriptor gives, and nothing is kept whose digest is wrong.

mod auth;
mod blob;
mod client;
mod connection;
mod credentials;
mod login;
mod manifest;
mod progress;
mod pull;
mod push;
mod retry;

pub use connection::Connection;
pub use credentials::Credentials;
pub use login::{login, logout};
pub use progress::{Event, Progress, Quiet};
pub use pull::{PullOptions, pull};
pub use push::{PushOptions, push};

use crate::error::{Error, Result};

/// Runs a registry operation to its end on threads of its own; nothing of it stays.
fn run<T: Send>(operation: impl Future<Output = Result<T>> + Send) -> Result<T> {
    let work = || {
        block_sigpipe();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(Error::io("start", "the network threads"))?;
        runtime.block_on(operation)
    };
    let lost = |_| Err(Error::invalid("the network thread", "it panicked"));
    std::thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(lost))
}

/// A registry that hangs up while it is written to is an error of the write, not a signal that ends the program, which
/// may have the signal's default action. Threads that this one starts inherit the mask.
fn block_sigpipe() {
    // SAFETY: the set is initialised by sigemptyset before it is used, and outlives the calls.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
}
