//! What the master and an agent are told of a task: `TaskInfo`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::manifest::{Group, Health, Name, Span};
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
    let volumes: Vec<Value> = group
        .volumes
        .iter()
        .map(|volume| {
            let mode = if volume.read_only { "RO" } else { "RW" };
            json!({ "mode": mode, "container_path": &*volume.target, "host_path": &*volume.source })
        })
        .collect();
    container["volumes"] = json!(volumes);
    let mut info = json!({
        "name": key.to_string(),
        "task_id": id(launched.id.as_str()),
        "agent_id": id(agent.as_str()),
        "resources": resources::write(resources, Some(role), dialect),
        "command": command(group, launched),
        "container": container,
        "labels": { "labels": [{ "key": ISOLATION, "value": group.isolation.name() }] },
        "kill_policy": kill_policy(group.grace.duration()),
    });
    if let Some(health) = &group.health {
        info["health_check"] = health_check(health, group, launched.ports);
    }
    info
}

/// `HealthCheck`
fn health_check(health: &Health, group: &Group, ports: &BTreeMap<Name, u16>) -> Value {
    let Health { command, shell, http, tcp, delay, interval, timeout, failures, grace } = health;
    let (kind, field, how) = match (shell, http, tcp) {
        (Some(line), ..) => ("COMMAND", "command", json!({ "shell": true, "value": &**line })),
        (_, Some(http), _) => {
            let path = http.path.as_ref().map_or("/", |path| path);
            ("HTTP", "http", json!({ "port": ports.get(&http.port), "path": path }))
        }
        (.., Some(tcp)) => ("TCP", "tcp", json!({ "port": ports.get(&tcp.port) })),
        _ => {
            let arguments: Vec<&str> = command.iter().map(|text| &**text).collect();
            ("COMMAND", "command", json!({ "shell": false, "value": arguments.first(), "arguments": arguments }))
        }
    };
    let seconds = |span: &Span| span.duration().as_secs_f64();
    let mut check = json!({
        "type": kind,
        (field): how,
        "delay_seconds": seconds(delay),
        "interval_seconds": seconds(interval),
        "timeout_seconds": seconds(timeout),
        "consecutive_failures": failures,
        "grace_period_seconds": seconds(grace),
    });
    if let (Some(user), "command") = (&group.user, field) {
        check["command"]["user"] = json!(&**user);
    }
    check
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

#[cfg(test)]
mod tests {
    use berth_engine::options::Network;

    use super::super::manifest::Manifest;
    use super::super::wire::Call;
    use super::*;
    use crate::agent::command;
    use crate::api::scheduler::{self, Request};
    use crate::master;
    use crate::master::FrameworkId;

    /// What an agent runs of the one task of a manifest, after it went the way through the API.
    fn arguments(task: &str) -> Vec<String> {
        understood(task).start("sandbox", std::path::Path::new("/own"), &Network::Host).arguments
    }

    fn understood(task: &str) -> command::Command {
        let manifest = Manifest::read(&format!("{{name: n, tasks: {{t: {{{task}}}}}}}")).unwrap();
        let group = &manifest.tasks["t"];
        let names = manifest.tasks.keys().next().unwrap();
        let key = TaskKey { job: manifest.name.clone(), group: names.clone(), index: 3 };
        let ports: BTreeMap<Name, u16> = group.ports.iter().cloned().zip(31_000..).collect();
        let resources =
            Resources { quantities: group.resources.quantities(), ports: ports.values().map(|it| *it..=*it).collect() };
        let (id, agent) = (TaskId::from("n.t.3.9"), AgentId::from("a"));
        let launched =
            Launched { key: &key, id: &id, agent: &agent, role: "r", resources: &resources, ports: &ports, attempt: 2 };
        let tasks = vec![(id.clone(), info(group, &launched))];
        let call = Call::Accept { offer: "o".to_owned(), tasks, refuse: std::time::Duration::ZERO };
        let request = scheduler::read(call.write(&FrameworkId::from("f")), "m").unwrap();
        let Request::Call(_, master::Call::Accept { tasks, .. }) = request else { panic!("{request:?}") };
        assert_eq!(tasks[0].resources, resources);
        assert_eq!(command::grace(&tasks[0]), group.grace.duration());
        command::read(&tasks[0], None).unwrap()
    }

    #[test]
    fn every_way_to_ask_a_task_is_understood_by_its_agent() {
        for health in ["command: [a, b]", "shell: a", "http: {port: web, path: /x}", "tcp: {port: web}"] {
            let command = understood(&format!("image: i, user: '7', ports: [web], health: {{{health}}}"));
            let said = format!("{:?}", command.checks);
            let asked = match health.split(':').next().unwrap() {
                "command" => r#"Command(["--user=7"], ["a", "b"])"#,
                "shell" => r#"Command(["--user=7"], ["/bin/sh", "-c", "a"])"#,
                "http" => r#"Http(127.0.0.1:31000, "/x", {})"#,
                _ => "Tcp(127.0.0.1:31000)",
            };
            assert!(said.contains(asked) && said.contains("interval: 10s, timeout: 5s"), "{health}: {said}");
        }
    }

    #[test]
    fn a_task_of_a_manifest_is_what_its_agent_runs() {
        let all = arguments(
            "image: busybox, command: [echo, -n, x], env: {A: b}, user: '7', ports: [http-2], resources: {cpus: 0.5}, \
             volumes: [{source: /s, target: /t, read-only: true}], service: {replicas: 5}",
        );
        let flags = [
            "--cpus=0.500",
            "--memory=67108864b",
            "--network=host",
            "--user=7",
            "--env=A=b",
            "--env=BERTH_ATTEMPT=2",
            "--env=BERTH_JOB=n",
            "--env=BERTH_PORT_HTTP_2=31000",
            "--env=BERTH_TASK=t",
            "--env=BERTH_TASK_COUNT=5",
            "--env=BERTH_TASK_INDEX=3",
            "--volume=/s:/t:ro",
        ];
        for flag in flags {
            assert!(all.iter().any(|known| known == flag), "{flag}: {all:?}");
        }
        assert_eq!(all[all.len() - 5..], ["--entrypoint=", "busybox", "echo", "-n", "x"]);
        let shell = arguments("image: busybox, shell: exit 3");
        assert_eq!(shell[shell.len() - 5..], ["--entrypoint=", "busybox", "/bin/sh", "-c", "exit 3"]);
        let own = arguments("image: busybox, args: [a]");
        assert_eq!(own[own.len() - 2..], ["busybox", "a"]);
        for (isolation, flag) in [
            ("microvm", "--isolation=microvm"),
            ("microvm-linux", "--guest=linux"),
            ("microvm-process", "--guest=process"),
            ("wasm", "--isolation=wasm"),
        ] {
            let isolated = arguments(&format!("image: i, isolation: {isolation}"));
            assert!(isolated.iter().any(|known| known == flag), "{isolation}: {isolated:?}");
        }
    }
}
