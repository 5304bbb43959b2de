//! What frameworks ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::agents::{Agent, Place};
use super::frameworks::Link;
use super::{
    AgentId, Call, Connection, ExecutorId, ExecutorInfo, FrameworkId, Master, Notice, Reason, Refused, Task, TaskId,
    TaskInfo, TaskState, ToAgent, UpdateId,
};
use crate::allocator::{Decision, Offer, OfferKey};
use crate::resources::Resources;

/// The longest id of a task: it becomes part of file names.
const TASK_ID_LENGTH: usize = 200;

/// What a task uses that is not in use yet.
struct Needs {
    resources: Resources,
    /// The task's executor, if that is not there yet.
    executor: Option<Arc<ExecutorInfo>>,
}

/// What is launched by the same call, before a task.
#[derive(Default)]
struct Others {
    tasks: BTreeSet<TaskId>,
    executors: BTreeMap<ExecutorId, Arc<ExecutorInfo>>,
}

impl Master {
    /// A framework that is subscribed by this connection asks for something.
    pub fn call(&mut self, from: Connection, id: &FrameworkId, call: Call, now: Duration) -> Result<(), Refused> {
        let subscribed = |link: Link| matches!(link, Link::Connected { connection, .. } if connection == from);
        let key = match self.frameworks.get(id) {
            Some(framework) if subscribed(framework.link) => framework.key,
            _ => return Err(Refused::NotSubscribed(id.clone())),
        };
        match call {
            Call::Teardown => self.end_framework(id),
            Call::Accept { offers, tasks, refuse } => self.accept(id, &offers, tasks, now, refuse),
            Call::Decline { offers, refuse } => {
                for offer in offers.into_iter().filter(|offer| self.offer_to(id, *offer).is_some()).collect::<Vec<_>>()
                {
                    // It is open: that was just seen, unless it is named twice.
                    let _ = self.allocator.decline(offer, now, refuse);
                }
            }
            Call::Suppress(roles) => self.allocator.suppress(key, &roles)?,
            Call::Revive(roles) => self.allocator.revive(key, &roles)?,
            Call::Update(info) => {
                self.update_info(id, info)?;
                self.notify_framework(id, Notice::FrameworkUpdated);
            }
            Call::Kill { task, agent, grace } => self.kill(id, task, agent, grace),
            Call::Acknowledge { agent, task, update } => self.acknowledge(id, agent, task, update),
            Call::Reconcile(tasks) => self.reconcile(id, tasks),
            Call::Message { agent, executor, data } => {
                // It may talk to what it has launched, and not make work for agents on which it has nothing.
                if self.frameworks[id].executors.contains_key(&(agent.clone(), executor.clone())) {
                    self.send(&agent, ToAgent::Message { framework: id.clone(), executor, data });
                } else {
                    self.dropped_messages += 1;
                }
            }
            Call::ShutDown { agent, executor } => {
                self.send(&agent, ToAgent::ShutDownExecutor { framework: id.clone(), executor });
            }
        }
        Ok(())
    }

    /// An open offer, if it is this framework's.
    fn offer_to(&self, id: &FrameworkId, offer: OfferKey) -> Option<&Offer> {
        self.allocator.offer(offer).filter(|offer| self.framework_ids.get(offer.framework) == Some(id))
    }

    fn accept(&mut self, id: &FrameworkId, keys: &[OfferKey], tasks: Vec<TaskInfo>, now: Duration, refuse: Duration) {
        let mut rest = Resources::default();
        let mut first: Option<&Offer> = None;
        let mut valid = !keys.is_empty();
        for (index, key) in keys.iter().enumerate() {
            let offer = self.offer_to(id, *key).filter(|_| !keys[..index].contains(key));
            let same = |first: &Offer, offer: &Offer| first.agent == offer.agent && first.role == offer.role;
            match offer {
                Some(offer) if first.is_none_or(|first| same(first, offer)) => {
                    rest.add(&offer.resources);
                    first = Some(offer);
                }
                _ => {
                    valid = false;
                    break;
                }
            }
        }
        let Some((agent, role)) =
            first.filter(|_| valid).map(|offer| (self.agent_ids[offer.agent].clone(), Arc::clone(&offer.role)))
        else {
            return self.invalid_offers(id, keys, tasks);
        };

        let mut used = Resources::default();
        let mut launched = Vec::new();
        let mut others = Others::default();
        for task in tasks {
            match self.check_task(id, &task, &agent, &role, &rest, &others) {
                Ok(Needs { resources, executor }) => {
                    rest.take(&resources);
                    used.add(&resources);
                    others.tasks.insert(task.id.clone());
                    let launch_executor = executor.is_some();
                    others.executors.extend(executor.map(|executor| (executor.id.clone(), executor)));
                    launched.push((task, launch_executor));
                }
                Err(message) => {
                    self.tell_status(id, task.id, Some(task.agent), TaskState::Error, Reason::TaskInvalid, message);
                }
            }
        }
        let offers =
            self.allocator.accept(keys, &used, now, refuse).expect("the offers are open and contain the tasks");
        let decision = offers.into_iter().next().map(|offer| Arc::new(offer.decision));
        for (task, launch_executor) in launched {
            self.launch(id, &role, task, launch_executor, decision.clone());
        }
    }

    /// Offers that were withdrawn meanwhile, most often: the tasks never were, and what is valid of the offers is free again.
    fn invalid_offers(&mut self, id: &FrameworkId, keys: &[OfferKey], tasks: Vec<TaskInfo>) {
        for key in keys {
            if self.offer_to(id, *key).is_some() {
                let _ = self.allocator.rescind(*key);
            }
        }
        for task in tasks {
            let (agent, message) = (Some(task.agent), "the offers are not valid, or not of one agent and role");
            self.tell_status(id, task.id, agent, TaskState::Dropped, Reason::InvalidOffers, message);
        }
    }

    /// What a task needs, or why it cannot be launched.
    fn check_task(
        &self,
        id: &FrameworkId,
        task: &TaskInfo,
        agent: &AgentId,
        role: &Arc<str>,
        rest: &Resources,
        others: &Others,
    ) -> Result<Needs, String> {
        let text = task.id.as_str();
        if text.is_empty() || text.len() > TASK_ID_LENGTH {
            return Err(format!("a task id has between 1 and {TASK_ID_LENGTH} bytes"));
        }
        if text == "." || text == ".." || text.contains(|c: char| c == '/' || c.is_control()) {
            return Err("a task id becomes part of file names: no slashes or control characters".to_owned());
        }
        if self.frameworks[id].tasks_named(&task.id).next().is_some() || others.tasks.contains(&task.id) {
            return Err("the task id is in use".to_owned());
        }
        if task.agent != *agent {
            return Err(format!("the offers are of agent {agent}, not {}", task.agent));
        }
        if task.resources.quantities.is_zero() {
            return Err("the task uses nothing".to_owned());
        }
        let mut needs = Needs { resources: task.resources.clone(), executor: None };
        if let Some(executor) = &task.executor {
            let there = self.frameworks[id].executors.get(&(agent.clone(), executor.id.clone()));
            let there = there.map(|it| (&it.info, &it.role));
            match there.or_else(|| others.executors.get(&executor.id).map(|info| (info, role))) {
                Some((info, of)) if info != executor || of != role => {
                    let id = &executor.id;
                    return Err(format!("the executor {id} is there, and is not as the task says or in another role"));
                }
                Some(_) => {}
                None if !needs.resources.add(&executor.resources) => {
                    return Err(
                        "the task and its executor use the same ports, or more than a cluster may have".to_owned()
                    );
                }
                None => needs.executor = Some(Arc::clone(executor)),
            }
        }
        if !rest.contains(&needs.resources) {
            let (wanted, rest) = (needs.resources.quantities, rest.quantities);
            let with = if needs.executor.is_some() { " with its executor" } else { "" };
            return Err(format!("the task{with} uses more than is left of the offers: {wanted} (and ports) of {rest}"));
        }
        Ok(needs)
    }

    fn launch(
        &mut self,
        id: &FrameworkId,
        role: &Arc<str>,
        info: TaskInfo,
        launch_executor: bool,
        decision: Option<Arc<Decision>>,
    ) {
        let agent = info.agent.clone();
        if let Some(executor) = info.executor.as_ref().filter(|_| launch_executor) {
            self.add_executor(id, &agent, role, executor);
        }
        if let Some(agent) = self.agents.get_mut(&agent) {
            agent.tasks.insert((id.clone(), info.id.clone()));
        }
        let framework = self.framework_mut(id);
        let key = (info.id.clone(), agent.clone());
        let task = Task {
            info: info.clone(),
            framework: id.clone(),
            role: Arc::clone(role),
            state: TaskState::Staging,
            decision,
            kill: false,
            lost: false,
            last_update: None,
        };
        framework.tasks.insert(key.clone(), task);
        let framework_info = Arc::clone(&framework.info);
        self.notify_task_added(id, &key);
        let (framework, role) = (id.clone(), Arc::clone(role));
        self.send(&agent, ToAgent::Run { framework, framework_info, role, task: info, launch_executor });
    }

    /// A task is to end. An agent that cannot be told now is told when it comes back.
    fn kill(&mut self, id: &FrameworkId, task: TaskId, agent: Option<AgentId>, grace: Option<Duration>) {
        let tasks = self.frameworks[id].tasks_named(&task).map(|task| task.info.agent.clone());
        let agents: Vec<AgentId> = tasks.filter(|on| agent.as_ref().is_none_or(|agent| agent == on)).collect();
        if agents.is_empty() {
            return self.reconcile(id, vec![(task, agent)]);
        }
        for agent in agents {
            if let Some(known) = self.framework_mut(id).tasks.get_mut(&(task.clone(), agent.clone())) {
                known.kill = true;
            }
            self.send(&agent, ToAgent::Kill { framework: id.clone(), task: task.clone(), grace });
        }
    }

    fn acknowledge(&mut self, id: &FrameworkId, agent: AgentId, task: TaskId, update: UpdateId) {
        self.send(&agent, ToAgent::Acknowledge { framework: id.clone(), task: task.clone(), update });
        let key = (task, agent);
        let known = self.frameworks[id].tasks.get(&key);
        if known.is_some_and(|task| task.last_update == Some(update)) {
            self.forget_task(id, &key);
        }
    }

    /// Says what is known of tasks, and says nothing of those of which it may still learn.
    fn reconcile(&mut self, id: &FrameworkId, tasks: Vec<(TaskId, Option<AgentId>)>) {
        let known = |task: &Task| (task.info.id.clone(), Some(task.info.agent.clone()), task.state);
        let mut answers = Vec::new();
        if tasks.is_empty() {
            answers.extend(self.frameworks[id].tasks.values().map(known));
        }
        for (task, agent) in tasks {
            let named: Vec<_> = self.frameworks[id].tasks_named(&task).map(known).collect();
            if !named.is_empty() {
                answers.extend(named);
            } else if let Some(state) = self.state_of_unknown(agent.as_ref()) {
                answers.push((task, agent, state));
            }
        }
        for (task, agent, state) in answers {
            self.tell_status(id, task, agent, state, Reason::Reconciliation, "");
        }
    }

    /// The state of a task that is not known, by where it is said to be.
    fn state_of_unknown(&self, agent: Option<&AgentId>) -> Option<TaskState> {
        let awaited = |agent: &Agent| matches!(agent.place, Place::Awaited { .. });
        match agent {
            None if self.agents.values().any(awaited) => None,
            None => Some(TaskState::Unknown),
            Some(id) if self.registry.gone.contains(id) => Some(TaskState::GoneByOperator),
            Some(id) => match self.agents.get(id).map(|agent| agent.place) {
                Some(Place::Here { .. }) => Some(TaskState::Gone),
                Some(Place::Awaited { .. }) => None,
                Some(Place::Unreachable) => Some(TaskState::Unreachable),
                None => Some(TaskState::Unknown),
            },
        }
    }
}
