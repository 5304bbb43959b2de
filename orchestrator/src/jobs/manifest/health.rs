//! What a manifest says of how a task is asked whether it is well.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{Name, Span, Text, whole};
use super::{Group, Isolation};
use crate::api::Invalid;

/// How often a task is asked at most.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
/// How much time it has for an answer at least.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(10);
/// The most bad answers in a row that are put up with.
const MOST_FAILURES: u32 = 1000;

/// How a task is asked whether it is well: by exactly one of `command`, `shell`, `http` and `tcp`. One that is not is ended, and
/// has failed
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Health {
    /// A program with arguments that runs in the task's sandbox; exit code 0 is a good answer
    #[serde(default)]
    pub command: Vec<Text>,
    /// The same as a line for the image's shell
    #[serde(default)]
    pub shell: Option<Text>,
    /// A request to a server in the task; a status from 200 to 399 is a good answer
    #[serde(default)]
    pub http: Option<Http>,
    /// A connection to a server in the task; that there is one is a good answer
    #[serde(default)]
    pub tcp: Option<Tcp>,
    /// How long after its start it is asked first
    #[serde(default = "none")]
    pub delay: Span,
    /// How long after each answer it is asked again
    #[serde(default = "interval")]
    pub interval: Span,
    /// After how long no answer is a bad one
    #[serde(default = "timeout")]
    pub timeout: Span,
    /// How many bad answers in a row are too many
    #[serde(default = "failures", deserialize_with = "whole::<_, 1, MOST_FAILURES>")]
    #[schemars(range(min = 1, max = MOST_FAILURES))]
    pub failures: u32,
    /// For how long after its start bad answers do not count, until the first good one
    #[serde(default = "grace")]
    pub grace: Span,
}

/// A request to a server in a task
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Http {
    /// On which of the task's `ports` it listens
    pub port: Name,
    /// What is requested; `/` if left out
    #[serde(default)]
    pub path: Option<Text>,
}

/// A connection to a server in a task
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Tcp {
    /// On which of the task's `ports` it listens
    pub port: Name,
}

fn none() -> Span {
    Span::from_secs(0)
}

fn interval() -> Span {
    Span::from_secs(10)
}

fn timeout() -> Span {
    Span::from_secs(5)
}

fn failures() -> u32 {
    3
}

fn grace() -> Span {
    Span::from_secs(10)
}

impl Health {
    /// Looks at what only several values together say. Ports there are in containers only.
    pub(super) fn check(&self, group: &Group) -> Result<(), Invalid> {
        let ways = [!self.command.is_empty(), self.shell.is_some(), self.http.is_some(), self.tcp.is_some()];
        if ways.into_iter().filter(|is_there| *is_there).count() != 1 {
            return Err(Invalid::new("health", "takes exactly one of `command`, `shell`, `http` and `tcp`"));
        }
        if self.command.first().is_some_and(|program| program.is_empty()) {
            return Err(Invalid::new("health.command[0]", "is empty: this is the program that is run"));
        }
        if self.shell.as_ref().is_some_and(|line| line.trim().is_empty()) {
            return Err(Invalid::new("health.shell", "is empty: that would always be a good answer"));
        }
        for (field, way) in [("command", ways[0]), ("shell", ways[1])] {
            if way && group.isolation == Isolation::Wasm {
                return Err(Invalid::new(
                    format!("health.{field}"),
                    "nothing else runs in the sandbox of a Wasm module",
                ));
            }
        }
        let http = self.http.iter().map(|http| ("health.http.port", &http.port));
        let tcp = self.tcp.iter().map(|tcp| ("health.tcp.port", &tcp.port));
        if let Some((field, port)) = http.chain(tcp).find(|(_, port)| !group.ports.contains(port)) {
            return Err(Invalid::new(field, format!("`{port}` is none of the task's `ports`")));
        }
        let path = self.http.as_ref().and_then(|http| http.path.as_ref());
        if path.is_some_and(|path| !path.starts_with('/') || path.parse::<hyper::Uri>().is_err()) {
            return Err(Invalid::new("health.http.path", "is no path of a URL, which begins with `/`"));
        }
        let least = [("interval", self.interval, SHORTEST_INTERVAL), ("timeout", self.timeout, SHORTEST_TIMEOUT)];
        match least.into_iter().find(|(_, span, least)| span.duration() < *least) {
            Some((field, _, least)) => {
                Err(Invalid::new(format!("health.{field}"), format!("has to be {least:?} at least")))
            }
            None => Ok(()),
        }
    }
}
