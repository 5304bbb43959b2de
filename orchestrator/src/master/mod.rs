//! The master core: who is there, what was offered to whom, what runs where.
//!
//! Like the allocator it is built on, a state machine without clock or input and output. Its methods are what happens (a connection
//! was closed, a framework called, an agent said something, time passed); what has to be done about it is collected as
//! [`Output`] and taken by the program round it, the simulator, or a test.
//!
//! ```text
//! a framework:  subscribe ─▶ connected ─▶ disconnected ── failover timeout ─▶ gone ── its last task ends ─▶ forgotten
//!                               ▲ subscribe with its id │
//!                               └───────────────────────┘
//! an agent:     register ─▶ here ── not heard of for too long ─▶ unreachable         (gone, if a person says so)
//!                            ▲ register with its id                   │
//!                            └────────────────────────────────────────┘
//! ```
//!
//! What makes this safe:
//! - *Nothing is given twice.* What a task uses is free when its agent says that it ended, when the agent came back without it, or with
//!   the agent; never because a framework vanished or somebody asked for its end.
//! - *No task is lost.* An update is passed on, not kept: its agent repeats it until the framework has acknowledged it. A task the master
//!   sent to an agent, and the agent does not have when it comes back, was dropped, and its framework is told. This needs no guesswork
//!   about messages under way: what was said over an earlier connection the agent no longer does.
//! - *An executor is counted once*, with the first task that names it, until its agent says that it ended or comes back without it.
//! - *What cannot be rebuilt is stored first*: [`Output::Store`] comes before the messages that depend on it. That is little
//!   ([`Registry`]): a new master learns of tasks and frameworks from the agents.

mod agents;
mod calls;
mod executors;
mod frameworks;
mod ids;
mod messages;
mod observers;
mod operator;
mod reconcile;
mod registry;
mod snapshot;
mod task;
mod tokens;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use slotmap::SecondaryMap;

use agents::{Agent, Place};
use frameworks::Framework;
use observers::Observers;

pub use executors::ExecutorView;
pub use ids::{AgentId, Connection, ExecutorId, FrameworkId, TaskId};
pub use messages::{
    AgentInfo, Call, Event, ExecutorReport, FrameworkInfo, FromAgent, OfferEvent, Output, Registration, TaskReport,
    ToAgent,
};
pub use observers::Notice;
pub use operator::{AgentState, AgentView, FrameworkView};
pub use registry::{Admission, Change, Registry};
pub use snapshot::Snapshot;
pub use task::{ExecutorInfo, Reason, Task, TaskInfo, TaskState, TaskStatus, UpdateId};

use crate::allocator::{self, AgentKey, Allocator, FrameworkKey};
use crate::tls::TokenId;

/// How many frameworks that are over are remembered, so that they cannot come back: as in Mesos.
const REMOVED_FRAMEWORKS: usize = 50;

/// How a master behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// What the ids it gives start with: no two masters of a cluster have the same.
    pub id: String,
    /// How it allocates.
    pub allocator: allocator::Config,
    /// How often frameworks hear from it.
    pub heartbeat: Duration,
    /// After how long without a word an agent is unreachable.
    pub agent_timeout: Duration,
    /// How long a new master waits for agents and frameworks to come back.
    pub return_timeout: Duration,
}

impl Config {
    /// The timeouts of Mesos.
    pub fn new(id: impl Into<String>) -> Config {
        Config {
            id: id.into(),
            allocator: allocator::Config::default(),
            heartbeat: Duration::from_secs(15),
            agent_timeout: Duration::from_secs(75),
            return_timeout: Duration::from_mins(10),
        }
    }
}

/// Why a call was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The call is not over the connection the framework is subscribed by.
    #[error("framework {0} is not subscribed by this connection")]
    NotSubscribed(FrameworkId),
    /// A framework that is over wants to come back.
    #[error("framework {0} is over: its tasks were ended, and it cannot subscribe again by this id")]
    FrameworkGone(FrameworkId),
    /// No framework has this id.
    #[error("there is no framework {0}")]
    UnknownFramework(FrameworkId),
    /// A framework that comes back is another principal's.
    #[error("framework {0} belongs to another principal; subscribe without an id to be a new framework")]
    OtherPrincipal(FrameworkId),
    /// A join token lets nobody in.
    #[error(
        "the join token is not good: it has expired, was used up or revoked, or never was; `berth cluster token` makes one"
    )]
    Token,
    /// There is no such join token.
    #[error("there is no join token {0}")]
    UnknownToken(TokenId),
    /// There are enough join tokens.
    #[error("there are {0} join tokens already; revoke some")]
    TooManyTokens(usize),
    /// No agent has this id.
    #[error("there is no agent {0}")]
    UnknownAgent(AgentId),
    /// An agent is not there now.
    #[error("agent {0} is not connected; try again when it is back")]
    NotConnected(AgentId),
    /// The allocator does not do it.
    #[error(transparent)]
    Allocator(#[from] allocator::Error),
}

/// The master core.
#[derive(Debug)]
pub struct Master {
    config: Config,
    allocator: Allocator,
    registry: Registry,
    frameworks: BTreeMap<FrameworkId, Framework>,
    agents: BTreeMap<AgentId, Agent>,
    framework_ids: SecondaryMap<FrameworkKey, FrameworkId>,
    agent_ids: SecondaryMap<AgentKey, AgentId>,
    clients: BTreeMap<Connection, Client>,
    observers: Observers,
    /// The last frameworks that are over, the latest last.
    removed: VecDeque<FrameworkId>,
    /// How many ids were given.
    ids: u64,
    outputs: Vec<Output>,
    dropped_messages: u64,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
enum Client {
    Framework(FrameworkId),
    Agent(AgentId),
    Observer,
}

impl Master {
    /// A master that takes over, at the time `now`, what its predecessors stored.
    pub fn new(config: Config, registry: Registry, now: Duration) -> Master {
        let mut allocator = Allocator::new(config.allocator.clone());
        for (role, weight) in &registry.weights {
            allocator.set_weight(role, *weight);
        }
        for (role, quota) in &registry.quotas {
            // It was accepted before; should it no longer be, the role does without.
            let _ = allocator.set_quota(role, *quota);
        }
        let place = |admission: &Admission| {
            let until = now.saturating_add(config.return_timeout);
            if admission.unreachable { Place::Unreachable } else { Place::Awaited { until } }
        };
        let agents = registry.agents.iter().map(|(id, admission)| (id.clone(), Agent::new(place(admission))));
        Master {
            allocator,
            agents: agents.collect(),
            registry,
            frameworks: BTreeMap::new(),
            framework_ids: SecondaryMap::new(),
            agent_ids: SecondaryMap::new(),
            clients: BTreeMap::new(),
            observers: Observers::new(),
            removed: VecDeque::new(),
            ids: 0,
            outputs: Vec::new(),
            dropped_messages: 0,
            config,
        }
    }

    /// What has to be done now.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// How many messages of frameworks were for executors that they do not have.
    pub fn dropped_messages(&self) -> u64 {
        self.dropped_messages
    }

    /// Time passes: what took too long is over, and who has to hear from the master does. To be called several times a second.
    pub fn tick(&mut self, now: Duration) {
        let expired = self.allocator.expire(now);
        self.tell_rescinded(expired);
        self.end_absent_frameworks(now);
        self.miss_agents(now);
        self.send_heartbeats(now);
        self.send_observers_heartbeats(now);
    }

    /// Offers what is free.
    pub fn allocate(&mut self, now: Duration) {
        let mut offers: BTreeMap<FrameworkId, Vec<OfferEvent>> = BTreeMap::new();
        for key in self.allocator.allocate(now) {
            let Some(offer) = self.allocator.offer(key) else { continue };
            let agent = self.agent_ids[offer.agent].clone();
            let framework = &self.framework_ids[offer.framework];
            let event = OfferEvent {
                key,
                info: Arc::clone(&self.agents[&agent].info),
                executors: self.frameworks[framework].executors_on(&agent).cloned().collect(),
                agent,
                role: Arc::clone(&offer.role),
                resources: offer.resources.clone(),
            };
            offers.entry(framework.clone()).or_default().push(event);
        }
        for (framework, offers) in offers {
            self.tell(&framework, Event::Offers(offers));
        }
    }

    /// A connection was closed, by the other end or because it broke.
    pub fn disconnected(&mut self, connection: Connection, now: Duration) {
        match self.clients.remove(&connection) {
            Some(Client::Framework(id)) => {
                self.framework_disconnected(&id, now);
                self.notify_framework(&id, Notice::FrameworkUpdated);
            }
            Some(Client::Agent(id)) => self.agent_disconnected(&id),
            Some(Client::Observer) => drop(self.observers.remove(&connection)),
            None => {}
        }
    }

    /// Closes a connection from this side.
    fn close(&mut self, connection: Connection) {
        self.clients.remove(&connection);
        self.outputs.push(Output::Close(connection));
    }

    fn store(&mut self, change: Change) {
        self.registry.apply(change.clone());
        self.outputs.push(Output::Store(change));
    }

    fn next_id(&mut self, letter: char) -> String {
        self.ids += 1;
        format!("{}-{letter}{}", self.config.id, self.ids)
    }
}
