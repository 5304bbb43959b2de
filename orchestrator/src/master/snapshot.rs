//! What there is, copied out of the core so that nobody who reads it holds the core up.

use std::collections::BTreeMap;

use super::{AgentId, AgentState, AgentView, ExecutorView, FrameworkId, FrameworkView, Master, Task, TaskState};
use crate::allocator::{Fairness, FrameworkKey};
use crate::resources::Quantities;

/// Agents, frameworks, tasks and shares at one time.
#[derive(Debug)]
pub struct Snapshot {
    /// By id.
    pub agents: Vec<AgentView>,
    /// By id.
    pub frameworks: Vec<FrameworkView>,
    /// By framework, then by id.
    pub tasks: Vec<Task>,
    /// By framework, then by agent.
    pub executors: Vec<ExecutorView>,
    /// Who has what, and waits for what.
    pub fairness: Fairness,
    /// What all agents have together.
    pub total: Quantities,
    names: BTreeMap<FrameworkKey, FrameworkId>,
}

impl Snapshot {
    /// Copies.
    pub fn take(master: &Master) -> Snapshot {
        let frameworks: Vec<FrameworkView> = master.frameworks().collect();
        Snapshot {
            names: frameworks.iter().map(|framework| (framework.key, framework.id.clone())).collect(),
            agents: master.agents().collect(),
            frameworks,
            tasks: master.tasks().cloned().collect(),
            executors: master.executors().collect(),
            fairness: master.fairness(),
            total: master.total(),
        }
    }

    /// The id of a framework; empty for one that has been forgotten since.
    pub fn framework(&self, key: FrameworkKey) -> &str {
        self.names.get(&key).map_or("", FrameworkId::as_str)
    }

    /// How many agents are in a state.
    pub fn agents_in(&self, state: AgentState) -> usize {
        self.agents.iter().filter(|agent| agent.state == state).count()
    }

    /// How many tasks are in each state.
    pub fn tasks_by_state(&self) -> BTreeMap<TaskState, usize> {
        let mut counts = BTreeMap::new();
        for task in &self.tasks {
            *counts.entry(task.state).or_default() += 1;
        }
        counts
    }

    /// What the executors and tasks on an agent use.
    pub fn used_of(&self, agent: &AgentId) -> Quantities {
        let holding = self.tasks.iter().filter(|task| task.info.agent == *agent && task.holds());
        let executors = self.executors.iter().filter(|executor| executor.agent == *agent);
        let used = holding.map(|task| &task.info.resources).chain(executors.map(|executor| &executor.info.resources));
        used.fold(Quantities::ZERO, |mut used, resources| {
            used += &resources.quantities;
            used
        })
    }
}
