//! What people see and change.

use berth_orchestrator::master::ToAgent;
use serde_json::json;

use crate::client::{Agent, Master, registration};
use crate::http::{Framework, subscribe_call};

#[test]
fn the_state_says_who_is_there_and_what_runs() {
    let master = Master::start();
    let mut framework = Framework::new(master.address, &subscribe_call(None));
    let mut agent = Agent::register(&master, &registration(None));
    framework.launch_next("t", 1.0, 512.0);
    agent.next();
    let state =
        master.until(&json!({ "type": "GET_STATE" }), |all| all["get_state"]["get_tasks"]["tasks"] != json!([]));
    let state = &state["get_state"];
    let task = &state["get_tasks"]["tasks"][0];
    assert_eq!((&task["name"], &task["state"], &task["role"]), (&json!("a task"), &json!("TASK_STAGING"), &json!("a")));
    let known = &state["get_frameworks"]["frameworks"][0];
    assert_eq!((&known["framework_info"]["id"]["value"], &known["active"]), (&json!(framework.id), &json!(true)));
    let known = &state["get_agents"]["agents"][0];
    assert_eq!(known["agent_info"]["id"]["value"], agent.id.as_str());
    assert_eq!(known["allocated_resources"][0]["scalar"]["value"], 1.0);
    assert_eq!(known["total_resources"][1]["scalar"]["value"], 8192.0);

    assert_eq!(master.get("/health").status, 200);
    assert_eq!(
        master.get("/version").body,
        master.operator(&json!({ "type": "GET_VERSION" }))["get_version"]["version_info"].to_string()
    );
    let metrics = master.get("/metrics").body;
    for line in [
        r#"berth_master_agents{state="connected"} 1"#,
        r#"berth_master_tasks{state="TASK_STAGING"} 1"#,
        r#"berth_master_frameworks{state="connected"} 1"#,
        "berth_master_calls_total 1",
    ] {
        assert!(metrics.lines().any(|known| known == line), "{line} is not in {metrics}");
    }
}

#[test]
fn fairness_is_shown_and_explained() {
    let master = Master::start();
    let weights = json!({ "weight_infos": [{ "role": "a", "weight": 2.0 }] });
    master.operator(&json!({ "type": "UPDATE_WEIGHTS", "update_weights": weights }));
    let cpus = |count: f64| json!({ "cpus": { "value": count } });
    let quota = json!({ "role": "b", "guarantees": cpus(1.0), "limits": cpus(3.0) });
    let quotas = json!({ "quota_configs": [quota] });
    master.operator(&json!({ "type": "UPDATE_QUOTA", "update_quota": quotas }));
    let mut framework = Framework::new(master.address, &subscribe_call(None));
    let mut agent = Agent::register(&master, &registration(None));
    framework.launch_next("t", 1.0, 4096.0);
    agent.next();
    let used = |all: &serde_json::Value| all["get_fairness"]["roles"][0]["used"]["mem"] == 4096.0;
    let fairness = master.until(&json!({ "type": "GET_FAIRNESS" }), used);
    let role = &fairness["get_fairness"]["roles"][0];
    assert_eq!((&role["role"], &role["weight"]), (&json!("a"), &json!(2.0)));
    assert_eq!(fairness["get_fairness"]["roles"][1]["quota"], quota);
    assert_eq!(role["share"]["dominant_resource"], "mem");
    let asked = json!({ "task_id": { "value": "t" }, "framework_id": { "value": framework.id } });
    let why = master.operator(&json!({ "type": "EXPLAIN_TASK", "explain_task": asked }));
    let why = &why["explain_task"];
    assert_eq!(why["task"]["task_id"]["value"], "t");
    assert_eq!((&why["decision"]["stage"], &why["decision"]["role_held"]["cpus"]), (&json!("fair share"), &json!(0.0)));
    let unknown = json!({ "type": "EXPLAIN_TASK", "explain_task": { "task_id": { "value": "u" } } });
    assert_eq!(master.post("/api/v1", "", &unknown).status, 404);
}

#[test]
fn agents_are_drained_reactivated_and_declared_gone() {
    let master = Master::start();
    let mut framework = Framework::new(master.address, &subscribe_call(None));
    let mut agent = Agent::register(&master, &registration(None));
    framework.launch_next("t", 1.0, 512.0);
    agent.next();
    let open = framework.offer();
    let id = json!({ "agent_id": { "value": agent.id.as_str() } });
    master.operator(&json!({ "type": "DRAIN_AGENT", "drain_agent": id }));
    assert!(matches!(agent.next(), Some(ToAgent::Kill { .. })));
    assert_eq!(framework.expect("RESCIND")["offer_id"], open["id"]);
    let agents = master.operator(&json!({ "type": "GET_AGENTS" }));
    assert_eq!(agents["get_agents"]["agents"][0]["deactivated"], true);
    master.operator(&json!({ "type": "REACTIVATE_AGENT", "reactivate_agent": id }));
    framework.offer();
    master.operator(&json!({ "type": "MARK_AGENT_GONE", "mark_agent_gone": id }));
    assert!(matches!(agent.next(), Some(ToAgent::ShutDown(_))));
    assert!(agent.next().is_none());
    assert_eq!(framework.status()["state"], "TASK_GONE_BY_OPERATOR");
    assert_eq!(framework.expect("FAILURE")["agent_id"]["value"], agent.id.as_str());
    let teardown = json!({ "type": "TEARDOWN", "teardown": { "framework_id": { "value": framework.id } } });
    master.operator(&teardown);
    assert_eq!(std::iter::from_fn(|| framework.next()).find(|event| event["type"] != "HEARTBEAT"), None);
    assert_eq!(master.post("/api/v1", "", &teardown).status, 404);
}

#[test]
fn other_users_only_see_that_there_is_a_master() {
    use std::os::unix::process::CommandExt as _;
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT TESTED: requests of other users, which only root can make");
        return;
    }
    let master = Master::start();
    let ask = |user: u32, path: &str| {
        let script = "exec 3<>/dev/tcp/127.0.0.1/$0; printf 'GET %s HTTP/1.1\\r\\nHost: m\\r\\nConnection: close\\r\\n\\r\\n' $1 >&3; \
                      head -n 1 <&3";
        let mut shell = std::process::Command::new("bash");
        let output = shell.args(["-c", script, &master.address.port().to_string(), path]).uid(user).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split(' ').nth(1).map(str::to_owned).unwrap_or_default()
    };
    assert_eq!((ask(0, "/metrics"), ask(0, "/health")), ("200".to_owned(), "200".to_owned()));
    assert_eq!((ask(65534, "/metrics"), ask(65534, "/health")), ("403".to_owned(), "200".to_owned()));
    assert_eq!(ask(65534, "/version"), "200");
}
