//! The names of things, which are texts chosen by the master or by frameworks.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> $name {
                $name(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> $name {
                $name(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// An agent, for as long as it keeps its checkpoints. Chosen by the master that admits it.
    AgentId
}
id! {
    /// A framework, through failovers of its own and of masters. Chosen by the master it first subscribes with.
    FrameworkId
}
id! {
    /// A task. Chosen by its framework, which uses each once.
    TaskId
}

id! {
    /// An executor on an agent. Chosen by its framework.
    ExecutorId
}

/// A connection of a framework or an agent. The program round the master numbers them and uses no number twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connection(pub u64);
