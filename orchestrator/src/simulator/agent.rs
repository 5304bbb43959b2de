//! Agents. What one does here is what the master expects of every agent: it checkpoints tasks and updates, repeats the oldest update of
//! each task until it is acknowledged, and once it has a new connection does nothing of what it was told over an older one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::network::{Party, ToMaster};
use super::{Happening, SECOND, Simulation};
use crate::master::{
    AgentId, AgentInfo, Connection, ExecutorId, ExecutorReport, FrameworkId, FrameworkInfo, FromAgent, Registration,
    TaskId, TaskInfo, TaskReport, TaskState, TaskStatus, ToAgent, UpdateId,
};
use crate::resources::{Quantities, Resources};

pub(super) type TaskKey = (FrameworkId, TaskId);
pub(super) type ExecutorKey = (FrameworkId, ExecutorId);

#[derive(Debug)]
pub(super) struct SimulatedTask {
    pub(super) info: TaskInfo,
    role: Arc<str>,
    pub(super) state: TaskState,
    /// What was not acknowledged yet, the oldest first.
    updates: VecDeque<(UpdateId, TaskState)>,
}

#[derive(Debug)]
pub(super) struct SimulatedAgent {
    pub(super) id: Option<AgentId>,
    pub(super) info: AgentInfo,
    pub(super) connection: Option<Connection>,
    pub(super) tasks: BTreeMap<TaskKey, SimulatedTask>,
    pub(super) executors: BTreeMap<ExecutorKey, ExecutorReport>,
    frameworks: BTreeMap<FrameworkId, FrameworkInfo>,
    /// It cannot reach the master.
    pub(super) cut: bool,
    /// It is not there until then, its tasks are.
    pub(super) down_until: Duration,
    /// It never comes back, and neither do its tasks.
    pub(super) dead: bool,
}

impl SimulatedAgent {
    pub(super) fn new(chance: &mut fastrand::Rng) -> SimulatedAgent {
        let quantities = Quantities::new(chance.u64(1..=8) * 1000, chance.u64(1..=16) << 30);
        let ports = [31_000..=31_000 + chance.u16(..20)].into_iter().collect();
        SimulatedAgent {
            id: None,
            info: AgentInfo { resources: Resources { quantities, ports }, ..AgentInfo::default() },
            connection: None,
            tasks: BTreeMap::new(),
            executors: BTreeMap::new(),
            frameworks: BTreeMap::new(),
            cut: false,
            down_until: Duration::ZERO,
            dead: false,
        }
    }

    pub(super) fn disconnected(&mut self, connection: Connection) {
        if self.connection == Some(connection) {
            self.connection = None;
        }
    }

    fn registration(&self) -> Registration {
        let report = |((framework, _), task): (&TaskKey, &SimulatedTask)| TaskReport {
            framework: framework.clone(),
            role: Arc::clone(&task.role),
            info: task.info.clone(),
            state: task.state,
        };
        Registration {
            id: self.id.clone(),
            info: self.info.clone(),
            frameworks: self.frameworks.clone(),
            executors: self.executors.values().cloned().collect(),
            tasks: self.tasks.iter().map(report).collect(),
        }
    }

    /// The oldest update of a task, and its latest state.
    fn oldest_update(&self, key: &TaskKey) -> Option<FromAgent> {
        let task = self.tasks.get(key)?;
        let (update, state) = *task.updates.front()?;
        let status = TaskStatus {
            task: key.1.clone(),
            agent: None,
            state,
            update: Some(update),
            reason: None,
            message: String::new(),
            details: Arc::from(""),
        };
        Some(FromAgent::Update { framework: key.0.clone(), status, latest: task.state })
    }
}

impl Simulation {
    /// Connects, or says what was not acknowledged.
    pub(super) fn agent_acts(&mut self, index: usize) {
        let agent = &self.agents[index];
        if agent.dead || agent.cut || agent.down_until > self.now {
            return;
        }
        if agent.connection.is_none() {
            let Some(connection) = self.connect(Party::Agent(index)) else { return };
            self.agents[index].connection = Some(connection);
            let registration = self.agents[index].registration();
            return self.send_to_master(connection, ToMaster::Register(registration));
        }
        self.agent_says(index, FromAgent::Heartbeat);
        for key in self.agents[index].tasks.keys().cloned().collect::<Vec<_>>() {
            self.repeat(index, &key);
        }
    }

    fn repeat(&mut self, index: usize, key: &TaskKey) {
        if let Some(update) = self.agents[index].oldest_update(key) {
            self.agent_says(index, update);
        }
    }

    pub(super) fn agent_hears(&mut self, index: usize, over: Connection, message: ToAgent) {
        let agent = &mut self.agents[index];
        if agent.connection != Some(over) || agent.down_until > self.now {
            return;
        }
        match message {
            ToAgent::Registered(id) => {
                assert!(agent.id.is_none() || agent.id.as_ref() == Some(&id), "an agent keeps its id");
                agent.id = Some(id);
            }
            ToAgent::Refused(reason) => panic!("agents here say nothing wrong: {reason}"),
            ToAgent::ShutDown(_) => {
                for key in agent.tasks.keys().cloned().collect::<Vec<_>>() {
                    self.task_changes(index, &key, TaskState::Killed);
                }
                self.agents[index].executors.clear();
                self.agents[index].dead = true;
            }
            ToAgent::Run { framework, framework_info, role, task, launch_executor } => {
                agent.frameworks.insert(framework.clone(), (*framework_info).clone());
                let executor = task.executor.clone().map(|info| ((framework.clone(), info.id.clone()), info));
                let key = (framework, task.id.clone());
                let (state, updates) = (TaskState::Staging, VecDeque::new());
                let known = SimulatedTask { info: task, role: Arc::clone(&role), state, updates };
                assert!(agent.tasks.insert(key.clone(), known).is_none(), "task {key:?} is run twice on one agent");
                if let Some((executor, info)) = executor
                    && !agent.executors.contains_key(&executor)
                {
                    if !launch_executor {
                        return self.task_changes(index, &key, TaskState::Dropped);
                    }
                    let report = ExecutorReport { framework: executor.0.clone(), role, info };
                    agent.executors.insert(executor.clone(), report);
                    if self.chance.u32(..3) > 0 {
                        let after = self.chance.u32(1..=120) * SECOND;
                        self.schedule(after, Happening::ExecutorEnds(index, executor));
                    }
                }
                self.ledger.runs(&key, &self.agents[index]);
                self.task_changes(index, &key, TaskState::Running);
                if self.chance.bool() {
                    let after = self.chance.u32(1..=120) * SECOND;
                    self.schedule(after, Happening::TaskEnds(index, key));
                }
            }
            ToAgent::Kill { framework, task, grace: _ } => {
                self.task_changes(index, &(framework, task), TaskState::Killed);
            }
            ToAgent::ShutDownFramework(framework) => {
                let executors = agent.executors.keys().filter(|(of, _)| *of == framework).cloned().collect::<Vec<_>>();
                let keys = agent.tasks.keys().filter(|(of, _)| *of == framework).cloned();
                for key in keys.collect::<Vec<_>>() {
                    self.task_changes(index, &key, TaskState::Killed);
                }
                for executor in executors {
                    self.executor_ends(index, &executor);
                }
            }
            ToAgent::ShutDownExecutor { framework, executor } => self.executor_ends(index, &(framework, executor)),
            ToAgent::Acknowledge { framework, task, update } => {
                let key = (framework, task);
                let Some(task) = agent.tasks.get_mut(&key) else { return };
                if task.updates.front().is_some_and(|(first, _)| *first == update) {
                    task.updates.pop_front();
                    if task.updates.is_empty() && task.state.is_terminal() {
                        agent.tasks.remove(&key);
                    } else {
                        self.repeat(index, &key);
                    }
                }
            }
            ToAgent::Heartbeat | ToAgent::Message { .. } | ToAgent::Ask { .. } => {}
        }
    }

    /// An executor ends, and so do its tasks. If the agent cannot say so, it will come back without it.
    pub(super) fn executor_ends(&mut self, index: usize, key: &ExecutorKey) {
        if self.agents[index].executors.remove(key).is_none() {
            return;
        }
        let of_it = |(of, _): &TaskKey, task: &SimulatedTask| {
            *of == key.0 && task.info.executor.as_ref().is_some_and(|executor| executor.id == key.1)
        };
        let tasks = self.agents[index].tasks.iter().filter(|(task, known)| of_it(task, known));
        for task in tasks.map(|(task, _)| task.clone()).collect::<Vec<_>>() {
            self.task_changes(index, &task, TaskState::Failed);
        }
        let (framework, executor) = key.clone();
        self.agent_says(index, FromAgent::ExecutorEnded { framework, executor, status: None });
    }

    pub(super) fn task_ends(&mut self, index: usize, key: &TaskKey) {
        let end = if self.chance.bool() { TaskState::Finished } else { TaskState::Failed };
        self.task_changes(index, key, end);
    }

    /// A task that has not ended is in another state, which is to be told.
    fn task_changes(&mut self, index: usize, key: &TaskKey, state: TaskState) {
        let update = UpdateId(self.chance.u128(..));
        let Some(task) = self.agents[index].tasks.get_mut(key).filter(|task| !task.state.is_terminal()) else { return };
        task.state = state;
        task.updates.push_back((update, state));
        if task.updates.len() == 1 {
            self.repeat(index, key);
        }
    }
}
