//! The thread that owns the master core: everything that happens goes through it, one thing after the other.
//!
//! Work comes in as closures over a channel. What the core wants done about a batch of them is done at the end of the
//! batch: first all that has to be stored, in one transaction, then the messages, then the answers to whoever waits. So
//! nobody hears of anything that a crash could undo, and a burst of changes costs one flush of the disk.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::limits::{Bucket, SUBSCRIPTIONS};
use super::metrics::Counters;
use super::queue::{self, Feed, Queue, queue};
use crate::api::agent::{Answer, Question};
use crate::api::events;
use crate::api::scheduler::Writer;
use crate::master::{AgentId, Connection, Event, FrameworkId, Master, Notice, Output, Refused, Snapshot, ToAgent};
use crate::recordio;
use crate::store::{self, Store};

/// How often the master looks at the clock.
const TICK: Duration = Duration::from_millis(250);
/// The shortest time between two allocation cycles.
const PAUSE: Duration = Duration::from_millis(5);
/// How much is done between two looks at the clock.
const BATCH: usize = 1000;
/// How many bytes may wait for an agent, or a framework, to read them; one that is slower is disconnected.
const MOST_QUEUED: usize = 64 << 20;
/// How many may wait for an agent before messages of frameworks to their executors are dropped: nobody counts on those.
const MOST_MESSAGES: usize = 8 << 20;
/// The same of whoever only watches, who can ask again for the state there is.
const MOST_QUEUED_TO_WATCH: usize = 8 << 20;
/// For how long a snapshot is good enough for whoever only looks.
const SNAPSHOT_AGE: Duration = Duration::from_millis(100);

type Work = Box<dyn FnOnce(&mut Core) + Send>;

/// The master is no longer there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the master is shutting down")]
pub struct Stopped;

/// How the rest of the process reaches the core.
#[derive(Debug, Clone)]
pub struct Handle(Sender<Work>);

impl Handle {
    /// Does something with the core, and returns when all that follows from it is durable and under way.
    pub async fn ask<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (sender, receiver) = oneshot::channel();
        self.tell(move |core| {
            let answer = act(core);
            // Whoever asked may have left.
            core.answers.push(Box::new(move || drop(sender.send(answer))));
        });
        receiver.await.map_err(|_| Stopped)
    }

    /// Does something with the core, some time.
    pub fn tell(&self, act: impl FnOnce(&mut Core) + Send + 'static) {
        // A core that has stopped needs to know nothing.
        let _ = self.0.send(Box::new(act));
    }
}

/// The way to a client.
pub struct Link {
    feed: Feed,
    kind: Kind,
}

enum Kind {
    Framework(Box<FrameworkLink>),
    Agent,
    Observer,
}

impl Kind {
    fn most_queued(&self) -> usize {
        match self {
            Kind::Framework(_) | Kind::Agent => MOST_QUEUED,
            Kind::Observer => MOST_QUEUED_TO_WATCH,
        }
    }
}

/// What belongs to the stream of a subscribed framework.
pub struct FrameworkLink {
    pub stream: Uuid,
    pub writer: Writer,
    pub calls: Bucket,
    /// Whose it is, if frameworks authenticate.
    pub principal: Option<Arc<str>>,
}

/// The core and what it reaches the world by.
pub struct Core {
    pub master: Master,
    pub counters: Counters,
    pub subscriptions: Bucket,
    store: Box<dyn Store>,
    start: Instant,
    links: HashMap<Connection, Link>,
    connections: u64,
    answers: Vec<Box<dyn FnOnce() + Send>>,
    /// What agents were asked, by number: over which connection, and who waits for the answer.
    asked: HashMap<u64, (Connection, oneshot::Sender<Answer>)>,
    questions: u64,
    snapshot: Option<(Instant, Arc<Snapshot>)>,
    /// Whether there may be something to offer before the next regular cycle.
    allocate: bool,
    stopped: bool,
}

impl Core {
    pub fn new(master: Master, store: Box<dyn Store>, start: Instant) -> Core {
        Core {
            master,
            counters: Counters::default(),
            subscriptions: Bucket::new(SUBSCRIPTIONS, Duration::ZERO),
            store,
            start,
            links: HashMap::new(),
            connections: 0,
            answers: Vec::new(),
            asked: HashMap::new(),
            questions: 0,
            snapshot: None,
            allocate: false,
            stopped: false,
        }
    }

    /// What was counted until now.
    pub fn counters(&self) -> Counters {
        let mut counters = self.counters;
        counters.messages_dropped += self.master.dropped_messages();
        counters
    }

    /// The time on the core's clock, which never goes back or jumps.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The time that calendars have, in seconds since 1970, for what has to outlive the process.
    pub fn seconds() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
    }

    /// There may be something to offer.
    pub fn wants_allocation(&mut self) {
        self.allocate = true;
    }

    /// Ends the thread, which closes all connections.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Opens a way to an agent.
    pub fn open_agent(&mut self) -> (Connection, Queue) {
        self.open(Kind::Agent)
    }

    /// Opens a way to a framework.
    pub fn open_framework(&mut self, link: FrameworkLink) -> (Connection, Queue) {
        self.open(Kind::Framework(Box::new(link)))
    }

    /// Opens a way to somebody who watches.
    pub fn open_observer(&mut self) -> (Connection, Queue) {
        self.open(Kind::Observer)
    }

    fn open(&mut self, kind: Kind) -> (Connection, Queue) {
        let (feed, queue) = queue();
        self.connections += 1;
        let connection = Connection(self.connections);
        self.links.insert(connection, Link { feed, kind });
        (connection, queue)
    }

    /// The stream of a framework, by its connection.
    pub fn framework_link(&mut self, connection: Connection) -> Option<&mut FrameworkLink> {
        match &mut self.links.get_mut(&connection)?.kind {
            Kind::Framework(link) => Some(link),
            Kind::Agent | Kind::Observer => None,
        }
    }

    /// Asks an agent something. The answer does not come if the agent leaves before.
    pub fn ask_agent(&mut self, id: &AgentId, question: Question) -> Result<oneshot::Receiver<Answer>, Refused> {
        self.questions += 1;
        let connection = self.master.ask(id, self.questions, question)?;
        let (sender, receiver) = oneshot::channel();
        // Some have stopped waiting.
        self.asked.retain(|_, (_, sender)| !sender.is_closed());
        self.asked.insert(self.questions, (connection, sender));
        Ok(receiver)
    }

    /// An agent answers. Nobody can answer for another.
    pub fn answered(&mut self, from: Connection, number: u64, answer: Answer) {
        if self.asked.get(&number).is_some_and(|(connection, _)| *connection == from)
            && let Some((_, sender)) = self.asked.remove(&number)
        {
            let _ = sender.send(answer);
        }
    }

    /// The other end of a connection is gone.
    pub fn closed(&mut self, connection: Connection) {
        self.asked.retain(|_, (to, _)| *to != connection);
        if self.links.remove(&connection).is_some() {
            let now = self.now();
            self.master.disconnected(connection, now);
        }
    }

    /// Says something over a connection that the core does not know of.
    pub fn refuse(&mut self, connection: Connection, message: String) {
        self.send_to_framework(connection, &Event::Error(message));
        self.links.remove(&connection);
    }

    /// What there is, as of a short while ago at most.
    pub fn snapshot(&mut self) -> Arc<Snapshot> {
        if let Some((taken, snapshot)) = &self.snapshot
            && taken.elapsed() < SNAPSHOT_AGE
        {
            return Arc::clone(snapshot);
        }
        let snapshot = Arc::new(Snapshot::take(&self.master));
        self.snapshot = Some((Instant::now(), Arc::clone(&snapshot)));
        snapshot
    }

    /// Whoever looks next sees all that has happened until now.
    pub fn refresh(&mut self) {
        self.snapshot = None;
    }

    /// How many bytes wait to be read at the other end of a connection.
    fn waiting(&self, connection: Connection) -> usize {
        self.links.get(&connection).map_or(0, |link| link.feed.waiting())
    }

    fn send(&mut self, connection: Connection, record: Bytes) {
        let Some(link) = self.links.get(&connection) else { return };
        if let Err(refused) = link.feed.push(record, link.kind.most_queued()) {
            if refused == queue::Refused::Slow {
                tracing::warn!(connection = connection.0, "a client does not read what it is sent: disconnected");
            }
            self.closed(connection);
        }
    }

    fn send_to_framework(&mut self, connection: Connection, event: &Event) {
        let Some(FrameworkLink { writer, .. }) = self.framework_link(connection) else { return };
        if let Event::Subscribed { framework, .. } = event {
            writer.framework = FrameworkId::clone(framework);
        }
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let text = writer.write(event, since_1970).to_string();
        self.send(connection, recordio::frame(text.as_bytes()));
    }

    /// Says the same to all of them: it is written once.
    fn send_to_observers(&mut self, connections: Vec<Connection>, notice: &Notice) {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let record = recordio::frame(events::write(notice, since_1970).to_string().as_bytes());
        for connection in connections {
            self.send(connection, record.clone());
        }
    }

    /// Does what the core wants to be done.
    fn flush(&mut self) -> Result<(), store::Error> {
        // Doing it may be cause for more: a client that is found gone.
        loop {
            let outputs = self.master.take_outputs();
            if outputs.is_empty() {
                break;
            }
            let change = |output: &Output| if let Output::Store(change) = output { Some(change.clone()) } else { None };
            let changes: Vec<_> = outputs.iter().filter_map(change).collect();
            if !changes.is_empty() {
                self.store.commit(&changes)?;
                self.counters.commits += 1;
            }
            self.store.check()?;
            for output in outputs {
                match output {
                    Output::Store(_) => {}
                    Output::Framework(to, event) => self.send_to_framework(to, &event),
                    Output::Agent(to, ToAgent::Message { .. }) if self.waiting(to) > MOST_MESSAGES => {
                        self.counters.messages_dropped += 1;
                    }
                    Output::Agent(to, message) => {
                        let text = serde_json::to_string(&message).expect("messages have texts for keys");
                        self.send(to, recordio::frame(text.as_bytes()));
                    }
                    Output::Observers(to, notice) => self.send_to_observers(to, &notice),
                    Output::Close(connection) => {
                        self.asked.retain(|_, (to, _)| *to != connection);
                        self.links.remove(&connection);
                    }
                }
            }
        }
        self.store.check()?;
        self.answers.drain(..).for_each(|answer| answer());
        Ok(())
    }

    fn allocate(&mut self) {
        let begin = Instant::now();
        let now = self.now();
        self.master.allocate(now);
        self.counters.cycle(begin.elapsed());
        self.allocate = false;
    }

    /// Works until it is stopped, or nothing can be stored, or another master leads.
    pub fn run(mut self, work: &Receiver<Work>, interval: Duration) -> Result<(), store::Error> {
        let mut next_tick = Duration::ZERO;
        let mut last_cycle: Option<Duration> = None;
        loop {
            let now = self.now();
            let next_cycle = match last_cycle {
                None => now,
                Some(last) if self.allocate => last + PAUSE,
                Some(last) => last + interval,
            };
            let timeout = next_tick.min(next_cycle).saturating_sub(now);
            match work.recv_timeout(timeout) {
                Ok(act) => {
                    act(&mut self);
                    work.try_iter().take(BATCH).for_each(|act| act(&mut self));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.flush(),
            }
            let now = self.now();
            if now >= next_tick {
                self.master.tick(now);
                next_tick = now + TICK;
            }
            let due = if self.allocate { PAUSE } else { interval };
            if last_cycle.is_none_or(|last| now >= last + due) {
                self.allocate();
                last_cycle = Some(now);
            }
            self.flush()?;
            if self.stopped {
                return Ok(());
            }
        }
    }
}

/// A channel for work.
pub fn channel() -> (Handle, Receiver<Work>) {
    let (sender, receiver) = mpsc::channel();
    (Handle(sender), receiver)
}
