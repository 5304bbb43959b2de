//! The one error type of the sandbox, and [`Attempt`], which puts "what was attempted, on what" in front of it.

use std::io;

/// Why something could not be done to a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("{attempt}: {source}")]
    Os {
        /// What was attempted, on what.
        attempt: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The bundle or the request makes no sense; nothing was done.
    #[error("{0}")]
    Invalid(String),
    /// There is no such sandbox.
    #[error("container `{id}` does not exist")]
    NotFound {
        /// The id asked for.
        id: String,
    },
    /// The id is taken.
    #[error("container with id `{id}` exists already; delete it first or choose another id")]
    Exists {
        /// The id asked for.
        id: String,
    },
    /// The process in the sandbox could not become the image's process.
    #[error("{message}")]
    Process {
        /// What failed inside.
        message: String,
        /// The exit code this stands for: 126, 127 or 125.
        code: i32,
    },
    /// A control group could not be made or changed.
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::Error),
    /// The seccomp profile could not be turned into a filter.
    #[error(transparent)]
    Seccomp(#[from] crate::seccomp::Error),
}

/// Whether a terminal obeys the character in place of showing it, or shows what follows it in another order.
pub fn misleads(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text in one line without control characters, and without those that turn the direction of writing: parts of an error may come
/// from an image, and nothing in it is to reach a terminal as a command or to read as something else.
pub fn one_line(text: &str) -> String {
    let mut line = String::new();
    for character in text.chars() {
        match character {
            '\n' => line.push_str("; "),
            '\t' => line.push(' '),
            _ if misleads(character) => line.extend(character.escape_default()),
            _ => line.push(character),
        }
    }
    line
}

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The exit code a command that fails with this ends with, by docker's habit: 127 for a command that is not
    /// there, 126 for one that cannot be executed, 125 for everything else.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Process { code, .. } => *code,
            _ => 125,
        }
    }
}

/// Names what was attempted when it fails.
pub trait Attempt<T> {
    /// Turns the error into [`Error::Os`] with `attempt` in front.
    fn attempt<S: Into<String>>(self, attempt: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Attempt<T> for std::result::Result<T, E> {
    fn attempt<S: Into<String>>(self, attempt: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| Error::Os { attempt: attempt().into(), source: error.into() })
    }
}
