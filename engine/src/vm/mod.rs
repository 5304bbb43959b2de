//! What can be asked of a running microVM: where an address leads to, how much memory the guest keeps, what it exited for.
//!
//! The answers come from the VMM, which handles what a guest sends: they are bounded, and text in them is cleaned.

mod connection;

use std::collections::BTreeMap;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use berth_runtime::error::misleads;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::connection::Connection;
use crate::container::{Container, State};
use crate::error::{Error, Result};
use crate::microvm;
use crate::options::Limits;

/// How often the guest's progress is looked at.
const INTERVAL: Duration = Duration::from_millis(50);
/// How long a guest that does not come nearer is waited for: its driver tries again every second.
const STANDSTILL: Duration = Duration::from_secs(10);

/// Exits of a microVM from the guest to the VMM, by reason (`PortWrites`). Those that KVM serves itself are not among them.
pub type Exits = BTreeMap<String, u64>;

/// A translated address.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct Translated {
    /// Everything, for programs.
    pub document: Value,
    /// The same for people, a table of several lines.
    #[serde(skip)]
    pub text: String,
}

/// How much of its memory a guest keeps. Sizes are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(serialize = "PascalCase"))]
pub struct Balloon {
    /// What the guest was made with.
    #[serde(skip_deserializing)]
    pub memory: u64,
    /// What it is to keep.
    pub wanted: u64,
    /// What it keeps now, as it says itself.
    pub kept: u64,
    /// Whether the guest has a driver for it.
    pub has_driver: bool,
}

#[derive(Deserialize)]
struct Machine {
    memory: u64,
    balloon: Option<Balloon>,
}

/// Whose page tables an address is followed through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Those that a vCPU of a Linux guest uses now.
    Vcpu(u8),
    /// Those of a process of a process guest, by its id there.
    Process(i32),
}

impl Whose {
    /// From what was asked for; otherwise the first vCPU's or process's.
    fn choose(container: &Container, vcpu: Option<u8>, pid: Option<i32>) -> Result<Self> {
        let name = container.name();
        match (container.record.options.is_process_guest(), vcpu, pid) {
            (true, None, pid) => Ok(Self::Process(pid.unwrap_or(1))),
            (false, vcpu, None) => Ok(Self::Vcpu(vcpu.unwrap_or(0))),
            (true, ..) => Err(Error::Invalid(format!(
                "{name} is a process guest, whose page tables are its processes', not a vCPU's: use --pid"
            ))),
            (false, ..) => Err(Error::Invalid(format!(
                "{name} is a Linux guest, whose processes its own kernel knows; berth sees vCPUs: use --vcpu"
            ))),
        }
    }
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcpu(number) => write!(f, "vCPU {number}"),
            Self::Process(pid) => write!(f, "process {pid}"),
        }
    }
}

/// Follows a guest-virtual address to the host: of a Linux guest through the page tables of a vCPU, of a process guest through
/// those of a process.
///
/// # Errors
/// Also where our own walk and KVM's answer differ: one of them is wrong.
pub fn translate(container: &Container, vcpu: Option<u8>, pid: Option<i32>, address: u64) -> Result<Translated> {
    is_microvm(container)?;
    let whose = Whose::choose(container, vcpu, pid)?;
    let request = match whose {
        Whose::Vcpu(vcpu) => json!({ "translate": { "vcpu": vcpu, "address": address } }),
        Whose::Process(pid) => json!({ "translate": { "pid": pid, "address": address } }),
    };
    let mut document = connect(container)?.ask(&request, "translation")?;
    let text = document.as_object_mut().and_then(|fields| fields.remove("text"));
    let text = text.as_ref().and_then(Value::as_str).unwrap_or_default();
    let text: String = text.chars().map(|c| if misleads(c) && c != '\n' { '?' } else { c }).collect();
    if document["verdict"] == "differs" {
        let message = format!(
            "KVM translates {address:#x} differently from the guest's page tables as berth reads them, of {whose} of {}; \
             if it happens again, this is a mistake in berth or in KVM:\n{text}",
            container.name()
        );
        return Err(Error::Invalid(message));
    }
    Ok(Translated { document, text })
}

/// Sets how many bytes of memory the guest keeps, and waits until it does. `progress` is told how far it is, again and again.
///
/// # Errors
/// Also where the guest stops before it is there: how far it came. It stays there.
pub fn balloon(container: &Container, bytes: u64, mut progress: impl FnMut(&Balloon)) -> Result<Balloon> {
    if container.record.options.is_process_guest() {
        let name = container.name();
        return Err(Error::Invalid(format!(
            "{name} is a process guest, which has no balloon: what its programs free goes back to the host at once; \
             `berth update --memory` changes what it may have"
        )));
    }
    let vm = connect(container)?;
    let set = |bytes: u64| size(&vm, &json!({ "balloon": { "bytes": bytes } }), container);
    let mut balloon = set(bytes)?;
    // A guest short of memory takes back and gives again: only what brings it nearer than ever counts.
    let distance = |balloon: &Balloon| balloon.kept.abs_diff(balloon.wanted);
    let mut nearest = (distance(&balloon), Instant::now());
    while balloon.kept != balloon.wanted {
        progress(&balloon);
        if nearest.1.elapsed() > STANDSTILL {
            // Its driver would try on, and keep the guest from everything else.
            set(balloon.kept)?;
            return Err(stuck(container, &balloon));
        }
        thread::sleep(INTERVAL);
        balloon = size(&vm, &json!("state"), container)?;
        if distance(&balloon) < nearest.0 {
            nearest = (distance(&balloon), Instant::now());
        }
    }
    progress(&balloon);
    Ok(balloon)
}

/// Holds a running process guest to these limits from now on.
pub(crate) fn limit(container: &Container, limits: &Limits) -> Result<()> {
    connect(container)?.ask(&json!({ "limits": microvm::process_limits(limits) }), "limited").map(drop)
}

/// The exits so far.
pub fn exits(container: &Container) -> Result<Exits> {
    exits_of(&connect(container)?)
}

/// As [`exits`], where they are only part of the answer: nothing for what is no microVM, or does not answer.
pub(crate) fn known_exits(container: &Container) -> Option<Exits> {
    let is_running = || container.status().is_ok_and(|status| container.state(&status) == State::Running);
    if !container.is_microvm() || !is_running() {
        return None;
    }
    exits_of(&Connection::new(container).ok()?).ok()
}

fn is_microvm(container: &Container) -> Result<()> {
    if container.is_microvm() {
        return Ok(());
    }
    let name = container.name();
    Err(Error::Invalid(format!("{name} is no microVM; `berth run --isolation microvm` runs an image in one")))
}

fn connect(container: &Container) -> Result<Connection> {
    is_microvm(container)?;
    let name = container.name();
    let status = container.status()?;
    if container.state(&status) == State::Paused {
        return Err(container.wrong_state(State::Paused, &format!("`berth unpause {name}` first")));
    }
    container.running_sandbox()?;
    Connection::ready(container)
}

fn size(vm: &Connection, request: &Value, container: &Container) -> Result<Balloon> {
    let machine: Machine = vm.ask_for(request, "state")?;
    let balloon = machine.balloon.map(|balloon| Balloon { memory: machine.memory, ..balloon });
    balloon.ok_or_else(|| Error::Invalid(format!("{} has no balloon", container.name())))
}

fn stuck(container: &Container, balloon: &Balloon) -> Error {
    let (wanted, kept) = (balloon.wanted, balloon.kept);
    let why = match (balloon.has_driver, kept > wanted) {
        (false, _) => "its kernel has no driver for the balloon (virtio_balloon)",
        (true, true) => "what runs in it needs that much; try more, or end something in it",
        (true, false) => "its driver takes back no more",
    };
    let (name, kept, wanted) = (container.name(), kept >> 20, wanted >> 20);
    Error::Invalid(format!("{name} keeps {kept} MiB of memory instead of {wanted} MiB: {why}"))
}

fn exits_of(vm: &Connection) -> Result<Exits> {
    let exits: BTreeMap<String, u64> = vm.ask_for(&json!("exits"), "exits")?;
    Ok(exits.into_iter().map(|(name, count)| (in_pascal_case(&name), count)).collect())
}

/// `port_reads` as `PortReads`; characters that belong into no name are left out.
fn in_pascal_case(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric());
    words
        .map(|word| word.get(..1).unwrap_or_default().to_ascii_uppercase() + word.get(1..).unwrap_or_default())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_docker_like() {
        for (name, expected) in [("port_reads", "PortReads"), ("halts", "Halts"), ("", ""), ("a\x1b[_ä", "A")] {
            assert_eq!(in_pascal_case(name), expected);
        }
    }
}
