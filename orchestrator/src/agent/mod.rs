//! The agent: it runs tasks, each in a sandbox of its own, and tells a master what becomes of them.
//!
//! ```text
//! master ◀─ link ─▶ agent (one task of the runtime) ─▶ checkpoints
//!                     │    ▲ started, ended
//!                     ▼    │
//!                  sandboxes: `berth run --detach`, one for each task
//! ```
//!
//! Start reading at [`tasks`], which decides what follows from what, as pure as the master's core. What it knows is
//! made durable before anything is done because of it, so an agent may be killed at any time: sandboxes live on without
//! it, and the next agent in the same directory finds them by name. No task is ever started twice: its sandbox has a
//! name that was chosen before it was first tried, and keeps it until the master has taken note of the end.

mod checkpoints;
mod checks;
pub(crate) mod command;
mod link;
mod sandboxes;
mod tasks;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_engine::Roots;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use checkpoints::Checkpoints;
use link::Link;
use sandboxes::Sandboxes;
use tasks::{Effect, Tasks};

pub use checkpoints::Error as CheckpointError;
pub use command::ISOLATION;
pub use sandboxes::kept_log;

use crate::master::{AgentInfo, Registration, ToAgent};
use crate::tls::Client;

/// How often the master hears from an agent, and is told again what it did not acknowledge.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The shortest and the longest pause before the master is tried again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3));
/// How much is done between two commits.
const BATCH: usize = 1000;

/// What an agent is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the master listens.
    pub master: SocketAddr,
    /// What it is known by there, if the master speaks TLS.
    pub tls: Option<Client>,
    /// Where it keeps what it has to remember.
    pub directory: PathBuf,
    /// Where its sandboxes are kept.
    pub roots: Roots,
    /// The program `berth`.
    pub berth: PathBuf,
    /// What it has and is.
    pub info: AgentInfo,
    /// The image of tasks that name none.
    pub default_image: Option<String>,
}

/// Why an agent ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What it has to remember cannot be read or written.
    #[error(transparent)]
    Checkpoints(#[from] checkpoints::Error),
    /// Its sandboxes cannot be looked at.
    #[error("cannot find the agent's sandboxes: {0}")]
    Sandboxes(#[from] berth_engine::Error),
    /// The master does not let it take part.
    #[error("the master does not let the agent take part: {0}")]
    Refused(String),
    /// The master says that it is over.
    #[error("the master has shut the agent down: {0}; remove its directory to start as another agent")]
    ShutDown(String),
}

/// What the names of the sandboxes begin with that an agent has left, whose directory this is.
pub fn sandbox_prefix(directory: &Path) -> Result<String, Error> {
    let (checkpoints, _) = Checkpoints::open(directory)?;
    Ok(format!("{}-", checkpoints.instance()))
}

/// What happens to an agent.
#[derive(Debug)]
enum Happening {
    /// An attempt to reach the master is over.
    Connected(io::Result<Link>),
    /// A connection, the latest, has something to say.
    Heard(u64, ToAgent),
    /// A connection is no more.
    Lost(u64),
    /// A task's sandbox was started, or why not.
    Started(String, Result<(), String>),
    /// Something is new of a task that runs.
    Checked(String, checks::Report),
    /// A task's sandbox has ended.
    Ended(String, sandboxes::End),
}

/// Runs an agent until `shutdown` is ready, which leaves its tasks running, or it cannot go on.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let (sender, mut happenings) = mpsc::unbounded_channel();
    let (checkpoints, recovered) = Checkpoints::open(&config.directory)?;
    let sandboxes = Sandboxes::new(&config, checkpoints.instance(), sender.clone());
    let mut agent = Agent {
        tasks: Tasks::new(recovered, config.default_image.clone(), checkpoints.instance().to_owned()),
        checkpoints,
        sandboxes,
        link: None,
        connecting: false,
        complaint: None,
        info: config.info.clone(),
    };
    agent.recover().await?;

    tokio::pin!(shutdown);
    let (mut pause, mut connections) = (PAUSES.0, 0);
    let mut connect_at = Instant::now();
    let mut say_at = Instant::now() + HEARTBEAT;
    loop {
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            Some(happening) = happenings.recv() => {
                let more = std::iter::from_fn(|| happenings.try_recv().ok()).take(BATCH);
                for happening in std::iter::once(happening).chain(more) {
                    if matches!(happening, Happening::Heard(_, ToAgent::Registered(_))) {
                        pause = PAUSES.0;
                    }
                    agent.handle(happening)?;
                }
                agent.settle()?;
                if agent.is_over() {
                    return agent.end();
                }
            }
            () = sleep_until(connect_at), if agent.link.is_none() && !agent.connecting => {
                agent.connecting = true;
                connections += 1;
                let (master, tls, sender) = (config.master, config.tls.clone(), sender.clone());
                tokio::spawn(async move {
                    let link = Link::open(master, tls, connections, sender.clone()).await;
                    // The agent has ended if nobody listens.
                    let _ = sender.send(Happening::Connected(link));
                });
                connect_at = Instant::now() + pause;
                pause = (pause * 2).min(PAUSES.1);
            }
            () = sleep_until(say_at) => {
                say_at = Instant::now() + HEARTBEAT;
                agent.tasks.repeat();
                agent.settle()?;
            }
        }
    }
}

struct Agent {
    tasks: Tasks,
    checkpoints: Checkpoints,
    sandboxes: Sandboxes,
    link: Option<Link>,
    connecting: bool,
    /// Why the master could not be reached the last time.
    complaint: Option<String>,
    info: AgentInfo,
}

impl Agent {
    /// Finds out what has become of the sandboxes since the last agent in this directory.
    async fn recover(&mut self) -> Result<(), Error> {
        let (found, strays) = self.sandboxes.find(self.tasks.sandboxes()).await?;
        for stray in strays {
            self.sandboxes.remove(stray);
        }
        for (name, is_there) in found {
            if is_there {
                self.sandboxes.watch(name);
            } else {
                self.tasks.missing(&name);
            }
        }
        self.settle()
    }

    fn handle(&mut self, happening: Happening) -> Result<(), Error> {
        match happening {
            Happening::Connected(result) => {
                self.connecting = false;
                match result {
                    Ok(link) => {
                        self.complaint = None;
                        // What a master is told is durable.
                        self.settle()?;
                        link.register(&Registration { info: self.info.clone(), ..self.tasks.registration() });
                        self.link = Some(link);
                    }
                    Err(error) => self.complain(&error),
                }
            }
            Happening::Heard(number, _) | Happening::Lost(number)
                if self.link.as_ref().is_none_or(|link| link.number != number) => {}
            Happening::Heard(_, ToAgent::Registered(id)) => {
                self.checkpoints.set_id(&id)?;
                self.tasks.registered(id);
            }
            Happening::Heard(_, ToAgent::Refused(reason)) => return Err(Error::Refused(reason)),
            Happening::Heard(_, message) => self.tasks.told(message),
            Happening::Lost(_) => self.link = None,
            Happening::Started(name, result) => self.tasks.started(&name, result),
            Happening::Checked(name, report) => self.tasks.checked(&name, report),
            Happening::Ended(name, end) => {
                self.sandboxes.end_checks(&name);
                self.tasks.ended(&name, &end);
            }
        }
        Ok(())
    }

    /// Says why the master cannot be reached: once, though it is tried again and again.
    fn complain(&mut self, error: &io::Error) {
        let complaint = error.to_string();
        if self.complaint.as_ref() != Some(&complaint) {
            tracing::warn!(%error, "the master cannot be reached");
            self.complaint = Some(complaint);
        }
    }

    /// Makes what has changed durable, and then does what follows from it.
    fn settle(&mut self) -> Result<(), Error> {
        let changes = self.tasks.take_changes();
        if !changes.is_empty() {
            self.checkpoints.commit(&changes)?;
        }
        for effect in self.tasks.take_effects() {
            match effect {
                Effect::Say(message) => {
                    if let Some(link) = &self.link {
                        link.say(&message);
                    }
                }
                Effect::Start(name, arguments) => self.sandboxes.start(name, arguments),
                Effect::Check(name, checks) => self.sandboxes.check(name, *checks),
                Effect::Stop(name, grace) => self.sandboxes.stop(name, grace),
                Effect::Remove(name) => self.sandboxes.remove(name),
            }
        }
        Ok(())
    }

    /// Whether the master has shut it down, and its last sandbox has ended.
    fn is_over(&self) -> bool {
        self.tasks.shut_down().is_some() && !self.tasks.any_alive()
    }

    fn end(&self) -> Result<(), Error> {
        Err(Error::ShutDown(self.tasks.shut_down().unwrap_or_default().to_owned()))
    }
}
