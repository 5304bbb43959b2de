//! What an agent answers executors: bytes over a loopback socket. In place of the program that makes sandboxes is a script that
//! writes down what it was started with; the executor is the test itself.

use std::fs;
use std::io::{BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth_engine::Roots;
use berth_engine::options::Network;
use berth_orchestrator::agent;
use berth_orchestrator::master::AgentInfo;
use berth_orchestrator::resources::Quantities;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::client::{GIB, Master};
use crate::http::{Answer, DEADLINE, Framework, connect, next_event, post, send, subscribe_call};
use crate::wire::{self, field, number};

const PATH: &str = "/api/v1/executor";

/// An agent in a thread, which ends when it is dropped.
struct Agent {
    home: TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    fn start(master: &Master) -> Agent {
        Agent::start_at(master.address)
    }

    fn start_at(master: SocketAddr) -> Agent {
        let home = tempfile::tempdir().unwrap();
        // It goes on until there is nothing left of the test.
        let script = format!(
            "#!/bin/sh\ncd {home} || exit 1\necho \"$@\" > arguments\nenv > starting && mv starting started\n\
             while [ -e berth ] && [ ! -e end ]; do sleep 0.05; done\n",
            home = home.path().display()
        );
        let program = home.path().join("berth");
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let mut agent = Agent { home, stop: None, thread: None };
        agent.run(master);
        agent
    }

    fn run(&mut self, master: SocketAddr) {
        let home = self.home.path();
        let info = AgentInfo { resources: Quantities::new(4000, GIB).into(), ..AgentInfo::default() };
        let config = agent::Config {
            masters: master.to_string().parse().unwrap(),
            tls: None,
            directory: home.join("agent"),
            roots: Roots::new(&home.join("data"), &home.join("state")).unwrap(),
            berth: home.join("berth"),
            info: AgentInfo { hostname: "127.0.0.1".to_owned(), ..info },
            default_image: Some("image".to_owned()),
            network: Network::Host,
        };
        let (stop, stopped) = oneshot::channel();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(agent::run(config, async { drop(stopped.await) })).unwrap();
            // Its place to listen is free then.
            runtime.shutdown_timeout(DEADLINE);
        };
        (self.stop, self.thread) = (Some(stop), Some(thread::spawn(run)));
    }

    fn end(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking(), "the agent panicked");
    }

    /// What the executor that is about to be started finds in its environment.
    fn executor(&self) -> Executor {
        let started = self.home.path().join("started");
        let variables = wait_for(&started, |text| !text.is_empty());
        let variable = |name: &str| {
            let arguments = fs::read_to_string(self.home.path().join("arguments")).unwrap();
            let given = |text: &str| {
                text.split_whitespace().find_map(|it| it.strip_prefix(&format!("{name}="))).map(str::to_owned)
            };
            given(&arguments.replace("--env=", "")).or_else(|| given(&variables)).unwrap()
        };
        let token = variable("MESOS_EXECUTOR_AUTHENTICATION_TOKEN");
        let arguments = fs::read_to_string(self.home.path().join("arguments")).unwrap();
        assert!(!arguments.contains(&token), "others on the machine can read it: {arguments}");
        Executor {
            agent: variable("MESOS_AGENT_ENDPOINT").parse().unwrap(),
            framework: variable("MESOS_FRAMEWORK_ID"),
            id: variable("MESOS_EXECUTOR_ID"),
            token,
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end();
    }
}

/// The number of an update, as it is written.
fn uuid(number: u128) -> String {
    BASE64_STANDARD.encode(number.to_be_bytes())
}

fn wait_for(path: &Path, condition: impl Fn(&str) -> bool) -> String {
    let end = Instant::now() + DEADLINE;
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        if condition(&text) {
            return text;
        }
        assert!(Instant::now() < end, "{} is {text:?}", path.display());
        thread::sleep(Duration::from_millis(5));
    }
}

struct Executor {
    agent: SocketAddr,
    framework: String,
    id: String,
    token: String,
}

/// The events of a subscription.
struct Stream(BufReader<TcpStream>);

impl Stream {
    /// The next event that is not a heartbeat; none at the end.
    fn next(&mut self) -> Option<Value> {
        loop {
            let event = next_event(&mut self.0)?;
            if event["type"] != "HEARTBEAT" {
                return Some(event);
            }
        }
    }

    fn expect(&mut self, kind: &str) -> Value {
        let mut event = self.next().expect("the stream goes on");
        assert_eq!(event["type"], kind, "{event}");
        event[kind.to_ascii_lowercase()].take()
    }
}

impl Executor {
    fn bearer(&self) -> String {
        format!("Authorization: Bearer {}\r\n", self.token)
    }

    fn with_ids(&self, mut call: Value) -> String {
        call["framework_id"] = json!({ "value": self.framework });
        call["executor_id"] = json!({ "value": self.id });
        call.to_string()
    }

    fn try_call(&self, call: Value) -> Answer {
        send(self.agent, post(PATH, &self.bearer(), &self.with_ids(call)).as_bytes())
    }

    fn call(&self, call: Value) {
        let answer = self.try_call(call);
        assert_eq!((answer.status, &*answer.body), (202, ""));
    }

    fn update(&self, task: &str, state: &str, uuid: &str) -> Answer {
        let status = json!({ "task_id": { "value": task }, "state": state, "uuid": uuid, "data": "eA==" });
        self.try_call(json!({ "type": "UPDATE", "update": { "status": status } }))
    }

    fn subscribe(&self, what: &Value) -> Stream {
        let mut stream = connect(self.agent);
        let call = self.with_ids(json!({ "type": "SUBSCRIBE", "subscribe": what }));
        stream.write_all(post(PATH, &self.bearer(), &call).as_bytes()).unwrap();
        let mut stream = BufReader::new(stream);
        let head = Answer::read_head(&mut stream);
        assert_eq!((head.status, head.header("transfer-encoding")), (200, Some("chunked")), "{head:?}");
        Stream(stream)
    }
}

/// A framework that has launched a task with an executor, and the executor.
fn launch(master: &Master, agent: &Agent) -> (Framework, Executor, Value) {
    let mut framework = Framework::new(master.address, &subscribe_call(None));
    let offer = framework.offer();
    let resources = json!([
        { "name": "cpus", "type": "SCALAR", "scalar": { "value": 0.5 } },
        { "name": "mem", "type": "SCALAR", "scalar": { "value": 64 } },
    ]);
    let executor = json!({ "executor_id": { "value": "e" }, "command": { "value": "x" }, "resources": resources });
    framework.launch_as(&offer, "t", 1.0, 32.0, json!({ "executor": executor, "data": "aGk=" }));
    let executor = agent.executor();
    assert_eq!((&executor.framework, &*executor.id), (&framework.id, "e"));
    (framework, executor, offer["agent_id"].clone())
}

#[test]
fn calls_that_are_wrong_say_what_is_wrong() {
    let master = Master::start();
    let agent = Agent::start(&master);
    let (_framework, executor, _) = launch(&master, &agent);
    let bearer = executor.bearer();
    let heartbeat = executor.with_ids(json!({ "type": "HEARTBEAT" }));
    let subscribe = executor.with_ids(json!({ "type": "SUBSCRIBE" }));
    let with = |call: Value| post(PATH, &bearer, &executor.with_ids(call));
    let status = |state: &str, uuid: &str| json!({ "task_id": { "value": "t" }, "state": state, "uuid": uuid });
    let update = |status: Value| with(json!({ "type": "UPDATE", "update": { "status": status } }));
    let typed = |kind: &str| post(PATH, &bearer, &heartbeat).replace("Content-Type: application/json", kind);
    let stolen =
        |name: &str, id: &str| post(PATH, &bearer, &subscribe.replace(&format!("\"{id}\""), &format!("\"{name}\"")));
    let wrong = bearer.replacen("task-", "task+", 1);
    let cases = [
        ("no such place", post("/api/v1", &bearer, "{}"), 404, "/api/v1"),
        ("wrong method", format!("GET {PATH} HTTP/1.1\r\nHost: a\r\n{bearer}\r\n"), 405, "POST"),
        ("no token", post(PATH, "", &subscribe), 401, "MESOS_EXECUTOR_AUTHENTICATION_TOKEN"),
        ("another kind of token", post(PATH, "Authorization: Basic YTpi\r\n", &subscribe), 401, "Bearer"),
        ("a wrong token", post(PATH, &wrong, &subscribe), 401, "the token is none of this agent's"),
        ("another framework", stolen("another", &executor.framework), 403, "framework_id and executor_id"),
        ("another executor", stolen("another", "e"), 403, "framework_id and executor_id"),
        ("not subscribed", post(PATH, &bearer, &heartbeat), 403, "SUBSCRIBE comes first"),
        ("no type of body", typed("X-Nothing: 1"), 400, "Content-Type"),
        ("text", typed("Content-Type: text/plain"), 415, "text/plain"),
        ("JSON as protobuf", typed("Content-Type: application/x-protobuf"), 400, "request: is no message of protobuf"),
        ("no JSON", post(PATH, &bearer, "{"), 400, "request:"),
        ("deep JSON", post(PATH, &bearer, &"[".repeat(100_000)), 400, "request:"),
        ("no ids", post(PATH, &bearer, r#"{"type": "HEARTBEAT"}"#), 400, "framework_id"),
        ("no such call", with(json!({ "type": "LAUNCH" })), 400, "type: `LAUNCH`"),
        ("nothing to say", with(json!({ "type": "UPDATE" })), 400, "update"),
        ("no such state", update(status("TASK_DANCING", &uuid(0))), 400, "update.status.state: `TASK_DANCING`"),
        ("not its state", update(status("TASK_UNREACHABLE", &uuid(0))), 400, "update.status.state"),
        ("a wrong number", update(status("TASK_RUNNING", "AAAA")), 400, "update.status.uuid"),
        ("no base64", with(json!({ "type": "MESSAGE", "message": { "data": "?" } })), 400, "message.data"),
        (
            "a wrong task",
            with(json!({ "type": "SUBSCRIBE", "subscribe": { "unacknowledged_tasks": [{ "task_id": 7 }] } })),
            400,
            "subscribe.unacknowledged_tasks[0].task_id",
        ),
    ];
    for (name, request, status, says) in cases {
        let answer = send(executor.agent, request.as_bytes());
        assert_eq!(answer.status, status, "{name}: {}", answer.body);
        assert!(answer.body.contains(says), "{name}: {}", answer.body);
        let challenge = answer.header("www-authenticate");
        assert_eq!(challenge, (status == 401).then_some(r#"Bearer realm="berth""#), "{name}");
    }
    let huge = |headers: &str| {
        let head = format!("POST {PATH} HTTP/1.1\r\nHost: a\r\n{headers}Content-Type: application/json\r\n");
        send(executor.agent, format!("{head}Content-Length: 99999999\r\n\r\n").as_bytes()).status
    };
    assert_eq!((huge(&bearer), huge("")), (413, 401));
    // Who is right is let in after all of that.
    executor.subscribe(&json!({})).expect("SUBSCRIBED");
}

#[test]
fn an_executor_is_told_what_to_do_and_says_what_became_of_it() {
    let master = Master::start();
    let mut agent = Agent::start(&master);
    let (mut framework, executor, agent_id) = launch(&master, &agent);
    let (id, to) = (json!({ "value": "t" }), json!({ "agent_id": agent_id, "executor_id": { "value": "e" } }));
    let mut stream = executor.subscribe(&json!({}));
    let subscribed = stream.expect("SUBSCRIBED");
    assert_eq!(subscribed["framework_info"]["id"]["value"], executor.framework);
    assert_eq!(subscribed["executor_info"]["executor_id"]["value"], "e");
    assert_eq!(subscribed["agent_info"]["id"], agent_id);
    let task = stream.expect("LAUNCH")["task"].take();
    assert_eq!((&task["task_id"], &task["data"]), (&id, &json!("aGk=")));
    assert_eq!(task["executor"]["command"]["value"], "x");

    // One that subscribes again without it has never got it.
    let mut second = executor.subscribe(&json!({}));
    assert!(stream.expect("ERROR")["message"].as_str().unwrap().contains("another connection"));
    assert_eq!(stream.next(), None);
    second.expect("SUBSCRIBED");
    second.expect("LAUNCH");
    let mut stream = executor.subscribe(&json!({ "unacknowledged_tasks": [task] }));
    stream.expect("SUBSCRIBED");

    assert_eq!(executor.update("t", "TASK_RUNNING", &uuid(0)).status, 202);
    let acknowledged = json!({ "task_id": id, "uuid": uuid(0) });
    assert_eq!(stream.expect("ACKNOWLEDGED"), acknowledged);
    let status = framework.status();
    assert_eq!((&status["state"], &status["uuid"]), (&json!("TASK_RUNNING"), &json!(uuid(0))));
    assert_eq!((&status["executor_id"]["value"], &status["data"]), (&json!("e"), &json!("eA==")));
    assert_eq!(status["source"], "SOURCE_EXECUTOR");
    let body = json!({ "agent_id": agent_id, "task_id": id, "uuid": uuid(0) });
    framework.call(json!({ "type": "ACKNOWLEDGE", "acknowledge": body }));

    // What is said twice is acknowledged twice, and passed on once.
    assert_eq!(executor.update("t", "TASK_RUNNING", &uuid(0)).status, 202);
    assert_eq!(stream.expect("ACKNOWLEDGED"), acknowledged);
    executor.call(json!({ "type": "MESSAGE", "message": { "data": "dXA=" } }));
    let message = framework.event();
    assert_eq!((&message["type"], &message["message"]["data"]), (&json!("MESSAGE"), &json!("dXA=")));
    let mut down = to.clone();
    down["data"] = json!("ZG93bg==");
    framework.call(json!({ "type": "MESSAGE", "message": down }));
    assert_eq!(stream.expect("MESSAGE")["data"], "ZG93bg==");
    framework.call(json!({ "type": "KILL", "kill": { "task_id": id } }));
    assert_eq!(stream.expect("KILL")["task_id"], id);

    // The agent is restarted, listens where it did, and knows its tokens.
    agent.end();
    while stream.next().is_some() {}
    let unheard = json!({ "task_id": id, "state": "TASK_KILLED", "uuid": uuid(1) });
    agent.run(master.address);
    let end = Instant::now() + DEADLINE;
    while TcpStream::connect(executor.agent).is_err() {
        assert!(Instant::now() < end, "the agent does not listen");
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(executor.try_call(json!({ "type": "HEARTBEAT" })).status, 403);
    let mut stream = executor.subscribe(&json!({ "unacknowledged_updates": [{ "status": unheard }] }));
    stream.expect("SUBSCRIBED");
    assert_eq!(stream.expect("ACKNOWLEDGED")["uuid"], uuid(1));
    assert_eq!(framework.status()["state"], "TASK_KILLED");
    framework.call(json!({ "type": "SHUTDOWN", "shutdown": to }));
    fs::write(agent.home.path().join("end"), "").unwrap();
    let failure = framework.expect("FAILURE");
    assert_eq!((&failure["agent_id"], &failure["executor_id"]["value"]), (&agent_id, &json!("e")));
    assert_eq!(executor.try_call(json!({ "type": "HEARTBEAT" })).status, 400, "it is over");
}

#[test]
fn an_executor_that_speaks_protobuf_runs_a_task() {
    let master = Master::start();
    let agent = Agent::start(&master);
    let (mut framework, executor, agent_id) = launch(&master, &agent);
    let headers = wire::only_protobuf() + &executor.bearer();
    let call = |kind, what: &[u8]| {
        let ids = [field(1, wire::id(&executor.id)), field(2, wire::id(&executor.framework))].concat();
        wire::request(PATH, &headers, &[ids, number(3, kind), what.to_vec()].concat())
    };
    let (head, mut stream) = wire::begin(executor.agent, &call(1, &[]));
    assert_eq!((head.status, head.header("content-type")), (200, Some(wire::PROTOBUF)));
    let subscribed = wire::expect(&mut stream, 1, 1).at(&[2]);
    assert_eq!(subscribed.at(&[1, 1]).text(1), "e");
    assert_eq!((subscribed.at(&[2]).text(1), subscribed.at(&[2, 3]).text(1)), ("", &*executor.framework));
    assert_eq!(
        (subscribed.at(&[3]).text(1), subscribed.at(&[3, 6]).text(1)),
        ("127.0.0.1", agent_id["value"].as_str().unwrap())
    );
    let task = wire::expect(&mut stream, 1, 2).at(&[4, 1]);
    assert_eq!((task.text(1), task.at(&[2]).text(1), task.text(6)), ("a task", "t", "hi"));
    assert_eq!((task.at(&[5, 7]).text(3), task.messages(4)[0].at(&[3]).double(1)), ("x", 1.0));

    let tell = |kind, what: &[u8]| wire::exchange(executor.agent, &call(kind, what)).0;
    let uuid = 5_u128.to_be_bytes();
    let status = [field(1, wire::id("t")), number(2, 1), field(3, "x"), field(11, uuid), number(8, 1)].concat();
    assert_eq!(tell(2, &field(5, field(1, status))), 202);
    let acknowledged = wire::expect(&mut stream, 1, 4).at(&[3]);
    assert_eq!((acknowledged.at(&[1]).text(1), acknowledged.bytes(2)), ("t", &uuid[..]));
    // Its framework speaks JSON.
    let status = framework.status();
    assert_eq!((&status["state"], &status["healthy"]), (&json!("TASK_RUNNING"), &json!(true)));
    assert_eq!((&status["data"], &status["uuid"]), (&json!("eA=="), &json!(self::uuid(5))));
    assert_eq!(tell(3, &field(6, field(2, "up"))), 202);
    assert_eq!(framework.expect("MESSAGE")["data"], "dXA=");
    assert_eq!(tell(4, &[]), 202);
    framework.call(json!({ "type": "KILL", "kill": { "task_id": { "value": "t" } } }));
    assert_eq!(wire::expect(&mut stream, 1, 3).at(&[5, 1]).text(1), "t");
    wire::expect(&mut stream, 1, 9);
}

#[test]
fn an_executor_cannot_say_more_than_its_framework_takes_note_of() {
    let master = Master::start();
    let agent = Agent::start(&master);
    let (_framework, executor, _) = launch(&master, &agent);
    let mut stream = executor.subscribe(&json!({}));
    stream.expect("SUBSCRIBED");
    stream.expect("LAUNCH");
    let refused = (0..1000).find_map(|number| {
        let answer = executor.update("t", "TASK_RUNNING", &uuid(number));
        (answer.status != 202).then_some(answer)
    });
    let refused = refused.expect("some time it is too much");
    assert_eq!(refused.status, 429);
    assert!(refused.body.contains("update.status: 100 updates of task t"), "{}", refused.body);
    assert_eq!(executor.update("t", "TASK_FINISHED", &uuid(1000)).status, 202, "its end is taken note of");
}

/// Passes on what one client and a server say; what the client says only while the gate is open.
fn pass_on(server: SocketAddr, gate: Arc<Mutex<()>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut server = TcpStream::connect(server).unwrap();
        let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        thread::spawn(move || std::io::copy(&mut from, &mut to));
        let mut piece = vec![0; 64 << 10];
        while let Ok(length @ 1..) = client.read(&mut piece) {
            drop(gate.lock());
            if server.write_all(&piece[..length]).is_err() {
                break;
            }
        }
        let _ = server.shutdown(std::net::Shutdown::Both);
    });
    address
}

#[test]
fn messages_do_not_pile_up_for_a_master_that_does_not_read() {
    let master = Master::start();
    let gate = Arc::new(Mutex::new(()));
    let agent = Agent::start_at(pass_on(master.address, Arc::clone(&gate)));
    let (_framework, executor, _) = launch(&master, &agent);
    executor.subscribe(&json!({})).expect("SUBSCRIBED");
    let message = json!({ "type": "MESSAGE", "message": { "data": "AAAA".repeat((1 << 20) / 3) } });
    let shut = gate.lock().unwrap();
    let refused = (0..200).map(|_| executor.try_call(message.clone())).find(|answer| answer.status != 202);
    let refused = refused.expect("some time it is too much");
    assert_eq!(refused.status, 429);
    assert!(refused.body.starts_with("message: "), "{}", refused.body);
    // Whatever else it says is taken note of.
    assert_eq!(executor.update("t", "TASK_RUNNING", &uuid(1)).status, 202);
    drop(shut);
    let end = Instant::now() + DEADLINE;
    while executor.try_call(message.clone()).status != 202 {
        assert!(Instant::now() < end, "the master reads again");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn connections_are_bounded_of_one_executor_and_of_one_user_who_has_shown_no_token() {
    let master = Master::start();
    let agent = Agent::start(&master);
    let (_framework, executor, _) = launch(&master, &agent);
    executor.subscribe(&json!({})).expect("SUBSCRIBED");
    let heartbeat = executor.with_ids(json!({ "type": "HEARTBEAT" }));
    let request = post(PATH, &executor.bearer(), &heartbeat).replace("Connection: close\r\n", "");
    let ask = |stream: &mut BufReader<TcpStream>| {
        stream.get_mut().write_all(request.as_bytes()).unwrap();
        Answer::read(stream).status
    };
    let mut open = Vec::new();
    let refused = (0..200).find_map(|_| {
        let mut stream = BufReader::new(connect(executor.agent));
        let status = ask(&mut stream);
        open.push(stream);
        (status != 202).then_some(status)
    });
    assert_eq!((refused, open.len() / 100), (Some(429), 1));
    open.pop();
    // Who is one of too many is disconnected; who is known is not.
    let strangers: Vec<TcpStream> = (0..200).map(|_| connect(executor.agent)).collect();
    let is_refused = |mut stream: &TcpStream| {
        stream.set_nonblocking(true).unwrap();
        matches!(stream.read(&mut [0]), Ok(0))
    };
    let end = Instant::now() + DEADLINE;
    while strangers.iter().filter(|stream| is_refused(stream)).count() < 100 {
        assert!(Instant::now() < end, "more are let in");
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(ask(&mut open[0]), 202);
}
