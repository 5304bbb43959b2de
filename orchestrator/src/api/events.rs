//! The operator API's stream of events: the state there is, and then all that happens to agents, frameworks and tasks.

use std::time::Duration;

use serde_json::{Value, json};

use super::operator::{agent, framework, state, task};
use super::scheduler::{id, write_status};
use crate::master::{Notice, Snapshot};

/// The first event.
pub fn subscribed(snapshot: &Snapshot, heartbeat: Duration) -> Value {
    json!({
        "type": "SUBSCRIBED",
        "subscribed": { "get_state": state(snapshot), "heartbeat_interval_seconds": heartbeat.as_secs_f64() },
    })
}

/// An event; `now` is the time since 1970, for what the master itself says.
pub fn write(notice: &Notice, now: Duration) -> Value {
    let (kind, body) = match notice {
        Notice::TaskAdded(added) => ("TASK_ADDED", json!({ "task": task(added) })),
        Notice::TaskUpdated { framework, status, state } => {
            let written = write_status(status, now);
            // Commands have an executor of the same name, as in Mesos.
            let executor = written.get("executor_id").cloned().unwrap_or_else(|| id(status.task.as_str()));
            let body = json!({
                "task_id": id(status.task.as_str()),
                "framework_id": id(framework.as_str()),
                "agent_id": status.agent.as_ref().map(|agent| id(agent.as_str())),
                "executor_id": executor,
                "state": state.name(),
                "status": written,
            });
            ("TASK_UPDATED", body)
        }
        Notice::AgentAdded(added, used) => ("AGENT_ADDED", json!({ "agent": agent(added, *used) })),
        Notice::AgentRemoved(agent) => ("AGENT_REMOVED", json!({ "agent_id": id(agent.as_str()) })),
        Notice::FrameworkAdded(added) => ("FRAMEWORK_ADDED", json!({ "framework": framework(added) })),
        Notice::FrameworkUpdated(updated) => ("FRAMEWORK_UPDATED", json!({ "framework": framework(updated) })),
        Notice::FrameworkRemoved(removed) => {
            ("FRAMEWORK_REMOVED", json!({ "framework_info": framework(removed)["framework_info"] }))
        }
        Notice::Heartbeat => return json!({ "type": "HEARTBEAT" }),
    };
    json!({ "type": kind, (kind.to_ascii_lowercase()): body })
}
