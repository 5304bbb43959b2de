//! The init of a Linux guest: the first program its kernel runs, from the initramfs.
//!
//! It loads the modules it finds beside it, mounts the image (a virtio disk) under a writable layer, and serves the host over
//! vsock: it runs what it is told to, as a container's process would run, and relays its streams. It is one thread that
//! never waits for one thing alone. When the first process has ended, the machine is turned off.
//!
//! Started as any other process than the first, it serves the connection on its standard input and ends with it. That is how
//! tests without a machine run it.

mod boot;
mod machine;
mod modules;
mod network;
mod root;
mod server;
mod session;
mod spawn;

use std::process::ExitCode;

use rustix::process::getpid;

fn main() -> ExitCode {
    if getpid().is_init() {
        boot::init()
    }
    match server::serve_standard_input() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-guest-init: {error}");
            ExitCode::from(125)
        }
    }
}
