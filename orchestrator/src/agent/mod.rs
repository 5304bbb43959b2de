//! The agent: it runs tasks, each in a sandbox of its own, and tells a master what becomes of them.
//!
//! ```text
//! master ◀─ link ─▶ agent (one task of the runtime) ─▶ checkpoints
//!                     │    ▲ started, ended
//!                     ▼    │
//!                  sandboxes: `berth run --detach`, one for each task
//!                     ┊            or executor, which runs several and talks to the agent by the [listener]
//! ```
//!
//! Start reading at [`tasks`], which decides what follows from what, as pure as the master's core. What it knows is
//! made durable before anything is done because of it, so an agent may be killed at any time: sandboxes live on without
//! it, and the next agent in the same directory finds them by name. No task is ever started twice: its sandbox has a
//! name that was chosen before it was first tried, and keeps it until the master has taken note of the end.

mod checkpoints;
mod checks;
pub(crate) mod command;
mod files;
pub(crate) mod images;
mod link;
mod listener;
mod sandboxes;
mod sessions;
mod tasks;
mod tokens;

use std::collections::BTreeMap;
use std::future::{Future, ready};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_engine::Roots;
use berth_engine::options::Network;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep_until};

use checkpoints::Checkpoints;
use files::Files;
use images::Pulls;
use link::Link;
use listener::Called;
use sandboxes::Sandboxes;
use sessions::Sessions;
use tasks::{Effect, Means, Refusal, Tasks};
use tokens::Tokens;

pub use checkpoints::Error as CheckpointError;
pub use command::ISOLATION;
pub use files::LOG_FILE;
pub use sandboxes::kept_log;

use crate::api::agent::{Answer, Question};
use crate::api::executor::{Call, Event};
use crate::attributes::Attributes;
use crate::master::{AgentInfo, FromAgent, Registration, ToAgent};
use crate::masters::{Elsewhere, Masters, Search};
use crate::resources::Quantities;
use crate::server::limits::Bucket;
use crate::server::queue::{Feed, queue};
use crate::tls::Client;

/// How often the master hears from an agent, and is told again what it did not acknowledge.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The shortest and the longest pause before a master is tried again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How much is done between two commits.
const BATCH: usize = 1000;
/// How many questions about files are answered at once.
const QUESTIONS: usize = 16;

/// What an agent is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the masters listen.
    pub masters: Masters,
    /// What it is known by there, if they speak TLS.
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
    /// What tasks have that share the host's network.
    pub network: Network,
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
    /// Its executors could not reach it.
    #[error("cannot listen for executors on a port of 127.0.0.1: {0}")]
    Listen(io::Error),
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
    /// A question that came over a connection has an answer.
    Answered(u64, FromAgent),
    /// An image was pulled, or why not.
    Pulled(String, Result<(), String>),
    /// What there is to say of the agent's images.
    Images(Attributes),
    /// A task's sandbox was started, or why not.
    Started(String, Result<(), String>),
    /// Something is new of a task that runs.
    Checked(String, checks::Report),
    /// A task's sandbox has ended.
    Ended(String, sandboxes::End),
    /// A sandbox has other limits, or why they cannot be changed.
    Limited(String, Result<Quantities, String>),
    /// An executor should have subscribed by now.
    Awaited(String),
    /// An executor calls.
    Called(Called),
    /// A subscription of an executor is no more.
    Unsubscribed(String, u64),
}

/// An executor that calls.
struct Caller {
    calls: Bucket,
    /// Its present subscription.
    subscription: Option<(u64, Feed)>,
}

/// Runs an agent until `shutdown` is ready, which leaves its tasks running, or it cannot go on.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let (sender, mut happenings) = mpsc::unbounded_channel();
    let directory = std::path::absolute(&config.directory).unwrap_or_else(|_| config.directory.clone());
    let config = Config { directory, ..config };
    let (mut checkpoints, recovered) = Checkpoints::open(&config.directory)?;
    let sandboxes = Sandboxes::new(&config, checkpoints.instance(), sender.clone());
    let tokens = Tokens::new(checkpoints.secret());
    // Serves executors until the agent ends.
    let mut listening = JoinSet::new();
    let endpoint = if let Some(endpoint) = checkpoints.endpoint() {
        listening.spawn(listener::serve(listener::bind_again(endpoint), tokens.clone(), sender.clone()));
        endpoint
    } else {
        let (socket, endpoint) = listener::bind(&config.info.resources.ports).await.map_err(Error::Listen)?;
        checkpoints.set_endpoint(endpoint)?;
        listening.spawn(listener::serve(ready(socket), tokens.clone(), sender.clone()));
        endpoint
    };
    let means = Means {
        default_image: config.default_image.clone(),
        directory: config.directory.clone(),
        network: config.network.clone(),
        prefix: checkpoints.instance().to_owned(),
        endpoint,
        tokens,
    };
    let mut agent = Agent {
        tasks: Tasks::new(recovered, means),
        callers: BTreeMap::new(),
        subscriptions: 0,
        answers: Vec::new(),
        messages: 0,
        start: Instant::now(),
        files: Files::new(&config.roots, &config.directory),
        sessions: Sessions::new(&config.roots, config.berth.clone()),
        questions: Arc::new(Semaphore::new(QUESTIONS)),
        happenings: sender.clone(),
        checkpoints,
        sandboxes,
        link: None,
        connecting: false,
        complaint: None,
        info: config.info.clone(),
        pulls: Pulls::default(),
        config: config.clone(),
    };
    agent.recover().await?;
    // What there is to say of it is known before it first says it.
    images::look(&config.roots, &sender).await;

    tokio::pin!(shutdown);
    let (mut pause, mut connections) = (PAUSES.0, 0);
    let mut connect_at = Instant::now();
    let mut search = Search::new(config.masters);
    let mut say_at = Instant::now() + HEARTBEAT;
    loop {
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            Some(happening) = happenings.recv() => {
                let more = std::iter::from_fn(|| happenings.try_recv().ok()).take(BATCH);
                for happening in std::iter::once(happening).chain(more) {
                    match &happening {
                        Happening::Heard(_, ToAgent::Registered(_)) => pause = PAUSES.0,
                        Happening::Connected(Err(error)) if search.failed(error) => connect_at = Instant::now(),
                        _ => {}
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
                let (master, tls, sender) = (search.master(), config.tls.clone(), sender.clone());
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
                // What waits to be read, of all that was said before, is not said again.
                if agent.link.as_ref().is_none_or(|link| link.waiting() <= link::MOST_WAITING) {
                    agent.tasks.repeat();
                }
                let (roots, sender) = (config.roots.clone(), sender.clone());
                tokio::spawn(async move { images::look(&roots, &sender).await });
                agent.settle()?;
            }
        }
    }
}

struct Agent {
    tasks: Tasks,
    /// Executors that have called, by the names of their sandboxes.
    callers: BTreeMap<String, Caller>,
    subscriptions: u64,
    /// What executors are answered when all that follows from their calls is durable.
    answers: Vec<(oneshot::Sender<listener::Answer>, listener::Answer, OwnedSemaphorePermit)>,
    /// How many bytes of messages of executors are about to be sent to the master.
    messages: usize,
    start: Instant,
    checkpoints: Checkpoints,
    sandboxes: Sandboxes,
    files: Files,
    sessions: Sessions,
    /// How many more questions may be asked now.
    questions: Arc<Semaphore>,
    happenings: UnboundedSender<Happening>,
    link: Option<Link>,
    connecting: bool,
    /// Why no master could be reached the last time.
    complaint: Option<String>,
    /// What it says of itself, its images included.
    info: AgentInfo,
    pulls: Pulls,
    config: Config,
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
            Happening::Heard(number, _) | Happening::Lost(number) | Happening::Answered(number, _)
                if self.link.as_ref().is_none_or(|link| link.number != number) => {}
            Happening::Heard(_, ToAgent::Registered(id)) => {
                self.checkpoints.set_id(&id)?;
                self.tasks.registered(id);
            }
            Happening::Heard(_, ToAgent::Refused(reason)) => return Err(Error::Refused(reason)),
            Happening::Heard(link, ToAgent::Ask { number, question }) => self.answer(link, number, question),
            Happening::Heard(_, message) => self.tasks.told(message),
            Happening::Answered(_, answer) => {
                if let Some(link) = &self.link {
                    link.say(&answer);
                }
            }
            Happening::Lost(_) => {
                self.link = None;
                self.sessions.end();
            }
            Happening::Pulled(image, result) => self.pulls.done(&image, result),
            Happening::Images(images) => self.has_images(images),
            Happening::Started(name, result) => self.tasks.started(&name, result),
            Happening::Checked(name, report) => self.tasks.checked(&name, report),
            Happening::Ended(name, end) => {
                self.sandboxes.end_checks(&name);
                self.tasks.ended(&name, &end);
            }
            Happening::Limited(name, Ok(limits)) => self.tasks.limited(&name, limits),
            Happening::Limited(name, Err(why)) => self.tasks.not_limited(&name, &why),
            Happening::Awaited(name) => self.tasks.awaited(&name),
            Happening::Called(called) => self.call(called),
            Happening::Unsubscribed(name, number) => {
                if let Some(caller) = self.callers.get_mut(&name)
                    && caller.subscription.as_ref().is_some_and(|(present, _)| *present == number)
                {
                    caller.subscription = None;
                    self.tasks.unsubscribed(&name);
                }
            }
        }
        Ok(())
    }

    /// An executor calls.
    fn call(&mut self, Called { name, request, answer: sender, slot }: Called) {
        let answer = match self.tasks.check_executor(&name, &request) {
            Err(refusal) => listener::Answer::Refused(refusal),
            Ok(()) => self.answer_executor(&name, request.call),
        };
        self.answers.push((sender, answer, slot));
    }

    fn answer_executor(&mut self, name: &str, call: Call) -> listener::Answer {
        let now = self.start.elapsed();
        let new = || Caller { calls: Bucket::new(listener::CALLS, now), subscription: None };
        let caller = self.callers.entry(name.to_owned()).or_insert_with(new);
        if !caller.calls.take(now) {
            return listener::Answer::TooOften;
        }
        match call {
            Call::Subscribe { tasks, updates } => {
                self.subscriptions += 1;
                let (feed, queue) = queue();
                if let Some((_, old)) = caller.subscription.replace((self.subscriptions, feed)) {
                    let superseded = Event::Error("the executor subscribed again by another connection".to_owned());
                    old.end_with(listener::record(&superseded, &self.info));
                }
                self.tasks.subscribed(name, &tasks, updates);
                return listener::Answer::Subscribed(queue, self.subscriptions);
            }
            Call::Update(update) => {
                if let Err(refusal) = self.tasks.said(name, update) {
                    return listener::Answer::Refused(refusal);
                }
            }
            Call::Message(data) => {
                let waiting = self.link.as_ref().map_or(0, Link::waiting);
                if waiting + self.messages > link::MOST_WAITING {
                    return listener::Answer::Refused(Refusal::Busy);
                }
                self.messages += data.len();
                self.tasks.message(name, data);
            }
            Call::Heartbeat => {}
        }
        listener::Answer::Accepted
    }

    /// Says something to an executor, if it is subscribed.
    fn tell_executor(&mut self, name: &str, event: &Event) {
        let Some(caller) = self.callers.get_mut(name) else { return };
        let Some((_, feed)) = &caller.subscription else { return };
        if feed.push(listener::record(event, &self.info), listener::MOST_QUEUED).is_err() {
            tracing::warn!(name, "an executor does not read what it is sent: disconnected");
            caller.subscription = None;
            self.tasks.unsubscribed(name);
        }
    }

    /// Finds out what is asked, and happens to have an answer then.
    fn answer(&mut self, link: u64, number: u64, question: Question) {
        let happenings = self.happenings.clone();
        // The agent has ended if nobody listens.
        let tell = move |answer| drop(happenings.send(Happening::Answered(link, FromAgent::Answer { number, answer })));
        match question {
            Question::Prefetch { image } => tell(self.prefetch(&image)),
            Question::List { path } => {
                self.look(&path.clone(), tell, move |files, sandbox, below| files.list(sandbox, below, &path));
            }
            Question::Read { path, offset, length } => self.look(&path.clone(), tell, move |files, sandbox, below| {
                files.read(sandbox, below, &path, offset, length)
            }),
            Question::Launch(launch) if self.tasks.sandboxes().contains(&launch.sandbox) => {
                tell(self.sessions.launch(&launch));
            }
            Question::Launch(launch) => tell(Answer::NotFound(format!("no task runs in {}", launch.sandbox))),
            Question::Output { .. } | Question::Input { .. } | Question::Wait { .. } | Question::End { .. } => {
                let sessions = self.sessions.clone();
                tokio::spawn(async move { tell(sessions.answer(question).await) });
            }
        }
    }

    /// Looks at files of a task, in a thread of its own: by the name of its sandbox, and the path below its directory.
    fn look(
        &self,
        path: &str,
        tell: impl FnOnce(Answer) + Send + 'static,
        look: impl FnOnce(&Files, &str, &str) -> Answer + Send + 'static,
    ) {
        let Some((sandbox, below)) = self.tasks.locate(path) else {
            return tell(Answer::NotFound(format!("{path}: the agent has no such task")));
        };
        let Ok(slot) = Arc::clone(&self.questions).try_acquire_owned() else { return tell(Answer::Busy) };
        let files = self.files.clone();
        spawn_blocking(move || {
            tell(look(&files, &sandbox, &below));
            drop(slot);
        });
    }

    /// Somebody wants an image to be there before a task does.
    fn prefetch(&mut self, image: &str) -> Answer {
        let is_there = images::attribute(image).is_some_and(|name| self.info.attributes.contains_key(&name));
        let (answer, begins) = self.pulls.want(image, is_there);
        if begins {
            let (config, image, happenings) = (self.config.clone(), image.to_owned(), self.happenings.clone());
            tokio::spawn(async move {
                let result = images::pull(&config.berth, &config.roots, &image).await;
                // Whoever hears that it is there finds it among what the agent says of itself.
                images::look(&config.roots, &happenings).await;
                let _ = happenings.send(Happening::Pulled(image, result));
            });
        }
        answer
    }

    /// Tells which images there are now.
    fn has_images(&mut self, images: Attributes) {
        // What the agent was told to say of itself is not overruled.
        let attributes: Attributes = images.into_iter().chain(self.config.info.attributes.clone()).collect();
        if attributes != self.info.attributes {
            self.info.attributes.clone_from(&attributes);
            if let Some(link) = &self.link {
                link.say(&FromAgent::Attributes(attributes));
            }
        }
    }

    /// Says why no master can be reached: once, though it is tried again and again. One that sends on to the leader is no
    /// cause for complaint.
    fn complain(&mut self, error: &io::Error) {
        let complaint = error.to_string();
        if Elsewhere::sent_by(error).is_none() && self.complaint.as_ref() != Some(&complaint) {
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
        self.messages = 0;
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
                Effect::StopAfter(name, pause) => self.sandboxes.stop_after(name, pause),
                Effect::Limit(name, limits) => self.sandboxes.limit(name, limits),
                Effect::Await(name, pause) => self.sandboxes.wait_for(name, pause),
                Effect::Tell(name, event) => self.tell_executor(&name, &event),
                Effect::Remove(name) => {
                    self.callers.remove(&name);
                    self.sandboxes.remove(name);
                }
            }
        }
        for (sender, answer, _slot) in self.answers.drain(..) {
            // Whoever asked may have left.
            let _ = sender.send(answer);
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
