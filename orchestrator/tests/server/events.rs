//! Whoever watches the cluster.

use std::io::{BufReader, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use berth_orchestrator::master::{
    FrameworkId, FromAgent, TaskId, TaskReport, TaskState, TaskStatus, ToAgent, UpdateId,
};
use serde_json::{Value, json};

use crate::client::{Agent, Master, registration};
use crate::http::{Answer, DEADLINE, Framework, connect, next_event, post, subscribe_call};

/// The names of so many tasks are more than the master and two sockets hold.
const SIZE: usize = 1 << 20;
const CALLS: usize = 3;
const EACH: usize = 10;

/// Somebody who has subscribed to what happens.
struct Observer {
    stream: BufReader<TcpStream>,
    state: Value,
}

impl Observer {
    fn new(master: &Master) -> Observer {
        let mut stream = connect(master.address);
        stream.write_all(post("/api/v1", "", r#"{"type": "SUBSCRIBE"}"#).as_bytes()).unwrap();
        let mut stream = BufReader::new(stream);
        let head = Answer::read_head(&mut stream);
        assert_eq!(head.status, 200, "{head:?}");
        assert_eq!(head.header("transfer-encoding"), Some("chunked"));
        assert_eq!(head.header("content-type"), Some("application/json"));
        let mut first = next_event(&mut stream).expect("an event");
        assert_eq!(first["type"], "SUBSCRIBED");
        assert_eq!(first["subscribed"]["heartbeat_interval_seconds"], 1.0);
        Observer { stream, state: first["subscribed"]["get_state"].take() }
    }

    /// The next event that is no heartbeat.
    fn next(&mut self) -> (String, Value) {
        let end = Instant::now() + DEADLINE;
        loop {
            let mut event = next_event(&mut self.stream).expect("the stream goes on");
            let kind = event["type"].as_str().unwrap().to_owned();
            if kind != "HEARTBEAT" {
                let body = event[kind.to_ascii_lowercase()].take();
                assert!(body.is_object(), "{kind}: {event}");
                return (kind, body);
            }
            assert!(Instant::now() < end, "nothing but heartbeats");
        }
    }

    fn expect(&mut self, kind: &str) -> Value {
        let (next, body) = self.next();
        assert_eq!(next, kind, "{body}");
        body
    }
}

fn update(framework: &str, task: &str, state: TaskState) -> FromAgent {
    let (reason, agent, details) = (None, None, "".into());
    let update = Some(UpdateId(1));
    let status = TaskStatus { task: task.into(), agent, state, update, reason, message: "so".to_owned(), details };
    FromAgent::Update { framework: FrameworkId::from(framework), status, latest: state }
}

#[test]
fn whoever_watches_is_told_of_everything_that_happens() {
    let master = Master::start();
    let mut observer = Observer::new(&master);
    assert_eq!(observer.state["get_tasks"]["tasks"], json!([]));
    assert_eq!(observer.state["get_agents"]["agents"], json!([]));

    let mut framework = Framework::new(master.address, &subscribe_call(None));
    let added = &observer.expect("FRAMEWORK_ADDED")["framework"];
    assert_eq!((&added["framework_info"]["id"]["value"], &added["connected"]), (&json!(framework.id), &json!(true)));
    let mut agent = Agent::register(&master, &registration(None));
    let id = json!({ "value": agent.id.as_str() });
    let added = &observer.expect("AGENT_ADDED")["agent"];
    assert_eq!((&added["agent_info"]["id"], &added["active"]), (&id, &json!(true)));
    assert_eq!(added["total_resources"][0]["scalar"]["value"], 4.0);

    framework.launch_next("t", 1.0, 512.0);
    let task = &observer.expect("TASK_ADDED")["task"];
    assert_eq!((&task["name"], &task["state"]), (&json!("a task"), &json!("TASK_STAGING")));
    // Who comes later finds it in the state, and is not told of it again.
    let mut late = Observer::new(&master);
    assert_eq!(late.state["get_tasks"]["tasks"], json!([task]));
    agent.next();
    // Said twice, it is one change.
    for _ in 0..2 {
        agent.say(&update(&framework.id, "t", TaskState::Running));
    }
    agent.say(&update(&framework.id, "t", TaskState::Finished));
    for observer in [&mut observer, &mut late] {
        for state in ["TASK_RUNNING", "TASK_FINISHED"] {
            let updated = observer.expect("TASK_UPDATED");
            assert_eq!(updated["state"], state);
            assert_eq!((&updated["task_id"]["value"], &updated["agent_id"]), (&json!("t"), &id));
            assert_eq!(updated["framework_id"]["value"], json!(framework.id));
            assert_eq!((&updated["status"]["state"], &updated["status"]["message"]), (&json!(state), &json!("so")));
            assert_eq!(updated["status"]["agent_id"], id);
        }
    }

    let again = json!({ "agent_id": id });
    master.operator(&json!({ "type": "MARK_AGENT_GONE", "mark_agent_gone": again }));
    assert_eq!(observer.expect("AGENT_REMOVED")["agent_id"], id);
    let id = framework.id.clone();
    drop(framework);
    let away = &observer.expect("FRAMEWORK_UPDATED")["framework"];
    assert_eq!((&away["framework_info"]["id"]["value"], &away["connected"]), (&json!(id), &json!(false)));
    let _framework = Framework::new(master.address, &subscribe_call(Some(&id)));
    assert_eq!(observer.expect("FRAMEWORK_UPDATED")["framework"]["active"], true);
    master.operator(&json!({ "type": "TEARDOWN", "teardown": { "framework_id": { "value": id } } }));
    assert_eq!(observer.expect("FRAMEWORK_REMOVED")["framework_info"]["id"]["value"], json!(id));
}

#[test]
fn what_the_master_finds_itself_is_told_as_well() {
    let master = Master::start();
    let mut framework = Framework::new(master.address, &subscribe_call(None));
    let mut agent = Agent::register(&master, &registration(None));
    framework.launch_next("lost", 1.0, 512.0);
    let Some(ToAgent::Run { task, role, framework_info, .. }) = agent.next() else { panic!("not run") };
    let mut observer = Observer::new(&master);
    // The agent comes back, without the task it was sent and with one that nobody here launched.
    let id = agent.id.clone();
    drop(agent);
    let mut back = registration(Some(id.clone()));
    let mut other = task.clone();
    other.id = TaskId::from("found");
    let of = FrameworkId::from("elsewhere");
    back.frameworks.insert(of.clone(), (*framework_info).clone());
    back.tasks.push(TaskReport { framework: of, role, info: other, state: TaskState::Running });
    let _agent = Agent::register(&master, &back);
    assert_eq!(observer.expect("FRAMEWORK_ADDED")["framework"]["framework_info"]["id"]["value"], "elsewhere");
    let found = &observer.expect("TASK_ADDED")["task"];
    assert_eq!((&found["task_id"]["value"], &found["state"]), (&json!("found"), &json!("TASK_RUNNING")));
    let lost = observer.expect("TASK_UPDATED");
    assert_eq!((&lost["task_id"]["value"], &lost["state"]), (&json!("lost"), &json!("TASK_DROPPED")));
    assert_eq!(lost["status"]["source"], "SOURCE_MASTER");
    assert_eq!(lost["status"]["reason"], "REASON_AGENT_REREGISTERED");

    master.operator(&json!({ "type": "MARK_AGENT_GONE", "mark_agent_gone": { "agent_id": { "value": id.as_str() } } }));
    assert_eq!(observer.expect("TASK_UPDATED")["state"], "TASK_GONE_BY_OPERATOR");
    observer.expect("AGENT_REMOVED");
}

#[test]
fn one_who_does_not_read_is_cut_off_and_holds_up_nobody() {
    let master = Master::start();
    let mut slow = Observer::new(&master);
    let mut quick = Observer::new(&master);
    let mut framework = Framework::new(master.address, &subscribe_call(None));
    quick.expect("FRAMEWORK_ADDED");
    let _agent = Agent::register(&master, &registration(None));
    quick.expect("AGENT_ADDED");
    let task = |offer: &Value, id: &str| {
        let resource = |name: &str| json!({ "name": name, "type": "SCALAR", "scalar": { "value": 0.1 } });
        let resources = [resource("cpus"), resource("mem")];
        let (id, name) = (json!({ "value": id }), "n".repeat(SIZE));
        json!({ "task_id": id, "name": name, "agent_id": offer["agent_id"], "resources": resources })
    };
    let mut longest = Duration::ZERO;
    for call in 0..CALLS {
        let offer = framework.offer();
        let begin = Instant::now();
        let ids: Vec<String> = (0..EACH).map(|number| format!("{call}.{number}")).collect();
        let tasks: Vec<Value> = ids.iter().map(|id| task(&offer, id)).collect();
        let operations = json!([{ "type": "LAUNCH", "launch": { "task_infos": tasks } }]);
        let accept =
            json!({ "offer_ids": [offer["id"]], "operations": operations, "filters": { "refuse_seconds": 0.0 } });
        framework.call(json!({ "type": "ACCEPT", "accept": accept }));
        for id in ids {
            let added = &quick.expect("TASK_ADDED")["task"];
            assert_eq!((&added["task_id"]["value"], added["name"].as_str().map(str::len)), (&json!(id), Some(SIZE)));
        }
        longest = longest.max(begin.elapsed());
    }
    assert!(longest < Duration::from_secs(20), "{longest:?}");
    let read =
        std::iter::from_fn(|| next_event(&mut slow.stream)).filter(|event| event["type"] == "TASK_ADDED").count();
    assert!((1..CALLS * EACH).contains(&read), "the stream ended after {read} tasks");
}

/// Subscribes, leaves at once, and says whether it was let in.
fn subscription_status(master: &Master) -> u16 {
    let mut stream = connect(master.address);
    stream.write_all(post("/api/v1", "", r#"{"type": "SUBSCRIBE"}"#).as_bytes()).unwrap();
    Answer::read_head(&mut BufReader::new(stream)).status
}

#[test]
fn there_is_a_most_of_subscribers_and_those_who_leave_make_room() {
    let master = Master::start();
    let mut observers: Vec<Observer> = (0..100).map(|_| Observer::new(&master)).collect();
    let call = json!({ "type": "SUBSCRIBE" });
    let refused = master.post("/api/v1", "", &call);
    assert_eq!(refused.status, 503);
    assert!(refused.body.contains("100 subscribers"), "{}", refused.body);
    observers.pop();
    let end = Instant::now() + DEADLINE;
    while subscription_status(&master) != 200 {
        assert!(Instant::now() < end, "nobody else is let in");
    }
    // Nor may they come and go as often as they like: each is a copy of the state.
    drop(observers);
    while subscription_status(&master) != 429 {
        assert!(Instant::now() < end, "nobody is told to wait");
    }
}
