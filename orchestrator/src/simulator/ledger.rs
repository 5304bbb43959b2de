//! Accounts of what runs on agents, and the reckoning in the end.

use std::collections::{BTreeMap, BTreeSet};

use super::Simulation;
use super::agent::{SimulatedAgent, TaskKey};
use super::framework::Temper;
use crate::master::{AgentId, TaskState};
use crate::resources::Quantities;

/// Sees agents, and nothing of the master.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    started: BTreeSet<TaskKey>,
}

impl Ledger {
    pub(super) fn started(&self) -> u64 {
        self.started.len() as u64
    }

    /// An agent runs one more task, which is among its tasks already.
    pub(super) fn runs(&mut self, key: &TaskKey, agent: &SimulatedAgent) {
        assert!(self.started.insert(key.clone()), "task {key:?} is started twice");
        let mut free = agent.info.resources.clone();
        let tasks = agent.tasks.values().filter(|task| !task.state.is_terminal()).map(|task| &task.info.resources);
        let executors = agent.executors.values().map(|executor| &executor.info.resources);
        for used in tasks.chain(executors) {
            let (id, tasks, executors) = (&agent.id, &agent.tasks, &agent.executors);
            assert!(free.take(used), "agent {id:?} has to run more than it has: {tasks:?} {executors:?}");
        }
    }
}

impl Simulation {
    /// Nothing went wrong for a long time: everybody knows the same.
    pub(super) fn check_settled(&self) {
        let master = self.master.as_ref().expect("there is a master in the end");
        let mut running: BTreeMap<&TaskKey, &AgentId> = BTreeMap::new();
        let mut used = Quantities::ZERO;
        let mut executors = BTreeSet::new();
        for agent in self.agents.iter().filter(|agent| !agent.dead) {
            let id = agent.id.as_ref().expect("every agent was admitted");
            for (key, task) in agent.tasks.iter().filter(|(_, task)| !task.state.is_terminal()) {
                assert_eq!(running.insert(key, id), None, "task {key:?} runs twice");
                used += &task.info.resources.quantities;
            }
            for ((framework, executor), report) in &agent.executors {
                executors.insert((framework.clone(), id.clone(), executor.clone()));
                used += &report.info.resources.quantities;
            }
        }
        let known = master.executors().map(|executor| (executor.framework, executor.agent, executor.info.id.clone()));
        assert_eq!(
            known.collect::<BTreeSet<_>>(),
            executors,
            "the executors the master knows, and those that are there"
        );

        let known = master.tasks().filter(|task| !task.state.is_terminal() && task.state != TaskState::Unreachable);
        let known: BTreeMap<TaskKey, &AgentId> =
            known.map(|task| ((task.framework.clone(), task.info.id.clone()), &task.info.agent)).collect();
        let running_keys: BTreeMap<TaskKey, &AgentId> = running.iter().map(|(key, id)| ((*key).clone(), *id)).collect();
        assert_eq!(known, running_keys, "what the master knows to run, and what runs");

        let mut accounted = Quantities::ZERO;
        for role in &master.fairness().roles {
            accounted += &role.used;
        }
        assert_eq!(accounted, used, "what the allocator counts as used, and what is");

        for framework in &self.frameworks {
            let Some(id) = &framework.id else { continue };
            if framework.over {
                assert!(!running.keys().any(|(of, _)| of == id), "a framework that is over still has tasks");
                assert!(!executors.iter().any(|(of, ..)| of == id), "a framework that is over still has executors");
                continue;
            }
            for (task, state) in &framework.told {
                let state = state.unwrap_or_else(|| panic!("framework {id} was told nothing of its task {task}"));
                let runs = running.contains_key(&(id.clone(), task.clone()));
                let out_of_reach = matches!(state, TaskState::Unreachable | TaskState::Unknown);
                // Who never acknowledges is told the first state of a task again and again.
                if framework.temper != Temper::Forgetful {
                    assert_eq!(
                        runs,
                        !state.is_terminal() && !out_of_reach,
                        "framework {id} was told {state:?} of {task}; it runs"
                    );
                }
            }
            let surplus = running.keys().find(|(of, task)| of == id && !framework.told.contains_key(task));
            assert_eq!(surplus, None, "a task runs that its framework ({:?}) did not launch", framework.temper);
            assert!(
                framework.temper != Temper::Honest || framework.connection.is_some(),
                "framework {id} is connected"
            );
        }
    }
}
