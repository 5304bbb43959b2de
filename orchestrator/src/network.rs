//! Networks for agents that share a machine: each has a network namespace (`network_namespaces(7)`), as if it were a machine
//! of its own, and a cable (`veth(4)`) to a bridge. So has the host, where its end is called `berthN`.
//!
//! ```text
//! host           hub              agent-1
//! berthN ─────── host
//! 10.213.N.1      │ bridge
//!                agent-1 ──────── eth0   10.213.N.2
//!   slirp4netns ───────────────── outside
//! ```
//!
//! What is beyond the host they reach by `slirp4netns(1)`, which makes their connections as connections of the host: a process
//! for each. The host forwards and translates nothing, and has no rule that would have to be removed.
//!
//! The bridge is in a namespace as well. Namespaces are kept by files that they are mounted on; when these are gone, and
//! with them the last task, the kernel removes all there is, the host's end included. That end's name is what makes N one
//! cluster's own.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// What `statfs(2)` says of a file that stands for a namespace: `NSFS_MAGIC` of `linux/magic.h`.
const NSFS: i64 = 0x6e73_6673;
/// The first two numbers of all addresses, in which private networks are rarely found.
const PREFIX: [u8; 2] = [10, 213];
/// Where the bridge is.
const HUB: &str = "hub";
/// The interface that leads to what is beyond the host, and the network it is in: the same for all, as nobody else sees it.
const OUTSIDE: &str = "outside";
const BEYOND: &str = "10.214.0.0/24";
/// What the names of files end with that have the id of what leads there, and what it says.
const PID: &str = "pid";
const LOG: &str = "log";
/// How long it may take to end.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
/// The programs that are needed, and their packages.
const IP: &str = "`ip` (of iproute2)";
const SLIRP: &str = "`slirp4netns`";

/// Whether there are networks for so many agents.
pub fn is_whole(directory: &Path, agents: &[String]) -> bool {
    let is_there = |name: &str| rustix::fs::statfs(directory.join(name)).is_ok_and(|it| it.f_type == NSFS);
    is_there(HUB) && agents.iter().all(|agent| is_there(agent))
}

/// Whether they can be made here: by root, with `ip(8)`.
pub fn is_possible() -> bool {
    rustix::process::geteuid().is_root() && ip("link show lo").is_ok()
}

/// The file that stands for an agent's network.
pub fn of_agent(directory: &Path, agent: &str) -> PathBuf {
    directory.join(agent)
}

/// Where the agent with this index is reached, the first being 0.
pub fn address(number: u8, index: usize) -> Ipv4Addr {
    // The host is 1, and agents are far fewer than 250.
    Ipv4Addr::from([PREFIX[0], PREFIX[1], number, u8::try_from(index + 2).unwrap_or(u8::MAX)])
}

/// Makes networks for agents, in place of what there was: their number. Nothing is left of them if that goes wrong.
pub fn make(directory: &Path, agents: &[String]) -> io::Result<u8> {
    remove(directory)?;
    try_make(directory, agents).inspect_err(|_| drop(remove(directory)))
}

/// Leads agents to what is beyond the host, where they are not led yet.
///
/// Otherwise they reach the host and each other, and more only where the host forwards and translates for them.
pub fn lead_outside(directory: &Path, agents: &[String]) -> io::Result<()> {
    for agent in agents {
        let own = of_agent(directory, agent);
        if within(&own, || ip(&format!("link show {OUTSIDE}"))).is_err() {
            start_slirp(&own)?;
        }
    }
    Ok(())
}

/// Starts what makes the connections of a network, and waits until it is ready.
fn start_slirp(own: &Path) -> io::Result<()> {
    let mut log = File::options().create(true).truncate(true).read(true).write(true).open(own.with_extension(LOG))?;
    let (ready, tell) = nix::unistd::pipe()?;
    let mut slirp = Command::new("slirp4netns");
    slirp.args(["--configure", "--mtu=65520", "--disable-host-loopback", "--enable-sandbox", "--enable-seccomp"]);
    slirp.arg(format!("--cidr={BEYOND}")).arg(format!("--ready-fd={}", tell.as_raw_fd()));
    slirp.arg("--netns-type=path").arg(own).arg(OUTSIDE);
    // Signals of a terminal are for whoever sits at it.
    slirp.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.try_clone()?);
    let child = apart(|| {
        // It unmounts what it finds, and would do so for everybody.
        unshare(CloneFlags::CLONE_NEWNS)?;
        let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        mount(none, "/", none, private, none)?;
        slirp.spawn()
    });
    let mut child = child.map_err(|error| cannot(SLIRP, &error.to_string()))?;
    drop(tell);
    // At once, so that it is found again whatever happens here.
    fs::write(own.with_extension(PID), child.id().to_string()).inspect_err(|_| drop(child.kill()))?;
    if File::from(ready).read(&mut [0])? == 1 {
        return Ok(());
    }
    child.wait()?;
    let mut said = String::new();
    log.rewind()?;
    log.read_to_string(&mut said)?;
    Err(cannot(SLIRP, said.lines().next_back().unwrap_or("it says nothing")))
}

/// Removes the networks that are there, if there are any, once nobody uses them.
pub fn remove(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let path = entry?.path();
        if let Some(process) = leading_outside(&path) {
            // It may end in this moment.
            let _ = pidfd_send_signal(&process, Signal::TERM);
            retry_on_intr(|| poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&PATIENCE)))?;
        }
        match umount2(&path, MntFlags::MNT_DETACH) {
            // It was never mounted.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(error) => return Err(error.into()),
        }
        fs::remove_file(path)?;
    }
    fs::remove_dir(directory)
}

/// The process that a file has the id of, if it still is what led a network outside.
fn leading_outside(path: &Path) -> Option<OwnedFd> {
    let pid = (path.extension()? == PID).then(|| fs::read_to_string(path).ok()?.trim().parse().ok()).flatten()?;
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let namespace = path.with_extension("");
    command.split(|byte| *byte == 0).any(|word| word == namespace.as_os_str().as_bytes()).then_some(process)
}

/// Does something in a network namespace, in a thread of its own.
pub fn within<T: Send>(namespace: &Path, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let namespace = File::open(namespace)?;
    apart(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        act()
    })
}

fn apart<T: Send>(act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let failed = |_| Err(io::Error::other("the thread panicked"));
    thread::scope(|scope| scope.spawn(act).join().unwrap_or_else(failed))
}

fn try_make(directory: &Path, agents: &[String]) -> io::Result<u8> {
    fs::create_dir_all(directory)?;
    let hub = directory.join(HUB);
    new_namespace(&hub)?;
    within(&hub, || ip("link set lo up\nlink add name bridge type bridge\nlink set bridge up"))?;
    let number = connect_host(&hub)?;
    for (index, agent) in agents.iter().enumerate() {
        let own = of_agent(directory, agent);
        new_namespace(&own)?;
        let (address, host) = (address(number, index), Ipv4Addr::from([PREFIX[0], PREFIX[1], number, 1]));
        let cable = format!("link set lo up\nlink add name eth0 type veth peer name {agent} netns {}", hub.display());
        // The route to the outside, if there is one, goes before.
        let route =
            format!("addr add {address}/24 dev eth0\nlink set eth0 up\nroute add default via {host} metric 1000");
        within(&own, || ip(&format!("{cable}\n{route}")))?;
        within(&hub, || ip(&format!("link set {agent} master bridge up")))?;
    }
    Ok(number)
}

fn new_namespace(path: &Path) -> io::Result<()> {
    File::create_new(path)?;
    apart(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let none = None::<&str>;
        Ok(mount(Some("/proc/thread-self/ns/net"), path, none, MsFlags::MS_BIND, none)?)
    })
}

/// Gives the host an end, with the first number that is free.
fn connect_host(hub: &Path) -> io::Result<u8> {
    let routes = fs::read_to_string("/proc/net/route")?;
    let pid = std::process::id();
    let mut problem = io::Error::other("the host has routes to all of them");
    for number in (0..=u8::MAX).filter(|number| !is_routed(&routes, *number)) {
        let link = format!("link add name host type veth peer name berth{number} netns {pid}");
        match within(hub, || ip(&link)) {
            Ok(()) => {
                within(hub, || ip("link set host master bridge up"))?;
                let [first, second] = PREFIX;
                ip(&format!("addr add {first}.{second}.{number}.1/24 dev berth{number}\nlink set berth{number} up"))?;
                return Ok(number);
            }
            // Another cluster may have that number.
            Err(error) if error.to_string().contains("File exists") => problem = error,
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(format!(
        "none of the networks {}.{}.0.0/24 and so on is free: {problem}",
        PREFIX[0], PREFIX[1]
    )))
}

/// Whether a table of routes (`proc_net(5)`, route) leads to a network, other than by default.
fn is_routed(table: &str, number: u8) -> bool {
    // As it is in memory, the first byte of an address comes last on a little-endian machine.
    let number_of = |hex: &str| u32::from_str_radix(hex, 16).ok().map(|it| u32::from_be_bytes(it.to_ne_bytes()));
    let (network, mask) = (u32::from_be_bytes([PREFIX[0], PREFIX[1], number, 0]), 0xffff_ff00);
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(to), Some(of)) =
            (fields.get(1).and_then(|it| number_of(it)), fields.get(7).and_then(|it| number_of(it)))
        else {
            return false;
        };
        of != 0 && (to ^ network) & of & mask == 0
    })
}

/// Has `ip(8)` do something, in the namespace of this thread: one command a line.
fn ip(commands: &str) -> io::Result<()> {
    // Not a pipe: nobody is there to take the rest of it when one of them fails.
    let mut input = tempfile::tempfile()?;
    input.write_all(commands.as_bytes())?;
    input.rewind()?;
    let output = Command::new("ip").args(["-batch", "-"]).stdin(input).env("LC_ALL", "C").output();
    let output = output.map_err(|error| cannot(IP, &error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(cannot(IP, said.lines().next().unwrap_or("it says nothing")))
}

fn cannot(program: &str, cause: &str) -> io::Error {
    io::Error::other(format!("{program} cannot do that: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_that_the_host_knows_are_left_alone() {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let route = |to: [u8; 4], of: [u8; 4]| {
            let [to, of] = [to, of].map(u32::from_ne_bytes);
            format!("{head}eth0\t{to:08X}\t00000000\t0001\t0\t0\t0\t{of:08X}\t0\t0\t0\n")
        };
        assert!(!is_routed(head, 7));
        assert!(!is_routed(&route([0; 4], [0; 4]), 7), "by default");
        assert!(is_routed(&route([10, 0, 0, 0], [255, 0, 0, 0]), 7));
        assert!(is_routed(&route([10, 213, 7, 0], [255, 255, 255, 0]), 7));
        assert!(is_routed(&route([10, 213, 7, 9], [255; 4]), 7));
        assert!(!is_routed(&route([10, 213, 8, 0], [255, 255, 255, 0]), 7));
        assert!(!is_routed(&route([192, 0, 2, 0], [255, 255, 255, 0]), 7));
        assert_eq!(address(7, 1), Ipv4Addr::new(10, 213, 7, 3));
    }
}
