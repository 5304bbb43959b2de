//! Executors of frameworks: what they use is in use from the first task that names them until they end, whatever runs in them.

use std::sync::Arc;

use super::agents::Agent;
use super::frameworks::Framework;
use super::{AgentId, Event, ExecutorId, ExecutorInfo, FrameworkId, Master};

/// An executor the master knows.
#[derive(Debug)]
pub(super) struct Executor {
    pub(super) info: Arc<ExecutorInfo>,
    pub(super) role: Arc<str>,
}

/// An executor, for people to see.
#[derive(Debug, Clone)]
pub struct ExecutorView {
    /// Whose it is.
    pub framework: FrameworkId,
    /// Where it is.
    pub agent: AgentId,
    /// What it is.
    pub info: Arc<ExecutorInfo>,
}

impl Framework {
    /// Its executors on an agent.
    pub(super) fn executors_on(&self, agent: &AgentId) -> impl Iterator<Item = &ExecutorId> {
        let from = (agent.clone(), ExecutorId::from(""));
        self.executors.range(from..).map(|(key, _)| key).take_while(move |(on, _)| on == agent).map(|(_, id)| id)
    }
}

impl Master {
    /// All executors on agents that take part.
    pub fn executors(&self) -> impl Iterator<Item = ExecutorView> {
        let of = |(id, framework): (&FrameworkId, &Framework)| {
            let view = |((agent, _), it): (&(AgentId, ExecutorId), &Executor)| ExecutorView {
                framework: id.clone(),
                agent: agent.clone(),
                info: Arc::clone(&it.info),
            };
            framework.executors.iter().map(view).collect::<Vec<_>>()
        };
        self.frameworks.iter().flat_map(of)
    }

    pub(super) fn add_executor(
        &mut self,
        id: &FrameworkId,
        agent: &AgentId,
        role: &Arc<str>,
        info: &Arc<ExecutorInfo>,
    ) {
        let executor = Executor { info: Arc::clone(info), role: Arc::clone(role) };
        self.framework_mut(id).executors.insert((agent.clone(), info.id.clone()), executor);
        if let Some(agent) = self.agents.get_mut(agent) {
            agent.executors.insert((id.clone(), info.id.clone()));
        }
    }

    fn remove_executor(&mut self, id: &FrameworkId, agent: &AgentId, executor: &ExecutorId) -> Option<Executor> {
        if let Some(agent) = self.agents.get_mut(agent) {
            agent.executors.remove(&(id.clone(), executor.clone()));
        }
        self.frameworks.get_mut(id)?.executors.remove(&(agent.clone(), executor.clone()))
    }

    /// An executor has ended, its agent says: what it used is free.
    pub(super) fn executor_ended(
        &mut self,
        agent: &AgentId,
        id: &FrameworkId,
        executor: &ExecutorId,
        status: Option<i32>,
    ) {
        let Some(Executor { info, role }) = self.remove_executor(id, agent, executor) else { return };
        if let Some(key) = self.agents.get(agent).and_then(Agent::key)
            && !info.resources.is_empty()
        {
            let released = self.allocator.release(key, self.frameworks[id].key, &role, &info.resources);
            released.expect("what an executor holds is in use");
        }
        self.tell_executor_failure(agent, id, executor, status);
    }

    /// An agent came back without an executor.
    pub(super) fn missing_executor(&mut self, agent: &AgentId, id: &FrameworkId, executor: &ExecutorId) {
        if self.remove_executor(id, agent, executor).is_some() {
            self.tell_executor_failure(agent, id, executor, None);
        }
    }

    fn tell_executor_failure(&mut self, agent: &AgentId, id: &FrameworkId, executor: &ExecutorId, status: Option<i32>) {
        let (agent, executor) = (agent.clone(), executor.clone());
        self.tell(id, Event::ExecutorFailure { agent, executor, status });
        self.forget_framework_if_over(id);
    }

    /// An agent no longer takes part. It brings back the executors that it still has then; frameworks are told of the agent.
    pub(super) fn forget_executors(&mut self, agent: &AgentId) {
        let executors =
            self.agents.get_mut(agent).map(|agent| std::mem::take(&mut agent.executors)).unwrap_or_default();
        for (framework, executor) in executors {
            self.remove_executor(&framework, agent, &executor);
            self.forget_framework_if_over(&framework);
        }
    }
}
