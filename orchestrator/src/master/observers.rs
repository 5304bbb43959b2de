//! Whoever watches the cluster: told of agents, frameworks and tasks as they come, change and go.

use std::collections::BTreeMap;
use std::time::Duration;

use super::operator::{AgentView, FrameworkView};
use super::{
    AgentId, Client, Connection, FrameworkId, Master, Output, Reason, Registration, Task, TaskId, TaskState, TaskStatus,
};
use crate::resources::Quantities;

/// The connections of observers, and when each has to hear from the master.
pub(super) type Observers = BTreeMap<Connection, Duration>;

/// What observers are told. The names are those of the Mesos API.
#[derive(Debug, Clone)]
pub enum Notice {
    /// A task was launched, or came with an agent.
    TaskAdded(Box<Task>),
    /// A task is in another state.
    TaskUpdated {
        /// Its framework.
        framework: FrameworkId,
        /// What was said of it.
        status: TaskStatus,
        /// The state it is in, which may be later than the one that was said.
        state: TaskState,
    },
    /// An agent takes part, and its tasks use so much of it.
    AgentAdded(AgentView, Quantities),
    /// An agent takes part no longer.
    AgentRemoved(AgentId),
    /// A framework has come.
    FrameworkAdded(FrameworkView),
    /// A framework has come back, has gone away for a while, or is no longer what it was.
    FrameworkUpdated(FrameworkView),
    /// A framework is over.
    FrameworkRemoved(FrameworkView),
    /// The connection is alive.
    Heartbeat,
}

impl Master {
    /// Somebody wants to be told of all that changes from now on.
    pub fn observe(&mut self, connection: Connection, now: Duration) {
        self.clients.insert(connection, Client::Observer);
        self.observers.insert(connection, now.saturating_add(self.config.heartbeat));
    }

    /// How many watch.
    pub fn observers(&self) -> usize {
        self.observers.len()
    }

    /// How often they and frameworks hear from the master.
    pub fn heartbeat(&self) -> Duration {
        self.config.heartbeat
    }

    /// Tells all observers. Where there are none, it costs nothing to find out what.
    pub(super) fn notify(&mut self, notice: impl FnOnce(&Master) -> Option<Notice>) {
        if self.observers.is_empty() {
            return;
        }
        if let Some(notice) = notice(self) {
            self.outputs.push(Output::Observers(self.observers.keys().copied().collect(), notice));
        }
    }

    pub(super) fn notify_task_added(&mut self, framework: &FrameworkId, key: &(TaskId, AgentId)) {
        let task = |master: &Master| master.frameworks.get(framework)?.tasks.get(key).cloned();
        self.notify(|master| Some(Notice::TaskAdded(Box::new(task(master)?))));
    }

    /// A task is in another state, the master itself found.
    pub(super) fn notify_state(
        &mut self,
        framework: &FrameworkId,
        key: &(TaskId, AgentId),
        state: TaskState,
        reason: Reason,
        message: &str,
    ) {
        self.notify(|_| {
            let (task, agent) = key.clone();
            let (reason, message, details) = (Some(reason), message.to_owned(), "".into());
            let status = TaskStatus { task, agent: Some(agent), state, update: None, reason, message, details };
            Some(Notice::TaskUpdated { framework: framework.clone(), status, state })
        });
    }

    pub(super) fn notify_agent_added(&mut self, id: &AgentId, registration: &Registration) {
        self.notify(|master| {
            let agent = master.agent_view(id)?;
            let mut used = Quantities::ZERO;
            let tasks = registration.tasks.iter().filter(|task| task.state.holds()).map(|task| &task.info.resources);
            let executors = registration.executors.iter().map(|executor| &executor.info.resources);
            tasks.chain(executors).for_each(|resources| used += &resources.quantities);
            Some(Notice::AgentAdded(agent, used))
        });
    }

    pub(super) fn notify_framework(&mut self, id: &FrameworkId, notice: fn(FrameworkView) -> Notice) {
        self.notify(|master| Some(notice(master.framework_view(id)?)));
    }

    pub(super) fn send_observers_heartbeats(&mut self, now: Duration) {
        let next = now.saturating_add(self.config.heartbeat);
        let late = self.observers.iter_mut().filter(|(_, heartbeat)| **heartbeat <= now);
        let late: Vec<Connection> = late.map(|(connection, heartbeat)| (*connection, *heartbeat = next).0).collect();
        if !late.is_empty() {
            self.outputs.push(Output::Observers(late, Notice::Heartbeat));
        }
    }
}
