//! What people ask for, and see.

use std::sync::Arc;

use super::agents::{Agent, Place};
use super::frameworks::{Framework, Link};
use super::{
    Admission, AgentId, AgentInfo, Change, Connection, Event, FrameworkId, FrameworkInfo, Master, Notice, Output,
    Refused, Task, TaskState, ToAgent,
};
use crate::allocator::{Fairness, FrameworkKey, Quota, Weight};
use crate::api::agent::Question;
use crate::resources::Quantities;

/// Where an agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentState {
    /// It takes part.
    Connected,
    /// Its connection was closed a short while ago.
    Disconnected,
    /// It is yet to come back to a new master.
    Awaited,
    /// It was not heard of for too long.
    Unreachable,
}

/// An agent, for people to see.
#[derive(Debug, Clone)]
pub struct AgentView {
    /// Its id.
    pub id: AgentId,
    /// What it said of itself; nothing, if it has not come back yet.
    pub info: Arc<AgentInfo>,
    /// Where it is.
    pub state: AgentState,
    /// It gets no new tasks.
    pub draining: bool,
}

/// A framework, for people to see.
#[derive(Debug, Clone)]
pub struct FrameworkView {
    /// Its id.
    pub id: FrameworkId,
    /// How the allocator calls it.
    pub key: FrameworkKey,
    /// What it said of itself.
    pub info: Arc<FrameworkInfo>,
    /// Whether it is connected.
    pub connected: bool,
    /// Whether it is over, and only its last tasks are not.
    pub gone: bool,
}

impl Framework {
    fn view(&self, id: &FrameworkId) -> FrameworkView {
        FrameworkView {
            id: id.clone(),
            key: self.key,
            info: Arc::clone(&self.info),
            connected: matches!(self.link, Link::Connected { .. }),
            gone: self.is_gone(),
        }
    }
}

impl Master {
    /// All agents that ever took part and are not gone.
    pub fn agents(&self) -> impl Iterator<Item = AgentView> {
        self.agents.iter().map(|(id, agent)| self.view(id, agent))
    }

    fn view(&self, id: &AgentId, agent: &Agent) -> AgentView {
        AgentView {
            id: id.clone(),
            info: Arc::clone(&agent.info),
            state: match agent.place {
                Place::Here { connection: Some(_), .. } => AgentState::Connected,
                Place::Here { connection: None, .. } => AgentState::Disconnected,
                Place::Awaited { .. } => AgentState::Awaited,
                Place::Unreachable => AgentState::Unreachable,
            },
            draining: self.registry.agents.get(id).is_some_and(|admission| admission.draining),
        }
    }

    /// An agent that is not gone.
    pub(super) fn agent_view(&self, id: &AgentId) -> Option<AgentView> {
        Some(self.view(id, self.agents.get(id)?))
    }

    /// All frameworks that are not over.
    pub fn frameworks(&self) -> impl Iterator<Item = FrameworkView> {
        self.frameworks.iter().map(|(id, framework)| framework.view(id))
    }

    /// A framework that is not forgotten.
    pub(super) fn framework_view(&self, id: &FrameworkId) -> Option<FrameworkView> {
        Some(self.frameworks.get(id)?.view(id))
    }

    /// All tasks whose end was not acknowledged yet.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.frameworks.values().flat_map(|framework| framework.tasks.values())
    }

    /// By which connection a framework is subscribed.
    pub fn connection_of(&self, id: &FrameworkId) -> Option<Connection> {
        match self.frameworks.get(id)?.link {
            Link::Connected { connection, .. } => Some(connection),
            Link::Disconnected { .. } | Link::Gone => None,
        }
    }

    /// Asks something of an agent that is connected: over which connection.
    pub fn ask(&mut self, id: &AgentId, number: u64, question: Question) -> Result<Connection, Refused> {
        let agent = self.agents.get(id).ok_or_else(|| Refused::UnknownAgent(id.clone()))?;
        let connection = agent.connection().ok_or_else(|| Refused::NotConnected(id.clone()))?;
        self.outputs.push(Output::Agent(connection, ToAgent::Ask { number, question }));
        Ok(connection)
    }

    /// A framework is over, a person says.
    pub fn tear_down(&mut self, id: &FrameworkId) -> Result<(), Refused> {
        if self.frameworks.get(id).is_none_or(Framework::is_gone) {
            return Err(Refused::UnknownFramework(id.clone()));
        }
        self.end_framework(id);
        Ok(())
    }

    /// What all agents have together.
    pub fn total(&self) -> Quantities {
        self.allocator.total()
    }

    /// What everybody has, and waits for.
    pub fn fairness(&self) -> Fairness {
        self.allocator.fairness()
    }

    /// A role weighs more or less than others from now on.
    pub fn set_weight(&mut self, role: &str, weight: Weight) {
        self.allocator.set_weight(role, weight);
        self.store(Change::Weight(role.to_owned(), weight));
    }

    /// A role has another guarantee and limit from now on.
    pub fn set_quota(&mut self, role: &str, quota: Quota) -> Result<(), Refused> {
        self.allocator.set_quota(role, quota)?;
        self.store(Change::Quota(role.to_owned(), quota));
        Ok(())
    }

    /// An agent gets no new tasks, and those it has are killed; or it gets tasks again.
    pub fn drain(&mut self, id: &AgentId, draining: bool) -> Result<(), Refused> {
        let admission = self.registry.agents.get(id).copied().ok_or_else(|| Refused::UnknownAgent(id.clone()))?;
        let admission = Admission { draining, ..admission };
        self.store(Change::Agent(id.clone(), admission));
        let Some(agent) = self.agents.get(id) else { return Ok(()) };
        let tasks = agent.tasks.clone();
        if let (Some(key), Some(_)) = (agent.key(), agent.connection()) {
            let rescinded = self.allocator.set_agent_active(key, admission.is_open())?;
            self.tell_rescinded(rescinded);
        }
        if draining {
            for (framework, task) in tasks {
                if let Some(known) = self.framework_mut(&framework).tasks.get_mut(&(task.clone(), id.clone())) {
                    known.kill = true;
                }
                self.send(id, ToAgent::Kill { framework, task, grace: None });
            }
        }
        Ok(())
    }

    /// An agent is gone for good, with its tasks: a person has made sure of that.
    pub fn mark_gone(&mut self, id: &AgentId) -> Result<(), Refused> {
        let agent = self.agents.get(id).ok_or_else(|| Refused::UnknownAgent(id.clone()))?;
        let (tasks, connection, took_part) = (agent.tasks.clone(), agent.connection(), agent.key().is_some());
        self.store(Change::Gone(id.clone()));
        if let Some(connection) = connection {
            let shut_down = ToAgent::ShutDown(format!("agent {id} was marked as gone"));
            self.outputs.push(Output::Agent(connection, shut_down));
        }
        self.withdraw(id);
        for (framework, task) in tasks {
            self.task_out_of_reach(&framework, &(task, id.clone()), TaskState::GoneByOperator, "its agent is gone");
        }
        self.forget_executors(id);
        self.agents.remove(id);
        self.notify(|_| took_part.then(|| Notice::AgentRemoved(id.clone())));
        self.tell_all(&Event::Failure(id.clone()));
        Ok(())
    }
}
