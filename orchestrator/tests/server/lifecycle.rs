//! The lives of subscriptions, offers and tasks.

use std::time::{Duration, Instant};

use berth_orchestrator::master::{
    FrameworkId, FromAgent, TaskId, TaskReport, TaskState, TaskStatus, ToAgent, UpdateId,
};
use berth_orchestrator::store::{FileStore, MemoryStore};
use serde_json::{Value, json};

use crate::client::{Agent, Master, registration};
use crate::http::{Framework, subscribe_call};

fn update(framework: &str, task: &str, state: TaskState, number: u128) -> FromAgent {
    let status = TaskStatus {
        task: TaskId::from(task),
        agent: None,
        state,
        update: Some(UpdateId(number)),
        reason: None,
        message: "so it is".to_owned(),
        details: json!({ "timestamp": 12.5, "healthy": true, "task_id": { "value": "a lie" } }).to_string().into(),
    };
    FromAgent::Update { framework: FrameworkId::from(framework), status, latest: state }
}

#[test]
fn a_subscription_is_a_stream_of_records_with_heartbeats() {
    let master = Master::start();
    let mut framework = Framework::new(master.address, &subscribe_call(None));
    let subscribed = &framework.subscribed["subscribed"];
    assert_eq!(subscribed["heartbeat_interval_seconds"], 1.0);
    let info = &subscribed["master_info"];
    assert_eq!(info["port"], master.address.port());
    let version = info["version"].as_str().unwrap();
    assert_eq!(version.split('.').filter(|part| part.parse::<u32>().is_ok()).count(), 3, "{version}");
    let begin = Instant::now();
    for _ in 0..2 {
        assert_eq!(framework.next(), Some(json!({ "type": "HEARTBEAT" })));
    }
    assert!(begin.elapsed() > Duration::from_millis(900), "they are a second apart");
}

#[test]
fn a_task_from_its_offer_to_its_acknowledged_end() {
    let master = Master::start();
    let mut framework = Framework::new(master.address, &subscribe_call(None));
    let mut agent = Agent::register(&master, &registration(None));
    let offer = framework.offer();
    assert_eq!(offer["agent_id"]["value"], agent.id.as_str());
    assert_eq!(offer["framework_id"]["value"], framework.id.as_str());
    assert_eq!(offer["hostname"], "127.0.0.1");
    assert_eq!(offer["url"]["address"]["port"], 5051);
    assert_eq!(offer["allocation_info"], json!({ "role": "a" }));
    assert_eq!(offer["attributes"], json!([{ "name": "zone", "type": "TEXT", "text": { "value": "b" } }]));
    let common = |mut resource: Value| {
        resource["role"] = json!("*");
        resource["allocation_info"] = json!({ "role": "a" });
        resource
    };
    let expected = [
        common(json!({ "name": "cpus", "type": "SCALAR", "scalar": { "value": 4.0 } })),
        common(json!({ "name": "mem", "type": "SCALAR", "scalar": { "value": 8192.0 } })),
        common(json!({ "name": "ports", "type": "RANGES", "ranges": { "range": [{ "begin": 31000, "end": 31009 }] } })),
    ];
    assert_eq!(offer["resources"], json!(expected));

    framework.launch(&offer, "t", 1.5, 512.0);
    let Some(ToAgent::Run { framework: of, task, role, .. }) = agent.next() else { panic!("not run") };
    assert_eq!((of.as_str(), task.id.as_str(), &*role), (framework.id.as_str(), "t", "a"));
    assert_eq!(task.resources.quantities.to_string(), "cpus 1.5, mem 512 MiB");
    let payload: Value = serde_json::from_str(&task.payload).unwrap();
    assert_eq!(payload["command"]["value"], "true", "as the framework wrote it");
    // What is left is offered again at once: it was not refused.
    assert_eq!(framework.offer()["resources"][0]["scalar"]["value"], 2.5);

    agent.say(&update(&framework.id, "t", TaskState::Running, 7));
    let status = framework.status();
    assert_eq!(status["state"], "TASK_RUNNING");
    assert_eq!(status["task_id"]["value"], "t", "agents do not overrule the master");
    assert_eq!(status["agent_id"], offer["agent_id"]);
    assert_eq!(status["uuid"], "AAAAAAAAAAAAAAAAAAAABw==");
    assert_eq!(status["source"], "SOURCE_EXECUTOR");
    assert_eq!((&status["timestamp"], &status["healthy"]), (&json!(12.5), &json!(true)));
    assert_eq!(status["message"], "so it is");

    let acknowledge = |uuid: &Value| {
        let body = json!({ "agent_id": offer["agent_id"], "task_id": { "value": "t" }, "uuid": uuid });
        json!({ "type": "ACKNOWLEDGE", "acknowledge": body })
    };
    framework.call(acknowledge(&status["uuid"]));
    assert!(matches!(agent.next(), Some(ToAgent::Acknowledge { update: UpdateId(7), .. })));

    framework.call(json!({ "type": "RECONCILE", "reconcile": { "tasks": null } }));
    let status = framework.status();
    assert_eq!((&status["state"], &status["reason"]), (&json!("TASK_RUNNING"), &json!("REASON_RECONCILIATION")));
    assert!(status["uuid"].is_null(), "nothing to acknowledge");
    framework.call(json!({ "type": "RECONCILE", "reconcile": { "tasks": [{ "task_id": { "value": "u" } }] } }));
    assert_eq!(framework.status()["state"], "TASK_UNKNOWN");

    let grace = json!({ "grace_period": { "nanoseconds": 1_500_000_000_u64 } });
    framework.call(json!({ "type": "KILL", "kill": { "task_id": { "value": "t" }, "kill_policy": grace } }));
    let Some(ToAgent::Kill { grace: Some(grace), .. }) = agent.next() else { panic!("not killed") };
    assert_eq!(grace, Duration::from_millis(1500));
    agent.say(&update(&framework.id, "t", TaskState::Killed, 8));
    let status = framework.status();
    assert_eq!(status["state"], "TASK_KILLED");
    framework.call(acknowledge(&status["uuid"]));
    assert!(matches!(agent.next(), Some(ToAgent::Acknowledge { update: UpdateId(8), .. })));
    let tasks = master.until(&json!({ "type": "GET_TASKS" }), |all| all["get_tasks"]["completed_tasks"] == json!([]));
    assert_eq!(tasks["get_tasks"]["tasks"], json!([]));
}

#[test]
fn messages_go_both_ways() {
    let master = Master::start();
    let mut framework = Framework::new(master.address, &subscribe_call(None));
    let mut agent = Agent::register(&master, &registration(None));
    launch_with_executor(&mut framework, &mut agent);
    let message = |executor: &str, data: &str| json!({ "agent_id": { "value": agent.id.as_str() }, "executor_id": { "value": executor }, "data": data });
    // It is told so of no executor that it does not have.
    framework.call(json!({ "type": "MESSAGE", "message": message("another", "aGVsbG8=") }));
    let long = framework.try_call(json!({ "type": "MESSAGE", "message": message("e", &"AAAA".repeat(1 << 19)) }));
    assert_eq!(long.status, 400);
    assert!(long.body.contains("message.data: has more than 1048576 bytes"), "{}", long.body);
    let to = message("e", "aGVsbG8=");
    framework.call(json!({ "type": "MESSAGE", "message": to }));
    let Some(ToAgent::Message { executor, data, .. }) = agent.next() else { panic!("no message") };
    assert_eq!((executor.as_str(), &*data), ("e", &b"hello"[..]));
    agent.say(&FromAgent::Message { framework: framework.id.as_str().into(), executor, data });
    assert_eq!(framework.expect("MESSAGE"), to);
    assert!(master.get("/metrics").body.contains("berth_master_messages_dropped_total 1\n"));
}

/// Launches an executor, `e`, with a task.
fn launch_with_executor(framework: &mut Framework, agent: &mut Agent) {
    let resources = json!([{ "name": "cpus", "type": "SCALAR", "scalar": { "value": 1 } }]);
    let executor = json!({ "executor_id": { "value": "e" }, "command": { "value": "x" }, "resources": resources });
    let offer = framework.offer();
    framework.launch_as(&offer, "t", 1.0, 32.0, json!({ "executor": executor }));
    assert!(matches!(agent.next(), Some(ToAgent::Run { launch_executor: true, .. })));
}

#[test]
fn messages_that_an_agent_does_not_read_are_dropped_and_nothing_else() {
    let master = Master::start();
    let mut framework = Framework::new(master.address, &subscribe_call(None));
    let mut agent = Agent::register(&master, &registration(None));
    launch_with_executor(&mut framework, &mut agent);
    let mut to = json!({ "agent_id": { "value": agent.id.as_str() }, "executor_id": { "value": "e" } });
    let shutdown = json!({ "type": "SHUTDOWN", "shutdown": to });
    to["data"] = json!("AAAA".repeat((1 << 20) / 3));
    let message = json!({ "type": "MESSAGE", "message": to });
    (0..70).for_each(|_| framework.call(message.clone()));
    framework.call(shutdown);
    let mut arrived = 0;
    loop {
        match agent.next().expect("the agent is not disconnected") {
            ToAgent::Message { .. } => arrived += 1,
            other => break assert!(matches!(other, ToAgent::ShutDownExecutor { .. }), "{other:?}"),
        }
    }
    assert!((5..70).contains(&arrived), "{arrived}");
}

#[test]
fn offers_are_declined_suppressed_revived_and_rescinded() {
    let master = Master::start();
    let mut framework = Framework::new(master.address, &subscribe_call(None));
    let agent = Agent::register(&master, &registration(None));
    let offer = framework.offer();
    framework.call(json!({ "type": "SUPPRESS", "suppress": { "roles": ["a"] } }));
    let decline = json!({ "offer_ids": [offer["id"]], "filters": { "refuse_seconds": 1e9 } });
    framework.call(json!({ "type": "DECLINE", "decline": decline }));
    framework.call(json!({ "type": "REVIVE" }));
    let again = framework.offer();
    assert_ne!(again["id"], offer["id"]);
    // The agent leaves, and what was offered of it is no longer there.
    drop(agent);
    assert_eq!(framework.expect("RESCIND")["offer_id"], again["id"]);
    framework.launch(&again, "late", 1.0, 64.0);
    let status = framework.status();
    assert_eq!((&status["state"], &status["reason"]), (&json!("TASK_DROPPED"), &json!("REASON_INVALID_OFFERS")));
    assert_eq!(status["source"], "SOURCE_MASTER");
}

#[test]
fn a_framework_fails_over_and_the_old_one_is_told() {
    let master = Master::start();
    let mut old = Framework::new(master.address, &subscribe_call(None));
    let mut new = Framework::new(master.address, &subscribe_call(Some(&old.id)));
    assert_eq!(new.id, old.id);
    assert_ne!(new.stream_id, old.stream_id);
    assert_eq!(old.event()["type"], "ERROR");
    assert_eq!(old.next(), None);
    let answer = old.try_call(json!({ "type": "REVIVE" }));
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("Mesos-Stream-Id"), "{}", answer.body);
    new.call(json!({ "type": "TEARDOWN" }));
    assert_eq!(std::iter::from_fn(|| new.next()).find(|event| event["type"] != "HEARTBEAT"), None);
    // Its id is used up.
    let mut late = Framework::subscribe(master.address, &subscribe_call(Some(&old.id)));
    assert_eq!(late.event()["type"], "ERROR");
    assert_eq!(late.next(), None);
}

#[test]
fn a_client_that_leaves_is_disconnected() {
    let master = Master::start();
    let framework = Framework::new(master.address, &subscribe_call(None));
    let connected = |wanted: bool| {
        let all = json!({ "type": "GET_FRAMEWORKS" });
        master.until(&all, |all| all["get_frameworks"]["frameworks"][0]["connected"] == wanted);
    };
    connected(true);
    drop(framework);
    connected(false);
}

#[test]
fn the_next_master_knows_agents_from_its_file_and_tasks_from_agents() {
    let dir = tempfile::tempdir().unwrap();
    let store = || Box::new(FileStore::open(&dir.path().join("registry")).unwrap());
    let first = Master::with(store(), |_| {});
    let mut framework = Framework::new(first.address, &subscribe_call(None));
    let mut agent = Agent::register(&first, &registration(None));
    let weights = json!({ "weight_infos": [{ "role": "a", "weight": 2.5 }] });
    first.operator(&json!({ "type": "UPDATE_WEIGHTS", "update_weights": weights }));
    framework.launch_next("t", 1.0, 64.0);
    let Some(ToAgent::Run { framework: of, framework_info, role, task, .. }) = agent.next() else { panic!("not run") };
    let id = framework.id.clone();
    drop((framework, first));
    while agent.next().is_some() {}

    let second = Master::with(store(), |_| {});
    let all = second.operator(&json!({ "type": "GET_AGENTS" }));
    assert_eq!(all["get_agents"]["agents"][0]["state"], "awaited");
    let mut back = registration(Some(agent.id.clone()));
    back.frameworks = [(of.clone(), (*framework_info).clone())].into();
    back.tasks = vec![TaskReport { framework: of, role, info: task, state: TaskState::Running }];
    assert_eq!(Agent::register(&second, &back).id, agent.id);
    let mut framework = Framework::new(second.address, &subscribe_call(Some(&id)));
    framework.call(json!({ "type": "RECONCILE" }));
    let status = framework.status();
    assert_eq!((&status["task_id"]["value"], &status["state"]), (&json!("t"), &json!("TASK_RUNNING")));
    let roles = second.operator(&json!({ "type": "GET_ROLES" }));
    assert_eq!(roles["get_roles"]["roles"][0]["weight"], 2.5);
}

#[test]
fn who_hoards_offers_loses_them_and_others_get_them() {
    let master = Master::with(Box::<MemoryStore>::default(), |config| {
        config.master.allocator.offer_timeout = Some(Duration::from_secs(1));
    });
    let mut hoarder = Framework::new(master.address, &subscribe_call(None));
    let mut agent = Agent::register(&master, &registration(None));
    let hoarded = hoarder.offer();
    let mut other = Framework::new(master.address, &subscribe_call(None));
    other.launch_next("t", 1.0, 64.0);
    assert!(matches!(agent.next(), Some(ToAgent::Run { .. })));
    assert_eq!(hoarder.expect("RESCIND")["offer_id"], hoarded["id"]);
    hoarder.launch(&hoarded, "late", 1.0, 64.0);
    assert_eq!(hoarder.status()["state"], "TASK_DROPPED");
}
