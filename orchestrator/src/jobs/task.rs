//! What the master and an agent are told of a task: `TaskInfo`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::manifest::{Group, Name};
use super::state::TaskKey;
use super::wire::kill_policy;
use crate::agent::ISOLATION;
use crate::api::resources::{self, Dialect};
use crate::api::scheduler::id;
use crate::master::{AgentId, TaskId};
use crate::resources::Resources;

/// A task that is launched.
#[derive(Debug)]
pub struct Launched<'a> {
    /// Which.
    pub key: &'a TaskKey,
    /// By what name the master is to know it.
    pub id: &'a TaskId,
    /// Where.
    pub agent: &'a AgentId,
    /// In which role.
    pub role: &'a str,
    /// What it uses.
    pub resources: &'a Resources,
    /// The numbers of its ports.
    pub ports: &'a BTreeMap<Name, u16>,
    /// Which attempt it is, from 1 on.
    pub attempt: u32,
}

/// `TaskInfo`
pub fn info(group: &Group, launched: &Launched) -> Value {
    let Launched { key, agent, role, resources, .. } = launched;
    let dialect = Dialect { multi_role: true, reservation_refinement: false };
    let mut container = json!({ "type": "MESOS", "mesos": { "image": {
        "type": "DOCKER", "docker": { "name": &*group.image },
    } } });
    let volumes: Vec<Value> = group.volumes.iter().map(|volume| {
        let mode = if volume.read_only { "RO" } else { "RW" };
        json!({ "mode": mode, "container_path": &*volume.target, "host_path": &*volume.source })
    }).collect();
    container["volumes"] = json!(volumes);
    json!({
        "name": key.to_string(),
        "task_id": id(launched.id.as_str()),
        "agent_id": id(agent.as_str()),
        "resources": resources::write(resources, Some(role), dialect),
        "command": command(group, launched),
        "container": container,
        "labels": { "labels": [{ "key": ISOLATION, "value": group.isolation.name() }] },
        "kill_policy": kill_policy(group.grace.duration()),
    })
}

fn command(group: &Group, launched: &Launched) -> Value {
    let mut command = match (&group.shell, group.command.first()) {
        (Some(line), _) => json!({ "shell": true, "value": &**line }),
        (None, Some(program)) => {
            let arguments: Vec<&str> = group.command.iter().map(|text| &**text).collect();
            json!({ "shell": false, "value": &**program, "arguments": arguments })
        }
        (None, None) => {
            let arguments: Vec<&str> = group.args.iter().map(|text| &**text).collect();
            json!({ "shell": false, "arguments": arguments })
        }
    };
    if let Some(user) = &group.user {
        command["user"] = json!(&**user);
    }
    let TaskKey { job, group: name, index } = launched.key;
    let mut variables: BTreeMap<String, String> =
        group.env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    variables.extend([
        ("BERTH_JOB".to_owned(), job.to_string()),
        ("BERTH_TASK".to_owned(), name.to_string()),
        ("BERTH_TASK_INDEX".to_owned(), index.to_string()),
        ("BERTH_TASK_COUNT".to_owned(), group.count().to_string()),
        ("BERTH_ATTEMPT".to_owned(), launched.attempt.to_string()),
    ]);
    for (name, number) in launched.ports {
        let name = name.to_ascii_uppercase().replace('-', "_");
        variables.insert(format!("BERTH_PORT_{name}"), number.to_string());
    }
    let variables: Vec<Value> =
        variables.into_iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
    command["environment"] = json!({ "variables": variables });
    command
}
