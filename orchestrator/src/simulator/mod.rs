//! A cluster in one thread: the master core under a seeded runner of events, with agents and frameworks that misbehave, a network that
//! fails, masters that die, and clocks that jump.
//!
//! The same seed makes the same history. [`run`] lives through one: for a while everything goes wrong, then nothing does, and in
//! the end what the frameworks were told, what the master knows and what runs on the agents must be the same. Meanwhile a
//! [`ledger`] that sees only the agents keeps account of what runs where.
//!
//! | part | what it stands for |
//! | --- | --- |
//! | [`network`] | connections: in order, late, broken, cut |
//! | [`agent`] | agents that keep tasks and updates through their restarts, but not always through reboots |
//! | [`framework`] | schedulers: honest, hoarding, never acknowledging, greedy, flooding |
//! | [`observer`] | whoever watches, and has to know the same as the master |
//! | [`ledger`] | accounts that know nothing of the master's |
//! | [`faults`] | what goes wrong |

mod agent;
mod faults;
mod framework;
mod ledger;
mod network;
mod observer;

use std::collections::BTreeMap;
use std::time::Duration;

use agent::SimulatedAgent;
use framework::SimulatedFramework;
use ledger::Ledger;
use network::{Link, Party, ToClient, ToMaster};
use observer::Observer;

use crate::allocator;
use crate::master::{Config, Connection, Event, FromAgent, Master, Output, Registry};

const SECOND: Duration = Duration::from_secs(1);
/// How long things go wrong.
const TROUBLE: Duration = Duration::from_secs(150);
/// How long after that everything has to be settled: longer than all timeouts in turn.
const SETTLED: Duration = Duration::from_secs(500);

/// What happens at some time.
#[derive(Debug)]
enum Happening {
    ArrivesAtMaster(Connection, ToMaster),
    ArrivesAtClient(Connection, ToClient),
    /// The master, or the client, notices that a connection is no more.
    MasterMisses(Connection),
    ClientMisses(Connection),
    MasterTicks,
    MasterStarts,
    AgentActs(usize),
    FrameworkActs(usize),
    TaskEnds(usize, agent::TaskKey),
    ExecutorEnds(usize, agent::ExecutorKey),
    Heals(usize),
    Fault,
}

/// What a history came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events that happened.
    pub events: u64,
    /// Tasks that were started on agents.
    pub tasks: u64,
    /// Masters that died.
    pub failovers: u64,
}

/// The cluster.
struct Simulation {
    chance: fastrand::Rng,
    now: Duration,
    queue: BTreeMap<(Duration, u64), Happening>,
    scheduled: u64,
    /// None while there is none.
    master: Option<Master>,
    /// How far the master's clock is ahead.
    skew: Duration,
    /// What masters stored.
    registry: Registry,
    links: BTreeMap<Connection, Link>,
    connections: u64,
    agents: Vec<SimulatedAgent>,
    frameworks: Vec<SimulatedFramework>,
    ledger: Ledger,
    observer: Observer,
    summary: Summary,
}

/// Lives through the history of a seed.
///
/// # Panics
///
/// When something that must never happen happens.
pub fn run(seed: u64) -> Summary {
    let mut simulation = Simulation::new(seed);
    while let Some(((time, _), happening)) = simulation.queue.pop_first() {
        simulation.now = time;
        if time >= SETTLED {
            break;
        }
        simulation.summary.events += 1;
        simulation.happen(happening);
    }
    simulation.check_settled();
    simulation.summary.tasks = simulation.ledger.started();
    simulation.summary
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let mut chance = fastrand::Rng::with_seed(seed);
        let agents = (0..chance.usize(1..=5)).map(|_| SimulatedAgent::new(&mut chance)).collect::<Vec<_>>();
        let frameworks =
            (0..chance.usize(1..=4)).map(|index| SimulatedFramework::new(index, &mut chance)).collect::<Vec<_>>();
        let mut simulation = Simulation {
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            scheduled: 0,
            master: None,
            skew: Duration::ZERO,
            registry: Registry::default(),
            links: BTreeMap::new(),
            connections: 0,
            ledger: Ledger::default(),
            observer: Observer::default(),
            summary: Summary::default(),
            chance,
            agents,
            frameworks,
        };
        simulation.schedule(Duration::ZERO, Happening::MasterStarts);
        simulation.schedule(SECOND, Happening::MasterTicks);
        for agent in 0..simulation.agents.len() {
            simulation.schedule(SECOND, Happening::AgentActs(agent));
        }
        for framework in 0..simulation.frameworks.len() {
            simulation.schedule(SECOND, Happening::FrameworkActs(framework));
        }
        simulation.schedule(5 * SECOND, Happening::Fault);
        simulation
    }

    /// Whether things still go wrong.
    fn in_trouble(&self) -> bool {
        self.now < TROUBLE
    }

    fn schedule(&mut self, after: Duration, happening: Happening) {
        self.schedule_at(self.now + after, happening);
    }

    fn schedule_at(&mut self, time: Duration, happening: Happening) {
        self.scheduled += 1;
        self.queue.insert((time, self.scheduled), happening);
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::ArrivesAtMaster(from, message) => self.master_hears(from, message),
            Happening::ArrivesAtClient(to, message) => self.client_hears(to, message),
            Happening::MasterMisses(connection) => {
                self.master_does(|master, now| master.disconnected(connection, now));
            }
            Happening::ClientMisses(connection) => match self.links[&connection].client {
                Party::Agent(agent) => self.agents[agent].disconnected(connection),
                Party::Framework(framework) => self.frameworks[framework].disconnected(connection),
            },
            Happening::MasterTicks => {
                self.master_does(|master, now| {
                    master.tick(now);
                    master.allocate(now);
                });
                if let Some(master) = &self.master {
                    self.observer.compare(master);
                }
                self.schedule(SECOND, Happening::MasterTicks);
            }
            Happening::MasterStarts => {
                self.summary.failovers += u64::from(self.connections > 0);
                let mut config = Config::new(format!("master{}", self.summary.failovers));
                let seed = self.chance.u64(..);
                config.allocator = allocator::Config { seed, offer_timeout: Some(20 * SECOND), ..config.allocator };
                config.agent_timeout = 20 * SECOND;
                config.return_timeout = 60 * SECOND;
                let now = self.now + self.skew;
                let master = self.master.insert(Master::new(config, self.registry.clone(), now));
                master.observe(observer::CONNECTION, now);
                self.observer = Observer::default();
            }
            Happening::AgentActs(agent) => {
                self.agent_acts(agent);
                self.schedule(3 * SECOND, Happening::AgentActs(agent));
            }
            Happening::FrameworkActs(framework) => {
                self.framework_acts(framework);
                self.schedule(5 * SECOND, Happening::FrameworkActs(framework));
            }
            Happening::TaskEnds(agent, task) => self.task_ends(agent, &task),
            Happening::ExecutorEnds(agent, executor) => self.executor_ends(agent, &executor),
            Happening::Heals(agent) => self.heal(agent),
            Happening::Fault => {
                if self.in_trouble() {
                    self.fault();
                    let pause = Duration::from_millis(self.chance.u64(500..15_000));
                    self.schedule(pause, Happening::Fault);
                }
            }
        }
    }

    fn master_hears(&mut self, from: Connection, message: ToMaster) {
        if !self.links[&from].carries() {
            return;
        }
        let mut refused = None;
        self.master_does(|master, now| match message {
            ToMaster::Register(registration) => master.register(from, registration, now),
            ToMaster::Agent(message) => master.agent_says(from, message, now),
            ToMaster::Subscribe(id, info) => refused = master.subscribe(from, id, info, now).err(),
            ToMaster::Call(framework, call) => {
                // A framework whose subscription was replaced hears of it by other means.
                let _ = master.call(from, &framework, call, now);
            }
        });
        if let Some(refused) = refused {
            self.send_to_client(from, ToClient::Framework(Event::Error(refused.to_string())));
            self.send_to_client(from, ToClient::Closed);
        }
    }

    /// Lets the master do something, and then does what it says, unless it dies in the middle of that.
    fn master_does(&mut self, act: impl FnOnce(&mut Master, Duration)) {
        let Some(master) = &mut self.master else { return };
        act(master, self.now + self.skew);
        let outputs = master.take_outputs();
        let dies_at = if self.in_trouble() && self.chance.u32(..3000) == 0 {
            self.chance.usize(..=outputs.len())
        } else {
            usize::MAX
        };
        for (index, output) in outputs.into_iter().enumerate() {
            if index == dies_at {
                return self.master_dies();
            }
            match output {
                Output::Store(change) => self.registry.apply(change),
                Output::Framework(to, event) => self.send_to_client(to, ToClient::Framework(event)),
                Output::Agent(to, message) => self.send_to_client(to, ToClient::Agent(message)),
                Output::Observers(_, notice) => self.observer.hear(notice),
                Output::Close(connection) => self.send_to_client(connection, ToClient::Closed),
            }
        }
    }

    fn client_hears(&mut self, to: Connection, message: ToClient) {
        if !self.links[&to].carries() {
            return;
        }
        match (self.links[&to].client, message) {
            (_, ToClient::Closed) => {
                self.close_link(to);
                self.happen(Happening::ClientMisses(to));
            }
            (Party::Agent(agent), ToClient::Agent(message)) => self.agent_hears(agent, to, message),
            (Party::Framework(framework), ToClient::Framework(event)) => self.framework_hears(framework, to, event),
            (Party::Agent(_), ToClient::Framework(_)) | (Party::Framework(_), ToClient::Agent(_)) => {
                panic!("the master talks to agents as agents and to frameworks as frameworks")
            }
        }
    }

    fn agent_says(&mut self, agent: usize, message: FromAgent) {
        if let Some(connection) = self.agents[agent].connection {
            self.send_to_master(connection, ToMaster::Agent(message));
        }
    }
}
