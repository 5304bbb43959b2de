//! Tasks of a cluster are asked whether they are well, and ended where they are not.

use std::fs;

use berth_tests::wait;
use serde_json::{Value, json};

use crate::cluster::http::{Framework, subscribe_call};
use crate::cluster::{Cluster, acknowledge, until};
use crate::jobs::tasks;
use crate::process_guest;

/// The attempts of a job's first task that are over.
fn attempts(cluster: &Cluster, job: &str) -> Vec<Value> {
    tasks(&cluster.job(job))[0]["attempts"].as_array().expect("a task has attempts").clone()
}

/// Waits until a job's first task was ended for a reason.
fn is_replaced(cluster: &Cluster, job: &str, reason: &str) {
    let ended = |attempt: &Value| attempt["message"].as_str().is_some_and(|message| message.contains(reason));
    wait::until(reason, || attempts(cluster, job).iter().any(ended));
    let attempt = attempts(cluster, job).into_iter().find(ended).unwrap();
    assert_eq!(attempt["state"], "TASK_KILLED", "{attempt}");
}

#[test]
fn a_service_that_is_not_well_is_replaced_and_status_shows_how_it_is() {
    let cluster = Cluster::up(1);
    let well = cluster.ledger().join("well");
    fs::write(&well, "").unwrap();
    let manifest = "
name: shop
tasks:
  front:
    service: {}
    image: busybox
    shell: while :; do sleep 0.1; done
    back-off: {first: 100ms}
    grace: 200ms
    resources: {memory: 32m}
    volumes: [{source: LEDGER, target: /ledger}]
    health: {shell: 'echo checked >&2; test -e /ledger/well', interval: 100ms, failures: 2, grace: 0s}
";
    cluster.home.berth("submit --wait healthy").arg(cluster.manifest(manifest)).ok();
    let status = cluster.home.berth("job status shop").ok().text();
    assert!(status.contains("running, healthy"), "{status}");
    assert_eq!(attempts(&cluster, "shop"), Vec::<Value>::new(), "it was never ended");
    fs::remove_file(&well).unwrap();
    is_replaced(&cluster, "shop", "it was not well: the command ended with exit code 1: checked");
    fs::write(&well, "").unwrap();
    wait::until("another one is well", || tasks(&cluster.job("shop"))[0]["healthy"] == true);
}

#[test]
fn servers_are_asked_over_the_network() {
    let cluster = Cluster::up(1);
    fs::write(cluster.ledger().join("ready"), "").unwrap();
    let manifest = "
name: web
tasks:
  http: &server
    service: {}
    image: busybox
    shell: exec httpd -f -p $BERTH_PORT_WEB -h /ledger
    ports: [web]
    resources: {memory: 32m}
    volumes: [{source: LEDGER, target: /ledger, read-only: true}]
    health: {http: {port: web, path: /ready}, interval: 100ms, failures: 2}
  tcp:
    <<: *server
    health: {tcp: {port: web}, interval: 100ms}
";
    cluster.home.berth("submit --wait healthy").arg(cluster.manifest(manifest)).ok();
    fs::remove_file(cluster.ledger().join("ready")).unwrap();
    is_replaced(&cluster, "web", "it was not well: /ready answers 404 Not Found");
    let tcp = tasks(&cluster.job("web"))[1].clone();
    assert_eq!((&tcp["healthy"], &tcp["attempts"]), (&json!(true), &json!([])), "nobody asked it for a file");

    let deaf = "
name: deaf
tasks: {t: {image: busybox, shell: sleep 1000, ports: [web], grace: 0s,
            health: {tcp: {port: web}, grace: 0s, interval: 100ms, failures: 1}}}
";
    cluster.home.berth("submit --wait ended").arg(cluster.manifest(deaf)).run().code(1).fails_with("cannot connect");
}

#[test]
fn a_command_without_an_end_is_ended_with_all_it_started() {
    let cluster = Cluster::up(1);
    let manifest = "
name: hang
tasks:
  t:
    image: busybox
    shell: while :; do sleep 0.1; done
    grace: 100ms
    resources: {memory: 64m}
    volumes: [{source: LEDGER, target: /ledger}]
    health:
      shell: echo asked >> /ledger/asked; sleep 999 & sleep 999; true
      timeout: 200ms
      interval: 100ms
      failures: 8
      grace: 0s
";
    cluster.submit(manifest);
    wait::until("it was asked several times", || cluster.lines("asked").len() >= 5);
    let left = cluster.home.berth("job exec hang.t ps").ok().text().matches("sleep 999").count();
    // The shell, which names it twice, what it waits for and what it does not, of one question at most.
    assert!(left <= 4, "{left} processes are left of {} questions", cluster.lines("asked").len());
    is_replaced(&cluster, "hang", "no answer within 200ms");
    // On a busy machine one may be too late even to say that it was asked.
    assert!(cluster.lines("asked").len() <= 8, "no more often than it may fail");
}

#[test]
fn a_process_guest_is_asked_by_a_command() {
    if !process_guest::is_possible("health checks in process guests") {
        return;
    }
    let cluster = Cluster::up(1);
    let manifest = "
name: guest
tasks:
  t:
    service: {}
    image: busybox
    isolation: microvm-process
    shell: touch /well; while :; do sleep 0.1; done
    grace: 100ms
    resources: {memory: 128m}
    health: {command: [test, -e, /well], interval: 100ms, failures: 2}
";
    cluster.home.berth("submit --wait healthy").arg(cluster.manifest(manifest)).ok();
    cluster.home.berth("job exec guest.t rm /well").ok();
    is_replaced(&cluster, "guest", "it was not well: the command ended with exit code 1");
}

#[test]
fn frameworks_are_told_what_checks_find_also_by_the_next_agent() {
    let cluster = Cluster::up(1);
    let well = cluster.ledger().join("well");
    fs::write(&well, "").unwrap();
    let mut framework = Framework::new(cluster.master, &subscribe_call(None));
    let offer = framework.offer();
    let mut task = cluster.script("while :; do sleep 0.1; done");
    let command = json!({ "value": "test -e /ledger/well" });
    let often = json!({ "delay_seconds": 0.0, "interval_seconds": 0.1 });
    task["health_check"] = json!({ "type": "COMMAND", "command": command, "grace_period_seconds": 0.0 });
    task["check"] = json!({ "type": "COMMAND", "command": { "command": command } });
    for check in ["health_check", "check"] {
        task[check].as_object_mut().unwrap().extend(often.as_object().unwrap().clone());
    }
    framework.launch_as(&offer, "t", 0.1, 32.0, task);
    until(&mut framework, "t", "TASK_RUNNING");
    let (mut healthy, mut checked) = (false, false);
    while !(healthy && checked) {
        let status = framework.status();
        acknowledge(&framework, &status);
        assert_eq!(status["state"], "TASK_RUNNING", "{status}");
        healthy |= status["healthy"] == true && status["reason"] == "REASON_TASK_HEALTH_CHECK_STATUS_UPDATED";
        checked |= status["check_status"] == json!({ "type": "COMMAND", "command": { "exit_code": 0 } });
    }
    cluster.kill(&["agent-1"]);
    fs::remove_file(&well).unwrap();
    cluster.mend(1);
    let status = until(&mut framework, "t", "TASK_KILLED");
    assert_eq!((&status["healthy"], &status["source"]), (&json!(false), &json!("SOURCE_EXECUTOR")), "{status}");
    assert_eq!(status["reason"], "REASON_TASK_HEALTH_CHECK_STATUS_UPDATED");
    assert!(status["message"].as_str().unwrap().contains("exit code 1"), "{status}");

    framework.call(json!({ "type": "REVIVE" }));
    let offer = framework.offer();
    let mut wrong = cluster.script("true");
    wrong["health_check"] = json!({ "type": "HTTP", "http": { "port": 80, "scheme": "https" } });
    framework.launch_as(&offer, "wrong", 0.1, 32.0, wrong);
    let status = until(&mut framework, "wrong", "TASK_ERROR");
    assert!(status["message"].as_str().unwrap().contains("health_check.http.scheme"), "{status}");
}
