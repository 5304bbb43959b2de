//! Another process in a running container.

use std::convert::Infallible;
use std::env;
use std::ffi::OsString;

use crate::container::{Container, State};
use crate::error::Result;
use crate::launch;

/// What to run, and how.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Do not wait for it.
    pub detach: bool,
    /// Relay standard input.
    pub interactive: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// `KEY=VALUE`, or `KEY` to be taken over from here.
    pub env: Vec<String>,
    /// Working directory in the container; `None`: the container's.
    pub workdir: Option<String>,
    /// `USER[:GROUP]`; `None`: the container's.
    pub user: Option<String>,
    /// The command line.
    pub command: Vec<OsString>,
}

impl Request {
    /// The arguments of `berth-oci exec`.
    fn arguments(&self, id: &str) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["--pipes".into()];
        let flags = [(self.detach, "--detach"), (!self.interactive || self.detach, "--no-stdin"), (self.tty, "--tty")];
        arguments.extend(flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag.into()));
        for entry in &self.env {
            let value = if entry.contains('=') {
                Some(OsString::from(entry))
            } else {
                env::var_os(entry).map(|value| {
                    let mut pair = OsString::from(entry);
                    pair.push("=");
                    pair.push(value);
                    pair
                })
            };
            arguments.extend(value.into_iter().flat_map(|value| [OsString::from("--env"), value]));
        }
        for (flag, value) in [("--cwd", &self.workdir), ("--user", &self.user)] {
            arguments.extend(value.iter().flat_map(|value| [OsString::from(flag), OsString::from(value)]));
        }
        arguments.push(id.into());
        arguments.extend(self.command.iter().cloned());
        arguments
    }
}

/// Becomes the process that relays the command's streams and ends with its exit code.
pub fn become_exec(container: &Container, request: &Request) -> Result<Infallible> {
    if container.state(&container.status()?) == State::Paused {
        let advice = format!("`berth unpause {}` lets it go on", container.name());
        return Err(container.wrong_state(State::Paused, &advice));
    }
    container.running_sandbox()?;
    launch::become_exec(container.roots(), &request.arguments(container.id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_becomes_arguments() {
        let request = Request {
            tty: true,
            env: vec!["A=1".to_owned(), "BERTH_TEST_IS_NOT_SET".to_owned()],
            user: Some("web".to_owned()),
            command: vec!["ls".into(), "-l".into()],
            ..Request::default()
        };
        assert_eq!(
            request.arguments("id"),
            ["--pipes", "--no-stdin", "--tty", "--env", "A=1", "--user", "web", "id", "ls", "-l"]
        );
    }
}
