//! Frameworks come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::executors::Executor;
use super::{
    AgentId, Client, Connection, Event, ExecutorId, FrameworkId, FrameworkInfo, Master, Notice, Output,
    REMOVED_FRAMEWORKS, Reason, Refused, Task, TaskId, TaskState, TaskStatus, ToAgent,
};
use crate::allocator::{FrameworkKey, Offer, OfferKey};

#[derive(Debug)]
pub(super) struct Framework {
    pub(super) key: FrameworkKey,
    pub(super) info: Arc<FrameworkInfo>,
    pub(super) link: Link,
    /// A task is known by its agent too: a framework that breaks its word and uses an id twice must not confuse the accounts.
    pub(super) tasks: BTreeMap<(TaskId, AgentId), Task>,
    /// Its executors that have not ended, on agents that take part.
    pub(super) executors: BTreeMap<(AgentId, ExecutorId), Executor>,
}

/// How to reach a framework.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Connected {
        connection: Connection,
        /// When it has to hear from the master.
        heartbeat: Duration,
    },
    /// It may come back until then.
    Disconnected { until: Duration },
    /// It cannot come back, and is kept until its last task ends.
    Gone,
}

impl Framework {
    /// Its tasks of this id: one, if the framework keeps its word.
    pub(super) fn tasks_named(&self, id: &TaskId) -> impl Iterator<Item = &Task> {
        let from = (id.clone(), AgentId::from(""));
        self.tasks.range(from..).take_while(move |((task, _), _)| task == id).map(|(_, task)| task)
    }

    pub(super) fn is_gone(&self) -> bool {
        self.link == Link::Gone
    }
}

impl Master {
    /// A framework subscribes: for the first time, or again, from wherever it is now.
    pub fn subscribe(
        &mut self,
        connection: Connection,
        id: Option<FrameworkId>,
        info: FrameworkInfo,
        now: Duration,
    ) -> Result<FrameworkId, Refused> {
        let id = match id {
            None => FrameworkId::from(self.next_id('F')),
            Some(id) if self.removed.contains(&id) => return Err(Refused::FrameworkGone(id)),
            Some(id) => id,
        };
        let notice = if self.frameworks.contains_key(&id) { Notice::FrameworkUpdated } else { Notice::FrameworkAdded };
        match self.frameworks.get(&id) {
            None => self.add_framework(&id, info, Link::Disconnected { until: now }),
            Some(known) if known.is_gone() => return Err(Refused::FrameworkGone(id)),
            Some(known) if known.info.principal != info.principal => return Err(Refused::OtherPrincipal(id)),
            Some(known) => {
                if let Link::Connected { connection, .. } = known.link {
                    let superseded = "the framework subscribed again by another connection".to_owned();
                    self.outputs.push(Output::Framework(connection, Event::Error(superseded)));
                    self.close(connection);
                }
                // The offers made so far are unknown to whoever subscribes now.
                self.framework_disconnected(&id, now);
                if let Err(refused) = self.update_info(&id, info) {
                    self.notify_framework(&id, Notice::FrameworkUpdated);
                    return Err(refused);
                }
            }
        }
        let heartbeat = self.config.heartbeat;
        let framework = self.framework_mut(&id);
        framework.link = Link::Connected { connection, heartbeat: now.saturating_add(heartbeat) };
        let key = framework.key;
        self.allocator.set_framework_active(key, true)?;
        self.clients.insert(connection, Client::Framework(id.clone()));
        self.tell(&id, Event::Subscribed { framework: id.clone(), heartbeat });
        self.notify_framework(&id, notice);
        Ok(id)
    }

    /// Changes what a framework said of itself.
    pub(super) fn update_info(&mut self, id: &FrameworkId, info: FrameworkInfo) -> Result<(), Refused> {
        let key = self.frameworks[id].key;
        let rescinded = self.allocator.update_framework(key, info.roles.clone())?;
        self.tell_rescinded(rescinded);
        self.framework_mut(id).info = Arc::new(info);
        Ok(())
    }

    /// A framework is known from now on, and not connected yet.
    pub(super) fn add_framework(&mut self, id: &FrameworkId, info: FrameworkInfo, link: Link) {
        let key = self.allocator.add_framework(info.roles.clone());
        // It has no offers that could be withdrawn.
        let _ = match link {
            Link::Gone => self.allocator.remove_framework(key),
            Link::Connected { .. } | Link::Disconnected { .. } => self.allocator.set_framework_active(key, false),
        };
        self.framework_ids.insert(key, id.clone());
        let (tasks, executors) = (BTreeMap::new(), BTreeMap::new());
        let framework = Framework { key, info: Arc::new(info), link, tasks, executors };
        self.frameworks.insert(id.clone(), framework);
    }

    /// The connection of a framework is closed, or is about to be replaced.
    pub(super) fn framework_disconnected(&mut self, id: &FrameworkId, now: Duration) {
        let framework = self.framework_mut(id);
        let until = now.saturating_add(framework.info.failover_timeout);
        framework.link = Link::Disconnected { until };
        let key = framework.key;
        // It cannot be told of the offers that are withdrawn.
        let _ = self.allocator.set_framework_active(key, false);
    }

    pub(super) fn end_absent_frameworks(&mut self, now: Duration) {
        let absent = |framework: &Framework| matches!(framework.link, Link::Disconnected { until } if until <= now);
        let ids = self.frameworks.iter().filter(|(_, framework)| absent(framework)).map(|(id, _)| id.clone());
        for id in ids.collect::<Vec<_>>() {
            self.end_framework(&id);
        }
    }

    pub(super) fn send_heartbeats(&mut self, now: Duration) {
        let next = now.saturating_add(self.config.heartbeat);
        for framework in self.frameworks.values_mut() {
            if let Link::Connected { connection, heartbeat } = &mut framework.link
                && *heartbeat <= now
            {
                *heartbeat = next;
                self.outputs.push(Output::Framework(*connection, Event::Heartbeat));
            }
        }
    }

    /// A framework is over. Its agents are told to end its tasks, which use what they use until they have ended.
    pub(super) fn end_framework(&mut self, id: &FrameworkId) {
        let framework = self.framework_mut(id);
        let (key, link) = (framework.key, std::mem::replace(&mut framework.link, Link::Gone));
        let agents = framework.tasks.keys().map(|(_, agent)| agent);
        let agents: BTreeSet<AgentId> =
            agents.chain(framework.executors.keys().map(|(agent, _)| agent)).cloned().collect();
        let settled = framework.tasks.iter().filter(|(_, task)| !task.holds()).map(|(key, _)| key.clone());
        let settled: Vec<_> = settled.collect();
        if let Link::Connected { connection, .. } = link {
            self.close(connection);
        }
        // Nobody is there to be told of its offers.
        let _ = self.allocator.remove_framework(key);
        if self.removed.len() == REMOVED_FRAMEWORKS {
            self.removed.pop_front();
        }
        self.removed.push_back(id.clone());
        self.notify_framework(id, Notice::FrameworkRemoved);
        for agent in agents {
            self.send(&agent, ToAgent::ShutDownFramework(id.clone()));
        }
        for key in settled {
            self.forget_task(id, &key);
        }
        self.forget_framework_if_over(id);
    }

    /// Forgets a task that has ended, and its framework with the last of a framework that is gone.
    pub(super) fn forget_task(&mut self, id: &FrameworkId, key: &(TaskId, AgentId)) {
        self.framework_mut(id).tasks.remove(key);
        if let Some(agent) = self.agents.get_mut(&key.1) {
            agent.tasks.remove(&(id.clone(), key.0.clone()));
        }
        self.forget_framework_if_over(id);
    }

    pub(super) fn forget_framework_if_over(&mut self, id: &FrameworkId) {
        let is_over = |it: &&Framework| it.is_gone() && it.tasks.is_empty() && it.executors.is_empty();
        let over = self.frameworks.get(id).filter(is_over);
        if let Some(key) = over.map(|framework| framework.key) {
            self.framework_ids.remove(key);
            self.frameworks.remove(id);
        }
    }

    /// Frameworks are looked up by ids that were found in the tables themselves.
    pub(super) fn framework_mut(&mut self, id: &FrameworkId) -> &mut Framework {
        self.frameworks.get_mut(id).expect("the framework is known")
    }

    /// Says something to a framework, if it is there to hear it.
    pub(super) fn tell(&mut self, id: &FrameworkId, event: Event) {
        if let Some(Framework { link: Link::Connected { connection, .. }, .. }) = self.frameworks.get(id) {
            self.outputs.push(Output::Framework(*connection, event));
        }
    }

    pub(super) fn tell_all(&mut self, event: &Event) {
        for framework in self.frameworks.values() {
            if let Link::Connected { connection, .. } = framework.link {
                self.outputs.push(Output::Framework(connection, event.clone()));
            }
        }
    }

    pub(super) fn tell_rescinded(&mut self, rescinded: Vec<(OfferKey, Offer)>) {
        for (key, offer) in rescinded {
            let framework = self.framework_ids[offer.framework].clone();
            self.tell(&framework, Event::Rescind(key));
        }
    }

    /// Says itself what became of a task: such updates are not acknowledged, and not repeated.
    pub(super) fn tell_status(
        &mut self,
        id: &FrameworkId,
        task: TaskId,
        agent: Option<AgentId>,
        state: TaskState,
        reason: Reason,
        message: impl Into<String>,
    ) {
        let state = state.told(self.frameworks.get(id).is_some_and(|framework| framework.info.partition_aware));
        let reason = Some(reason);
        let (update, message, details) = (None, message.into(), Arc::from(""));
        self.tell(id, Event::Update(TaskStatus { task, agent, state, update, reason, message, details }));
    }
}
