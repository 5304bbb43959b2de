//! A cluster on one machine, with tasks in real sandboxes: `berth cluster`, and what a framework sees of it.

#[path = "../../orchestrator/tests/server/http.rs"]
pub mod http;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use berth_tests::home::Home;
use berth_tests::{fixtures, wait};
use http::{DEADLINE, Framework, subscribe_call};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::process_guest;

/// A cluster that ends with the test.
pub struct Cluster {
    pub home: Home,
    pub master: SocketAddr,
}

impl Cluster {
    pub fn up(agents: u16) -> Cluster {
        Cluster::up_with(agents, "")
    }

    /// The same, with flags of `berth cluster up`.
    pub fn up_with(agents: u16, flags: &str) -> Cluster {
        Cluster::up_in(Home::new(), agents, flags)
    }

    /// The same, where something was prepared.
    pub fn up_in(home: Home, agents: u16, flags: &str) -> Cluster {
        let up = format!("cluster up --listen 127.0.0.1:0 --agents {agents} --format json {flags}");
        let up = home.berth(&up).ok().json();
        let master = up["master"].as_str().unwrap().parse().unwrap();
        Cluster { home, master }
    }

    /// Starts what has died.
    pub fn mend(&self, agents: u16) {
        self.home.berth(&format!("cluster up --agents {agents}")).ok();
    }

    /// Kills processes of it at once, and makes sure that they are dead.
    pub fn kill(&self, names: &[&str]) {
        let status = self.home.berth("cluster status --format json").ok().json();
        let processes = status["Processes"].as_array().unwrap().clone();
        let of = |name: &str| processes.iter().find(|process| process["Name"] == name).expect("it was started");
        for name in names {
            let pid = Pid::from_raw(i32::try_from(of(name)["Pid"].as_i64().unwrap()).unwrap());
            kill(pid, Signal::SIGKILL).unwrap();
        }
        wait::until("the processes are dead", || {
            let status = self.home.berth("cluster status --format json").ok().json();
            let dead = |name: &str| {
                let mut processes = status["Processes"].as_array().unwrap().iter();
                processes.any(|process| process["Name"] == name && process["Running"] == false)
            };
            names.iter().all(|name| dead(name))
        });
    }

    /// Asks the master something as an operator, and returns the answer's status.
    pub fn operate(&self, call: &Value) -> u16 {
        http::send(self.master, http::post("/api/v1", "", &call.to_string()).as_bytes()).status
    }

    /// Where tasks write down that they were there: a file each.
    pub fn ledger(&self) -> PathBuf {
        let ledger = self.home.scratch().join("ledger");
        fs::create_dir_all(&ledger).unwrap();
        ledger
    }

    /// A task that runs a script in busybox and can write into the ledger.
    pub fn script(&self, script: &str) -> Value {
        let volume = json!({ "mode": "RW", "container_path": "/ledger", "host_path": self.ledger() });
        let image = json!({ "type": "DOCKER", "docker": { "name": "busybox" } });
        json!({
            "command": { "value": script },
            "container": { "type": "MESOS", "mesos": { "image": image }, "volumes": [volume] },
        })
    }

    /// What there is of tasks on the host.
    pub fn containers(&self) -> Vec<String> {
        self.home.containers()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let down = self.home.berth("cluster down").run();
        if !std::thread::panicking() {
            let _ = down.code(0);
            assert_eq!(self.containers(), Vec::<String>::new(), "no sandbox outlives its cluster");
        }
    }
}

/// Acknowledges a status, as frameworks have to.
pub fn acknowledge(framework: &Framework, status: &Value) {
    if status["uuid"].is_string() {
        let body = json!({ "agent_id": status["agent_id"], "task_id": status["task_id"], "uuid": status["uuid"] });
        framework.call(json!({ "type": "ACKNOWLEDGE", "acknowledge": body }));
    }
}

/// Waits until a task is in a state, and acknowledges all that is said meanwhile.
pub fn until(framework: &mut Framework, task: &str, state: &str) -> Value {
    let end = Instant::now() + DEADLINE;
    loop {
        let status = framework.status();
        acknowledge(framework, &status);
        if status["task_id"]["value"] == task && status["state"] == state {
            return status;
        }
        assert!(Instant::now() < end, "{task} is not {state}, but {status}");
    }
}

#[test]
fn tasks_run_in_sandboxes_with_the_limits_that_were_accepted() {
    let cluster = Cluster::up(1);
    let mut framework = Framework::new(cluster.master, &subscribe_call(None));
    let offer = framework.offer();
    let names = |attribute: &Value| (attribute["name"].clone(), attribute["text"]["value"].clone());
    let attributes: Vec<_> = offer["attributes"].as_array().unwrap().iter().map(names).collect();
    assert!(attributes.contains(&(json!("isolation.container"), json!("true"))), "{attributes:?}");
    let script = "cat /sys/fs/cgroup/memory.max 2> /dev/null > /ledger/good \
                  || cat /sys/fs/cgroup/memory/memory.limit_in_bytes > /ledger/good";
    framework.launch_as(&offer, "good", 0.1, 32.0, cluster.script(script));
    until(&mut framework, "good", "TASK_RUNNING");
    let status = until(&mut framework, "good", "TASK_FINISHED");
    assert_eq!(status["message"], "exit code 0");
    assert_eq!(fs::read_to_string(cluster.ledger().join("good")).unwrap(), "33554432\n");

    framework.call(json!({ "type": "REVIVE" }));
    let offer = framework.offer();
    framework.launch_as(&offer, "bad", 0.1, 32.0, cluster.script("exit 7"));
    assert_eq!(until(&mut framework, "bad", "TASK_FAILED")["message"], "exit code 7");

    framework.call(json!({ "type": "REVIVE" }));
    let offer = framework.offer();
    let image = json!({ "docker": { "image": "no-such-image.invalid/x" }, "type": "DOCKER" });
    let what = json!({ "command": { "value": "true" }, "container": image });
    framework.launch_as(&offer, "unknown", 0.1, 32.0, what);
    let status = until(&mut framework, "unknown", "TASK_FAILED");
    assert!(status["message"].as_str().unwrap().contains("no-such-image.invalid"), "{status}");

    framework.call(json!({ "type": "REVIVE" }));
    let offer = framework.offer();
    let executor = json!({ "executor_id": { "value": "e" } });
    framework.launch_as(&offer, "wrong", 0.1, 32.0, json!({ "executor": executor, "command": { "value": "true" } }));
    let status = until(&mut framework, "wrong", "TASK_ERROR");
    assert!(status["message"].as_str().unwrap().contains("a task has one of them"), "{status}");
    wait::until("all that has ended is removed", || cluster.containers().is_empty());
}

#[test]
fn containers_process_guests_and_modules_run_side_by_side() {
    let cluster = Cluster::up(1);
    let mut framework = Framework::new(cluster.master, &subscribe_call(None));
    cluster.home.berth("image build-wasm").arg(fixtures::wasm_program()).arg("-t").arg("module").ok();
    let script = json!({ "value": "echo written > $MESOS_SANDBOX/new" });
    let write = json!({ "shell": false, "arguments": ["write", "/mnt/mesos/sandbox/new"] });
    let mut isolations = vec![("container", "busybox", script.clone()), ("wasm", "module", write)];
    if process_guest::is_possible("tasks in process guests") {
        isolations.push(("microvm-process", "busybox", script));
    }
    for (isolation, image, command) in isolations {
        framework.call(json!({ "type": "REVIVE" }));
        let offer = framework.offer();
        let attribute =
            json!({ "name": format!("isolation.{isolation}"), "type": "TEXT", "text": { "value": "true" } });
        assert!(offer["attributes"].as_array().unwrap().contains(&attribute), "{isolation}: {offer}");
        let what = json!({
            "command": command,
            "container": { "type": "DOCKER", "docker": { "image": image } },
            "labels": { "labels": [{ "key": "org.berth.isolation", "value": isolation }] },
        });
        framework.launch_as(&offer, isolation, 0.5, 128.0, what);
        // It is there until its end is acknowledged.
        let kind = format!("\"Isolation\": \"{}\"", isolation.split('-').next().unwrap());
        let inspect = |name: String| cluster.home.berth("inspect").arg(name).run().text();
        wait::until(&kind, || cluster.containers().into_iter().any(|name| inspect(name).contains(&kind)));
        until(&mut framework, isolation, "TASK_FINISHED");
        let path = format!("/frameworks/{}/executors/{isolation}/runs/latest/new", framework.id);
        let call = json!({ "type": "READ_FILE", "read_file": { "path": path, "offset": 0 } });
        let (status, answer) = ask(&cluster, offer["url"]["path"].as_str().unwrap(), &call);
        // In base 64: `written`, with the end of its line.
        assert_eq!((status, &answer["read_file"]["data"]), (200, &json!("d3JpdHRlbgo=")), "{isolation}");
    }
}

#[test]
fn a_task_has_time_to_end_by_itself_and_not_for_ever() {
    let cluster = Cluster::up(1);
    let mut framework = Framework::new(cluster.master, &subscribe_call(None));
    let offer = framework.offer();
    let polite =
        "trap 'echo bye > /ledger/polite; exit 0' TERM; echo there > /ledger/polite; while :; do sleep 0.05; done";
    framework.launch_as(&offer, "polite", 0.1, 32.0, cluster.script(polite));
    until(&mut framework, "polite", "TASK_RUNNING");
    let said = |task: &str, text: &str| {
        let path = cluster.ledger().join(task);
        wait::until(text, || fs::read_to_string(&path).is_ok_and(|said| said == format!("{text}\n")));
    };
    said("polite", "there");
    framework.call(json!({ "type": "KILL", "kill": { "task_id": { "value": "polite" } } }));
    until(&mut framework, "polite", "TASK_FINISHED");
    said("polite", "bye");

    framework.call(json!({ "type": "REVIVE" }));
    let offer = framework.offer();
    let deaf = "trap '' TERM; echo there > /ledger/deaf; while :; do sleep 0.05; done";
    framework.launch_as(&offer, "deaf", 0.1, 32.0, cluster.script(deaf));
    until(&mut framework, "deaf", "TASK_RUNNING");
    said("deaf", "there");
    let grace = json!({ "grace_period": { "nanoseconds": 200_000_000 } });
    framework.call(json!({ "type": "KILL", "kill": { "task_id": { "value": "deaf" }, "kill_policy": grace } }));
    until(&mut framework, "deaf", "TASK_KILLED");
}

#[test]
fn people_see_nodes_shares_and_reasons() {
    let cluster = Cluster::up(2);
    let status = cluster.home.berth("cluster status").ok().text();
    assert_eq!(status.matches("running").count(), 4, "a master, two agents and the job framework: {status}");
    let events = cluster.home.berth("cluster events").spawn();
    events.expect("SUBSCRIBED agents: 2, frameworks: 1, tasks: 0");
    let as_json = cluster.home.berth("cluster events --format json").spawn();
    as_json.expect("SUBSCRIBED");
    let mut framework = Framework::new(cluster.master, &subscribe_call(None));
    // One offer of each agent.
    let mut offers = framework.expect("OFFERS")["offers"].as_array().unwrap().clone();
    let offer = offers.remove(0);
    framework.launch_as(&offer, "t", 0.25, 64.0, cluster.script("while :; do sleep 1; done"));
    until(&mut framework, "t", "TASK_RUNNING");
    let agent = offer["agent_id"]["value"].as_str().unwrap().to_owned();
    wait::until("the node's task is shown", || {
        let nodes = cluster.home.berth("nodes").ok().text();
        let line = nodes.lines().find(|line| line.starts_with(&agent)).expect("the agent is listed").to_owned();
        line.contains("0.25 of") && line.contains("64.0MiB of") && line.contains("connected")
    });
    let fairness = cluster.home.berth("fairness").ok().text();
    assert!(fairness.lines().any(|line| line.starts_with("a ")), "{fairness}");
    assert!(fairness.contains(&framework.id), "{fairness}");
    let why = cluster.home.berth("explain t").ok().text();
    assert!(why.starts_with(&format!("t is TASK_RUNNING on agent {agent}, in role a\n")), "{why}");
    cluster.home.berth("explain u").run().fails_with("no task has this id");
    events.expect(&format!("FRAMEWORK_ADDED {} (test) is connected", framework.id));
    events.expect(&format!("TASK_ADDED t of {} on {agent}", framework.id));
    events.expect(&format!("TASK_UPDATED t of {} is TASK_RUNNING", framework.id));
    as_json.expect("TASK_RUNNING");
    cluster.home.berth("nodes --master 127.0.0.1:1").run().fails_with("berth cluster up");
    for (flags, said) in [
        ("--agents 3", "a cluster is up already, with 2 agents"),
        ("--listen 127.0.0.1:9", "with a master at 127.0.0.1:"),
        ("--agent-timeout 99s", "agent timeout"),
        ("--default-image no-such", "default image"),
    ] {
        cluster.home.berth(&format!("cluster up {flags}")).run().fails_with(said);
    }
    cluster.kill(&["master"]);
    events.wait().fails_with("the stream of events of the master at 127.0.0.1:");
    let events = as_json.wait().text();
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: BTreeSet<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert!(kinds.is_superset(&["SUBSCRIBED", "FRAMEWORK_ADDED", "TASK_ADDED", "TASK_UPDATED"].into()), "{kinds:?}");
    assert!(!kinds.contains("HEARTBEAT"), "{kinds:?}");
    // What is left out stays as it is.
    let _ = cluster.home.berth("cluster up").ok();
}

/// What a call to an agent is answered, by way of the master.
pub fn ask(cluster: &Cluster, path: &str, call: &Value) -> (u16, Value) {
    let answer = http::send(cluster.master, http::post(&format!("{path}/api/v1"), "", &call.to_string()).as_bytes());
    (answer.status, serde_json::from_str(&answer.body).unwrap_or(Value::String(answer.body)))
}

#[test]
fn what_tasks_write_is_read_through_their_agent() {
    let cluster = Cluster::up(1);
    let mut framework = Framework::new(cluster.master, &subscribe_call(None));
    let offer = framework.offer();
    let script = "echo out; echo err >&2; cd $MESOS_SANDBOX && echo kept > result && mkdir sub && echo deep > sub/file \
                  && ln -s /etc/hostname link && ln -s .. up && mkfifo pipe && : > /ledger/there; \
                  while [ ! -e /ledger/go ]; do sleep 0.05; done; printf more";
    framework.launch_as(&offer, "t", 0.1, 32.0, cluster.script(script));
    let status = until(&mut framework, "t", "TASK_RUNNING");
    wait::until("it has written", || cluster.ledger().join("there").exists());
    let agent = offer["url"]["path"].as_str().unwrap();
    let id = status["container_status"]["container_id"]["value"].as_str().unwrap();
    let run = |run: &str| format!("/frameworks/{}/executors/t/runs/{run}", framework.id);
    let read = |path: &str, offset: u64| {
        let call = json!({ "type": "READ_FILE", "read_file": { "path": path, "offset": offset, "length": 100 } });
        let (status, answer) = ask(&cluster, agent, &call);
        let piece = &answer["read_file"];
        if status == 200 { Ok((piece["size"].clone(), piece["data"].clone())) } else { Err(status) }
    };
    let list = |path: &str| {
        let (status, answer) = ask(&cluster, agent, &json!({ "type": "LIST_FILES", "list_files": { "path": path } }));
        assert_eq!(status, 200, "{answer}");
        let files = answer["list_files"]["file_infos"].as_array().unwrap().clone();
        files.iter().map(|file| file["path"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (latest, by_id) = (run("latest"), run(id));
    let all = ["container.log", "link", "pipe", "result", "stderr", "stdout", "sub", "up"];
    assert_eq!(list(&latest), all.map(|name| format!("{latest}/{name}")));
    assert_eq!(list(&format!("{by_id}/sub")), [format!("{by_id}/sub/file")]);
    let is = |size: u64, data: &str| Ok((json!(size), json!(data)));
    // In base 64: `out`, `ut`, `err`, `kept` and `deep`, with the ends of their lines.
    assert_eq!(read(&format!("{latest}/stdout"), 0), is(4, "b3V0Cg=="));
    assert_eq!(read(&format!("{by_id}/stdout"), 1), is(4, "dXQK"));
    assert_eq!(read(&format!("{latest}/stderr"), 0), is(4, "ZXJyCg=="));
    assert_eq!(read(&format!("{latest}/result"), 0), is(5, "a2VwdAo="));
    assert_eq!(read(&format!("{latest}/sub/file"), 0), is(5, "ZGVlcAo="));
    assert_eq!(read(&format!("{latest}/result"), u64::MAX), is(5, ""));
    for (path, status) in [
        ("link", 400),
        ("up/agent.redb", 400),
        ("../../agent.redb", 400),
        ("pipe", 400),
        ("sub", 400),
        ("nothing", 404),
    ] {
        assert_eq!(read(&format!("{latest}/{path}"), 0), Err(status), "{path}");
    }
    for path in ["", "/etc/passwd", &run("nothing"), "/frameworks/x/executors/t/runs/latest/stdout"] {
        assert_eq!(read(path, 0), Err(404), "{path}");
    }

    // It stays when the task is over, and when its agent is another.
    fs::write(cluster.ledger().join("go"), "").unwrap();
    until(&mut framework, "t", "TASK_FINISHED");
    wait::until("its sandbox is removed", || cluster.containers().is_empty());
    for _ in 0..2 {
        wait::until("the agent is there", || read(&format!("{latest}/result"), 0) == is(5, "a2VwdAo="));
        assert_eq!(read(&format!("{latest}/stdout"), 4), is(8, "bW9yZQ=="));
        cluster.kill(&["agent-1"]);
        wait::until("its connection is closed", || read(&latest, 0) == Err(503));
        cluster.mend(1);
    }
}

#[test]
fn a_home_without_a_cluster_says_so() {
    let home = Home::empty();
    for command in ["cluster status", "cluster down", "nodes", "fairness", "explain t"] {
        home.berth(command).run().fails_with("there is no cluster on this machine");
    }
    home.berth("cluster master --listen 0.0.0.0:0").run().fails_with("loopback");
}

/// What a framework of many tasks knows, kept apart from all that the cluster knows.
struct Work {
    id: Option<String>,
    waiting: BTreeSet<String>,
    /// The latest state of what was launched.
    launched: BTreeMap<String, String>,
}

impl Work {
    fn new(count: usize) -> Work {
        let waiting = (0..count).map(|number| format!("t{number}")).collect();
        Work { id: None, waiting, launched: BTreeMap::new() }
    }

    fn subscribe(&mut self, cluster: &Cluster) -> Framework {
        let framework = Framework::new(cluster.master, &subscribe_call(self.id.as_deref()));
        self.id = Some(framework.id.clone());
        framework
    }

    /// Takes part until a condition holds.
    fn go_on(&mut self, cluster: &Cluster, framework: &mut Framework, done: impl Fn(&Work) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !done(self) {
            assert!(Instant::now() < end, "{:?} wait, {:?}", self.waiting, self.launched);
            let event = framework.next().expect("the stream goes on");
            match event["type"].as_str().unwrap() {
                "OFFERS" => {
                    for offer in event["offers"]["offers"].as_array().unwrap() {
                        let Some(task) = self.waiting.pop_first() else { break };
                        let script = format!("echo begin >> /ledger/{task}; sleep 3; echo end >> /ledger/{task}");
                        framework.launch_as(offer, &task, 0.05, 16.0, cluster.script(&script));
                        self.launched.insert(task, "launched".to_owned());
                    }
                }
                "UPDATE" => {
                    let status = &event["update"]["status"];
                    acknowledge(framework, status);
                    let task = status["task_id"]["value"].as_str().unwrap();
                    let state = status["state"].as_str().unwrap();
                    // A task that never reached its agent, and of which nobody knows, may be launched again under the
                    // same name.
                    if ["TASK_DROPPED", "TASK_UNKNOWN"].contains(&state) {
                        self.launched.remove(task);
                        self.waiting.insert(task.to_owned());
                    } else {
                        self.launched.insert(task.to_owned(), state.to_owned());
                    }
                }
                // What a master was told, and could not pass on before it died, nobody says unless asked.
                "HEARTBEAT" => {
                    let unsure = self.launched.iter().filter(|(_, state)| *state != "TASK_FINISHED");
                    let unsure: Vec<Value> = unsure.map(|(task, _)| json!({ "task_id": { "value": task } })).collect();
                    if !unsure.is_empty() {
                        framework.call(json!({ "type": "RECONCILE", "reconcile": { "tasks": unsure } }));
                    }
                }
                _ => {}
            }
        }
    }

    fn count(&self, state: &str) -> usize {
        self.launched.values().filter(|known| *known == state).count()
    }
}

/// Kills processes of a cluster while tasks run and others are being started: each task runs exactly once, to its end.
fn survives(names: &[&str]) {
    const TASKS: usize = 12;
    let cluster = Cluster::up(1);
    let mut work = Work::new(TASKS);
    let mut framework = work.subscribe(&cluster);
    work.go_on(&cluster, &mut framework, |work| work.count("TASK_RUNNING") >= 3);
    cluster.kill(names);
    if names.contains(&"master") {
        drop(framework);
        cluster.mend(1);
        framework = work.subscribe(&cluster);
    } else {
        cluster.mend(1);
    }
    work.go_on(&cluster, &mut framework, |work| work.waiting.is_empty() && work.count("TASK_FINISHED") == TASKS);
    for task in work.launched.keys() {
        let ledger = fs::read_to_string(cluster.ledger().join(task)).unwrap();
        assert_eq!(ledger, "begin\nend\n", "{task} ran once, from its beginning to its end");
    }
}

#[test]
fn tasks_live_through_the_death_of_their_agent() {
    survives(&["agent-1"]);
}

#[test]
fn tasks_live_through_the_death_of_the_master() {
    survives(&["master"]);
}

#[test]
fn tasks_live_through_the_death_of_both() {
    survives(&["agent-1", "master"]);
}
