//! Jobs on a cluster of this machine: `berth submit`, `berth jobs`, `berth job`.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use berth_tests::fault_server::{FaultServer, Response};
use berth_tests::fixtures;
use berth_tests::home::Home;
use berth_tests::layout::{Layer, Layout};
use berth_tests::terminal::Terminal;
use berth_tests::{wait, wasm};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::process_guest;

impl Cluster {
    /// A file with a manifest, in which `LEDGER` stands for where tasks write that they were there.
    pub fn manifest(&self, text: &str) -> PathBuf {
        let path = self.home.scratch().join("job.yaml");
        fs::write(&path, text.replace("LEDGER", self.ledger().to_str().unwrap())).unwrap();
        path
    }

    pub fn submit(&self, manifest: &str) {
        self.home.berth("submit").arg(self.manifest(manifest)).ok();
    }

    pub fn job(&self, job: &str) -> Value {
        self.home.berth("job status --format json").arg(job).ok().json()
    }

    /// How many tasks of a job are in a state.
    pub fn count(&self, job: &str, state: &str) -> usize {
        tasks(&self.job(job)).iter().filter(|task| task["state"] == state).count()
    }

    pub fn expect(&self, job: &str, state: &str, count: usize) {
        wait::until(&format!("{count} tasks of {job} are {state}"), || self.count(job, state) == count);
    }

    /// What a task has written down, line by line.
    pub fn lines(&self, task: &str) -> Vec<String> {
        let text = fs::read_to_string(self.ledger().join(task)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

pub fn tasks(job: &Value) -> Vec<Value> {
    job["tasks"].as_array().expect("a job has tasks").clone()
}

const SERVICE: &str = "
name: shop
tasks:
  front:
    service: {replicas: 2}
    image: busybox
    shell: while :; do sleep 0.1; done
    back-off: {first: 100ms}
    grace: 200ms
    resources: {cpus: 0.1, memory: 32m}
    spread: {over: agent}
";

#[test]
fn one_manifest_runs_containers_process_guests_and_modules() {
    let cluster = Cluster::up(1);
    let text = r#"(module (memory (export "memory") 1) (func (export "_start")))"#;
    let module = wasm::from_text(&cluster.home.scratch(), "module.wasm", text);
    cluster.home.berth("image build-wasm").arg(module).arg("-t").arg("module").ok();
    let mut manifest = "
name: mixed
role: science
tasks:
  container: {image: busybox, shell: echo in a container, resources: {memory: 32m}}
  module: {image: module, isolation: wasm, batch: {count: 3}, resources: {memory: 64m}}
"
    .to_owned();
    let guest = process_guest::is_possible("a job's tasks in process guests");
    if guest {
        manifest += "  guest: {image: busybox, isolation: microvm-process, shell: echo in a guest, resources: {memory: 128m}}\n";
    }
    cluster.home.berth("submit --wait ended").arg(cluster.manifest(&manifest)).ok();
    let job = cluster.job("mixed");
    assert_eq!(job["state"], "finished", "{job}");
    assert_eq!(job["counts"]["ended"], 4 + usize::from(guest));
    assert_eq!(cluster.home.berth("job logs mixed.container").ok().text(), "in a container\n");
    if guest {
        assert_eq!(cluster.home.berth("job logs mixed.guest.0").ok().text(), "in a guest\n");
    }
    let jobs = cluster.home.berth("jobs").ok().text();
    assert!(jobs.lines().any(|line| line.starts_with("mixed   finished   science")), "{jobs}");
    let ended = cluster.home.berth("explain mixed.container").ok().text();
    assert!(ended.starts_with("mixed.container.0 has ended: finished") && ended.contains(": exit code 0"), "{ended}");
    let history = cluster.home.berth("job history mixed").ok().text();
    assert!(history.contains("submitted, with") && history.contains("TASK_FINISHED: exit code 0"), "{history}");
    // A name is free again once its job has ended.
    cluster.home.berth("submit --wait ended").arg(cluster.manifest(&manifest)).ok();
}

#[test]
fn tasks_of_an_array_know_which_they_are_and_failed_ones_are_tried_again() {
    let cluster = Cluster::up(1);
    let manifest = "
name: array
tasks:
  part:
    batch: {count: 4, retries: 2}
    back-off: {first: 300ms}
    image: busybox
    # All fail once, and the last for ever.
    shell: >
      echo $BERTH_TASK_INDEX of $BERTH_TASK_COUNT, attempt $BERTH_ATTEMPT, $GREETING >> /ledger/$BERTH_TASK_INDEX;
      [ $BERTH_ATTEMPT = 2 ] && [ $BERTH_TASK_INDEX != 3 ]
    env: {GREETING: hello}
    volumes: [{source: LEDGER, target: /ledger}]
    resources: {memory: 32m}
";
    let _ = cluster.home.berth("submit --wait ended").arg(cluster.manifest(manifest)).run().code(1);
    for index in 0..3 {
        let lines = [1, 2].map(|attempt| format!("{index} of 4, attempt {attempt}, hello"));
        assert_eq!(cluster.lines(&index.to_string()), lines);
    }
    assert_eq!(cluster.lines("3").len(), 3, "as often as it may be tried");
    let job = cluster.job("array");
    assert_eq!((&job["state"], &job["counts"]["failed"]), (&"failed".into(), &1.into()), "{job}");
    let time = |attempt: &Value, field: &str| attempt[field].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let attempts = tasks(&job)[3]["attempts"].as_array().unwrap().clone();
    let pauses = attempts.windows(2).map(|pair| time(&pair[1], "launched").duration_since(time(&pair[0], "ended")));
    let pauses: Vec<i128> = pauses.map(|pause| pause.as_millis()).collect();
    assert!(pauses[0] >= 300 && pauses[1] >= 600, "{pauses:?}");
}

#[test]
fn a_service_keeps_its_replicas_when_tasks_and_agents_die() {
    let cluster = Cluster::up_with(2, "--agent-timeout 10s");
    cluster.submit(SERVICE);
    cluster.expect("shop", "running", 2);
    let sandboxes = |job: &Value| -> Vec<String> {
        tasks(job).iter().filter_map(|task| Some(task["sandbox"].as_str()?.to_owned())).collect()
    };
    let before = sandboxes(&cluster.job("shop"));
    cluster.home.berth("kill").arg(&before[0]).ok();
    wait::until("the task that was killed is replaced", || {
        let job = cluster.job("shop");
        cluster.count("shop", "running") == 2 && !sandboxes(&job).contains(&before[0])
    });
    let job = cluster.job("shop");
    let agents: Vec<Value> = tasks(&job).iter().map(|task| task["agent"].clone()).collect();
    assert_ne!(agents[0], agents[1], "they are spread over the agents");

    let before = sandboxes(&job);
    cluster.kill(&["agent-1"]);
    wait::until("the tasks of the dead agent are replaced", || {
        let job = cluster.job("shop");
        let agents: Vec<Value> = tasks(&job).iter().map(|task| task["agent"].clone()).collect();
        cluster.count("shop", "running") == 2 && agents[0] == agents[1]
    });
    let after = sandboxes(&cluster.job("shop"));
    assert_eq!(after.iter().filter(|sandbox| before.contains(sandbox)).count(), 1, "the other lives on");
    // The one that was replaced still runs, and ends when its agent is back.
    assert_eq!(cluster.containers().len(), 3);
    cluster.mend(2);
    wait::until("the task that was replaced is ended", || cluster.containers().len() == 2);
    assert_eq!(sandboxes(&cluster.job("shop")), after);
}

#[test]
fn services_are_scaled_and_jobs_stopped_with_grace() {
    let cluster = Cluster::up(1);
    let manifest = "
name: polite
tasks:
  front:
    service: {}
    image: busybox
    shell: >
      trap 'echo bye >> /ledger/$BERTH_TASK_INDEX; exit 0' TERM; echo there >> /ledger/$BERTH_TASK_INDEX; echo hello;
      while :; do sleep 0.05; done
    volumes: [{source: LEDGER, target: /ledger}]
    ports: [http]
    resources: {cpus: 0.1, memory: 32m}
";
    cluster.home.berth("submit --wait running").arg(cluster.manifest(manifest)).ok();
    cluster.home.berth("submit").arg(cluster.manifest(manifest)).run().fails_with("is there already");
    cluster.home.berth("job scale polite front=3").ok();
    cluster.expect("polite", "running", 3);
    let ports: Vec<Value> = tasks(&cluster.job("polite")).iter().map(|task| task["ports"]["http"].clone()).collect();
    assert!(ports.iter().all(Value::is_u64) && ports[0] != ports[1] && ports[1] != ports[2], "{ports:?}");
    let port = cluster.home.berth("job exec polite.front.2 sh -c").arg("echo $BERTH_PORT_HTTP").ok().trimmed();
    assert_eq!(port, ports[2].to_string());
    cluster.home.berth("job exec polite.front true").run().fails_with("several tasks");
    wait::until("all have begun", || (0..3).all(|index| cluster.lines(&index.to_string()) == ["there"]));
    cluster.home.berth("job scale polite front=1").ok();
    wait::until("two are gone", || tasks(&cluster.job("polite")).len() == 1);
    assert_eq!(cluster.lines("2"), ["there", "bye"]);
    assert_eq!(cluster.lines("0"), ["there"]);
    cluster.home.berth("job scale polite back=1").run().fails_with("no task `back`");
    cluster.home.berth("job scale polite front=2 front=3").run().fails_with("front is there twice");
    cluster.home.berth("job stop polite").ok();
    assert_eq!(cluster.lines("0"), ["there", "bye"]);
    assert_eq!(cluster.job("polite")["state"], "stopped");
    assert_eq!(cluster.home.berth("job logs polite.front.0").ok().text(), "hello\n");
    cluster.home.berth("job stop polite").run().fails_with("has ended");

    let deaf = "
name: deaf
tasks: {t: {image: busybox, shell: \"trap '' TERM; echo there; while :; do sleep 0.05; done\", grace: 1h}}
";
    cluster.submit(deaf);
    wait::until("it is deaf", || cluster.home.berth("job logs deaf").run().text() == "there\n");
    cluster.home.berth("job stop --grace 200ms deaf").ok();
    assert_eq!(cluster.job("deaf")["state"], "stopped");
}

#[test]
fn tasks_go_where_they_may_and_say_what_they_wait_for() {
    let cluster = Cluster::up(2);
    let service = |name: &str, more: &str| {
        format!(
            "{{name: {name}, tasks: {{t: {{service: {{replicas: 3}}, image: busybox, shell: sleep 1000, grace: 100ms, \
             resources: {{cpus: 0.1, memory: 32m}}, {more}}}}}}}"
        )
    };
    cluster.submit(&service("spread", "spread: {over: agent, most: 1}"));
    cluster.expect("spread", "running", 2);
    let job = cluster.job("spread");
    assert_ne!(tasks(&job)[0]["agent"], tasks(&job)[1]["agent"]);
    cluster.submit(&service("picky", "constraints: [{attribute: agent, is: agent-2}]"));
    cluster.expect("picky", "running", 3);
    let picky = cluster.job("picky");
    assert!(tasks(&picky).iter().all(|task| task["agent"] == tasks(&picky)[0]["agent"]), "{picky}");
    cluster.submit(&service("impossible", "constraints: [{attribute: agent, matches: 'agent-[3-9]'}]"));
    let waits_for = |job: &str, why: &str| {
        wait::until(why, || {
            let view = cluster.job(job);
            let tasks = tasks(&view);
            let task = tasks.iter().find(|task| task["state"] == "waiting");
            task.is_some_and(|task| task["waits_for"].as_str().unwrap().contains(why))
        });
    };
    waits_for("impossible", "that satisfy its constraints");
    let status = cluster.home.berth("job status impossible").ok().text();
    assert!(status.contains("not 2 agents that satisfy its constraints"), "a pipe gets whole notes: {status}");
    waits_for("spread", "where fewer of its kind run");
    let why = |task: &str| cluster.home.berth("explain").arg(task).ok().text();
    assert!(why("impossible.t.0").contains("impossible.t.0 waits for"), "{}", why("impossible.t.0"));
    assert!(why("picky.t.0").contains("is TASK_RUNNING on agent"), "{}", why("picky.t.0"));
    cluster.home.berth("explain picky.t").run().fails_with("has 3 tasks; name one");
    cluster.home.berth("explain picky.t.7").run().fails_with("there is no task picky.t.7");
    cluster.submit("{name: huge, tasks: {t: {image: busybox, resources: {cpus: 9999}}}}");
    waits_for("huge", "cpus 9999, mem 64 MiB");
}

#[test]
fn a_task_that_cannot_start_says_why_wherever_it_is_asked_for() {
    let cluster = Cluster::up(1);
    let cause = "no-such-image.invalid";
    let manifest = cluster.manifest("{name: lost, tasks: {t: {image: no-such-image.invalid/x}}}");
    cluster.home.berth("submit --wait running").arg(manifest).run().code(1).fails_with(cause);
    cluster.home.berth("job wait lost").run().code(1).fails_with(cause);
    cluster.home.berth("job logs lost.t.0").run().fails_with("lost.t.0 has written nothing: it has never run");
    cluster.home.berth("job logs lost.t.0").run().fails_with(cause);
    let why = cluster.home.berth("explain lost.t.0").ok().text();
    assert!(why.starts_with("lost.t.0 has ended: failed") && why.contains(cause), "{why}");
    assert!(!why.contains("berth: "), "who says it is said once: {why}");
    let attempt = tasks(&cluster.job("lost"))[0]["attempts"][0]["id"].as_str().unwrap().to_owned();
    let why = cluster.home.berth("explain").arg(&attempt).ok().text();
    assert!(why.starts_with(&format!("{attempt} has ended: TASK_FAILED")), "{why}");
}

#[test]
fn a_job_can_be_watched_until_it_has_ended() {
    let cluster = Cluster::up(1);
    let manifest = "
name: seen
tasks:
  t:
    image: busybox
    shell: while [ ! -e /ledger/go ]; do sleep 0.1; done
    volumes: [{source: LEDGER, target: /ledger}]
";
    cluster.submit(manifest);
    let watching = cluster.home.berth("job status --watch seen").spawn();
    let as_json = cluster.home.berth("job status --watch seen --format json").spawn();
    watching.expect("seen is running");
    fs::write(cluster.ledger().join("go"), "").unwrap();
    let seen = watching.wait().code(0).text();
    let place = |state: &str| seen.find(&format!("seen is {state}")).expect(state);
    assert!(place("running") < place("finished"), "{seen}");
    assert_eq!(seen.matches("seen is finished").count(), 1, "{seen}");
    let lines = as_json.wait().code(0).text();
    let last: Value = serde_json::from_str(lines.lines().next_back().unwrap()).unwrap();
    assert_eq!(last["state"], "finished");
}

#[test]
fn images_are_pulled_ahead_and_tasks_go_where_theirs_is() {
    let home = Home::new();
    let layout = Layout::new(home.scratch().join("layout"));
    layout.image("1", &[Layer::gzip(&fs::read(fixtures::busybox_rootfs()).unwrap())], &json!({ "Cmd": ["sh"] }));
    let gone = Arc::new(AtomicBool::new(false));
    let is_gone = Arc::clone(&gone);
    let registry = FaultServer::serve(layout.path(), move |request, _| {
        (is_gone.load(Ordering::Relaxed) || request.path.contains("nothing")).then(|| Response::status(404))
    });
    let cluster = Cluster::up_in(home, 1, "");
    // An agent with images of its own, which is asked to pull nothing.
    let elsewhere = Home::new();
    let flags = "--attribute where=elsewhere --cpus 1";
    let image = registry.reference("ahead:1");
    let prefetched = cluster.home.berth("cluster prefetch").arg(&image).ok().text();
    assert_eq!(prefetched.lines().count(), 1, "{prefetched}");
    assert!(prefetched.trim_end().ends_with(&format!(" has {image}")), "{prefetched}");
    let agent = elsewhere.berth(&format!("cluster agent --master {} {flags}", cluster.master)).spawn();
    agent.expect("running");
    gone.store(true, Ordering::Relaxed);
    let nodes = || cluster.home.berth("nodes --format json").ok().json();
    wait::until("there are two agents", || nodes().as_array().unwrap().len() == 2);
    let has = |node: &Value| {
        let attributes = node["agent_info"]["attributes"].as_array().unwrap();
        attributes.iter().any(|attribute| attribute["name"] == format!("image.{image}"))
    };
    let nodes = nodes();
    let with_image: Vec<&Value> = nodes.as_array().unwrap().iter().filter(|node| has(node)).collect();
    let [node] = with_image[..] else { panic!("{nodes}") };
    // There is no registry any more: a task can only start where the image is.
    let manifest = "name: ahead\ntasks:\n  t: {image: 'IMAGE', shell: exit 0, batch: {count: 8}}\n";
    cluster.submit(&manifest.replace("IMAGE", &image));
    cluster.expect("ahead", "finished", 8);
    for task in tasks(&cluster.job("ahead")) {
        assert_eq!(task["attempts"].as_array().unwrap().len(), 1, "{task}");
        assert_eq!(task["attempts"][0]["agent"], node["agent_info"]["id"]["value"]);
    }
    cluster.home.berth("cluster prefetch").arg(registry.reference("nothing:1")).run().fails_with("cannot pull");
    cluster.home.berth("cluster prefetch Nothing").run().fails_with("prefetch_image.image");
    agent.signal(Signal::SIGTERM);
    let _ = agent.wait();
}

/// A job whose tasks run where the test says.
const ELSEWHERE: &str = "
name: far
tasks:
  t:
    image: busybox
    shell: echo one; echo two >&2; while [ ! -e $GO ]; do sleep 0.05; done; printf three
    env: {GO: LEDGER/go}
    volumes: [{source: LEDGER, target: LEDGER}]
    constraints: [{attribute: where, is: elsewhere}]
";

#[test]
fn logs_of_tasks_on_other_machines_come_through_their_agents() {
    let cluster = Cluster::up(1);
    // As far from the cluster's home as another machine is.
    let elsewhere = Home::new();
    let agent = format!("cluster agent --master {} --attribute where=elsewhere --cpus 1", cluster.master);
    let mut agent = elsewhere.berth(&agent).spawn();
    agent.expect("running");
    cluster.submit(ELSEWHERE);
    cluster.expect("far", "running", 1);
    wait::until("it has written", || {
        let logs = cluster.home.berth("job logs far").run();
        logs.exit_code() == 0 && logs.text() == "one\n" && logs.stderr_text() == "two\n"
    });
    let following = cluster.home.berth("job logs --follow far.t.0").spawn();
    following.expect("one");
    fs::write(cluster.ledger().join("go"), "").unwrap();
    assert_eq!(following.wait().code(0).text(), "one\nthree");
    cluster.expect("far", "finished", 1);
    wait::until("its sandbox is removed", || elsewhere.containers().is_empty());
    assert_eq!(cluster.home.berth("job logs --tail 1 far").ok().text(), "three");
    agent.signal(Signal::SIGTERM);
    wait::until("the agent has ended", || agent.has_ended());
    cluster.home.berth("job logs far").run().fails_with("is not connected");
}

#[test]
fn commands_run_beside_tasks_on_other_machines() {
    let cluster = Cluster::up(1);
    let elsewhere = Home::new();
    let agent = format!("cluster agent --master {} --attribute where=elsewhere --cpus 1", cluster.master);
    let mut agent = elsewhere.berth(&agent).spawn();
    agent.expect("running");
    cluster.submit(ELSEWHERE);
    cluster.expect("far", "running", 1);
    let exec = |flags: &str, script: &str| {
        cluster.home.berth(&format!("job exec {flags} far.t.0 sh -c")).arg(script).env("TAKEN", "over")
    };
    let ran = exec("-e A=b -e TAKEN -w /tmp -u 7", "echo $A $TAKEN $PWD $(id -u); echo oops >&2; exit 9").run();
    assert_eq!((ran.text().as_str(), ran.stderr_text().as_str(), ran.exit_code()), ("b over /tmp 7\n", "oops\n", 9));
    // What is written is more than fits anywhere on the way, and what is read comes as it is.
    let input = "0123456789abcde\n".repeat(40_000);
    let ran = exec("-i", "cat; echo whole >&2").stdin(input.as_str()).ok();
    assert!(ran.text() == input && ran.stderr_text() == "whole\n", "{} bytes", ran.text().len());
    assert_eq!(exec("", "cat; echo no input").ok().text(), "no input\n");

    let script =
        "trap 'echo now $(stty size)' WINCH; stty size; read line; echo got $line; while :; do sleep 0.05; done";
    let mut terminal = Terminal::start(exec("-it", script), 91, 33);
    terminal.expect("33 91");
    terminal.type_in("word\n");
    terminal.expect("got word");
    terminal.resize(123, 45);
    terminal.expect("now 45 123");
    assert!(!terminal.is_cooked());
    terminal.type_in("\x03");
    assert_eq!(terminal.wait(), 130);
    assert!(terminal.is_cooked(), "the terminal stays raw");

    // A command lives as long as whoever looks at it, and no longer than the task.
    let count = || exec("", "ps | grep -c '[s]leep 98765'").run().trimmed();
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let left = exec("", "echo begun; sleep 98765").spawn();
        left.expect("begun");
        assert_eq!(count(), "1");
        left.signal(signal);
        if signal == Signal::SIGINT {
            let _ = left.wait().code(130);
        }
        wait::until("it has ended", || count() == "0");
    }
    exec("-d", "true").run().fails_with("--detach is for tasks on this machine");
    let nothing = cluster.home.berth("job exec far.t.0 /no/such/program").run();
    assert_eq!(nothing.exit_code(), 127, "{nothing:?}");
    let waiting = exec("", "echo begun; sleep 98765").spawn();
    waiting.expect("begun");
    fs::write(cluster.ledger().join("go"), "").unwrap();
    assert_eq!(waiting.wait().exit_code(), 137);
    cluster.expect("far", "finished", 1);
    exec("", "true").run().fails_with("no task far.t.0 runs");
    agent.signal(Signal::SIGTERM);
    wait::until("the agent has ended", || agent.has_ended());
}

#[test]
fn a_job_that_is_stopped_says_what_may_still_run() {
    let cluster = Cluster::up_with(2, "--agent-timeout 10s");
    cluster.submit(SERVICE);
    cluster.expect("shop", "running", 2);
    cluster.kill(&["agent-1"]);
    let stopped = cluster.home.berth("job stop shop").ok();
    assert!(stopped.stderr_text().contains("1 task is on an agent that cannot be reached"), "{stopped:?}");
    let status = cluster.home.berth("job status shop").ok().text();
    assert!(status.contains("it may still run there"), "{status}");
    assert_eq!(cluster.containers().len(), 1, "and it does");
    cluster.mend(2);
    wait::until("what was left is ended", || cluster.containers().is_empty());
    wait::until("that is known", || cluster.job("shop")["counts"]["out_of_reach"] == 0);
    let status = cluster.home.berth("job status shop").ok().text();
    assert!(status.contains("shop is stopped") && !status.contains("may still run"), "{status}");
}

#[test]
fn bad_manifests_are_refused_where_they_are_wrong() {
    let cluster = Cluster::up(1);
    let cases = [
        ("name: x\ntasks:\n  t:\n    imege: busybox\n", "line 4"),
        ("name: x\ntasks:\n  t: {image: busybox, resources: {cpus: -1}}\n", "line 3"),
        ("name: x\ntasks:\n  t: {image: busybox, batch: {count: many}}\n", "line 3"),
        ("name: x\ntasks: {t: {image: busybox, batch: {count: 4000000}}}\n", "a whole number from 1 to 10000"),
        ("name: x\ntasks: {t: {image: busybox, service: {}, batch: {}}}\n", "tasks.t.batch"),
        ("name: x\ntasks: {t: {image: busybox, ports: [a], isolation: wasm}}\n", "tasks.t.ports"),
        ("name: x\ntasks: {}\n", "tasks"),
        ("name: Not a Name\ntasks: {t: {image: busybox}}\n", "line 1"),
        ("- a list\n", "line 1"),
        (
            "name: x\ntasks:\n  t: {image: busybox, batch: {count: 1.5}}\n",
            "line 3: tasks.t.batch.count: is floating point",
        ),
        ("name: x\ntasks:\n  t: {image: busybox}\n  t: {image: busybox}\n", "line 4: tasks: `t` is there twice"),
        ("", "ends too early"),
    ];
    for (manifest, why) in cases {
        let path = cluster.manifest(manifest);
        cluster.home.berth("job validate").arg(&path).run().fails_with(why);
        cluster.home.berth("submit").arg(&path).run().fails_with(why);
    }
    let huge = cluster.manifest(&format!("name: x # {}", "x".repeat(1 << 20)));
    cluster.home.berth("submit").arg(&huge).run().fails_with("at most 262144 bytes");
    assert_eq!(
        cluster.home.berth("jobs --format json").ok().json(),
        Value::Array(Vec::new()),
        "nothing is left behind"
    );
    cluster.home.berth("job status x").run().fails_with("no job `x`");
    let schema = cluster.home.berth("job schema").ok().json();
    assert!(schema["properties"]["tasks"].is_object(), "{schema}");
}

#[test]
fn without_a_cluster_there_are_no_jobs() {
    let home = Home::empty();
    for command in ["jobs", "job status x", "submit /dev/null"] {
        home.berth(command).run().fails_with("there is no cluster on this machine");
    }
}

/// Kills processes of a cluster while tasks of a job run and others wait: each runs exactly once, to its end.
fn survives(names: &[&str]) {
    const TASKS: usize = 24;
    let cluster = Cluster::up(1);
    let manifest = "
name: ledger
tasks:
  t:
    batch: {count: 24}
    image: busybox
    shell: echo begin >> /ledger/$BERTH_TASK_INDEX; sleep 2; echo end >> /ledger/$BERTH_TASK_INDEX
    volumes: [{source: LEDGER, target: /ledger}]
    resources: {cpus: 0.2, memory: 16m}
";
    cluster.submit(manifest);
    wait::until("some run and some wait", || {
        let counts = &cluster.job("ledger")["counts"];
        counts["running"].as_u64() >= Some(3) && counts["waiting"].as_u64() > Some(0)
    });
    cluster.kill(names);
    cluster.mend(1);
    cluster.home.berth("job wait ledger").ok();
    for index in 0..TASKS {
        assert_eq!(cluster.lines(&index.to_string()), ["begin", "end"], "{index} ran once, from beginning to end");
    }
    let job = cluster.job("ledger");
    assert_eq!((&job["state"], &job["counts"]["ended"]), (&"finished".into(), &TASKS.into()), "{job}");
}

#[test]
fn a_job_lives_through_the_death_of_the_job_framework() {
    survives(&["jobs"]);
}

#[test]
fn a_job_lives_through_the_death_of_the_master() {
    survives(&["master"]);
}

#[test]
fn a_job_lives_through_the_death_of_all_three() {
    survives(&["jobs", "master", "agent-1"]);
}

#[test]
fn what_must_not_run_twice_is_given_up_with_its_agent() {
    let cluster = Cluster::up_with(2, "--agent-timeout 10s");
    let manifest = "
name: once
tasks:
  t:
    batch: {at-most-once: true}
    image: busybox
    shell: echo begin >> /ledger/once; while :; do sleep 0.1; done
    constraints: [{attribute: agent, is: agent-1}]
    volumes: [{source: LEDGER, target: /ledger}]
  again:
    image: busybox
    shell: echo begin >> /ledger/again; while :; do sleep 0.1; done
    volumes: [{source: LEDGER, target: /ledger}]
    spread: {over: agent, most: 1}
";
    cluster.submit(manifest);
    cluster.expect("once", "running", 2);
    cluster.kill(&["agent-1"]);
    cluster.expect("once", "unreachable", 1);
    assert_eq!(cluster.lines("once"), ["begin"]);
    // Back in time, it is what it was.
    cluster.mend(2);
    cluster.expect("once", "running", 2);
    assert_eq!(cluster.lines("once"), ["begin"]);
    cluster.kill(&["agent-1"]);
    let once = tasks(&cluster.job("once")).into_iter().find(|task| task["task"] == "once.t.0").unwrap();
    let gone =
        serde_json::json!({ "type": "MARK_AGENT_GONE", "mark_agent_gone": { "agent_id": { "value": once["agent"] } } });
    assert_eq!(cluster.operate(&gone), 200);
    cluster.expect("once", "failed", 1);
    cluster.expect("once", "running", 1);
    assert_eq!(cluster.lines("once"), ["begin"], "it was never started again");
}
