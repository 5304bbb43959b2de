//! The job framework's scheduler in a world that loses messages, agents and the scheduler itself. Whatever happens, no
//! offer is overdrawn, no attempt's id is used twice and nothing runs twice that must not; and once the world is calm,
//! all that was to run has run, and nothing else does.

mod seeds;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use berth_orchestrator::jobs::manifest::Manifest;
use berth_orchestrator::jobs::scheduler::{Changes, Now, Own, Recovered, Scheduler};
use berth_orchestrator::jobs::state::{Grace, Job, Task, TaskKey};
use berth_orchestrator::jobs::wire::{Call, Offer, Status};
use berth_orchestrator::master::{AgentId, FrameworkId, TaskId, TaskState, UpdateId};
use berth_orchestrator::resources::{Quantities, Resources};
use fastrand::Rng;
use jiff::Timestamp;
use seeds::seeds;

/// How many histories each test goes through.
const SEEDS: u64 = 500;
const STEPS: usize = 120;
const AGENTS: usize = 3;
/// Thousandths of a CPU of each agent.
const CAPACITY: u64 = 400;
const MANIFEST: &str = "
name: job
tasks:
  batch: {image: i, batch: {count: 6, retries: 1000}, resources: {cpus: 0.1}}
  once: {image: i, batch: {count: 4, at-most-once: true}, resources: {cpus: 0.1}}
";
const SERVICE: &str = "
name: service
tasks:
  front: {image: i, service: {replicas: 3}, resources: {cpus: 0.1}, spread: {over: agent, most: 2}}
";

/// What outlives a scheduler, as texts.
#[derive(Default)]
struct Disk {
    own: String,
    jobs: BTreeMap<String, String>,
    tasks: BTreeMap<TaskKey, String>,
}

impl Disk {
    fn write(&mut self, changes: &Changes) {
        if let Some(own) = &changes.own {
            self.own = serde_json::to_string(own).unwrap();
        }
        for (name, job) in &changes.jobs {
            match job {
                Some(job) => drop(self.jobs.insert(name.to_string(), serde_json::to_string(job).unwrap())),
                None => drop(self.jobs.remove(&**name)),
            }
        }
        for (key, task) in &changes.tasks {
            match task {
                Some(task) => drop(self.tasks.insert(key.clone(), serde_json::to_string(task).unwrap())),
                None => drop(self.tasks.remove(key)),
            }
        }
    }

    fn read(&self) -> Recovered {
        let own: Own = serde_json::from_str(&self.own).unwrap_or_default();
        let jobs = self.jobs.values().map(|job| serde_json::from_str::<Job>(job).unwrap());
        let tasks = self.tasks.iter().map(|(key, task)| (key.clone(), serde_json::from_str::<Task>(task).unwrap()));
        Recovered { own, jobs: jobs.map(|job| (job.manifest.name.clone(), job)).collect(), tasks: tasks.collect() }
    }
}

#[derive(Default)]
struct Agent {
    unreachable: bool,
    /// The state of each task until its end was acknowledged.
    tasks: BTreeMap<String, TaskState>,
}

struct World {
    random: Rng,
    elapsed: Duration,
    scheduler: Scheduler,
    disk: Disk,
    connected: bool,
    agents: Vec<Agent>,
    offers: u64,
    /// Every id that was ever launched.
    launched: BTreeSet<String>,
    /// How often each task began, and how often it came to its end, by `JOB.GROUP.INDEX`.
    begun: BTreeMap<String, u32>,
    finished: BTreeMap<String, u32>,
    /// Offers that are open: whose, and how much.
    open: BTreeMap<String, (usize, u64)>,
}

fn task_of(id: &str) -> String {
    id.rsplit_once('.').unwrap().0.to_owned()
}

impl World {
    fn new(seed: u64) -> World {
        World {
            random: Rng::with_seed(seed),
            elapsed: Duration::ZERO,
            scheduler: Scheduler::new(Recovered::default()),
            disk: Disk::default(),
            connected: false,
            agents: std::iter::repeat_with(Agent::default).take(AGENTS).collect(),
            offers: 0,
            launched: BTreeSet::new(),
            begun: BTreeMap::new(),
            finished: BTreeMap::new(),
            open: BTreeMap::new(),
        }
    }

    fn now(&self) -> Now {
        let time = Timestamp::UNIX_EPOCH + self.elapsed;
        Now { elapsed: self.elapsed, time }
    }

    /// Writes down what has changed, and does what follows. `cut`: after so many calls the scheduler is killed.
    fn settle(&mut self, cut: Option<usize>) {
        let mut left = cut;
        loop {
            self.scheduler.tick(self.now());
            let calls = self.scheduler.take_calls();
            self.disk.write(&self.scheduler.take_changes());
            if calls.is_empty() {
                break;
            }
            for call in calls {
                if left == Some(0) {
                    return self.restart();
                }
                left = left.map(|left| left - 1);
                self.call(call);
            }
        }
        if cut.is_some() {
            self.restart();
        }
    }

    fn restart(&mut self) {
        self.scheduler = Scheduler::new(self.disk.read());
        self.disconnect();
    }

    fn disconnect(&mut self) {
        self.scheduler.disconnected();
        self.connected = false;
        self.open.clear();
    }

    fn connect(&mut self) {
        if !self.connected {
            self.connected = true;
            self.scheduler.subscribed(FrameworkId::from("f"));
        }
    }

    fn call(&mut self, call: Call) {
        match call {
            Call::Accept { offer, tasks, .. } => {
                let Some((agent, free)) = self.open.remove(&offer) else {
                    // The master no longer knows the offer.
                    for (id, _) in tasks {
                        self.tell(&id, None, TaskState::Dropped);
                    }
                    return;
                };
                assert!(tasks.len() as u64 * 100 <= free, "the offer is not overdrawn");
                for (id, info) in tasks {
                    assert_eq!(info["task_id"]["value"], id.as_str());
                    assert!(self.launched.insert(id.to_string()), "{id} is used twice");
                    // Some never reach their agent, and of some of these the master does not know.
                    match self.random.u8(0..10) {
                        0 => self.tell(&id, Some(agent), TaskState::Dropped),
                        1 => {}
                        _ => drop(self.agents[agent].tasks.insert(id.to_string(), TaskState::Staging)),
                    }
                }
            }
            Call::Decline { offers, .. } => self.open.retain(|offer, _| !offers.contains(offer)),
            Call::Kill { task, agent, .. } => {
                let index = agent_index(&agent);
                if self.agents[index].unreachable {
                    return;
                }
                match self.agents[index].tasks.get_mut(task.as_str()) {
                    Some(state) if state.is_terminal() => {}
                    Some(state) => *state = TaskState::Killed,
                    None => self.tell(&task, Some(index), TaskState::Gone),
                }
            }
            Call::Acknowledge { task, agent, .. } => {
                let tasks = &mut self.agents[agent_index(&agent)].tasks;
                if tasks.get(task.as_str()).is_some_and(|state| state.is_terminal()) {
                    tasks.remove(task.as_str());
                }
            }
            Call::Reconcile(tasks) if tasks.is_empty() => {
                for index in 0..AGENTS {
                    self.tell_of_agent(index);
                }
            }
            Call::Reconcile(tasks) => {
                for (task, agent) in tasks {
                    let agent_index = agent_index(&agent);
                    let agent = &self.agents[agent_index];
                    let state = match agent.tasks.get(task.as_str()) {
                        _ if agent.unreachable => TaskState::Unreachable,
                        Some(state) => *state,
                        None => TaskState::Gone,
                    };
                    self.tell(&task, Some(agent_index), state);
                }
            }
            Call::Update { .. } | Call::Revive(_) | Call::Suppress(_) => {}
        }
    }

    fn tell(&mut self, task: &TaskId, agent: Option<usize>, state: TaskState) {
        if !self.connected {
            return;
        }
        let status = Status {
            task: task.clone(),
            agent: agent.map(agent_id),
            state,
            update: Some(UpdateId(1)),
            message: String::new(),
            sandbox: None,
            healthy: None,
        };
        self.scheduler.told(status, self.now());
    }

    fn tell_of_agent(&mut self, index: usize) {
        let agent = &self.agents[index];
        let unreachable = agent.unreachable;
        for (id, state) in agent.tasks.clone() {
            let state = if unreachable { TaskState::Unreachable } else { state };
            self.tell(&TaskId::from(id), Some(index), state);
        }
    }

    fn offer(&mut self, index: usize) {
        let agent = &self.agents[index];
        if agent.unreachable || !self.connected {
            return;
        }
        let used = agent.tasks.values().filter(|state| !state.is_terminal()).count() as u64 * 100;
        let free = CAPACITY - used;
        self.offers += 1;
        let id = format!("o{}", self.offers);
        self.open.insert(id.clone(), (index, free));
        let attributes =
            [("agent".to_owned(), index.to_string()), ("isolation.container".to_owned(), "true".to_owned())];
        let resources: Resources = Quantities::new(free, 1 << 40).into();
        let (agent, role) = (agent_id(index), "*".to_owned());
        let offer = Offer { id, agent, role, resources, attributes: attributes.into() };
        self.scheduler.offered(vec![offer], self.now());
    }

    /// A task goes on, if it can.
    fn go_on(&mut self, index: usize, well: bool) {
        let agent = &mut self.agents[index];
        let alive: Vec<String> =
            agent.tasks.iter().filter(|(_, state)| !state.is_terminal()).map(|(id, _)| id.clone()).collect();
        let Some(id) = self.random.choice(alive) else { return };
        let state = agent.tasks.get_mut(&id).unwrap();
        if *state == TaskState::Staging {
            *state = TaskState::Running;
            *self.begun.entry(task_of(&id)).or_default() += 1;
        } else if well {
            *state = TaskState::Finished;
            *self.finished.entry(task_of(&id)).or_default() += 1;
        } else {
            *state = TaskState::Failed;
        }
        if !self.agents[index].unreachable && self.random.bool() {
            self.tell_of_agent(index);
        }
    }

    fn step(&mut self) {
        let index = self.random.usize(0..AGENTS);
        self.elapsed += Duration::from_millis(self.random.u64(0..3000));
        match self.random.u8(0..12) {
            0 | 1 => self.connect(),
            2..=4 => self.offer(index),
            5..=7 => {
                let well = self.random.bool();
                self.go_on(index, well);
            }
            8 => self.agents[index].unreachable = !self.agents[index].unreachable,
            9 => self.disconnect(),
            10 => self.tell_of_agent(index),
            _ => {
                let cut = self.random.usize(0..4);
                return self.settle(Some(cut));
            }
        }
        self.settle(None);
    }

    /// From now on all goes well.
    fn calm(&mut self) {
        self.agents.iter_mut().for_each(|agent| agent.unreachable = false);
        self.connect();
        for _ in 0..200 {
            self.elapsed += Duration::from_secs(10);
            for index in 0..AGENTS {
                self.tell_of_agent(index);
                self.settle(None);
                self.offer(index);
                self.settle(None);
                // Tasks of the batch end, replicas stay.
                let batch = |id: &String| !id.starts_with("service");
                if self.agents[index].tasks.iter().any(|(id, state)| batch(id) && !state.is_terminal()) {
                    self.go_on_with_batch(index);
                }
                self.settle(None);
            }
        }
    }

    fn go_on_with_batch(&mut self, index: usize) {
        let (service, rest): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.agents[index].tasks)
            .into_iter()
            .partition(|(id, _): &(String, TaskState)| id.starts_with("service"));
        self.agents[index].tasks = rest;
        self.go_on(index, true);
        self.agents[index].tasks.extend(service);
    }
}

fn agent_id(index: usize) -> AgentId {
    AgentId::from(format!("a{index}"))
}

fn agent_index(id: &AgentId) -> usize {
    id.as_str()[1..].parse().unwrap()
}

#[test]
fn nothing_is_lost_and_nothing_runs_twice_that_must_not() {
    for seed in seeds(SEEDS) {
        println!("seed {seed}");
        let mut world = World::new(seed);
        for manifest in [MANIFEST, SERVICE] {
            world.scheduler.submit(Manifest::read(manifest).unwrap(), world.now()).unwrap();
        }
        world.settle(None);
        for _ in 0..STEPS {
            world.step();
        }
        world.calm();
        for index in 0..4 {
            let begun = world.begun.get(&format!("job.once.{index}")).copied().unwrap_or_default();
            assert!(begun <= 1, "job.once.{index} began {begun} times");
        }
        for index in 0..6 {
            assert!(world.finished.get(&format!("job.batch.{index}")).is_some_and(|count| *count >= 1));
        }
        let job = world.scheduler.job("job").unwrap();
        assert!(job.ended.is_some(), "{}", world.scheduler.view_job(job));
        let left: Vec<&String> = world.agents.iter().flat_map(|agent| agent.tasks.keys()).collect();
        let tasks: BTreeSet<String> = left.iter().map(|id| task_of(id)).collect();
        assert_eq!((left.len(), tasks.len()), (3, 3), "the replicas run, and nothing else: {left:?}");
        for agent in &world.agents {
            assert!(agent.tasks.len() <= 2, "no more in a failure domain than there may be");
        }
    }
}

#[test]
fn a_stopped_job_leaves_nothing_however_it_is_stopped() {
    for seed in seeds(SEEDS) {
        println!("seed {seed}");
        let mut world = World::new(seed);
        for manifest in [MANIFEST, SERVICE] {
            world.scheduler.submit(Manifest::read(manifest).unwrap(), world.now()).unwrap();
        }
        world.settle(None);
        for step in 0..STEPS {
            if step == STEPS / 2 {
                for job in ["job", "service"] {
                    // It may have come to its end.
                    let _ = world.scheduler.stop(job, Grace::default(), world.now());
                }
                let cut = world.random.usize(0..4);
                world.settle(Some(cut));
            }
            world.step();
        }
        world.calm();
        for job in ["job", "service"] {
            let job = world.scheduler.job(job).unwrap();
            assert!(job.ended.is_some(), "{}", world.scheduler.view_job(job));
        }
        assert!(world.agents.iter().all(|agent| agent.tasks.is_empty()));
    }
}
