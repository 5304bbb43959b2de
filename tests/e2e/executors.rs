//! Tasks that are run by an executor of their framework's own, a program in Python in a sandbox of its own.

use std::fs;

use berth_tests::home::Home;
use berth_tests::{binaries, fixtures, wait};
use serde_json::{Value, json};

use crate::cluster::http::{Framework, subscribe_call};
use crate::cluster::{Cluster, acknowledge, ask, until};

/// What an executor is told, in base64: to say what it may use, and to die.
const SAY: &str = "c2F5";
const DIE: &str = "ZGll";

/// An executor that uses 64 MiB besides what its tasks do.
fn executor(cluster: &Cluster, id: &str) -> Value {
    let program = binaries::workspace().join("tests/e2e/executor.py");
    let volume = |mode: &str, at: &str, path: &dyn AsRef<std::path::Path>| json!({ "mode": mode, "container_path": at, "host_path": path.as_ref() });
    let volumes = [volume("RO", "/executor.py", &program), volume("RW", "/ledger", &cluster.ledger())];
    json!({
        "executor_id": { "value": id },
        "name": "test",
        "command": { "shell": false, "value": "python3", "arguments": ["python3", "/executor.py"] },
        "container": { "type": "DOCKER", "docker": { "image": "debian" }, "volumes": volumes },
        "resources": [
            { "name": "cpus", "type": "SCALAR", "scalar": { "value": 0.2 } },
            { "name": "mem", "type": "SCALAR", "scalar": { "value": 64 } },
        ],
    })
}

/// Launches a task with an offer that has enough, and says which executors are there.
fn launch(cluster: &Cluster, framework: &mut Framework, task: &str, by: &str, there: &[&str], data: &str) -> Value {
    framework.call(json!({ "type": "REVIVE" }));
    let offer = loop {
        let offer = framework.offer();
        let executors = offer["executor_ids"].as_array().unwrap().iter().map(|id| id["value"].as_str().unwrap());
        let is_memory =
            |resource: &Value| resource["name"] == "mem" && resource["scalar"]["value"].as_f64() > Some(500.0);
        let has_enough = offer["resources"].as_array().unwrap().iter().any(is_memory);
        if has_enough && executors.eq(there.iter().copied()) {
            break offer;
        }
        // What came free in pieces, or was offered before the executor came or ended.
        let decline = json!({ "offer_ids": [offer["id"]], "filters": { "refuse_seconds": 0.0 } });
        framework.call(json!({ "type": "DECLINE", "decline": decline }));
    };
    framework.launch_as(&offer, task, 0.1, 32.0, json!({ "executor": executor(cluster, by), "data": data }));
    until(framework, task, "TASK_RUNNING")
}

fn say(framework: &Framework, agent: &Value, executor: &str, data: &str) {
    let message = json!({ "agent_id": agent, "executor_id": { "value": executor }, "data": data });
    framework.call(json!({ "type": "MESSAGE", "message": message }));
}

/// What an executor has written down.
fn ledger(cluster: &Cluster, executor: &str) -> String {
    fs::read_to_string(cluster.ledger().join(executor)).unwrap_or_default()
}

/// Asks an executor until it has this many MiB.
fn has_limit(cluster: &Cluster, framework: &mut Framework, agent: &Value, mib: u64) {
    let line = format!("say {}\n", mib << 20);
    wait::until(&line, || {
        say(framework, agent, "e", SAY);
        assert_eq!(framework.expect("MESSAGE")["data"], SAY);
        ledger(cluster, "e").ends_with(&line)
    });
}

#[test]
fn an_executor_runs_tasks_and_outlives_its_agent_and_master() {
    let home = Home::new();
    let _ = home.berth("load -i").arg(fixtures::debian_layout()).ok();
    let cluster = Cluster::up_in(home, 1, "");
    let mut framework = Framework::new(cluster.master, &subscribe_call(None));
    let status = launch(&cluster, &mut framework, "t", "e", &[], "");
    let agent = status["agent_id"].clone();
    assert_eq!((&status["executor_id"]["value"], &status["source"]), (&json!("e"), &json!("SOURCE_EXECUTOR")));
    has_limit(&cluster, &mut framework, &agent, 96);
    launch(&cluster, &mut framework, "u", "e", &["e"], "bGFzdA==");
    assert_eq!(cluster.containers().len(), 1, "both are in the executor's sandbox");
    has_limit(&cluster, &mut framework, &agent, 128);
    framework.call(json!({ "type": "KILL", "kill": { "task_id": { "value": "t" } } }));
    until(&mut framework, "t", "TASK_KILLED");
    has_limit(&cluster, &mut framework, &agent, 96);

    // What it leaves in its directory is found by its id.
    let path = format!("/frameworks/{}/executors/e/runs/latest/e", framework.id);
    let read = json!({ "type": "READ_FILE", "read_file": { "path": path, "offset": 0 } });
    let (status, file) = ask(&cluster, &format!("/agent/{}", agent["value"].as_str().unwrap()), &read);
    assert_eq!((status, &file["read_file"]["size"]), (200, &json!(ledger(&cluster, "e").len())));

    // A task that ends while nobody can be told.
    cluster.kill(&["agent-1"]);
    cluster.mend(1);
    until(&mut framework, "u", "TASK_FINISHED");
    launch(&cluster, &mut framework, "v", "e", &["e"], "");
    let launched = ledger(&cluster, "e").lines().filter(|line| !line.starts_with("say")).collect::<Vec<_>>().join(" ");
    assert_eq!(launched, "begin launch t launch u launch v", "it is the same, and gets each task once");

    say(&framework, &agent, "e", DIE);
    let status = until(&mut framework, "v", "TASK_FAILED");
    assert_eq!(status["reason"], "REASON_EXECUTOR_TERMINATED");
    let failure = framework.expect("FAILURE");
    assert_eq!(failure, json!({ "agent_id": agent, "executor_id": { "value": "e" }, "status": 3 }));
    wait::until("the executor's sandbox is removed", || cluster.containers().is_empty());

    // Both die; the executor is counted by the next master too.
    launch(&cluster, &mut framework, "w", "f", &[], "");
    cluster.kill(&["agent-1", "master"]);
    let call = subscribe_call(Some(&framework.id));
    drop(framework);
    cluster.mend(1);
    let mut framework = Framework::new(cluster.master, &call);
    launch(&cluster, &mut framework, "x", "f", &["f"], "");
    let executor = json!({ "agent_id": agent, "executor_id": { "value": "f" } });
    framework.call(json!({ "type": "SHUTDOWN", "shutdown": executor }));
    let mut killed = Vec::new();
    while killed.len() < 2 {
        let status = framework.status();
        acknowledge(&framework, &status);
        if status["state"] == "TASK_KILLED" {
            killed.push(status["task_id"]["value"].as_str().unwrap().to_owned());
        }
    }
    killed.sort();
    assert_eq!(
        (killed, framework.expect("FAILURE")["status"].clone()),
        (vec!["w".to_owned(), "x".to_owned()], json!(0))
    );
    assert_eq!(ledger(&cluster, "f"), "begin\nlaunch w\nlaunch x\n");
}
