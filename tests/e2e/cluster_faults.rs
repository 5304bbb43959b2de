//! What a cluster makes of a network that is cut, a disk that is full and frameworks that do as they like. A ledger
//! that the tasks themselves write says what has run.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::thread;

use berth_tests::home::Home;
use berth_tests::{binaries, wait};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cluster::http::{Framework, subscribe_call};
use crate::cluster::{Cluster, acknowledge, until};
use crate::jobs::tasks;

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a line of shell that has to go well.
fn sh(line: &str) {
    assert!(Command::new("sh").arg("-ec").arg(line).status().unwrap().success(), "{line}");
}

/// A cable from the network namespace of this thread to another one.
pub struct Cable {
    far: Process,
}

impl Cable {
    /// Where the near end is.
    pub const NEAR: &str = "10.77.0.1";

    pub fn lay() -> Cable {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        sh("ip link set lo up");
        let far = Command::new("unshare").args(["--net", "sleep", "infinity"]).spawn().unwrap();
        let cable = Cable { far: Process(far) };
        let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
        wait::until("there is another network namespace", || {
            fs::read_link(cable.namespace()).is_ok_and(|namespace| namespace != own)
        });
        sh(&format!("ip link add near type veth peer name far netns {}", cable.far.0.id()));
        sh(&format!("ip addr add {}/24 dev near; ip link set near up", Cable::NEAR));
        let inside = "ip link set lo up; ip addr add 10.77.0.2/24 dev far; ip link set far up";
        sh(&format!("nsenter --net={} sh -ec '{inside}'", cable.namespace().display()));
        cable
    }

    pub fn namespace(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.far.0.id()))
    }

    /// Lets the far end reach a server that listens on loopback only. What is cut is the cable, not this.
    fn relay(server: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind((Cable::NEAR, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(server) else { continue };
                let ends = [(&client, &server), (&server, &client)];
                for (from, to) in ends.map(|(from, to)| (from.try_clone().unwrap(), to.try_clone().unwrap())) {
                    thread::spawn(move || {
                        let _ = io::copy(&mut &from, &mut &to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        address
    }

    fn cut() {
        sh("ip link set near down");
    }

    fn mend() {
        sh("ip link set near up");
    }
}

/// Runs a test in a thread of its own: it moves to other namespaces.
pub fn apart(test: impl FnOnce() + Send + 'static) {
    if let Err(panic) = thread::spawn(test).join() {
        std::panic::resume_unwind(panic);
    }
}

/// A cluster with one agent beside the master, and another one at the far end of a cable.
fn parted() -> (Cluster, Process, Cable) {
    let cable = Cable::lay();
    let cluster = Cluster::up_with(1, "--agent-timeout 10s");
    let home = &cluster.home;
    let mut far = Command::new("nsenter");
    far.arg(format!("--net={}", cable.namespace().display())).arg(binaries::berth());
    far.args(["cluster", "agent", "--cpus", "1", "--memory", "1g", "--attribute", "agent=far"]);
    far.arg("--master").arg(Cable::relay(cluster.master).to_string());
    far.arg("--directory").arg(home.scratch().join("far"));
    far.env("BERTH_DATA_ROOT", home.data()).env("BERTH_STATE_ROOT", home.state());
    let log = File::create(home.scratch().join("far.log")).unwrap();
    let far = Process(far.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    wait::until("both agents take part", || connected(&cluster) == 2);
    (cluster, far, cable)
}

fn nodes(cluster: &Cluster) -> Vec<Value> {
    cluster.home.berth("nodes --format json").ok().json().as_array().unwrap().clone()
}

fn connected(cluster: &Cluster) -> usize {
    nodes(cluster).iter().filter(|node| node["state"] == "connected").count()
}

/// Nothing is held for tasks that are no more.
fn expect_nothing_held(cluster: &Cluster) {
    wait::until("everything is free again", || {
        nodes(cluster).iter().all(|node| {
            let mut resources = node["allocated_resources"].as_array().unwrap().iter();
            resources.all(|resource| resource["scalar"]["value"].as_f64().is_none_or(|amount| amount == 0.0))
        })
    });
}

#[test]
fn a_cut_that_heals_in_time_is_noticed_by_nobody() {
    apart(|| {
        let (cluster, _far, _cable) = parted();
        let manifest = "
name: short
tasks:
  t:
    batch: {count: 3}
    image: busybox
    shell: echo begin >> /ledger/$BERTH_TASK_INDEX; sleep 2; echo end >> /ledger/$BERTH_TASK_INDEX
    constraints: [{attribute: agent, is: far}]
    volumes: [{source: LEDGER, target: /ledger}]
    resources: {cpus: 0.1, memory: 16m}
";
        cluster.submit(manifest);
        let all = |lines: &[&str]| (0..3).all(|index| cluster.lines(&index.to_string()) == lines);
        wait::until("all have begun", || all(&["begin"]));
        Cable::cut();
        wait::until("they end where nobody hears of it", || all(&["begin", "end"]));
        assert_ne!(cluster.job("short")["state"], "finished");
        Cable::mend();
        cluster.home.berth("job wait short").ok();
        assert!(all(&["begin", "end"]), "each ran once");
        expect_nothing_held(&cluster);
        wait::until("nothing is left", || cluster.containers().is_empty());
    });
}

#[test]
fn after_a_long_cut_what_was_started_elsewhere_runs_once_and_what_must_not_was_not() {
    apart(|| {
        let (cluster, _far, _cable) = parted();
        let manifest = "
name: long
tasks:
  once: &task
    batch: {count: 2, at-most-once: true}
    image: busybox
    shell: >
      me=/ledger/$BERTH_TASK.$BERTH_TASK_INDEX; echo begin $BERTH_ATTEMPT >> $me;
      while [ ! -e /ledger/go ]; do sleep 0.1; done; echo end $BERTH_ATTEMPT >> $me
    constraints: [{attribute: agent, is: far}]
    volumes: [{source: LEDGER, target: /ledger}]
    resources: {cpus: 0.05, memory: 16m}
    grace: 100ms
  again:
    <<: *task
    batch: {count: 4}
    constraints: []
    spread: {over: agent}
";
        cluster.submit(manifest);
        cluster.expect("long", "running", 6);
        Cable::cut();
        wait::until("what may run twice is started elsewhere", || {
            let job = cluster.job("long");
            let of = |task: &&Value| task["task"].as_str().unwrap().starts_with("long.again");
            let agents: Vec<Value> = tasks(&job).iter().filter(of).map(|task| task["agent"].clone()).collect();
            cluster.count("long", "running") == 4 && agents.iter().all(|agent| *agent == agents[0])
        });
        assert_eq!(cluster.count("long", "unreachable"), 2, "what must not waits");
        assert_eq!(cluster.containers().len(), 8, "at the far end everything runs on");
        Cable::mend();
        cluster.expect("long", "running", 6);
        wait::until("what was started elsewhere is ended at the far end", || cluster.containers().len() == 6);
        fs::write(cluster.ledger().join("go"), "").unwrap();
        cluster.home.berth("job wait long").ok();
        for index in 0..2 {
            assert_eq!(cluster.lines(&format!("once.{index}")), ["begin 1", "end 1"]);
        }
        let again: Vec<Vec<String>> = (0..4).map(|index| cluster.lines(&format!("again.{index}"))).collect();
        let (stayed, moved) = (["begin 1", "end 1"], ["begin 1", "begin 2", "end 2"]);
        assert!(again.iter().all(|lines| *lines == stayed || *lines == moved), "{again:?}");
        assert_eq!(again.iter().filter(|lines| **lines == moved).count(), 2, "{again:?}");
        expect_nothing_held(&cluster);
        wait::until("nothing is left", || cluster.containers().is_empty());
    });
}

/// A small disk, which is gone with the test.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new() -> SmallDisk {
        let disk = SmallDisk(tempfile::Builder::new().prefix("small-disk-").tempdir().unwrap());
        mount(Some("none"), disk.0.path(), Some("tmpfs"), MsFlags::empty(), Some("size=24m")).unwrap();
        disk
    }

    /// Takes all that is left of it.
    fn fill(&self) {
        let mut file = File::create(self.0.path().join("filler")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.0.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_cluster_on_a_full_disk_promises_nothing_and_goes_on_when_there_is_room() {
    let disk = SmallDisk::new();
    let home = Home::new();
    let directory = disk.0.path().join("cluster");
    fs::create_dir(&directory).unwrap();
    symlink(&directory, home.data().join("cluster")).unwrap();
    let cluster = Cluster::up_in(home, 1, "");
    let manifest = "
name: ledger
tasks:
  t:
    batch: {count: 12}
    image: busybox
    shell: >
      echo begin >> /ledger/$BERTH_TASK_INDEX; while [ ! -e /ledger/go ]; do sleep 0.1; done;
      echo end >> /ledger/$BERTH_TASK_INDEX
    volumes: [{source: LEDGER, target: /ledger}]
    resources: {cpus: 0.2, memory: 16m}
";
    cluster.submit(manifest);
    wait::until("some run and some wait", || {
        let counts = &cluster.job("ledger")["counts"];
        counts["running"].as_u64() >= Some(3) && counts["waiting"].as_u64() > Some(0)
    });
    disk.fill();
    // What is accepted is kept, so as long as there is room in the files, jobs are.
    let text = "x".repeat(60_000);
    let mut accepted = Vec::new();
    loop {
        let name = format!("big-{}", accepted.len());
        let constraint = "constraints: [{attribute: none, exists: true}]";
        let manifest = format!("{{name: {name}, tasks: {{t: {{image: i, {constraint}, env: {{A: {text}}}}}}}}}");
        let submitted = cluster.home.berth("submit").arg(cluster.manifest(&manifest)).run();
        if submitted.exit_code() != 0 {
            break;
        }
        accepted.push(name);
        assert!(accepted.len() < 500, "the disk is full, and takes everything");
    }
    fs::write(cluster.ledger().join("go"), "").unwrap();
    wait::until("what runs comes to its end", || {
        (0..12).map(|index| cluster.lines(&index.to_string())).all(|lines| lines.is_empty() || lines.len() == 2)
    });
    disk.make_room();
    cluster.mend(1);
    cluster.home.berth("job wait ledger").ok();
    for index in 0..12 {
        assert_eq!(cluster.lines(&index.to_string()), ["begin", "end"], "{index} ran once, from beginning to end");
    }
    let jobs = cluster.home.berth("jobs --format json").ok().json();
    let known: Vec<&str> = jobs.as_array().unwrap().iter().filter_map(|job| job["name"].as_str()).collect();
    for name in &accepted {
        assert!(known.contains(&name.as_str()), "{name} was accepted: {known:?}");
        cluster.home.berth("job stop").arg(name).ok();
    }
    assert_eq!(known.len(), accepted.len() + 1, "and nothing else: {known:?}");
    expect_nothing_held(&cluster);
}

#[test]
fn updates_are_told_until_they_are_acknowledged_and_nobody_else_waits_for_that() {
    let cluster = Cluster::up(1);
    let mut silent = Framework::new(cluster.master, &subscribe_call(None));
    let offer = silent.offer();
    silent.call(json!({ "type": "SUPPRESS", "suppress": { "roles": ["a"] } }));
    silent.launch_as(&offer, "t", 0.1, 32.0, cluster.script("echo ran >> /ledger/silent"));
    let first = silent.status();
    assert_eq!(first["state"], "TASK_RUNNING");
    // The task has ended meanwhile, and its end is not told before its beginning was taken note of.
    wait::until("it has run", || cluster.lines("silent") == ["ran"]);
    assert_eq!(silent.status()["uuid"], first["uuid"], "again and again");

    let mut other = Framework::new(cluster.master, &subscribe_call(None));
    let offer = other.offer();
    other.launch_as(&offer, "u", 0.1, 32.0, cluster.script("true"));
    until(&mut other, "u", "TASK_FINISHED");

    acknowledge(&silent, &first);
    let last = wait::for_some("its end is told", || Some(silent.status()).filter(|it| it["uuid"] != first["uuid"]));
    assert_eq!(last["state"], "TASK_FINISHED");
    assert_eq!(silent.status()["uuid"], last["uuid"], "again and again");
    assert_eq!(cluster.containers().len(), 1, "what is left of it is there until then");
    acknowledge(&silent, &last);
    wait::until("nothing is left of it", || cluster.containers().is_empty());
    assert_eq!(cluster.lines("silent"), ["ran"]);
}

#[test]
fn who_takes_more_than_was_offered_or_takes_it_twice_gets_what_was_offered_once() {
    let cluster = Cluster::up(1);
    let mut framework = Framework::new(cluster.master, &subscribe_call(None));
    let offer = framework.offer();
    let amount = |name: &str| {
        let mut resources = offer["resources"].as_array().unwrap().iter();
        resources.find(|resource| resource["name"] == name).unwrap()["scalar"]["value"].as_f64().unwrap()
    };
    let script = |task: &str| cluster.script(&format!("echo ran >> /ledger/{task}; while :; do sleep 1; done"));
    // Two tasks, each of which fits, and both do not.
    let task = |task: &str| {
        let mut info = script(task);
        info["name"] = json!(task);
        info["task_id"] = json!({ "value": task });
        info["agent_id"] = offer["agent_id"].clone();
        info["resources"] = json!([
            { "name": "cpus", "type": "SCALAR", "scalar": { "value": amount("cpus") * 0.75 } },
            { "name": "mem", "type": "SCALAR", "scalar": { "value": 32.0 } },
        ]);
        info
    };
    let launch = json!([{ "type": "LAUNCH", "launch": { "task_infos": [task("a"), task("b")] } }]);
    let accept = json!({ "type": "ACCEPT", "accept": { "offer_ids": [offer["id"]], "operations": launch } });
    framework.call(accept);
    let mut states = std::collections::BTreeMap::new();
    while states.len() < 2 {
        let status = framework.status();
        acknowledge(&framework, &status);
        states.insert(status["task_id"]["value"].to_string(), status["state"].to_string());
    }
    assert_eq!(states["\"a\""], "\"TASK_RUNNING\"");
    assert_eq!(states["\"b\""], "\"TASK_ERROR\"");
    // The offer is used up.
    framework.launch_as(&offer, "c", 0.1, 32.0, script("c"));
    until(&mut framework, "c", "TASK_DROPPED");
    let cpus = |node: &Value, field: &str| {
        let mut resources = node[field].as_array().unwrap().iter();
        let cpus = resources.find(|resource| resource["name"] == "cpus");
        cpus.map_or(0.0, |cpus| cpus["scalar"]["value"].as_f64().unwrap())
    };
    let node = wait::for_some("what is used is shown", || {
        Some(nodes(&cluster).remove(0)).filter(|node| cpus(node, "allocated_resources") > 0.0)
    });
    let (used, total) = (cpus(&node, "allocated_resources"), cpus(&node, "total_resources"));
    assert!((used - amount("cpus") * 0.75).abs() < 0.01 && used <= total, "{node}");
    wait::until("the one that fits runs", || cluster.lines("a") == ["ran"]);
    assert!(cluster.lines("b").is_empty() && cluster.lines("c").is_empty(), "the others never did");
    framework.call(json!({ "type": "KILL", "kill": { "task_id": { "value": "a" } } }));
    until(&mut framework, "a", "TASK_KILLED");
    expect_nothing_held(&cluster);
}
