//! An agent comes, or comes back: what it has and what the master knows are made one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::agents::{Agent, Place};
use super::frameworks::Link;
use super::{
    Admission, AgentId, Change, Client, Connection, ExecutorId, ExecutorInfo, ExecutorReport, FrameworkId,
    FrameworkInfo, Master, Notice, Output, Reason, Registration, Task, TaskId, TaskReport, TaskState, ToAgent,
};
use crate::allocator::{self, AgentKey};
use crate::resources::Resources;

/// What the master knows of an agent, and has not heard of yet.
struct Missing {
    tasks: BTreeSet<(FrameworkId, TaskId)>,
    executors: BTreeSet<(FrameworkId, ExecutorId)>,
}

impl Master {
    /// An agent wants to take part: for the first time, or again.
    pub fn register(&mut self, connection: Connection, registration: Registration, now: Duration) {
        if let Some(id) = registration.id.as_ref().filter(|id| self.registry.gone.contains(id)) {
            let reason = format!("agent {id} was marked as gone");
            self.outputs.push(Output::Agent(connection, ToAgent::ShutDown(reason)));
            return self.close(connection);
        }
        if let Err(reason) = check(&registration) {
            return self.refuse(connection, reason);
        }
        let id = registration.id.clone().unwrap_or_else(|| AgentId::from(self.next_id('A')));
        self.withdraw(&id);
        let Registration { info, .. } = &registration;
        let key = match self.allocator.add_agent(info.resources.clone(), info.attributes.clone()) {
            Ok(key) => key,
            Err(error) => {
                if self.agents.contains_key(&id) {
                    self.agent_unreachable(&id);
                }
                return self.refuse(connection, error.to_string());
            }
        };

        let admission = self.registry.agents.get(&id).copied().unwrap_or_default();
        if !self.registry.agents.contains_key(&id) {
            self.store(Change::Agent(id.clone(), admission));
        }
        // Nothing was offered of it yet.
        let _ = self.allocator.set_agent_active(key, admission.is_open());
        self.agent_ids.insert(key, id.clone());
        let agent = self.agents.entry(id.clone()).or_insert_with(|| Agent::new(Place::Unreachable));
        let place = Place::Here { key, connection: Some(connection), heard: now };
        let took_part = matches!(std::mem::replace(&mut agent.place, place), Place::Here { .. });
        agent.info = Arc::new(registration.info.clone());
        let missing = Missing { tasks: agent.tasks.clone(), executors: agent.executors.clone() };
        self.clients.insert(connection, Client::Agent(id.clone()));
        self.send(&id, ToAgent::Registered(id.clone()));
        if !took_part {
            self.notify_agent_added(&id, &registration);
        }
        self.take_stock(&id, key, registration, missing, now);
        self.settle(&id);
    }

    fn refuse(&mut self, connection: Connection, reason: String) {
        self.outputs.push(Output::Agent(connection, ToAgent::Refused(reason)));
        self.close(connection);
    }

    fn take_stock(
        &mut self,
        id: &AgentId,
        key: AgentKey,
        registration: Registration,
        mut missing: Missing,
        now: Duration,
    ) {
        let Registration { mut frameworks, executors, tasks, .. } = registration;
        let was_unreachable = self.registry.agents.get(id).is_some_and(|admission| admission.unreachable);
        for ExecutorReport { framework, role, info } in executors {
            missing.executors.remove(&(framework.clone(), info.id.clone()));
            self.meet_framework(&framework, &mut frameworks, now);
            if !info.resources.is_empty() {
                self.claim(key, &framework, &role, &info.resources);
            }
            self.add_executor(&framework, id, &role, &info);
        }
        for report in tasks {
            missing.tasks.remove(&(report.framework.clone(), report.info.id.clone()));
            self.meet_framework(&report.framework, &mut frameworks, now);
            self.take_over(id, key, report, was_unreachable);
        }
        for (framework, task) in missing.tasks {
            self.missing_task(&framework, &(task, id.clone()));
        }
        for (framework, executor) in missing.executors {
            self.missing_executor(id, &framework, &executor);
        }
        let is_there = |framework: &FrameworkId| {
            let Agent { tasks, executors, .. } = &self.agents[id];
            let task = tasks.range((framework.clone(), TaskId::from(""))..).next().map(|(first, _)| first);
            let executor = executors.range((framework.clone(), ExecutorId::from(""))..).next().map(|(first, _)| first);
            task == Some(framework) || executor == Some(framework)
        };
        let gone = self.frameworks.iter().filter(|(framework, known)| known.is_gone() && is_there(framework));
        for framework in gone.map(|(framework, _)| framework.clone()).collect::<Vec<_>>() {
            self.send(id, ToAgent::ShutDownFramework(framework));
        }
    }

    /// The agent has something of a framework, which may have been another master's.
    fn meet_framework(&mut self, id: &FrameworkId, reported: &mut BTreeMap<FrameworkId, FrameworkInfo>, now: Duration) {
        if self.frameworks.contains_key(id) {
            return;
        }
        let link = if self.removed.contains(id) {
            Link::Gone
        } else {
            Link::Disconnected { until: now.saturating_add(self.config.return_timeout) }
        };
        self.add_framework(id, reported.remove(id).unwrap_or_default(), link);
        if link != Link::Gone {
            self.notify_framework(id, Notice::FrameworkAdded);
        }
    }

    /// A task that the agent has.
    fn take_over(&mut self, id: &AgentId, agent: AgentKey, report: TaskReport, was_unreachable: bool) {
        let TaskReport { framework: framework_id, role, info, state } = report;
        let (key, resources) = ((info.id.clone(), id.clone()), info.resources.clone());
        let framework = self.framework_mut(&framework_id);
        // Those who were told that it is lost have replaced it.
        let lost = was_unreachable && !framework.info.partition_aware;
        let before = framework.tasks.remove(&key);
        let resumes = before.as_ref().is_some_and(|task| task.state == TaskState::Unreachable);
        let known_state = before.as_ref().map(|task| task.state);
        let task = Task {
            kill: before.as_ref().is_some_and(|task| task.kill) || lost,
            lost,
            decision: before.and_then(|task| task.decision),
            framework: framework_id.clone(),
            info,
            role: Arc::clone(&role),
            state,
            last_update: None,
        };
        let (kill, holds) = (task.kill, task.holds());
        framework.tasks.insert(key.clone(), task);
        if let Some(agent) = self.agents.get_mut(id) {
            agent.tasks.insert((framework_id.clone(), key.0.clone()));
        }
        if holds {
            self.claim(agent, &framework_id, &role, &resources);
        }
        if holds && kill {
            self.send(id, ToAgent::Kill { framework: framework_id.clone(), task: key.0.clone(), grace: None });
        }
        let message = if resumes { "its agent can be reached again" } else { "its agent came back" };
        match known_state {
            None => self.notify_task_added(&framework_id, &key),
            Some(known) if known != state => {
                self.notify_state(&framework_id, &key, state, Reason::AgentReregistered, message);
            }
            Some(_) => {}
        }
        if resumes {
            self.tell_status(&framework_id, key.0, Some(key.1), state, Reason::AgentReregistered, message);
        }
    }

    /// An agent that was unreachable is as any other once the tasks that are lost have ended.
    pub(super) fn settle(&mut self, id: &AgentId) {
        let Some(admission) = self.registry.agents.get(id).copied().filter(|admission| admission.unreachable) else {
            return;
        };
        let Some(Agent { place: Place::Here { key, connection, .. }, tasks, .. }) = self.agents.get(id) else { return };
        let is_lost = |(framework, task): &(FrameworkId, TaskId)| {
            let known = self.frameworks[framework].tasks.get(&(task.clone(), id.clone()));
            known.is_some_and(|task| task.lost && task.holds())
        };
        if tasks.iter().any(is_lost) {
            return;
        }
        let admission = Admission { unreachable: false, ..admission };
        if connection.is_some() {
            // Nothing was offered of it meanwhile.
            let _ = self.allocator.set_agent_active(*key, admission.is_open());
        }
        self.store(Change::Agent(id.clone(), admission));
    }

    /// Counts as used what a task uses, though its framework be gone.
    fn claim(&mut self, agent: AgentKey, id: &FrameworkId, role: &str, resources: &Resources) {
        let framework = self.framework_mut(id);
        let known = framework.key;
        let mut claimed = self.allocator.claim(agent, known, role, resources);
        if claimed == Err(allocator::Error::UnknownFramework) {
            // The allocator has forgotten a framework that is gone and held nothing.
            let key = self.allocator.add_framework([].into());
            claimed = self.allocator.claim(agent, key, role, resources);
            let _ = self.allocator.remove_framework(key);
            self.framework_ids.remove(known);
            self.framework_ids.insert(key, id.clone());
            self.framework_mut(id).key = key;
        }
        claimed.expect("all tasks of the agent fit it together");
    }

    /// A task that the agent does not have: it never got it, or lost it.
    fn missing_task(&mut self, id: &FrameworkId, key: &(TaskId, AgentId)) {
        let framework = &self.frameworks[id];
        let gone = framework.is_gone();
        let Some(state) = framework.tasks.get(key).map(|task| task.state) else { return };
        self.forget_task(id, key);
        let (now, message) = match state {
            TaskState::Staging => (TaskState::Dropped, "the agent was disconnected before it got the task"),
            // The framework may not have heard of its end, of which nobody else can tell it any more.
            ended if ended.is_terminal() => (ended, "the agent came back without the task, which had ended"),
            _ => (TaskState::Gone, "the agent came back without the task"),
        };
        if now != state {
            self.notify_state(id, key, now, Reason::AgentReregistered, message);
        }
        if gone {
            return;
        }
        self.tell_status(id, key.0.clone(), Some(key.1.clone()), now, Reason::AgentReregistered, message);
    }
}

/// Whether what an agent says of itself can be true.
fn check(registration: &Registration) -> Result<(), String> {
    let mut free = registration.info.resources.clone();
    let mut seen = BTreeSet::new();
    for ExecutorReport { framework, info, .. } in &registration.executors {
        let ExecutorInfo { id, resources, .. } = &**info;
        if !seen.insert((framework, id.as_str())) {
            return Err(format!("executor {id} is reported twice"));
        }
        if !free.take(resources) {
            return Err(format!("the executors use more than the agent has: with {id}, {}", resources.quantities));
        }
    }
    seen.clear();
    for task in &registration.tasks {
        let id = &task.info.id;
        if Some(&task.info.agent) != registration.id.as_ref() {
            return Err(format!("task {id} is another agent's"));
        }
        if !seen.insert((&task.framework, id.as_str())) {
            return Err(format!("task {id} is reported twice"));
        }
        let ended = task.state.is_terminal();
        if !ended && !free.take(&task.info.resources) {
            return Err(format!(
                "the executors and tasks use more than the agent has: with task {id}, {}",
                task.info.resources.quantities
            ));
        }
    }
    Ok(())
}
