//! The one error type of the engine, and [`Attempt`], which says what was being done when the kernel refused.

use std::io;
use std::path::PathBuf;

/// Why something could not be done to a container.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("cannot {attempt}: {source}")]
    Os {
        /// What was attempted, on what.
        attempt: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The request makes no sense as it stands.
    #[error("{0}")]
    Invalid(String),
    /// No container goes by this name or id.
    #[error("no container is called `{0}`; `berth ps -a` lists them")]
    NotFound(String),
    /// The beginning of an id fits several containers.
    #[error("`{reference}` fits several containers ({candidates}); give more of the id")]
    Ambiguous {
        /// What was asked for.
        reference: String,
        /// The ids it fits, shortened.
        candidates: String,
    },
    /// The name belongs to another container.
    #[error("the name `{name}` belongs to container {holder}; choose another or `berth rm {name}` first")]
    NameTaken {
        /// The name asked for.
        name: String,
        /// The id that has it, shortened.
        holder: String,
    },
    /// The container is in the wrong phase of its life for this.
    #[error("container {name} is {state}; {advice}")]
    WrongState {
        /// The container's name.
        name: String,
        /// What it is doing.
        state: &'static str,
        /// What to do first.
        advice: String,
    },
    /// Only a running container can do this.
    #[error("container {name} is not running, it is {state}; `berth start {name}` starts it")]
    NotRunning {
        /// The container's name.
        name: String,
        /// What it is doing.
        state: &'static str,
    },
    /// A file of ours cannot be understood.
    #[error("{} is damaged ({reason}); {advice}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        reason: String,
        /// What to do about it.
        advice: String,
    },
    /// The container could not be started; the runtime has said why.
    #[error("{message}")]
    Start {
        /// What failed.
        message: String,
        /// 126: not executable, 127: not found, 125: anything else.
        code: i32,
    },
    /// The options do not make a container.
    #[error(transparent)]
    Spec(Box<crate::spec::Error>),
    /// The container's files below `/etc` cannot be written.
    #[error(transparent)]
    Etc(#[from] crate::spec::etc::Error),
    /// The volume store said no.
    #[error(transparent)]
    Volume(Box<crate::volumes::Error>),
    /// The image store said no.
    #[error(transparent)]
    Image(Box<berth_images::Error>),
    /// The sandbox said no.
    #[error(transparent)]
    Sandbox(#[from] berth_runtime::error::Error),
}

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<crate::spec::Error> for Error {
    fn from(error: crate::spec::Error) -> Self {
        Self::Spec(Box::new(error))
    }
}

impl From<crate::volumes::Error> for Error {
    fn from(error: crate::volumes::Error) -> Self {
        Self::Volume(Box::new(error))
    }
}

impl From<berth_images::Error> for Error {
    fn from(error: berth_images::Error) -> Self {
        Self::Image(Box::new(error))
    }
}

impl Error {
    /// The exit code of a command that fails with this: 125 for berth itself, 126 for a command that cannot be
    /// executed and 127 for one that is not there, as docker has them.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Start { code, .. } => *code,
            Self::Sandbox(error) => error.exit_code(),
            _ => 125,
        }
    }
}

/// Names what was attempted when it fails.
pub(crate) trait Attempt<T> {
    /// Turns the error into [`Error::Os`] that begins with `cannot <attempt>`.
    fn attempt<S: Into<String>>(self, attempt: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Attempt<T> for Result<T, E> {
    fn attempt<S: Into<String>>(self, attempt: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| Error::Os { attempt: attempt().into(), source: error.into() })
    }
}
