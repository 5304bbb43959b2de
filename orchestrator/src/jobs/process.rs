//! The job framework as it runs: one loop that owns the jobs. What happens is taken in, what has changed is made
//! durable, and only then is done what follows, and answered who asked.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use hyper::StatusCode;
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::link::{Link, Master};
use super::manifest::Manifest;
use super::scheduler::{Now, Refused, Scheduler};
use super::server::{self, Answer, Request};
use super::state::Grace;
use super::store::{self, Store};
use super::view::Until;
use super::wire::{Call, Event};
use crate::master::{self, FrameworkId, TaskId, TaskState};
use crate::masters::{Masters, Search};
use crate::server::Credential;
use crate::tls::Client;

/// The shortest and the longest pause before a master is tried again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How much is done between two commits.
const BATCH: usize = 1000;
/// How long somebody who waits is kept waiting before being told how things are.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What a job framework is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the masters listen.
    pub masters: Masters,
    /// What it is known by there, if they speak TLS.
    pub tls: Option<Client>,
    /// What it authenticates with, if they ask for that.
    pub credential: Option<Credential>,
    /// Where it keeps what it has to remember.
    pub directory: PathBuf,
    /// Where people reach it.
    pub socket: PathBuf,
}

/// Why a job framework ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What it has to remember cannot be read or written.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Nobody could reach it.
    #[error("cannot listen on {0}: {1}")]
    Listen(PathBuf, io::Error),
}

/// What happens to a job framework.
#[derive(Debug)]
pub(super) enum Happening {
    /// An attempt to subscribe is over.
    Connected(io::Result<Link>),
    /// A subscription, the latest, has something to say.
    Heard(u64, Event),
    /// A subscription is over.
    Lost(u64),
    /// The master did not launch these.
    Refused(Vec<TaskId>, String),
    /// Somebody asks something.
    Asked(Request, oneshot::Sender<Answer>),
}

/// Somebody who waits for something of a job.
struct Waiter {
    job: String,
    until: Until,
    latest: Instant,
    answer: oneshot::Sender<Answer>,
}

struct Jobs {
    scheduler: Scheduler,
    store: Store,
    begin: Instant,
    link: Option<Link>,
    /// Whether the latest subscription was confirmed.
    subscribed: bool,
    connecting: bool,
    pause: Duration,
    waiters: Vec<Waiter>,
    answers: Vec<(oneshot::Sender<Answer>, Answer)>,
}

/// Runs a job framework until `shutdown` is ready, which leaves its tasks running, or it cannot go on. `ready` is called
/// once it can be reached.
pub async fn run(config: Config, ready: impl FnOnce(), shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let (store, recovered) = Store::open(&config.directory)?;
    let listener = server::bind(&config.socket).map_err(|error| Error::Listen(config.socket.clone(), error))?;
    let (sender, mut happenings) = mpsc::unbounded_channel();
    tokio::spawn(server::serve(listener, sender.clone()));
    ready();
    let mut jobs = Jobs {
        scheduler: Scheduler::new(recovered),
        store,
        begin: Instant::now(),
        link: None,
        subscribed: false,
        connecting: false,
        pause: PAUSES.0,
        waiters: Vec::new(),
        answers: Vec::new(),
    };
    tokio::pin!(shutdown);
    let (mut connect_at, mut connections) = (Instant::now(), 0);
    let mut search = Search::new(config.masters);
    loop {
        let next = jobs.next();
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            Some(happening) = happenings.recv() => {
                let more = std::iter::from_fn(|| happenings.try_recv().ok()).take(BATCH);
                for happening in std::iter::once(happening).chain(more) {
                    if let Happening::Connected(Err(error)) = &happening
                        && search.failed(error)
                    {
                        connect_at = Instant::now();
                    }
                    jobs.handle(happening);
                }
            }
            () = sleep_until(connect_at), if jobs.link.is_none() && !jobs.connecting => {
                jobs.connecting = true;
                connections += 1;
                let (own, roles) = (jobs.scheduler.own().clone(), jobs.scheduler.roles());
                let master = Master {
                    address: search.master(),
                    tls: config.tls.clone(),
                    credential: config.credential.clone(),
                };
                let (sender, number) = (sender.clone(), connections);
                tokio::spawn(async move {
                    let link = Link::open(master, number, own, roles, sender.clone()).await;
                    // The framework has ended if nobody listens.
                    let _ = sender.send(Happening::Connected(link));
                });
                connect_at = Instant::now() + jobs.pause;
                jobs.pause = (jobs.pause * 2).min(PAUSES.1);
            }
            () = sleep_until(next) => {}
        }
        jobs.settle()?;
    }
}

impl Jobs {
    fn now(&self) -> Now {
        Now { elapsed: self.begin.elapsed(), time: Timestamp::now() }
    }

    /// When something is to be done though nothing happens.
    fn next(&self) -> Instant {
        let tick = self.scheduler.next_tick().min(self.begin.elapsed() + Duration::from_hours(1));
        let waiters = self.waiters.iter().map(|waiter| waiter.latest);
        waiters.fold(self.begin + tick, Instant::min)
    }

    fn handle(&mut self, happening: Happening) {
        let now = self.now();
        match happening {
            Happening::Connected(result) => {
                self.connecting = false;
                match result {
                    Ok(mut link) => {
                        link.listen();
                        self.link = Some(link);
                    }
                    Err(error) => tracing::warn!(%error, "cannot subscribe with the master"),
                }
            }
            Happening::Heard(number, _) | Happening::Lost(number)
                if self.link.as_ref().is_none_or(|link| link.number != number) => {}
            Happening::Heard(_, Event::Subscribed(id)) => {
                self.pause = PAUSES.0;
                self.subscribed = true;
                self.scheduler.subscribed(id);
            }
            Happening::Heard(_, Event::Offers(offers)) => self.scheduler.offered(offers, now),
            Happening::Heard(_, Event::Update(status)) => self.scheduler.told(status, now),
            Happening::Heard(_, Event::Error(message)) => {
                tracing::warn!(message, "the master ends the subscription");
                // Whatever else the master has against it, its tasks run on.
                let is_over = |id: &FrameworkId| message == master::Refused::FrameworkGone(id.clone()).to_string();
                if !self.subscribed && self.scheduler.own().framework.as_ref().is_some_and(is_over) {
                    self.scheduler.refused(now);
                }
                self.disconnect();
            }
            Happening::Heard(_, Event::Other) => {}
            Happening::Lost(_) => self.disconnect(),
            Happening::Refused(tasks, message) => {
                for task in tasks {
                    self.scheduler.lost(&task, TaskState::Dropped, &message, now);
                }
            }
            Happening::Asked(request, answer) => self.asked(request, answer, now),
        }
    }

    fn disconnect(&mut self) {
        self.link = None;
        self.subscribed = false;
        self.scheduler.disconnected();
    }

    fn asked(&mut self, request: Request, answer: oneshot::Sender<Answer>, now: Now) {
        let refused = |refused: Refused| {
            let status = match refused {
                Refused::NoJob(_) | Refused::NoTask(..) => StatusCode::NOT_FOUND,
                Refused::Taken(_) | Refused::Ended(_) => StatusCode::CONFLICT,
                Refused::NoService(_) | Refused::TooMany(_) => StatusCode::BAD_REQUEST,
            };
            (status, refused.to_string())
        };
        let result = match request {
            Request::Submit { manifest } => Manifest::read(&manifest)
                .map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))
                .and_then(|manifest| {
                    let name = manifest.name.to_string();
                    self.scheduler.submit(manifest, now).map_err(refused)?;
                    Ok(json!({ "job": name }))
                }),
            Request::Jobs {} => Ok(self.scheduler.view_jobs()),
            Request::Job { job } => self.scheduler.job(&job).map(|job| self.scheduler.view_job(job)).map_err(refused),
            Request::Wait { job, until } => {
                if let Err(no_job) = self.scheduler.job(&job) {
                    Err(refused(no_job))
                } else {
                    self.waiters.push(Waiter { job, until, latest: Instant::now() + LONGEST_WAIT, answer });
                    return;
                }
            }
            Request::Scale { job, group, replicas } => {
                self.scheduler.scale(&job, &group, replicas, now).map(|()| json!({})).map_err(refused)
            }
            Request::Stop { job, grace } => {
                self.scheduler.stop(&job, Grace { time: grace }, now).map(|()| json!({})).map_err(refused)
            }
        };
        self.answers.push((answer, Answer(result)));
    }

    /// Makes what has changed durable, and then does what follows from it.
    fn settle(&mut self) -> Result<(), Error> {
        let now = self.now();
        self.scheduler.tick(now);
        loop {
            let calls = self.scheduler.take_calls();
            let changes = self.scheduler.take_changes();
            if !changes.is_empty() {
                self.store.commit(&changes)?;
            }
            if calls.is_empty() {
                break;
            }
            for call in calls {
                self.call(call, now);
            }
        }
        for (asker, answer) in self.answers.drain(..) {
            // Whoever asked may have left.
            let _ = asker.send(answer);
        }
        self.answer_waiters();
        Ok(())
    }

    fn call(&mut self, call: Call, now: Now) {
        match (call, &self.link, &self.scheduler.own().framework) {
            (call, Some(link), Some(framework)) => link.call(call, framework.clone()),
            // Nobody hears it. What else was to be said is said again, or not worth saying, after the next subscription.
            (Call::Accept { tasks, .. }, _, _) => {
                let why = "the connection with the master was lost before";
                for (task, _) in tasks {
                    self.scheduler.lost(&task, TaskState::Dropped, why, now);
                }
            }
            _ => {}
        }
    }

    fn answer_waiters(&mut self) {
        let now = Instant::now();
        let scheduler = &self.scheduler;
        let come = |waiter: &mut Waiter| {
            let job = scheduler.job(&waiter.job);
            waiter.latest <= now || job.map_or(true, |job| scheduler.has_come(job, waiter.until))
        };
        for Waiter { job, until, answer, .. } in self.waiters.extract_if(.., come) {
            let view = match scheduler.job(&job) {
                Ok(job) => {
                    let mut view = scheduler.view_job(job);
                    view["come"] = json!(scheduler.has_come(job, until));
                    Ok(view)
                }
                Err(gone) => Err((StatusCode::NOT_FOUND, gone.to_string())),
            };
            let _ = answer.send(Answer(view));
        }
    }
}
