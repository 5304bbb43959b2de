//! Somebody who watches from a master's first moment, and knows of the cluster only what that master tells.

use std::collections::{BTreeMap, BTreeSet};

use crate::master::{
    AgentId, AgentState, Connection, FrameworkId, FrameworkView, Master, Notice, Task, TaskId, TaskState,
};

/// Over which it is told: no other is numbered like this.
pub(super) const CONNECTION: Connection = Connection(u64::MAX);

type Key = (FrameworkId, TaskId, AgentId);

/// What it knows.
#[derive(Debug, Default)]
pub(super) struct Observer {
    agents: BTreeSet<AgentId>,
    /// Whether they are connected.
    frameworks: BTreeMap<FrameworkId, bool>,
    tasks: BTreeMap<Key, TaskState>,
}

impl Observer {
    /// Learns of a change, which has to be one.
    pub(super) fn hear(&mut self, notice: Notice) {
        match notice {
            Notice::TaskAdded(task) => {
                let before = self.tasks.insert(key(&task), task.state);
                assert!(before.is_none_or(|before| !before.holds()), "{task:?} was {before:?}");
            }
            Notice::TaskUpdated { framework, status, state } => {
                let agent = status.agent.expect("the agent is said");
                let before = self.tasks.insert((framework, status.task, agent), state);
                assert!(before.is_some_and(|before| before != state), "{before:?} became {state:?}");
            }
            Notice::AgentAdded(agent, _) => assert!(self.agents.insert(agent.id.clone()), "{agent:?} was there"),
            Notice::AgentRemoved(agent) => assert!(self.agents.remove(&agent), "{agent} was not there"),
            Notice::FrameworkAdded(FrameworkView { id, connected, .. }) => {
                assert_eq!(self.frameworks.insert(id, connected), None);
            }
            Notice::FrameworkUpdated(FrameworkView { id, connected, .. }) => {
                assert!(self.frameworks.insert(id, connected).is_some());
            }
            Notice::FrameworkRemoved(framework) => assert!(self.frameworks.remove(&framework.id).is_some()),
            Notice::Heartbeat => {}
        }
    }

    /// Makes sure that it knows what the master does.
    pub(super) fn compare(&self, master: &Master) {
        let here = |state| matches!(state, AgentState::Connected | AgentState::Disconnected);
        let agents = master.agents().filter(|agent| here(agent.state)).map(|agent| agent.id);
        assert_eq!(self.agents, agents.collect());
        let frameworks = master.frameworks().filter(|framework| !framework.gone);
        assert_eq!(self.frameworks, frameworks.map(|framework| (framework.id, framework.connected)).collect());
        let tasks: BTreeMap<Key, TaskState> = master.tasks().map(|task| (key(task), task.state)).collect();
        for (key, state) in &tasks {
            assert_eq!(self.tasks.get(key), Some(state), "{key:?}");
        }
        // What the master has forgotten had ended, or went with its agent.
        for (key, state) in self.tasks.iter().filter(|(_, state)| state.holds()) {
            assert!(tasks.contains_key(key), "{key:?} is not {state:?}");
        }
    }
}

fn key(task: &Task) -> Key {
    (task.framework.clone(), task.info.id.clone(), task.info.agent.clone())
}
