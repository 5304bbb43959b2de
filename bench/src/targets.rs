//! What is started: an image in one of berth's kinds of isolation.

use std::process::Command;

use berth_engine::options::{Guest, Isolation};

use crate::document::Kind;
use crate::error::{Error, Result};
use crate::room::{self, Room};

/// The image that containers and microVMs run where none is named.
pub const IMAGE: &str = "busybox";
/// What is run in an image where nothing is named.
const COMMAND: [&str; 2] = ["echo", "started"];
/// What idles in an image.
const IDLE: [&str; 3] = ["sh", "-c", "echo started; exec sleep 86400"];
/// A module that writes a line.
const ECHO: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/echo.wasm"));
/// A module that writes a line and sleeps.
const SLEEP: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/idle.wasm"));

/// What a person has chosen.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Images; none: [`IMAGE`] and a built-in module.
    pub images: Vec<String>,
    /// What is run in them; nothing: a line is written.
    pub command: Vec<String>,
    /// Kinds of isolation; none: all that suit the images.
    pub isolations: Vec<Isolation>,
    /// Kinds of guests; none: both.
    pub guests: Vec<Guest>,
}

/// An image in a kind of isolation.
#[derive(Debug, Clone)]
pub struct Target {
    /// What it is called.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The image.
    pub image: String,
    /// What is run in it.
    pub command: Vec<String>,
    /// What idles, image and command; none: nothing known.
    pub idle: Option<Vec<String>>,
    /// Why it makes no sense.
    pub reason: Option<String>,
}

impl Selection {
    /// Whether this kind of isolation is to be measured.
    pub fn has(&self, isolation: Isolation) -> bool {
        self.isolations.is_empty() || self.isolations.contains(&isolation)
    }

    /// berth's kinds of isolation for root filesystems, in order.
    pub fn kinds(&self) -> Vec<Kind> {
        let has_guest = |guest| self.guests.is_empty() || self.guests.contains(&guest);
        let microvm = self.has(Isolation::Microvm);
        [
            (self.has(Isolation::Container), Kind::Container),
            (microvm && has_guest(Guest::Linux), Kind::MicrovmLinux),
            (microvm && has_guest(Guest::Process), Kind::MicrovmProcess),
        ]
        .into_iter()
        .filter_map(|(is_chosen, kind)| is_chosen.then_some(kind))
        .collect()
    }

    /// All targets; an error where an image is not there.
    pub fn targets(&self, room: &Room<'_>) -> Result<Vec<Target>> {
        let mut targets = Vec::new();
        let kinds = self.kinds();
        let is_default = self.images.is_empty();
        let images = if is_default && !kinds.is_empty() { vec![IMAGE.to_owned()] } else { self.images.clone() };
        let store = room.store()?;
        for image in &images {
            let found = store.resolve(image).map_err(|error| missing(error, is_default))?;
            let is_module = found.module().is_some();
            let suffix = if images.len() > 1 { format!(" · {image}") } else { String::new() };
            let is_asked = |isolation| self.isolations.contains(&isolation);
            for &kind in &kinds {
                let isolation = if kind == Kind::Container { Isolation::Container } else { Isolation::Microvm };
                if !is_module || is_asked(isolation) {
                    let reason = is_module.then(|| format!("image '{image}' is a Wasm module: --isolation wasm alone"));
                    targets.push(self.target(kind, image, &suffix, reason));
                }
            }
            if is_module && self.has(Isolation::Wasm) || !is_module && !is_default && is_asked(Isolation::Wasm) {
                let reason = (!is_module).then(|| format!("image '{image}' is no Wasm module"));
                let mut target = self.target(Kind::Wasm, image, &suffix, reason);
                target.command.clone_from(&self.command);
                target.idle = None;
                targets.push(target);
            }
        }
        if is_default && self.has(Isolation::Wasm) {
            targets.push(self.built_in(room)?);
        }
        Ok(targets)
    }

    /// The built-in module; a host without what it takes to run one is no error.
    fn built_in(&self, room: &Room<'_>) -> Result<Target> {
        let made = room.module("echo", ECHO).and_then(|image| Ok((image, room.module("idle", SLEEP)?)));
        let (made, reason) = match made {
            Ok(made) => (made, None),
            Err(Error::Failed { reason, .. }) => ((String::new(), String::new()), Some(reason)),
            Err(error) => return Err(error),
        };
        let mut target = self.target(Kind::Wasm, &made.0, "", reason);
        target.command = Vec::new();
        target.idle = Some(vec![made.1]);
        Ok(target)
    }

    fn target(&self, kind: Kind, image: &str, suffix: &str, reason: Option<String>) -> Target {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let command = if self.command.is_empty() { words(&COMMAND) } else { self.command.clone() };
        let idle = Some([vec![image.to_owned()], words(&IDLE)].concat());
        Target { name: format!("{}{suffix}", name(kind)), kind, image: image.to_owned(), command, idle, reason }
    }
}

/// What a kind of isolation is called.
pub fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Container => "container",
        Kind::MicrovmLinux => "microVM, Linux guest",
        Kind::MicrovmProcess => "microVM, process guest",
        Kind::Wasm => "Wasm",
        Kind::Peer => "peer",
        Kind::Native => "native",
    }
}

/// The flags of `berth run` for a kind of isolation.
pub fn flags(kind: Kind) -> Vec<String> {
    let flags = match kind {
        Kind::Container | Kind::Peer | Kind::Native => "--network none",
        Kind::MicrovmLinux => "--network none --isolation microvm --guest linux",
        Kind::MicrovmProcess => "--network none --isolation microvm --guest process",
        Kind::Wasm => "--isolation wasm",
    };
    flags.split(' ').map(str::to_owned).collect()
}

fn missing(error: berth_images::Error, is_default: bool) -> Error {
    match error {
        berth_images::Error::NotFound { .. } if is_default => Error::Invalid(format!(
            "containers and microVMs are measured with the image '{IMAGE}', which is not here: `berth pull {IMAGE}` \
             gets it; or name another image, or measure --isolation wasm alone, which needs none"
        )),
        other => other.into(),
    }
}

impl Target {
    /// The command line that starts it, and removes it when it has ended.
    pub fn start(&self, room: &Room<'_>) -> Command {
        let mut command = room.berth(&["run", "--rm", "--pull", "never"]);
        command.args(flags(self.kind)).arg(&self.image).args(&self.command);
        command
    }

    /// The arguments of `berth run -d` that make it idle.
    pub fn idle(&self) -> Option<Vec<String>> {
        let idle = self.idle.as_ref()?;
        Some([flags(self.kind), idle.clone()].concat())
    }

    /// What it runs, for a person.
    pub fn workload(&self) -> String {
        match self.kind {
            Kind::Wasm if self.image.starts_with(room::PREFIX) => "built-in module that writes a line".to_owned(),
            _ => format!("{} {}", self.image, self.command.join(" ")).trim().to_owned(),
        }
    }
}
