//! Whatever is sent, reading it ends with a value or an error that names a field: never with a panic.

use berth_orchestrator::api::protobuf::Message;
use berth_orchestrator::api::{Invalid, agent, executor, operator, parse, scheduler, sessions};
use berth_orchestrator::recordio::{Decoder, frame};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Calls that are right, to be spoiled.
fn calls() -> Vec<Value> {
    let id = |text: &str| json!({ "value": text });
    let resources = json!([
        { "name": "cpus", "type": "SCALAR", "scalar": { "value": 1.5 }, "role": "*" },
        { "name": "ports", "type": "RANGES", "ranges": { "range": [{ "begin": 31000, "end": 31005 }] } },
    ]);
    let task = json!({ "name": "n", "task_id": id("t"), "agent_id": id("a"), "resources": resources, "command": {} });
    let mut by_executor = task.clone();
    by_executor["executor"] = json!({ "executor_id": id("e"), "command": {}, "resources": resources });
    let launch = json!([{ "type": "LAUNCH", "launch": { "task_infos": [task, by_executor] } }]);
    let status = json!({ "task_id": id("t"), "state": "TASK_RUNNING", "uuid": "AAAAAAAAAAAAAAAAAAAABw==" });
    let unacknowledged =
        json!({ "unacknowledged_tasks": [{ "task_id": id("t") }], "unacknowledged_updates": [{ "status": status }] });
    let constraint =
        json!({ "selector": { "attribute_name": "zone" }, "predicate": { "text_matches": { "regex": "b+" } } });
    let constraints = json!({ "role_constraints": { "a": { "groups": [{ "attribute_constraints": [constraint] }] } } });
    let info = json!({
        "user": "u", "name": "n", "roles": ["a"], "failover_timeout": 7.5, "capabilities": [{ "type": "MULTI_ROLE" }],
    });
    let subscribe = json!({ "framework_info": info, "suppressed_roles": ["a"], "offer_constraints": constraints });
    let accept = json!({ "offer_ids": [id("m-O1")], "operations": launch, "filters": { "refuse_seconds": 5.0 } });
    let acknowledge = json!({ "agent_id": id("a"), "task_id": id("t"), "uuid": "AAAAAAAAAAAAAAAAAAAABw==" });
    let message = json!({ "agent_id": id("a"), "executor_id": id("e"), "data": "aGVsbG8=" });
    let quota = json!({ "role": "a", "guarantees": { "cpus": { "value": 1 } }, "limits": { "mem": { "value": 2.5 } } });
    let framework = id("f");
    let nested = json!({ "value": "s", "parent": id("t") });
    let window = json!({ "window_size": { "rows": 24, "columns": 80 } });
    let session = json!({ "container_id": nested, "command": { "value": "ls" }, "container": { "tty_info": window } });
    let control = json!({ "type": "CONTROL", "control": { "type": "TTY_INFO", "tty_info": window } });
    let input = json!({ "type": "PROCESS_IO", "process_io": control });
    vec![
        json!({ "type": "SUBSCRIBE", "subscribe": subscribe }),
        json!({ "type": "ACCEPT", "framework_id": framework, "accept": accept }),
        json!({ "type": "DECLINE", "framework_id": framework, "decline": { "offer_ids": [id("m-O1")] } }),
        json!({ "type": "KILL", "framework_id": framework, "kill": { "task_id": id("t"), "kill_policy": null } }),
        json!({ "type": "ACKNOWLEDGE", "framework_id": framework, "acknowledge": acknowledge }),
        json!({ "type": "RECONCILE", "framework_id": framework, "reconcile": { "tasks": [{ "task_id": id("t") }] } }),
        json!({ "type": "MESSAGE", "framework_id": framework, "message": message }),
        json!({ "type": "SHUTDOWN", "framework_id": framework, "shutdown": { "agent_id": id("a"), "executor_id": id("e") } }),
        json!({ "type": "SUBSCRIBE", "framework_id": framework, "executor_id": id("e"), "subscribe": unacknowledged }),
        json!({ "type": "UPDATE", "framework_id": framework, "executor_id": id("e"), "update": { "status": status } }),
        json!({ "type": "MESSAGE", "framework_id": framework, "executor_id": id("e"), "message": { "data": "eA==" } }),
        json!({ "type": "UPDATE_QUOTA", "update_quota": { "quota_configs": [quota] } }),
        json!({ "type": "UPDATE_WEIGHTS", "update_weights": { "weight_infos": [{ "role": "a", "weight": 2.5 }] } }),
        json!({ "type": "DRAIN_AGENT", "drain_agent": { "agent_id": id("a") } }),
        json!({ "type": "LIST_FILES", "list_files": { "path": "/frameworks" } }),
        json!({ "type": "READ_FILE", "read_file": { "path": "/a", "offset": 7, "length": 5 } }),
        json!({ "type": "PREFETCH_IMAGE", "prefetch_image": { "image": "busybox" } }),
        json!({ "type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session": session }),
        json!({ "type": "ATTACH_CONTAINER_INPUT", "attach_container_input": input }),
        json!({ "type": "WAIT_CONTAINER", "wait_container": { "container_id": nested } }),
        json!({ "type": "EXPLAIN_TASK", "explain_task": { "task_id": id("t") } }),
    ]
}

/// What takes the place of a part of a call.
fn spoilt() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        prop::num::f64::ANY.prop_map(Value::from),
        "\\PC{0,300}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!([{ "value": "x" }])),
    ]
}

/// Replaces the part at a path of choices.
fn spoil(part: &mut Value, choices: &[prop::sample::Index], by: Value) {
    let Some((choice, rest)) = choices.split_first() else {
        *part = by;
        return;
    };
    let inner = match part {
        Value::Object(fields) if !fields.is_empty() => {
            let index = choice.index(fields.len());
            fields.values_mut().nth(index)
        }
        Value::Array(items) if !items.is_empty() => {
            let index = choice.index(items.len());
            items.get_mut(index)
        }
        _ => None,
    };
    match inner {
        Some(inner) => spoil(inner, rest, by),
        None => *part = by,
    }
}

fn read_all(call: &Value) -> [Option<Invalid>; 5] {
    let record = sessions::record(call.clone());
    [
        scheduler::read(call.clone(), "m").err(),
        operator::read(call.clone()).err(),
        agent::read(call.clone()).err(),
        executor::read(call.clone()).err(),
        record.err(),
    ]
}

#[test]
fn the_calls_that_are_spoilt_are_right() {
    for call in calls() {
        let right = read_all(&parse(call.to_string().as_bytes()).unwrap());
        // Operators subscribe by a call of the same name.
        let apis = if call["type"] == "SUBSCRIBE" { 2 } else { 1 };
        assert_eq!(right.iter().filter(|wrong| wrong.is_none()).count(), apis, "{call}: {right:?}");
    }
}

/// `serde` would take a list for a message's fields one after the other.
#[test]
fn lists_are_no_messages() {
    let executor = json!([{ "value": "e" }, null]);
    let launch = json!({ "type": "LAUNCH", "launch": { "task_infos": [{
        "name": "t",
        "task_id": { "value": "t" },
        "agent_id": { "value": "a" },
        "resources": [],
        "executor": executor,
    }] } });
    let accept = json!({ "offer_ids": [], "operations": [launch] });
    let accept = json!({ "type": "ACCEPT", "framework_id": { "value": "f" }, "accept": accept });
    let wrong = scheduler::read(accept, "m").unwrap_err();
    assert!(wrong.field.ends_with(".executor"), "{wrong}");

    let status = json!([{ "value": "t" }, "TASK_RUNNING", "AAAAAAAAAAAAAAAAAAAABw==", "said"]);
    let ids = (json!({ "value": "f" }), json!({ "value": "e" }));
    let update =
        json!({ "type": "UPDATE", "framework_id": ids.0, "executor_id": ids.1, "update": { "status": status } });
    assert_eq!(executor::read(update).unwrap_err().field, "update.status");
}

#[test]
fn calls_that_come_as_protobuf_mean_the_same() {
    type Read = fn(Value) -> bool;
    let all: [(Message, Read); 5] = [
        (Message::SchedulerCall, |call| scheduler::read(call, "m").is_ok()),
        (Message::ExecutorCall, |call| executor::read(call).is_ok()),
        (Message::MasterCall, |call| operator::read(call).is_ok()),
        (Message::AgentCall, |call| agent::read(call).is_ok()),
        (Message::AgentCall, |call| sessions::record(call).is_ok()),
    ];
    for call in calls() {
        let call = parse(call.to_string().as_bytes()).unwrap();
        let kind = call["type"].as_str().unwrap();
        // Some are berth's own.
        for (sent, reads) in all.into_iter().filter(|(sent, reads)| reads(call.clone()) && sent.has_type(kind)) {
            let received = sent.read(&sent.write(&call)).unwrap();
            assert!(reads(received.clone()), "{call} comes as {received}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn spoilt_calls_are_read_or_refused(
        call in prop::sample::select(calls()),
        changes in prop::collection::vec((prop::collection::vec(any::<prop::sample::Index>(), 1..9), spoilt()), 1..4),
    ) {
        let mut call = call;
        for (choices, by) in changes {
            spoil(&mut call, &choices, by);
        }
        if let Ok(call) = parse(call.to_string().as_bytes()) {
            for wrong in read_all(&call).into_iter().flatten() {
                prop_assert!(!wrong.field.is_empty() && !wrong.problem.is_empty());
            }
        }
    }

    #[test]
    fn any_bytes_are_a_call_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(call) = parse(&bytes) {
            read_all(&call);
        }
    }

    #[test]
    fn any_stream_is_cut_into_records_or_refused(
        records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..5),
        rest in prop::collection::vec(any::<u8>(), 0..50),
        size in 1_usize..20,
    ) {
        let stream = records.iter().flat_map(|record| frame(record)).chain(rest).collect::<Vec<u8>>();
        let mut decoder = Decoder::new(50);
        let mut read = Vec::new();
        'stream: for part in stream.chunks(size) {
            decoder.push(part);
            loop {
                match decoder.next_record() {
                    Ok(Some(record)) => read.push(record.to_vec()),
                    Ok(None) => break,
                    Err(_) => break 'stream,
                }
            }
        }
        prop_assert_eq!(&read[..records.len()], &records[..]);
    }
}
