//! From the kernel's first process to a guest that serves, and to its end.

use std::convert::Infallible;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};

use berth_runtime::error::{Attempt as _, Result};
use berth_vmm::guest::PORT;
use berth_vmm::guest::frame::Frame;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, connect, listen, socket};

use crate::server::Server;
use crate::{machine, modules, root};

/// Everything, and the end of the machine.
pub fn init() -> ! {
    if let Err(error) = serve() {
        eprintln!("berth-guest-init: {error}");
    }
    nix::unistd::sync();
    let Err(errno) = reboot(RebootMode::RB_POWER_OFF) as nix::Result<Infallible>;
    // The kernel takes the end of its first process for a panic, which the host notices.
    panic!("cannot turn the machine off: {errno}");
}

fn serve() -> Result<()> {
    root::mount_kernel_file_systems("")?;
    modules::load()?;
    let listener = listen_for_host()?;
    // The host waits for this one. Where it does not listen, it connects to the listener.
    let first = connect_to_host().ok();
    // A root that cannot be had is told to whoever asks for a process.
    let root = root::enter().map_err(|error| error.to_string());
    let mut server = Server::new(Some(listener))?;
    server.serve_machine(first, &move |machine| root.clone().and_then(|()| machine::set_up(machine)))
}

fn vsock() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    socket(AddressFamily::Vsock, SockType::Stream, flags, None).attempt(|| "open a vsock (is there a vsock device?)")
}

fn listen_for_host() -> Result<OwnedFd> {
    let listener = vsock()?;
    let attempt = || format!("listen on vsock port {PORT}");
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, PORT)).attempt(attempt)?;
    listen(&listener, Backlog::MAXALLOWABLE).attempt(attempt)?;
    Ok(listener)
}

fn connect_to_host() -> Result<File> {
    let stream = vsock()?;
    let attempt = || format!("connect to the host's vsock port {PORT}");
    connect(stream.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_HOST, PORT)).attempt(attempt)?;
    let mut hello = Vec::new();
    Frame::Connected.encode(&mut hello);
    let mut stream = File::from(stream);
    stream.write_all(&hello).attempt(attempt)?;
    Ok(stream)
}
