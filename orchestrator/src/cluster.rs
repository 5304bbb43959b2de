//! A whole cluster on one machine: a master, some agents and the job framework, each a process of its own in the
//! background.
//!
//! What runs is written down in `STATE/cluster/cluster.json`, process by process as they are started, so that [`up`]
//! can start again what has died and [`down`] can end all of it, with all tasks. What the processes remember is in
//! `DATA/cluster/<name>/`, what they say in `DATA/cluster/<name>.log`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use berth_engine::{Container, Roots, remove};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{agent, network, process};

/// How long processes may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether they have.
const LOOK: Duration = Duration::from_millis(10);
/// The ports that all agents of one network together offer.
const PORTS: (u16, u16) = (31_000, 32_999);
/// Of the host's memory, so many parts of ten are offered.
const MEMORY_TENTHS: u64 = 8;
/// What the processes are called; agents have a number besides.
const MASTER: &str = "master";
const AGENT: &str = "agent-";
const JOBS: &str = "jobs";
/// The most agents of one machine.
pub const MOST_AGENTS: u16 = 100;
/// Where a master listens unless it is told otherwise: Mesos' port.
pub const MASTER_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5050);

/// What is to be there. What is left out is as it is where there is a cluster, or as a new one has it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where everything is kept.
    pub roots: Roots,
    /// The program `berth`.
    pub berth: PathBuf,
    /// Where the master is to listen; port 0 for any that is free.
    pub listen: Option<SocketAddr>,
    /// How many agents.
    pub agents: Option<u16>,
    /// The image of tasks that name none.
    pub default_image: Option<String>,
    /// After which time without a word from it an agent counts as unreachable.
    pub agent_timeout: Option<Duration>,
    /// Whether each agent has a network of its own; else they share the host's. A new cluster has them where they can be made.
    pub own_networks: Option<bool>,
}

/// What was started.
#[derive(Debug)]
pub struct Started {
    /// The cluster as it is now.
    pub cluster: Cluster,
    /// Why agents with networks of their own reach nothing beyond this host, if they do not.
    pub confined: Option<io::Error>,
}

/// What is there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cluster {
    /// Where the master listens.
    pub master: SocketAddr,
    /// How many agents it is to have.
    pub agents: u16,
    /// The image of tasks that name none.
    pub default_image: Option<String>,
    /// After which time without a word from it an agent counts as unreachable; as the master sees fit, if none.
    pub agent_timeout: Option<Duration>,
    /// The number of the network in which each agent has one of its own; they share the host's, if none.
    #[serde(default)]
    pub network: Option<u8>,
    /// Its processes, the master first.
    pub processes: Vec<Process>,
}

/// A process in the background.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Process {
    /// `master`, `agent-1`, …, `jobs`
    pub name: String,
    /// Its id.
    pub pid: i32,
    /// When it started, by which it is known from another one with the same id.
    start: u64,
}

/// Why a cluster cannot be started or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something of the system failed.
    #[error("cannot {0}: {1}")]
    System(String, io::Error),
    /// `cluster.json` is damaged.
    #[error("cannot understand {path}: {1}; end the processes of the cluster by hand and remove it", path = .0.display())]
    Damaged(PathBuf, serde_json::Error),
    /// A process ended, or was not ready in time.
    #[error("{name} did not start: {reason}")]
    Start {
        /// Which.
        name: String,
        /// Why.
        reason: String,
    },
    /// A cluster is to be started that is there and is another.
    #[error("a cluster is up already, with {0}; leave the flag out, or end it with `berth cluster down`")]
    Other(String),
    /// There is none.
    #[error("there is no cluster on this machine; `berth cluster up` starts one")]
    None,
    /// A process does not end.
    #[error("{0} does not end, though it was killed: a process is stuck in the kernel")]
    Stuck(String),
    /// Agents cannot have networks of their own.
    #[error("cannot {0} the networks of agents: {1}; `--network host` needs none")]
    Network(&'static str, io::Error),
    /// What it left cannot be read.
    #[error(transparent)]
    Agent(#[from] agent::Error),
    /// The master does not answer.
    #[error(transparent)]
    Ask(#[from] process::Error),
}

impl Process {
    /// Whether it is there.
    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.start)
    }

    fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // It may end in this moment.
            let _: Result<(), Errno> = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// Starts what is missing of a cluster, and waits until all agents take part.
pub fn up(plan: &Plan) -> Result<Started, Error> {
    let _lock = lock(&plan.roots)?;
    let mut cluster = match read(&plan.roots)? {
        Some(cluster) => cluster.unless_planned_otherwise(plan)?,
        None => plan.begin()?,
    };
    if cluster.network.is_some() && !network::is_whole(&networks(&plan.roots), &agent_names(cluster.agents)) {
        cluster.network = Some(make_networks(&plan.roots, cluster.agents)?);
        write(&plan.roots, &cluster)?;
    }
    let lead_outside = |_| network::lead_outside(&networks(&plan.roots), &agent_names(cluster.agents)).err();
    let confined = cluster.network.and_then(lead_outside);
    for (index, name) in names(cluster.agents).iter().enumerate() {
        if cluster.processes.get(index).is_some_and(Process::is_alive) {
            continue;
        }
        let (process, address) = start(plan, &cluster, name).inspect_err(|_| {
            // Of a cluster that never began nothing is left.
            if cluster.processes.is_empty() {
                let _ = remove_networks(&plan.roots);
            }
        })?;
        cluster.master = address.unwrap_or(cluster.master);
        match cluster.processes.get_mut(index) {
            Some(before) => *before = process,
            None => cluster.processes.push(process),
        }
        write(&plan.roots, &cluster)?;
    }
    wait_for_agents(plan, &cluster)?;
    Ok(Started { cluster, confined })
}

impl Plan {
    /// A new cluster of which nothing runs yet.
    fn begin(&self) -> Result<Cluster, Error> {
        // What an `up` left that was killed as early as here.
        remove_networks(&self.roots)?;
        let agents = self.agents.unwrap_or(1);
        let own_networks = self.own_networks.unwrap_or_else(network::is_possible);
        Ok(Cluster {
            master: self.listen.unwrap_or(MASTER_ADDRESS),
            agents,
            default_image: self.default_image.clone(),
            agent_timeout: self.agent_timeout,
            network: own_networks.then(|| make_networks(&self.roots, agents)).transpose()?,
            processes: Vec::new(),
        })
    }
}

impl Cluster {
    /// Itself, unless it was planned otherwise: what runs does not change.
    fn unless_planned_otherwise(self, plan: &Plan) -> Result<Self, Error> {
        let other = |what: String| Err(Error::Other(what));
        if plan.agents.is_some_and(|agents| agents != self.agents) {
            return other(format!("{} agents", self.agents));
        }
        if plan.listen.is_some_and(|listen| listen.port() != 0 && listen != self.master) {
            return other(format!("a master at {}", self.master));
        }
        if plan.default_image.is_some() && plan.default_image != self.default_image {
            return other(format!("the default image {}", self.default_image.as_deref().unwrap_or("unset")));
        }
        if plan.own_networks.is_some_and(|own| own != self.network.is_some()) {
            let whose = if self.network.is_some() { "networks of the agents' own" } else { "the host's network" };
            return other(whose.to_owned());
        }
        if plan.agent_timeout.is_some() && plan.agent_timeout != self.agent_timeout {
            return other(self.agent_timeout.map_or("the agent timeout unset".to_owned(), |timeout| {
                format!("an agent timeout of {} s", timeout.as_secs_f64())
            }));
        }
        Ok(self)
    }
}

/// The cluster that was started, if there is one.
pub fn read(roots: &Roots) -> Result<Option<Cluster>, Error> {
    let path = file(roots);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| Error::Damaged(path, error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::System(format!("read {}", path.display()), error)),
    }
}

/// Ends a cluster: its processes, its tasks, and what it remembers.
pub fn down(roots: &Roots) -> Result<(), Error> {
    let _lock = lock(roots)?;
    let Some(cluster) = read(roots)? else {
        remove_networks(roots)?;
        return Err(Error::None);
    };
    for process in &cluster.processes {
        process.signal(Signal::SIGTERM);
    }
    for process in &cluster.processes {
        if !within(PATIENCE, || !process.is_alive()) {
            process.signal(Signal::SIGKILL);
            if !within(PATIENCE, || !process.is_alive()) {
                return Err(Error::Stuck(process.name.clone()));
            }
        }
    }
    for agent in cluster.processes.iter().filter(|process| process.name.starts_with(AGENT)) {
        end_tasks(roots, &directory(roots).join(&agent.name))?;
    }
    remove_networks(roots)?;
    let socket = jobs_socket(roots);
    match fs::remove_file(&socket) {
        // It never came so far.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => other.map_err(|error| Error::System(format!("remove {}", socket.display()), error))?,
    }
    let data = directory(roots);
    fs::remove_dir_all(&data).map_err(|error| Error::System(format!("remove {}", data.display()), error))?;
    let file = file(roots);
    fs::remove_file(&file).map_err(|error| Error::System(format!("remove {}", file.display()), error))
}

/// Ends and removes the sandboxes of an agent that is no longer there.
fn end_tasks(roots: &Roots, directory: &Path) -> Result<(), Error> {
    let prefix = agent::sandbox_prefix(directory)?;
    let (containers, _) = Container::all(roots).map_err(agent::Error::from)?;
    for container in containers.iter().filter(|container| container.name().starts_with(&prefix)) {
        remove::remove(roots, container.id(), true, true).map_err(agent::Error::from)?;
    }
    Ok(())
}

fn names(agents: u16) -> Vec<String> {
    std::iter::once(MASTER.to_owned()).chain(agent_names(agents)).chain([JOBS.to_owned()]).collect()
}

fn agent_names(agents: u16) -> Vec<String> {
    (1..=agents).map(|number| format!("{AGENT}{number}")).collect()
}

/// Where the networks of agents are kept: a reboot empties it as it removes them.
fn networks(roots: &Roots) -> PathBuf {
    roots.state().join("cluster/network")
}

fn make_networks(roots: &Roots, agents: u16) -> Result<u8, Error> {
    network::make(&networks(roots), &agent_names(agents)).map_err(|error| Error::Network("make", error))
}

fn remove_networks(roots: &Roots) -> Result<(), Error> {
    network::remove(&networks(roots)).map_err(|error| Error::Network("remove", error))
}

/// Where the job framework of this machine is reached.
pub fn jobs_socket(roots: &Roots) -> PathBuf {
    roots.state().join("cluster/jobs.sock")
}

/// The log of a task that has ended, if its agent was of this machine and still has it.
pub fn kept_log(roots: &Roots, sandbox: &str) -> Option<PathBuf> {
    let processes = fs::read_dir(directory(roots)).ok()?;
    let logs = processes.flatten().map(|process| agent::kept_log(&process.path(), sandbox));
    logs.into_iter().find(|log| log.is_file())
}

fn directory(roots: &Roots) -> PathBuf {
    roots.data().join("cluster")
}

fn file(roots: &Roots) -> PathBuf {
    roots.state().join("cluster/cluster.json")
}

/// Only one process changes a cluster at a time.
fn lock(roots: &Roots) -> Result<File, Error> {
    let path = roots.state().join("cluster/lock");
    let failed = |error| Error::System(format!("lock {}", path.display()), error);
    fs::create_dir_all(roots.state().join("cluster")).map_err(failed)?;
    let file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
    Ok(file)
}

fn write(roots: &Roots, cluster: &Cluster) -> Result<(), Error> {
    let path = file(roots);
    let new = path.with_extension("new");
    let text = serde_json::to_vec(cluster).expect("a cluster is plain");
    let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &path));
    written.map_err(|error| Error::System(format!("write {}", path.display()), error))
}

/// Starts one process of a cluster. A master says where it listens.
fn start(plan: &Plan, cluster: &Cluster, name: &str) -> Result<(Process, Option<SocketAddr>), Error> {
    let data = directory(&plan.roots);
    let failed = |error: io::Error| Error::Start { name: name.to_owned(), reason: error.to_string() };
    fs::create_dir_all(&data).map_err(failed)?;
    let log_path = data.join(format!("{name}.log"));
    let log = OpenOptions::new().create(true).append(true).open(&log_path).map_err(failed)?;
    let mut command = Command::new(&plan.berth);
    command.arg("--data-root").arg(plan.roots.data()).arg("--state-root").arg(plan.roots.state()).arg("cluster");
    if name == MASTER {
        command.arg(MASTER).arg("--listen").arg(cluster.master.to_string());
        command.args(cluster.agent_timeout.iter().map(|timeout| format!("--agent-timeout={}ms", timeout.as_millis())));
    } else if let Some(number) = name.strip_prefix(AGENT).and_then(|number| number.parse::<usize>().ok()) {
        command.arg("agent").arg("--master").arg(cluster.master.to_string()).args(share(cluster, number - 1)?);
        if let Some(network) = cluster.network {
            let namespace = network::of_agent(&networks(&plan.roots), name);
            command.arg(format!("--network=ns:{}", namespace.display()));
            command.arg(format!("--hostname={}", network::address(network, number - 1)));
        }
        command.arg(format!("--attribute=agent={name}"));
        command.args(cluster.default_image.iter().map(|image| format!("--default-image={image}")));
    } else {
        command.arg(JOBS).arg("--master").arg(cluster.master.to_string());
    }
    command.arg("--directory").arg(data.join(name));
    // Signals of a terminal are for whoever sits at it.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().map_err(failed)?;
    let mut line = String::new();
    let stdout = child.stdout.take().expect("it is a pipe");
    BufReader::new(stdout).read_line(&mut line).map_err(failed)?;
    if line.is_empty() {
        let status = child.wait().map_err(failed)?;
        let said = fs::read_to_string(&log_path).unwrap_or_default();
        let last = said.lines().next_back().unwrap_or("it said nothing");
        return Err(Error::Start { name: name.to_owned(), reason: format!("{last} ({status})") });
    }
    let pid = i32::try_from(child.id()).expect("a process id is an i32");
    let start = start_time(pid).unwrap_or_default();
    let address = if name == MASTER { line.trim().rsplit(' ').next().and_then(|word| word.parse().ok()) } else { None };
    Ok((Process { name: name.to_owned(), pid, start }, address))
}

/// What one of the agents offers of the host, as flags.
fn share(cluster: &Cluster, index: usize) -> Result<Vec<String>, Error> {
    let agents = cluster.agents;
    let failed = |error| Error::System("find out what this host has".to_owned(), error);
    let cpus = std::thread::available_parallelism().map_err(failed)?.get() * 1000 / usize::from(agents);
    let memory = host_memory().map_err(failed)? * MEMORY_TENTHS / 10 / u64::from(agents);
    // In networks of their own all have all ports.
    let (sharers, index) = if cluster.network.is_some() { (1, 0) } else { (agents, index) };
    let width = (PORTS.1 - PORTS.0 + 1) / sharers;
    let first = PORTS.0 + width * u16::try_from(index).expect("agents are few");
    let last = first + width - 1;
    Ok(vec![
        format!("--cpus={}.{:03}", cpus / 1000, cpus % 1000),
        format!("--memory={}k", memory >> 10),
        format!("--ports={first}-{last}"),
    ])
}

/// Bytes of memory the host has (`proc_meminfo(5)`).
fn host_memory() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")).and_then(|number| number.trim().parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal"))
}

fn wait_for_agents(plan: &Plan, cluster: &Cluster) -> Result<(), Error> {
    let mut missing = String::new();
    let mut all_there = || -> Result<bool, Error> {
        if let Some(dead) = cluster.processes.iter().find(|process| !process.is_alive()) {
            let log = directory(&plan.roots).join(format!("{}.log", dead.name));
            let reason = format!("it has ended; {} may say why", log.display());
            return Err(Error::Start { name: dead.name.clone(), reason });
        }
        let contact = process::Contact { masters: cluster.master.into(), tls: None };
        let agents = process::ask(&contact, &json!({ "type": "GET_AGENTS" }))?;
        let agents = agents["get_agents"]["agents"].as_array().cloned().unwrap_or_default();
        let connected = agents.iter().filter(|agent| agent["state"] == "connected").count();
        missing = format!("{connected} of {} agents take part", cluster.agents);
        Ok(connected >= usize::from(cluster.agents))
    };
    let mut result = Ok(false);
    within(PATIENCE, || {
        result = all_there();
        !matches!(result, Ok(false))
    });
    match result {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Start { name: "the cluster".to_owned(), reason: missing }),
        Err(error) => Err(error),
    }
}

/// Whether something comes true in time.
fn within(time: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + time;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        sleep(LOOK);
    }
}

/// When a process started, in ticks since the host did; none if it is not there, or a zombie (`proc_pid_stat(5)`).
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    fields.nth(18)?.parse().ok().filter(|_| state != "Z")
}
