//! Several masters that share an etcd, of which one dies, hangs, or loses its etcd. A ledger that the tasks themselves
//! write says what has run, and the processes of the tasks that nothing has ended in between.

#[path = "../../orchestrator/tests/server/etcd.rs"]
mod etcd;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use berth_tests::home::Home;
use berth_tests::{binaries, wait};
use etcd::Etcd;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::cluster::http;
use crate::jobs::tasks;

/// How long a master that is not heard of leads: long enough for a machine with other things to do.
const LEASE: &str = "4s";

/// A process of the cluster, which ends with the test.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(home: &Home, name: &str, words: &str) -> Process {
        let log = home.scratch().join(format!("{name}.log"));
        let mut command = Command::new(binaries::berth());
        command.arg("cluster").args(words.split_whitespace()).stdin(Stdio::null()).stdout(Stdio::piped());
        command.env("BERTH_DATA_ROOT", home.data()).env("BERTH_STATE_ROOT", home.state());
        command.stderr(File::create(&log).unwrap());
        Process { child: command.spawn().unwrap(), log }
    }

    /// What it says first, once it is ready.
    fn first_line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "it does not start: {}", self.said());
        line
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// How it ended, when it has.
    fn end(&mut self) -> ExitStatus {
        wait::for_some("it has ended", || self.child.try_wait().unwrap())
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Master {
    process: Process,
    address: SocketAddr,
}

impl Master {
    fn start(home: &Home, etcd: &Etcd, name: &str) -> Master {
        let words = format!("master --listen 127.0.0.1:0 --store {} --lease {LEASE}", etcd.url());
        let mut process = Process::start(home, name, &words);
        let address = process.first_line().trim().rsplit(' ').next().unwrap().parse().unwrap();
        Master { process, address }
    }

    /// Whether it is there, and leads.
    fn leads(&self) -> bool {
        let request = "GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n";
        let answer = http::send(self.address, request.as_bytes());
        answer.body.contains("\nberth_master_elected 1\n")
    }

    fn operate(&self, call: &Value) -> Value {
        let answer = http::send(self.address, http::post("/api/v1", "", &call.to_string()).as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.body);
        serde_json::from_str(&answer.body).unwrap_or_default()
    }
}

/// A master that leads, one that stands by, an agent and a job framework, with tasks that run.
struct Cluster {
    // In the order in which they are to end.
    _agent: Process,
    _jobs: Process,
    leader: Master,
    standby: Master,
    etcd: Etcd,
    home: Home,
    /// What is there before anything goes wrong.
    sandboxes: BTreeMap<String, i64>,
    known: (Value, Value),
}

const MANIFEST: &str = "
name: shop
role: web
tasks:
  front:
    service: {replicas: 2}
    image: busybox
    shell: echo begin $BERTH_ATTEMPT >> /ledger/front.$BERTH_TASK_INDEX; while :; do sleep 0.2; done
    volumes: [{source: LEDGER, target: /ledger}]
    resources: {cpus: 0.1, memory: 16m}
    grace: 100ms
  import:
    batch: {count: 4, at-most-once: true}
    image: busybox
    shell: >
      me=/ledger/import.$BERTH_TASK_INDEX; echo begin $BERTH_ATTEMPT >> $me;
      while [ ! -e /ledger/go ]; do sleep 0.2; done; echo end $BERTH_ATTEMPT >> $me
    volumes: [{source: LEDGER, target: /ledger}]
    resources: {cpus: 0.1, memory: 16m}
";
/// What runs of that.
const TASKS: u8 = 6;

impl Cluster {
    fn up() -> Cluster {
        let (home, etcd) = (Home::new(), Etcd::start());
        let leader = Master::start(&home, &etcd, "leader");
        wait::until("the first master leads", || leader.leads());
        let standby = Master::start(&home, &etcd, "standby");
        // The one that does not lead comes first: whoever asks is sent on.
        let masters = format!("--master {},{}", standby.address, leader.address);
        let directory = |name: &str| home.scratch().join(name).display().to_string();
        let agent = format!("agent {masters} --cpus 2 --memory 1g --directory {}", directory("agent"));
        let mut agent = Process::start(&home, "agent", &agent);
        agent.first_line();
        let mut jobs = Process::start(&home, "jobs", &format!("jobs {masters} --directory {}", directory("jobs")));
        jobs.first_line();
        let (sandboxes, known) = (BTreeMap::new(), (Value::Null, Value::Null));
        let mut cluster = Cluster { _agent: agent, _jobs: jobs, leader, standby, etcd, home, sandboxes, known };
        fs::create_dir_all(cluster.ledger()).unwrap();
        cluster.submit(MANIFEST, "running");
        wait::until("all have begun", || cluster.begun() == usize::from(TASKS));
        cluster.sandboxes = cluster.processes();
        cluster.known = cluster.who();
        cluster
    }

    fn ledger(&self) -> PathBuf {
        self.home.scratch().join("ledger")
    }

    fn lines(&self, task: &str) -> Vec<String> {
        let text = fs::read_to_string(self.ledger().join(task)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn begun(&self) -> usize {
        fs::read_dir(self.ledger()).unwrap().count()
    }

    fn submit(&self, manifest: &str, until: &str) {
        let path = self.home.scratch().join("job.yaml");
        fs::write(&path, manifest.replace("LEDGER", self.ledger().to_str().unwrap())).unwrap();
        self.home.berth("submit --wait").arg(until).arg(path).ok();
    }

    /// The first process of each sandbox.
    fn processes(&self) -> BTreeMap<String, i64> {
        self.home.containers().into_iter().map(|id| (id.clone(), self.home.pid(&id))).collect()
    }

    /// What the master that leads says of agents, whichever it is. None: nobody says anything.
    fn nodes(&self) -> Option<Vec<Value>> {
        let nodes = self.home.berth("nodes --format json --master");
        let nodes = nodes.arg(format!("{},{}", self.leader.address, self.standby.address)).run();
        (nodes.exit_code() == 0).then(|| nodes.json().as_array().unwrap().clone())
    }

    /// The ids of the agent and of the job framework.
    fn who(&self) -> (Value, Value) {
        let master = if self.standby.leads() { &self.standby } else { &self.leader };
        let agents = master.operate(&json!({ "type": "GET_AGENTS" }));
        let frameworks = master.operate(&json!({ "type": "GET_FRAMEWORKS" }));
        let agent = &agents["get_agents"]["agents"][0]["agent_info"]["id"];
        (agent.clone(), frameworks["get_frameworks"]["frameworks"][0]["framework_info"]["id"].clone())
    }

    /// Waits until the standby leads, with all there was.
    fn expect_failover(&self) {
        wait::until("the standby leads", || self.standby.leads());
        wait::until("the agent and its tasks are back", || {
            let state = self.standby.operate(&json!({ "type": "GET_STATE" }));
            let running = state["get_state"]["get_tasks"]["tasks"].as_array().unwrap().iter();
            let running = running.filter(|task| task["state"] == "TASK_RUNNING").count();
            let frameworks = &state["get_state"]["get_frameworks"]["frameworks"];
            running == usize::from(TASKS) && frameworks[0]["connected"] == true && frameworks[1].is_null()
        });
        assert_eq!(self.who(), self.known, "both keep their ids");
        assert_eq!(self.processes(), self.sandboxes, "nothing was ended or started");
        let nodes = self.nodes().expect("the leader is found");
        let cpus = |node: &Value, field: &str| {
            let mut resources = node[field].as_array().unwrap().iter();
            let cpus = resources.find(|resource| resource["name"] == "cpus");
            cpus.map_or(0.0, |cpus| cpus["scalar"]["value"].as_f64().unwrap())
        };
        assert_eq!((nodes.len(), &nodes[0]["state"]), (1, &json!("connected")));
        let used = cpus(&nodes[0], "allocated_resources");
        assert!((used - 0.1 * f64::from(TASKS)).abs() < 0.001, "each task counts once: {used}");
    }

    /// Everything comes to its end as it should, and new tasks run.
    fn expect_to_go_on(&self) {
        let another = "{name: another, tasks: {t: {image: busybox, shell: 'true', resources: {memory: 16m}}}}";
        self.submit(another, "ended");
        fs::write(self.ledger().join("go"), "").unwrap();
        wait::until("the batch has ended", || {
            let job = self.home.berth("job status shop --format json").ok().json();
            tasks(&job).iter().filter(|task| task["state"] == "finished").count() == 4
        });
        for index in 0..4 {
            assert_eq!(self.lines(&format!("import.{index}")), ["begin 1", "end 1"], "{index} ran once, to its end");
        }
        for index in 0..2 {
            assert_eq!(self.lines(&format!("front.{index}")), ["begin 1"], "{index} goes on");
        }
        self.home.berth("job stop shop").ok();
        wait::until("nothing is left, and nothing is held", || {
            let free = |node: &Value| {
                let mut held = node["allocated_resources"].as_array().unwrap().iter();
                held.all(|resource| resource["scalar"]["value"].as_f64().is_none_or(|amount| amount == 0.0))
            };
            self.home.containers().is_empty() && self.nodes().is_some_and(|nodes| nodes.iter().all(free))
        });
    }
}

#[test]
fn what_makes_no_sense_for_several_masters_is_refused() {
    let home = Home::empty();
    for (command, said) in [
        ("master --store 127.0.0.1:2379", "etcd://[USER@]ADDRESS:PORT"),
        ("master --store etcd://sailor@127.0.0.1:2379", "set BERTH_ETCD_PASSWORD"),
        ("master --store etcd://10.0.0.1:2379", "loopback"),
        ("master --store etcd://127.0.0.1:2379 --lease 1s", "from 2s to 60s"),
        ("master --store etcd://127.0.0.1:2379 --directory x", "cannot be used with"),
        ("master --lease 5s", "--store"),
        ("agent --master 127.0.0.1:1,elsewhere", "ADDRESS:PORT"),
        ("jobs --master 127.0.0.1:1,", "ADDRESS:PORT"),
    ] {
        home.berth(&format!("cluster {command}")).run().fails_with(said);
    }
    home.berth("nodes --master 127.0.0.1:1,127.0.0.1:2").run().fails_with("127.0.0.1:2: Connection refused");
    let mut master = Process::start(&home, "master", "master --listen 127.0.0.1:0 --store etcd://127.0.0.1:1");
    master.first_line();
    wait::until("it says what it waits for", || {
        master.said().contains("waits for etcd: no etcd answers: 127.0.0.1:1: Connection refused")
    });
    master.signal(Signal::SIGTERM);
    assert_eq!(master.end().code(), Some(0));
}

#[test]
fn when_the_leader_dies_the_standby_takes_over() {
    let mut cluster = Cluster::up();
    cluster.leader.process.signal(Signal::SIGKILL);
    cluster.leader.process.end();
    cluster.expect_failover();
    cluster.expect_to_go_on();
}

#[test]
fn a_leader_that_slept_while_another_one_took_over_ends_and_has_written_nothing() {
    let mut cluster = Cluster::up();
    cluster.leader.process.signal(Signal::SIGSTOP);
    // What it is asked now, it reads when it wakes up.
    let mut late = TcpStream::connect(cluster.leader.address).unwrap();
    let weights = |role: &str| {
        let weights = json!([{ "role": role, "weight": 3.0 }]);
        json!({ "type": "UPDATE_WEIGHTS", "update_weights": { "weight_infos": weights } })
    };
    late.write_all(http::post("/api/v1", "", &weights("late").to_string()).as_bytes()).unwrap();
    // Agent and framework find out by themselves that nobody is at the other end any more.
    cluster.expect_failover();
    cluster.standby.operate(&weights("science"));
    let rows = cluster.etcd.rows();
    cluster.leader.process.signal(Signal::SIGCONT);
    let end = cluster.leader.process.end();
    let said = cluster.leader.process.said();
    assert_eq!(end.code(), Some(125), "{said}");
    assert!(said.contains("another one may lead"), "{said}");
    let mut answer = Vec::new();
    // Its end may cut that off.
    let _ = late.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    let registry = |rows: &Value| -> Vec<Value> {
        let rows = rows.as_array().unwrap().iter().filter(|row| row["lease"].is_null());
        rows.cloned().collect()
    };
    assert_eq!(registry(&cluster.etcd.rows()), registry(&rows));
    assert_eq!(registry(&rows).len(), 3, "an agent, a weight and the count of commits: {rows}");
    cluster.expect_to_go_on();
}

#[test]
fn without_etcd_the_leader_steps_down_and_with_it_again_one_leads() {
    let mut cluster = Cluster::up();
    cluster.etcd.kill();
    assert_eq!(cluster.leader.process.end().code(), Some(125));
    let said = cluster.leader.process.said();
    assert!(said.contains("not heard of by etcd in time"), "{said}");
    assert_eq!(cluster.nodes(), None, "nobody leads");
    assert_eq!(cluster.processes(), cluster.sandboxes, "which does nothing to tasks");
    assert!(cluster.etcd.run(), "etcd is back with what it knew");
    cluster.expect_failover();
    // The first master stands by when it is started again, and is sent on to the other one.
    let again = Master::start(&cluster.home, &cluster.etcd, "again");
    let call = http::post("/api/v1", "", &json!({ "type": "GET_STATE" }).to_string());
    wait::until("it knows who leads", || {
        let answer = http::send(again.address, call.as_bytes());
        answer.header("location") == Some(&*format!("//{}/api/v1", cluster.standby.address))
    });
    cluster.expect_to_go_on();
}
