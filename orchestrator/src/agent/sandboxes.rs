//! The sandboxes of tasks: started by the program `berth`, which makes them all, and looked after from here. What a task
//! has written outlives its sandbox.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use std::{fmt, fs, io};

use berth_engine::logs::LOG;
use berth_engine::monitor::{self, Monitor};
use berth_engine::paths::PRIVATE;
use berth_engine::{Container, Error, Roots, lifecycle, remove};
use berth_runtime::monitor::Status;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Command;
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, sleep_until};

use super::checks::{Asker, Checks, Rounds};
use super::command::{self, Start};
use super::{Config, Happening, files};
use crate::descriptors;
use crate::resources::Quantities;

/// How long a sandbox may be half made by a `berth run` that an earlier agent has left.
const HALF_MADE: Duration = Duration::from_secs(10);
/// How many logs of tasks that have ended are kept, and after how many more the oldest are removed.
pub const LOGS: usize = 2000;
const MORE_LOGS: usize = 100;
/// Of how many of them what they have left in their directories is kept.
const DIRECTORIES: usize = 100;
/// How many commands that ask tasks how they are run at once.
const CHECK_COMMANDS: usize = 16;
/// How long it takes to say that the limits of a sandbox cannot be changed: then it is tried again.
const LIMIT_AGAIN: Duration = Duration::from_secs(1);
/// How often it is looked whether it is whole.
const LOOK: Duration = Duration::from_millis(20);

/// Where an agent, whose directory this is, keeps what a task wrote in its sandbox of this name.
pub fn kept_log(directory: &Path, sandbox: &str) -> PathBuf {
    directory.join("logs").join(sandbox).with_extension("log")
}

/// How a sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Its program did, with this code.
    Exited(i32),
    /// The kernel ended it.
    OutOfMemory,
    /// It was never whole, or its monitor was killed.
    Broken(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Exited(code) => write!(f, "exit code {code}"),
            End::OutOfMemory => f.write_str("it used more memory than it may"),
            End::Broken(why) => f.write_str(why),
        }
    }
}

/// All sandboxes of an agent.
#[derive(Debug)]
pub struct Sandboxes {
    roots: Roots,
    berth: PathBuf,
    /// The agent's, where logs are kept.
    directory: PathBuf,
    removed: Arc<AtomicUsize>,
    /// What their names begin with.
    prefix: String,
    asker: Asker,
    /// The tasks that are asked how they are.
    rounds: BTreeMap<String, Rounds>,
    /// When those are killed that were told to end.
    stops: BTreeMap<String, watch::Sender<Instant>>,
    /// What is to happen to a sandbox later, unless it is removed before.
    later: BTreeMap<String, JoinSet<()>>,
    /// The limits that sandboxes are to have. Only the latest matter, however many wait to be set.
    limits: Arc<Mutex<BTreeMap<String, Quantities>>>,
    /// Held by whoever sets limits, so that of two that come at once the later has the last word.
    limiting: Arc<Mutex<()>>,
    happenings: UnboundedSender<Happening>,
}

impl Sandboxes {
    pub fn new(config: &Config, prefix: &str, happenings: UnboundedSender<Happening>) -> Sandboxes {
        let (roots, berth, directory) = (config.roots.clone(), config.berth.clone(), config.directory.clone());
        let (removed, prefix, rounds) = (Arc::default(), prefix.to_owned(), BTreeMap::new());
        let (stops, later, limits, limiting) = (BTreeMap::new(), BTreeMap::new(), Arc::default(), Arc::default());
        let slots = Arc::new(Semaphore::new(CHECK_COMMANDS));
        let asker = Asker { roots: roots.clone(), berth: berth.clone(), slots, network: config.network.clone() };
        Sandboxes {
            roots,
            berth,
            directory,
            removed,
            prefix,
            asker,
            rounds,
            stops,
            later,
            limits,
            limiting,
            happenings,
        }
    }

    /// Asks the task in a sandbox, which has started, until it is to end or has ended.
    pub fn check(&mut self, name: String, checks: Checks) {
        let rounds = Rounds::begin(&self.asker, &name, checks, &self.happenings);
        self.rounds.insert(name, rounds);
    }

    /// Asks it no more.
    pub fn end_checks(&mut self, name: &str) {
        self.rounds.remove(name);
    }

    /// Which of these sandboxes are there, and the names of others that are left of tasks that are over.
    pub async fn find(&self, names: Vec<String>) -> Result<(Vec<(String, bool)>, Vec<String>), Error> {
        let (roots, prefix) = (self.roots.clone(), format!("{}-", self.prefix));
        let look = move || {
            let (all, _) = Container::all(&roots)?;
            let mut there: BTreeSet<String> = all.into_iter().map(|it| it.record.name).collect();
            there.retain(|name| name.starts_with(&prefix));
            let found = names.into_iter().map(|name| (name.clone(), there.remove(&name))).collect();
            Ok((found, there.into_iter().collect()))
        };
        spawn_blocking(look).await.expect("looking does not panic")
    }

    /// Starts a sandbox; that, and later its end, happens.
    pub fn start(&self, name: String, start: Start) {
        let Start { arguments, secrets, directory } = start;
        let mut command = Command::new(&self.berth);
        command
            .args(arguments)
            .envs(secrets)
            .env("BERTH_DATA_ROOT", self.roots.data())
            .env("BERTH_STATE_ROOT", self.roots.state());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let (roots, happenings) = (self.roots.clone(), self.happenings.clone());
        tokio::spawn(async move {
            let output = async {
                if let Some(directory) = &directory {
                    make_directory(directory)?;
                }
                descriptors::as_given(&mut command).output().await
            };
            let result = match output.await {
                Ok(output) if output.status.success() => Ok(()),
                Ok(output) => {
                    let said = String::from_utf8_lossy(&output.stderr);
                    // Whoever passes it on says who it is.
                    Err(said.trim().trim_start_matches("berth: ").to_owned())
                }
                Err(error) => Err(format!("cannot execute {}: {error}", command.as_std().get_program().display())),
            };
            // An earlier agent's attempt may have got there first: then it runs, and this one was told that the name is
            // taken.
            let runs = result.is_ok() || has_started(roots.clone(), name.clone()).await;
            let result = if runs { Ok(()) } else { result };
            // The agent has ended if nobody listens.
            let _ = happenings.send(Happening::Started(name.clone(), result));
            if runs {
                watch(roots, name, happenings).await;
            }
        });
    }

    /// Waits for the end of a sandbox that an earlier agent started, or was starting.
    pub fn watch(&self, name: String) {
        let (roots, happenings) = (self.roots.clone(), self.happenings.clone());
        tokio::spawn(async move {
            if has_started(roots.clone(), name.clone()).await {
                let _ = happenings.send(Happening::Started(name.clone(), Ok(())));
            }
            watch(roots, name, happenings).await;
        });
    }

    /// Ends a sandbox, which may end by itself for as long as `grace`. One that was told so before can only have less time.
    pub fn stop(&mut self, name: String, grace: Duration) {
        self.end_checks(&name);
        let end = Instant::now() + grace;
        if self.stops.get(&name).is_some_and(|pending| shorten(pending, end)) {
            return;
        }
        let (sender, receiver) = watch::channel(end);
        self.stops.insert(name.clone(), sender);
        let roots = self.roots.clone();
        self.later.entry(name.clone()).or_default().spawn(async move {
            if let Err(error) = stop_until(roots, name.clone(), receiver).await {
                tracing::warn!(%error, name, "a task's sandbox cannot be stopped");
            }
        });
    }

    /// Ends a sandbox when so much time has passed.
    pub fn stop_after(&mut self, name: String, pause: Duration) {
        let roots = self.roots.clone();
        self.later.entry(name.clone()).or_default().spawn(async move {
            sleep(pause).await;
            spawn_blocking(move || kill(&roots, &name));
        });
    }

    /// Tells when so much time has passed that somebody should have subscribed.
    pub fn wait_for(&mut self, name: String, pause: Duration) {
        let happenings = self.happenings.clone();
        self.later.entry(name.clone()).or_default().spawn(async move {
            sleep(pause).await;
            let _ = happenings.send(Happening::Awaited(name));
        });
    }

    /// Changes the limits of a sandbox; that they are set happens, or a while later that they cannot be.
    pub fn limit(&self, name: String, limits: Quantities) {
        let (roots, happenings) = (self.roots.clone(), self.happenings.clone());
        let (wanted, turn) = (Arc::clone(&self.limits), Arc::clone(&self.limiting));
        let runtime = Handle::current();
        wanted.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), limits);
        spawn_blocking(move || {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            let latest = wanted.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
            // One before has set them already.
            let Some(limits) = latest else { return };
            let changes = command::engine_limits(&limits);
            let changed = Container::find(&roots, &name).and_then(|it| lifecycle::update(&it, &changes, None));
            let Err(error) = changed else { return drop(happenings.send(Happening::Limited(name, Ok(limits)))) };
            let why = error.to_string();
            runtime.spawn(async move {
                sleep(LIMIT_AGAIN).await;
                let _ = happenings.send(Happening::Limited(name, Err(why)));
            });
        });
    }

    /// Removes what is left of a sandbox, but for its log.
    pub fn remove(&mut self, name: String) {
        self.later.remove(&name);
        self.stops.remove(&name);
        let (roots, directory, removed) = (self.roots.clone(), self.directory.clone(), Arc::clone(&self.removed));
        spawn_blocking(move || {
            let log = Container::find(&roots, &name).map(|container| container.dir().join(LOG));
            let kept = log.map(|log| keep(&log, &kept_log(&directory, &name)));
            if let Ok(Err(error)) = kept {
                tracing::warn!(%error, name, "a task's log cannot be kept");
            }
            match remove::remove(&roots, &name, true, true) {
                // A task that was in error has none.
                Ok(_) | Err(Error::NotFound(_)) => {}
                Err(error) => tracing::warn!(%error, name, "a task's sandbox cannot be removed"),
            }
            if let Err(error) = leave(&directory, &name) {
                tracing::warn!(%error, name, "what a task has left cannot be kept");
            }
            if removed.fetch_add(1, Ordering::Relaxed).is_multiple_of(MORE_LOGS)
                && let Err(error) = remove_old(&directory.join("logs"), LOGS)
                    .and_then(|()| remove_old(&directory.join("left"), DIRECTORIES))
            {
                tracing::warn!(%error, "old logs and files of tasks cannot be removed");
            }
        });
    }
}

/// Has a sandbox killed earlier that is being stopped, if this is earlier. Returns whether it is still being stopped.
fn shorten(pending: &watch::Sender<Instant>, end: Instant) -> bool {
    pending.send_if_modified(|latest| {
        let earlier = end < *latest;
        *latest = end.min(*latest);
        earlier
    });
    !pending.is_closed()
}

/// Tells a sandbox to end, and kills it when it has not until then. Waits without a thread of its own.
async fn stop_until(roots: Roots, name: String, mut end: watch::Receiver<Instant>) -> Result<(), Error> {
    let ask = move || {
        let container = Container::find(&roots, &name)?;
        let monitor = lifecycle::ask_to_stop(&container, None)?;
        Ok::<_, Error>(monitor.map(|monitor| (container, monitor)))
    };
    let Some((container, monitor)) = spawn_blocking(ask).await.expect("telling does not panic")? else { return Ok(()) };
    loop {
        let until = *end.borrow_and_update();
        tokio::select! {
            // One that cannot be watched has all of its time.
            Ok(()) = ended(&monitor) => break,
            () = sleep_until(until.into()) => break,
            // Without a sender it is what it was.
            Ok(()) = end.changed() => {}
        }
    }
    let finish = move || lifecycle::finish_stop(&container, &monitor, Duration::ZERO);
    spawn_blocking(finish).await.expect("killing does not panic")
}

fn kill(roots: &Roots, name: &str) {
    let stopped = Container::find(roots, name).and_then(|it| lifecycle::stop(&it, None, Some(Duration::ZERO)));
    if let Err(error) = stopped {
        tracing::warn!(%error, name, "a task's sandbox cannot be stopped");
    }
}

/// Moves a log to where it is kept.
fn keep(log: &Path, kept: &Path) -> io::Result<()> {
    fs::create_dir_all(kept.parent().unwrap_or(kept))?;
    match fs::rename(log, kept) {
        // It never ran.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Keeps the directory of a task that is over, if there is anything in it. Those of others are never looked at.
fn leave(agent: &Path, sandbox: &str) -> io::Result<()> {
    let (own, left) = (files::directory(agent, sandbox), files::left(agent, sandbox));
    match fs::remove_dir(&own) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
        // Not every task has one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => return other,
    }
    DirBuilder::new().recursive(true).mode(PRIVATE).create(left.parent().unwrap_or(&left))?;
    // The oldest are removed first, by when they were left.
    File::open(&own)?.set_modified(SystemTime::now())?;
    fs::rename(own, left)
}

/// Makes the directory of a task, in which any user of its sandbox may write: nobody else comes that far.
fn make_directory(directory: &Path) -> io::Result<()> {
    let parent = directory.parent().unwrap_or(directory);
    DirBuilder::new().recursive(true).mode(PRIVATE).create(parent)?;
    match fs::create_dir(directory) {
        // An earlier agent was as far as this.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    fs::set_permissions(directory, Permissions::from_mode(0o1777))
}

/// Removes all that is in a directory but for the latest.
fn remove_old(directory: &Path, keep: usize) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let mut kept: Vec<(SystemTime, PathBuf)> =
        entries.flatten().filter_map(|it| Some((it.metadata().ok()?.modified().ok()?, it.path()))).collect();
    kept.sort_unstable();
    let old = kept.len().saturating_sub(keep);
    kept.iter().take(old).try_for_each(
        |(_, path)| {
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
        },
    )
}

/// Whether the program in the sandbox of this name runs, did, or is about to.
async fn has_started(roots: Roots, name: String) -> bool {
    let look = move || -> Result<bool, Error> {
        let end = Instant::now() + HALF_MADE;
        loop {
            match Container::find(&roots, &name) {
                Ok(container) if Monitor::of(&container)?.is_some() => return Ok(true),
                Ok(container) => {
                    let status = container.status()?;
                    return Ok(status.exit_code.is_some() && status.error.is_none());
                }
                // The name is taken before the container is whole.
                Err(Error::NotFound(_)) if roots.names().join(&name).is_symlink() && Instant::now() < end => {
                    std::thread::sleep(LOOK);
                }
                Err(error) => return Err(error),
            }
        }
    };
    spawn_blocking(look).await.is_ok_and(|alive| alive.unwrap_or(false))
}

/// Waits without a thread of its own: tasks may be many.
async fn wait(roots: Roots, name: String) -> Result<Status, Error> {
    let find = move || {
        let container = Container::find(&roots, &name)?;
        let monitor = Monitor::of(&container)?;
        Ok::<_, Error>((container, monitor))
    };
    let (container, monitor) = spawn_blocking(find).await.expect("looking does not panic")?;
    if let Some(monitor) = monitor {
        // If it cannot be watched, the wait below takes as long.
        let _ = ended(&monitor).await;
    }
    spawn_blocking(move || monitor::wait(&container)).await.expect("waiting does not panic")
}

/// Waits for the end of whoever looks after a sandbox.
async fn ended(monitor: &Monitor) -> io::Result<()> {
    let pidfd = monitor.pidfd().try_clone()?;
    // SAFETY: the descriptor is owned, so it is open, and the same, for as long as it is watched.
    let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
    watched.readable().await.map(drop)
}

/// Waits for the end of a sandbox, and tells.
async fn watch(roots: Roots, name: String, happenings: UnboundedSender<Happening>) {
    let end = match wait(roots, name.clone()).await {
        Ok(status) if status.oom_killed && status.exit_code != Some(0) => End::OutOfMemory,
        Ok(status) => match (status.error, status.exit_code) {
            (Some(why), _) => End::Broken(why),
            (None, Some(code)) => End::Exited(code),
            (None, None) => End::Broken("its start was cut short".to_owned()),
        },
        Err(error) => End::Broken(error.to_string()),
    };
    let _ = happenings.send(Happening::Ended(name, end));
}

#[cfg(test)]
mod tests {
    use berth_engine::options::Network;
    use tokio::sync::mpsc;

    use super::*;
    use crate::master::AgentInfo;

    #[tokio::test]
    async fn a_sandbox_is_stopped_once_however_often_that_is_asked_for() {
        let home = tempfile::tempdir().unwrap();
        let config = Config {
            masters: "127.0.0.1:1".parse().unwrap(),
            tls: None,
            directory: home.path().to_owned(),
            roots: Roots::new(&home.path().join("data"), &home.path().join("state")).unwrap(),
            berth: home.path().join("berth"),
            info: AgentInfo::default(),
            default_image: None,
            network: Network::Host,
        };
        let mut sandboxes = Sandboxes::new(&config, "p", mpsc::unbounded_channel().0);
        let begin = Instant::now();
        for grace in [9000, 1000, 5000, 1000] {
            sandboxes.stop("a".to_owned(), Duration::from_secs(grace));
        }
        sandboxes.stop("b".to_owned(), Duration::ZERO);
        // Nothing has come to run since: nobody waited for it.
        assert_eq!(["a", "b"].map(|name| sandboxes.later[name].len()), [1, 1]);
        let end = *sandboxes.stops["a"].borrow();
        assert!(end >= begin + Duration::from_secs(1000) && end < begin + Duration::from_secs(5000));
        // There are no such sandboxes; what has failed can be tried again.
        while sandboxes.later.get_mut("a").unwrap().join_next().await.is_some() {}
        sandboxes.stop("a".to_owned(), Duration::from_secs(5000));
        assert_eq!(sandboxes.later["a"].len(), 1);
    }

    #[test]
    fn what_tasks_have_left_is_kept_for_the_latest() {
        let agent = tempfile::tempdir().unwrap();
        let (own, left) = (|name| files::directory(agent.path(), name), |name| files::left(agent.path(), name));
        for name in ["empty", "first", "second", "third", "running"] {
            make_directory(&own(name)).unwrap();
            make_directory(&own(name)).unwrap();
            if name != "empty" {
                fs::write(own(name).join("file"), name).unwrap();
            }
        }
        for name in ["empty", "first", "second", "third", "never"] {
            leave(agent.path(), name).unwrap();
        }
        assert!(!own("empty").exists() && !left("empty").exists() && !left("never").exists());
        assert_eq!(fs::read_to_string(left("first").join("file")).unwrap(), "first");
        let parent = agent.path().join("left");
        for (age, name) in [(3, "third"), (2, "second"), (1, "first")] {
            let time = SystemTime::now() - Duration::from_secs(age);
            File::open(left(name)).unwrap().set_modified(time).unwrap();
        }
        remove_old(&parent, 2).unwrap();
        assert_eq!(["first", "second", "third"].map(|name| left(name).exists()), [true, true, false]);
        assert!(own("running").join("file").exists());
        remove_old(&agent.path().join("logs"), 2).unwrap();
    }
}
