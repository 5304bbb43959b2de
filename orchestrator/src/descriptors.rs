//! How many files a process may have open at once. Many programs are told to expect few, which masters and agents have no reason
//! to do; what they start gets the limit that they were given.

use std::io;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::process::Command;

/// The limit that this process was given.
static GIVEN: OnceLock<Rlimit> = OnceLock::new();

/// Raises the limit of this process to the highest it may have.
pub fn raise() {
    let given = GIVEN.get_or_init(|| getrlimit(Resource::Nofile));
    let highest = Rlimit { current: given.maximum, maximum: given.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, highest) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// Gives a program the limit that this process was given.
pub fn as_given(command: &mut Command) -> &mut Command {
    let Some(Rlimit { current, maximum }) = GIVEN.get().copied() else { return command };
    let restore = move || setrlimit(Resource::Nofile, Rlimit { current, maximum }).map_err(io::Error::from);
    // SAFETY: between fork and exec it makes one system call, and allocates nothing.
    unsafe { command.pre_exec(restore) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn programs_get_the_limit_that_was_given() {
        let highest = getrlimit(Resource::Nofile).maximum;
        let low = highest.map(|highest| highest - 1);
        setrlimit(Resource::Nofile, Rlimit { current: low, maximum: highest }).unwrap();
        raise();
        assert_eq!(getrlimit(Resource::Nofile).current, highest);
        let mut command = Command::new("sh");
        let said = as_given(command.args(["-c", "ulimit -Sn; ulimit -Hn"])).output().await.unwrap().stdout;
        let said: Vec<u64> = String::from_utf8(said).unwrap().lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(said, [low.unwrap(), highest.unwrap()]);
    }
}
