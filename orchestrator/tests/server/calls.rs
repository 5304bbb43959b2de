//! What is wrong with requests is said, and the master goes on.

use std::io::Read as _;

use berth_orchestrator::server::{Config, Error, Rate, Server};
use berth_orchestrator::store::MemoryStore;
use serde_json::json;

use crate::client::{Agent, Master, record, registration};
use crate::http::{Framework, post, subscribe_call};

const SCHEDULER: &str = "/api/v1/scheduler";

#[test]
fn requests_that_are_wrong_say_what_is_wrong() {
    let master = Master::start();
    let framework = Framework::new(master.address, &subscribe_call(None));
    let id = &framework.id;
    let revive = format!(r#"{{"type": "REVIVE", "framework_id": {{"value": "{id}"}}}}"#);
    let stream = format!("Mesos-Stream-Id: {}\r\n", framework.stream_id);
    let subscribe = subscribe_call(None).to_string();
    let typed = |kind: &str| post(SCHEDULER, &stream, &revive).replace("Content-Type: application/json", kind);
    let deep = "[".repeat(100_000);
    let cases = [
        ("no such place", post("/api/v2", "", "{}"), 404, "/api/v2"),
        ("wrong method", format!("GET {SCHEDULER} HTTP/1.1\r\nHost: m\r\n\r\n"), 405, "POST"),
        ("no type", typed("X-Nothing: 1"), 400, "Content-Type"),
        ("text", typed("Content-Type: text/plain"), 415, "text/plain"),
        ("JSON as protobuf", typed("Content-Type: application/x-protobuf"), 400, "request: is no message of protobuf"),
        ("wants text", typed("Content-Type: application/json\r\nAccept: text/plain"), 406, "text/plain"),
        ("no JSON", post(SCHEDULER, "", "{"), 400, "request:"),
        ("deep JSON", post(SCHEDULER, "", &deep), 400, "request:"),
        ("no type of call", post(SCHEDULER, &stream, "{}"), 400, "type"),
        ("no such call", post(SCHEDULER, &stream, &revive.replace("REVIVE", "REVIVED")), 400, "type: `REVIVED`"),
        ("no stream id", post(SCHEDULER, "", &revive), 400, "Mesos-Stream-Id"),
        ("wrong stream id", post(SCHEDULER, "Mesos-Stream-Id: 1\r\n", &revive), 400, "Mesos-Stream-Id"),
        (
            "another's stream id",
            post(SCHEDULER, "Mesos-Stream-Id: 00000000-0000-4000-8000-000000000000\r\n", &revive),
            400,
            "Mesos-Stream-Id",
        ),
        ("not subscribed", post(SCHEDULER, &stream, &revive.replace(id, "x")), 403, "framework_id"),
        ("subscribed twice", post(SCHEDULER, &stream, &subscribe), 400, "Mesos-Stream-Id"),
        (
            "no role of its own",
            post(
                SCHEDULER,
                &stream,
                &format!(r#"{{"suppress": {{"roles": ["b"]}}, {}"#, &revive.replace("REVIVE", "SUPPRESS")[1..]),
            ),
            400,
            "role",
        ),
        ("a wrong kind of role", post(SCHEDULER, "", &subscribe.replace(r#"["a"]"#, r#"["a", 7]"#)), 400, "roles[1]"),
        (
            "no such agent",
            post("/api/v1", "", r#"{"type": "DRAIN_AGENT", "drain_agent": {"agent_id": {"value": "x"}}}"#),
            404,
            "x",
        ),
        (
            "a negative weight",
            post(
                "/api/v1",
                "",
                r#"{"type": "UPDATE_WEIGHTS", "update_weights": {"weight_infos": [{"role": "a", "weight": -1}]}}"#,
            ),
            400,
            "update_weights.weight_infos[0].weight",
        ),
        (
            "an absurd quota",
            post(
                "/api/v1",
                "",
                r#"{"type": "UPDATE_QUOTA", "update_quota":
                {"quota_configs": [{"role": "a", "guarantees": {"cpus": {"value": 1e300}}}]}}"#,
            ),
            400,
            "update_quota.quota_configs[0].guarantees.cpus.value",
        ),
        ("no agent", "GET /berth/agent HTTP/1.1\r\nHost: m\r\n\r\n".to_owned(), 426, "berth-agent-1"),
    ];
    for (name, request, status, says) in cases {
        let answer = master.send(request.as_bytes());
        assert_eq!(answer.status, status, "{name}: {}", answer.body);
        assert!(answer.body.contains(says), "{name}: {}", answer.body);
    }
    let huge = format!(
        "POST {SCHEDULER} HTTP/1.1\r\nHost: m\r\nContent-Type: application/json\r\nContent-Length: 99999999\r\n\r\n"
    );
    assert_eq!(master.send(huge.as_bytes()).status, 413);
    framework.call(json!({ "type": "REVIVE" }));
    assert_eq!(master.get("/health").status, 200);
}

#[test]
fn wrong_tasks_are_said_to_be_wrong_or_end_in_error() {
    let master = Master::start();
    let mut framework = Framework::new(master.address, &subscribe_call(None));
    let _agent = Agent::register(&master, &registration(None));
    let offer = framework.offer();
    let much = json!([{ "name": "mem", "scalar": { "value": "much" } }]);
    let task = json!({ "name": "n", "task_id": { "value": "t" }, "agent_id": offer["agent_id"], "resources": much });
    let accept =
        json!({ "offer_ids": [offer["id"]], "operations": [{ "type": "LAUNCH", "launch": { "task_infos": [task] } }] });
    let answer = framework.try_call(json!({ "type": "ACCEPT", "accept": accept }));
    assert_eq!(answer.status, 400);
    let field = "accept.operations[0].launch.task_infos[0].resources[0].scalar.value";
    assert!(answer.body.contains(field), "{}", answer.body);
    // Nothing has happened to the offer, of which too much is used now.
    framework.launch(&offer, "t", 100.0, 64.0);
    let status = framework.status();
    assert_eq!((&status["state"], &status["reason"]), (&json!("TASK_ERROR"), &json!("REASON_TASK_INVALID")));
}

#[test]
fn who_calls_too_often_is_told_so_and_others_are_not() {
    let few = Rate { each_second: 1, at_once: 10 };
    let master = Master::with(Box::<MemoryStore>::default(), |config| config.framework_calls = few);
    let framework = Framework::new(master.address, &subscribe_call(None));
    let other = Framework::new(master.address, &subscribe_call(None));
    // All on one connection, before any answer is read.
    let call = format!(r#"{{"type": "REVIVE", "framework_id": {{"value": "{}"}}}}"#, framework.id);
    let headers = format!("Mesos-Stream-Id: {}\r\n", framework.stream_id);
    let statuses = master.flood(&post(SCHEDULER, &headers, &call).replace("Connection: close\r\n", ""), 100);
    assert!(statuses.contains(&202) && statuses.contains(&429), "{} answers", statuses.len());
    assert!(statuses.iter().all(|status| [202, 429].contains(status)));
    other.call(json!({ "type": "REVIVE" }));
    assert!(master.get("/metrics").body.contains("berth_master_calls_throttled_total"));
}

#[test]
fn what_is_no_agent_is_let_go() {
    let master = Master::start();
    let impossible = record(r#"{"id": null, "info": {"hostname": 1}}"#);
    let mut greedy = registration(None);
    greedy.info.resources.quantities = berth_orchestrator::resources::Quantities::UNLIMITED;
    let refused = record(&serde_json::to_string(&greedy).unwrap());
    for (first, answer) in
        [(&b"GET / HTTP/1.1\r\n"[..], ""), (b"99999999999\n", ""), (&impossible, ""), (&refused, "Refused")]
    {
        let mut said = String::new();
        Agent::connect(&master, first).read_to_string(&mut said).unwrap();
        assert!(if answer.is_empty() { said.is_empty() } else { said.contains(answer) }, "{said}");
    }
    Agent::register(&master, &registration(None));
}

#[tokio::test]
async fn nothing_listens_beyond_loopback() {
    let config = Config::new("0.0.0.0:0".parse().unwrap());
    let refused = Server::bind(config, Box::<MemoryStore>::default()).await.err();
    assert!(matches!(refused, Some(Error::NotLoopback(_))), "{refused:?}");
}
