//! Agents come and go, and say what becomes of tasks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::{
    Admission, AgentId, AgentInfo, Change, Client, Connection, Event, ExecutorId, FrameworkId, FromAgent, Master,
    Notice, Output, Reason, TaskId, TaskState, TaskStatus, ToAgent,
};
use crate::allocator::AgentKey;
use crate::attributes::Attributes;

#[derive(Debug)]
pub(super) struct Agent {
    pub(super) info: Arc<AgentInfo>,
    pub(super) place: Place,
    pub(super) tasks: BTreeSet<(FrameworkId, TaskId)>,
    pub(super) executors: BTreeSet<(FrameworkId, ExecutorId)>,
}

/// Where an agent is, as far as the master knows.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// It takes part. Without a connection it is not offered.
    Here { key: AgentKey, connection: Option<Connection>, heard: Duration },
    /// It took part before this master did, and may come back until then.
    Awaited { until: Duration },
    /// It was not heard of for too long.
    Unreachable,
}

impl Agent {
    pub(super) fn new(place: Place) -> Agent {
        Agent { info: Arc::default(), place, tasks: BTreeSet::new(), executors: BTreeSet::new() }
    }

    pub(super) fn key(&self) -> Option<AgentKey> {
        match self.place {
            Place::Here { key, .. } => Some(key),
            Place::Awaited { .. } | Place::Unreachable => None,
        }
    }

    pub(super) fn connection(&self) -> Option<Connection> {
        match self.place {
            Place::Here { connection, .. } => connection,
            Place::Awaited { .. } | Place::Unreachable => None,
        }
    }
}

impl Master {
    /// An agent says something. What comes over a connection that is not its present one is ignored: the agent says it again.
    pub fn agent_says(&mut self, from: Connection, message: FromAgent, now: Duration) {
        let Some(Client::Agent(id)) = self.clients.get(&from).cloned() else { return };
        if let Some(Agent { place: Place::Here { heard, .. }, .. }) = self.agents.get_mut(&id) {
            *heard = now;
        }
        match message {
            FromAgent::Heartbeat => self.send(&id, ToAgent::Heartbeat),
            FromAgent::Answer { .. } => {}
            FromAgent::Attributes(attributes) => self.set_attributes(&id, attributes),
            FromAgent::Update { framework, status, latest } => self.update(&id, &framework, status, latest),
            FromAgent::Message { framework, executor, data } => {
                self.tell(&framework, Event::Message { agent: id, executor, data });
            }
            FromAgent::ExecutorEnded { framework, executor, status } => {
                self.executor_ended(&id, &framework, &executor, status);
            }
        }
    }

    fn set_attributes(&mut self, id: &AgentId, attributes: Attributes) {
        let Some(agent) = self.agents.get_mut(id) else { return };
        agent.info = Arc::new(AgentInfo { attributes: attributes.clone(), ..AgentInfo::clone(&agent.info) });
        if let Some(key) = agent.key() {
            self.allocator.set_attributes(key, attributes);
        }
    }

    fn update(&mut self, agent: &AgentId, framework: &FrameworkId, mut status: TaskStatus, latest: TaskState) {
        let key = (status.task.clone(), agent.clone());
        let known = self.frameworks.get(framework).filter(|known| known.tasks.contains_key(&key));
        let Some(known) = known.map(|known| (known.is_gone(), known.info.partition_aware)) else {
            // Its end was acknowledged before, or its framework is over: nobody else will.
            return self.acknowledge_to(agent, framework, &status);
        };
        let (gone, partition_aware) = known;
        status.agent = Some(agent.clone());
        if self.set_state(framework, &key, latest) {
            let (framework, status) = (framework.clone(), status.clone());
            self.notify(|_| Some(Notice::TaskUpdated { framework, status, state: latest }));
        }
        if latest.is_terminal() {
            self.settle(agent);
        }
        if gone {
            self.acknowledge_to(agent, framework, &status);
            if latest.is_terminal() {
                self.forget_task(framework, &key);
            }
            return;
        }
        if status.state.is_terminal()
            && let Some(task) = self.framework_mut(framework).tasks.get_mut(&key)
        {
            task.last_update = status.update;
        }
        status.state = status.state.told(partition_aware);
        self.tell(framework, Event::Update(status));
    }

    fn acknowledge_to(&mut self, agent: &AgentId, framework: &FrameworkId, status: &TaskStatus) {
        if let Some(update) = status.update {
            let (framework, task) = (framework.clone(), status.task.clone());
            self.send(agent, ToAgent::Acknowledge { framework, task, update });
        }
    }

    /// Notes a task's state, and says whether it is another. What the task used is free once it has ended.
    fn set_state(&mut self, framework: &FrameworkId, key: &(TaskId, AgentId), state: TaskState) -> bool {
        let agent = self.agents.get(&key.1).and_then(Agent::key);
        let framework = self.framework_mut(framework);
        let framework_key = framework.key;
        let Some(task) = framework.tasks.get_mut(key).filter(|task| task.state != state && !task.state.is_terminal())
        else {
            return false;
        };
        let held = task.holds();
        task.state = state;
        if held
            && !task.holds()
            && let Some(agent) = agent
        {
            let (role, resources) = (Arc::clone(&task.role), task.info.resources.clone());
            let released = self.allocator.release(agent, framework_key, &role, &resources);
            released.expect("what a task holds is in use");
        }
        true
    }

    /// Says something to an agent, if it is there to hear it. If not, it is told what matters when it comes back.
    pub(super) fn send(&mut self, id: &AgentId, message: ToAgent) {
        if let Some(connection) = self.agents.get(id).and_then(Agent::connection) {
            self.outputs.push(Output::Agent(connection, message));
        }
    }

    /// Its tasks run on; it may come back until it was not heard of for too long.
    pub(super) fn agent_disconnected(&mut self, id: &AgentId) {
        let Some(Agent { place: Place::Here { key, connection, .. }, .. }) = self.agents.get_mut(id) else { return };
        *connection = None;
        let key = *key;
        let rescinded = self.allocator.set_agent_active(key, false).unwrap_or_default();
        self.tell_rescinded(rescinded);
    }

    pub(super) fn miss_agents(&mut self, now: Duration) {
        let timeout = self.config.agent_timeout;
        let missed = |agent: &Agent| match agent.place {
            Place::Here { heard, .. } => heard.saturating_add(timeout) <= now,
            Place::Awaited { until } => until <= now,
            Place::Unreachable => false,
        };
        let ids = self.agents.iter().filter(|(_, agent)| missed(agent)).map(|(id, _)| id.clone());
        for id in ids.collect::<Vec<_>>() {
            self.agent_unreachable(&id);
        }
    }

    pub(super) fn agent_unreachable(&mut self, id: &AgentId) {
        let admission = self.registry.agents.get(id).copied().unwrap_or_default();
        self.store(Change::Agent(id.clone(), Admission { unreachable: true, ..admission }));
        self.withdraw(id);
        let Some(agent) = self.agents.get_mut(id) else { return };
        let took_part = matches!(std::mem::replace(&mut agent.place, Place::Unreachable), Place::Here { .. });
        for (framework, task) in agent.tasks.clone() {
            self.task_out_of_reach(&framework, &(task, id.clone()), TaskState::Unreachable, "its agent is unreachable");
        }
        self.forget_executors(id);
        self.notify(|_| took_part.then(|| Notice::AgentRemoved(id.clone())));
        self.tell_all(&Event::Failure(id.clone()));
    }

    /// A task's agent no longer takes part. Only what may come back is kept, and only for those who understand that.
    pub(super) fn task_out_of_reach(
        &mut self,
        id: &FrameworkId,
        key: &(TaskId, AgentId),
        state: TaskState,
        message: &str,
    ) {
        let framework = self.framework_mut(id);
        let (gone, partition_aware) = (framework.is_gone(), framework.info.partition_aware);
        let Some(task) = framework.tasks.get_mut(key) else { return };
        let ended = task.state.is_terminal();
        if !ended {
            task.state = state;
        }
        let may_come_back = state == TaskState::Unreachable && !gone && (partition_aware || ended);
        if !may_come_back {
            self.forget_task(id, key);
        }
        if !ended {
            self.notify_state(id, key, state, Reason::AgentRemoved, message);
        }
        if !ended && !gone {
            self.tell_status(id, key.0.clone(), Some(key.1.clone()), state, Reason::AgentRemoved, message);
        }
    }

    /// Takes an agent out of the allocator, with all that is offered and used of it, and closes its connection.
    pub(super) fn withdraw(&mut self, id: &AgentId) {
        let Some(Place::Here { key, connection, .. }) = self.agents.get(id).map(|agent| agent.place) else { return };
        let rescinded = self.allocator.remove_agent(key).unwrap_or_default();
        self.agent_ids.remove(key);
        self.tell_rescinded(rescinded);
        if let Some(connection) = connection {
            self.close(connection);
        }
    }
}
