//! Clients that speak protobuf. The numbers of fields are Mesos', in `wire.rs`' terms.

use std::io::{BufReader, Write as _};
use std::time::{Duration, Instant};

use berth_orchestrator::api::agent::{Answer, Question};
use berth_orchestrator::api::sessions::{Input, Piece, Window};
use berth_orchestrator::master::{FromAgent, TaskState, TaskStatus, ToAgent, UpdateId};
use serde_json::{Value, json};

use crate::client::{Agent, Master, registration};
use crate::http::{DEADLINE, connect, post, subscribe_call};
use crate::wire::{
    Message, PROTOBUF, Part, begin, double, exchange, expect, field, id, next, number, only_protobuf, request,
};

const SCHEDULER: &str = "/api/v1/scheduler";
const OPERATOR: &str = "/api/v1";

/// `Call.Type` and `Event.Type` of the scheduler API.
const SUBSCRIBE: u64 = 1;
const ACCEPT: u64 = 3;
const DECLINE: u64 = 4;
const ACKNOWLEDGE: u64 = 8;
const SUBSCRIBED: u64 = 1;
const OFFERS: u64 = 2;
const RESCIND: u64 = 3;
const UPDATE: u64 = 4;

/// A SUBSCRIBE call of a framework in role `a`, which has a capability that nobody knows.
fn subscribe() -> Vec<u8> {
    let capability = |kind| field(10, number(1, kind));
    let info = [
        field(1, "root"),
        field(2, "test"),
        double(4, 1000.0),
        field(12, "a"),
        capability(6),
        capability(5),
        capability(99),
        field(200, "from the future"),
    ];
    [number(2, SUBSCRIBE), field(3, field(1, info.concat()))].concat()
}

/// A resource that is a number.
fn scalar(name: &str, value: f64) -> Vec<u8> {
    [field(1, name), number(2, 0), field(3, double(1, value))].concat()
}

#[test]
fn a_framework_that_speaks_nothing_else_runs_a_task() {
    let master = Master::start();
    let mut agent = Agent::register(&master, &registration(None));
    let (head, mut stream) = begin(master.address, &request(SCHEDULER, &only_protobuf(), &subscribe()));
    assert_eq!((head.status, head.header("content-type")), (200, Some(PROTOBUF)));
    assert_eq!(head.header("transfer-encoding"), Some("chunked"));
    let first = next(&mut stream).unwrap();
    assert_eq!(first.number(1), SUBSCRIBED);
    let subscribed = first.at(&[2]);
    let framework = subscribed.at(&[1]).text(1).to_owned();
    assert_eq!(subscribed.part(2), &Part::Double(1.0));
    let info = subscribed.at(&[3]);
    let port = u64::from(master.address.port());
    assert_eq!((info.text(6), info.number(3), info.at(&[7]).number(3)), ("1.11.0", port, port));

    let offer = expect(&mut stream, 1, OFFERS).at(&[3, 1]);
    assert_eq!(offer.at(&[2]).text(1), framework);
    assert_eq!(offer.at(&[3]).text(1), agent.id.as_str());
    assert_eq!(offer.text(4), "127.0.0.1");
    assert_eq!(offer.at(&[10]).text(1), "a");
    assert_eq!(offer.at(&[8, 2]).number(3), 5051);
    let attribute = offer.at(&[7]);
    assert_eq!((attribute.text(1), attribute.number(2), attribute.at(&[5]).text(1)), ("zone", 3, "b"));
    let resources = offer.messages(5);
    assert_eq!((resources[0].text(1), resources[0].number(2), resources[0].at(&[3]).double(1)), ("cpus", 0, 4.0));
    let ports = resources[2].at(&[4, 1]);
    assert_eq!((ports.number(1), ports.number(2)), (31_000, 31_009));

    let stream_id = format!("{}Mesos-Stream-Id: {}\r\n", only_protobuf(), head.header("mesos-stream-id").unwrap());
    let call = |kind, what: &[u8]| {
        let body = [field(1, id(&framework)), number(2, kind), what.to_vec()].concat();
        let (status, _, body) = exchange(master.address, &request(SCHEDULER, &stream_id, &body));
        assert_eq!((status, &*body), (202, &b""[..]));
    };
    let variable = [field(1, "A"), field(2, "b")].concat();
    let command = [field(3, "true"), field(2, field(1, variable)), number(6, 1)].concat();
    let label = [field(1, "k"), field(2, "v")].concat();
    let task = [
        field(1, "a task"),
        field(2, id("t")),
        field(3, id(agent.id.as_str())),
        field(4, scalar("cpus", 1.5)),
        field(4, scalar("mem", 512.0)),
        field(6, [0xff, 0x00]),
        field(7, command),
        field(10, field(1, label)),
        field(12, field(1, number(1, 5_000_000_000))),
    ]
    .concat();
    let operation = [number(1, 1), field(2, field(1, task))].concat();
    let accept = [field(1, offer.bytes(1)), field(2, operation), field(3, double(1, 0.0))].concat();
    call(ACCEPT, &field(4, accept));
    let Some(ToAgent::Run { task, role, .. }) = agent.next() else { panic!("not run") };
    assert_eq!((task.id.as_str(), &*role), ("t", "a"));
    assert_eq!(task.resources.quantities.to_string(), "cpus 1.5, mem 512 MiB");
    let payload: Value = serde_json::from_str(&task.payload).unwrap();
    let environment = json!({ "variables": [{ "name": "A", "value": "b" }] });
    assert_eq!(payload["command"], json!({ "value": "true", "environment": environment, "shell": true }));
    assert_eq!((&payload["data"], &payload["name"]), (&json!("/wA="), &json!("a task")));
    assert_eq!(payload["kill_policy"], json!({ "grace_period": { "nanoseconds": 5_000_000_000_u64 } }));
    assert_eq!(payload["labels"], json!({ "labels": [{ "key": "k", "value": "v" }] }));

    let status = TaskStatus {
        task: "t".into(),
        agent: None,
        state: TaskState::Running,
        update: Some(UpdateId(7)),
        reason: None,
        message: "so it is".to_owned(),
        // What protobuf cannot say is left out.
        details:
            json!({ "timestamp": 12.5, "healthy": true, "data": "aGk=", "own": 1, "labels": 7, "reason": "REASON_OWN" })
                .to_string()
                .into(),
    };
    agent.say(&FromAgent::Update { framework: (&*framework).into(), status, latest: TaskState::Running });
    let status = expect(&mut stream, 1, UPDATE).at(&[5, 1]);
    let uuid = 7_u128.to_be_bytes();
    let expected = [
        (1, Part::Bytes(id("t"))),
        (2, Part::Number(1)),
        (3, Part::Bytes(b"hi".to_vec())),
        (4, Part::Bytes(b"so it is".to_vec())),
        (5, Part::Bytes(id(agent.id.as_str()))),
        (6, Part::Double(12.5)),
        (8, Part::Number(1)),
        (9, Part::Number(2)),
        (11, Part::Bytes(uuid.to_vec())),
    ];
    assert_eq!(status, Message(expected.to_vec()));
    let acknowledge = [field(1, id(agent.id.as_str())), field(2, id("t")), field(3, uuid)].concat();
    call(ACKNOWLEDGE, &field(8, acknowledge));
    let Some(ToAgent::Acknowledge { update, .. }) = agent.next() else { panic!("not acknowledged") };
    assert_eq!(update, UpdateId(7));

    let rest = expect(&mut stream, 1, OFFERS).at(&[3, 1]);
    call(DECLINE, &field(5, field(1, rest.bytes(1))));
    drop(agent);
    assert!(next(&mut stream).is_some_and(|event| event.number(1) != RESCIND), "what was declined is nobody's");
}

#[test]
fn operators_ask_and_change_in_protobuf() {
    let master = Master::start();
    let mut agent = Agent::register(&master, &registration(None));
    let ask = |body: &[u8]| {
        let (status, content_type, body) = exchange(master.address, &request(OPERATOR, &only_protobuf(), body));
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        assert!(body.is_empty() || content_type.as_deref() == Some(PROTOBUF));
        Message::read(&body)
    };
    assert_eq!(ask(&number(1, 1)), Message::read(&[8, 1, 18, 2, 8, 1]), "GET_HEALTH");
    assert_eq!(ask(&number(1, 3)).at(&[4, 1]).text(1), "1.11.0", "GET_VERSION");
    let subscribe_call = number(1, 18);
    let (head, mut events) = begin(master.address, &request(OPERATOR, &only_protobuf(), &subscribe_call));
    assert_eq!((head.status, head.header("content-type")), (200, Some(PROTOBUF)));
    let subscribed = next(&mut events).unwrap();
    assert_eq!((subscribed.number(1), subscribed.at(&[2]).double(2)), (1, 1.0));
    let agents = subscribed.at(&[2, 1, 4]);
    assert_eq!(agents.at(&[1, 1, 6]).text(1), agent.id.as_str());

    let (_, mut stream) = begin(master.address, &request(SCHEDULER, &only_protobuf(), &subscribe()));
    let framework = next(&mut stream).unwrap().at(&[2, 1]).text(1).to_owned();
    let added = expect(&mut events, 1, 6).at(&[7, 1]);
    assert_eq!(added.at(&[1, 3]).text(1), framework);
    // Readers of protobuf insist on a user, which the master does not keep.
    assert_eq!((added.at(&[1]).text(1), added.at(&[1]).text(2), added.at(&[1]).text(12)), ("", "test", "a"));
    assert_eq!((added.number(2), added.number(3), added.number(11)), (1, 1, 0));

    // What there is is told as of a short while ago.
    let end = Instant::now() + DEADLINE;
    let state = loop {
        let state = ask(&number(1, 9));
        if !state.at(&[9]).bytes(3).is_empty() {
            break state;
        }
        assert!(Instant::now() < end, "the framework does not appear");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(state.number(1), 8, "GET_STATE has another number in answers");
    assert_eq!(state.at(&[9, 3, 1, 1, 3]).text(1), framework);
    let known = state.at(&[9, 4, 1]);
    assert_eq!((known.number(2), known.text(3)), (1, env!("CARGO_PKG_VERSION")));
    assert_eq!(known.messages(7)[1].at(&[3]).part(1), &Part::Double(8192.0));
    assert_eq!(ask(&number(1, 10)).at(&[10, 1, 1]).text(1), "127.0.0.1", "GET_AGENTS");

    // Maps are messages with a key and a value.
    let cpus = |number, value: f64| field(number, [field(1, "cpus"), field(2, double(1, value))].concat());
    let config = [field(1, "a"), cpus(2, 1.0), cpus(3, 3.0)].concat();
    ask(&[number(1, 36), field(20, field(2, &config))].concat());
    let in_json = master.operator(&json!({ "type": "GET_QUOTA" }))["get_quota"]["status"]["configs"].clone();
    let amount = |value: f64| json!({ "cpus": { "value": value } });
    assert_eq!(in_json, json!([{ "role": "a", "guarantees": amount(1.0), "limits": amount(3.0) }]));
    let quota = ask(&number(1, 28));
    assert_eq!((quota.number(1), quota.at(&[19, 1]).bytes(2)), (18, &*config));
    ask(&[number(1, 16), field(6, field(1, [double(1, 2.5), field(2, "a")].concat()))].concat());
    let weights = ask(&number(1, 15));
    assert_eq!((weights.at(&[15, 1]).double(1), weights.at(&[15, 1]).text(2)), (2.5, "a"));

    ask(&[number(1, 37), field(21, field(1, id(agent.id.as_str())))].concat());
    assert_eq!(ask(&number(1, 10)).at(&[10, 1]).number(12), 1, "deactivated");
    // A file of a task: the agent is asked by way of the master.
    let path = format!("/agent/{}/api/v1", agent.id);
    let read = [field(1, "/a"), number(2, 7), number(3, 5)].concat();
    let mut asking = connect(master.address);
    asking.write_all(&request(&path, &only_protobuf(), &[number(1, 8), field(5, read)].concat())).unwrap();
    let (asked, question) = loop {
        if let Some(ToAgent::Ask { number, question }) = agent.next() {
            break (number, question);
        }
    };
    assert_eq!(question, Question::Read { path: "/a".to_owned(), offset: 7, length: 5 });
    agent.say(&FromAgent::Answer { number: asked, answer: Answer::Read(300, "aGVsbG8=".to_owned()) });
    let mut asking = BufReader::new(asking);
    let head = crate::http::Answer::read_head(&mut asking);
    assert_eq!((head.status, head.header("content-type")), (200, Some(PROTOBUF)));
    let mut body = Vec::new();
    std::io::Read::read_to_end(&mut asking, &mut body).unwrap();
    assert_eq!(body, [&[8, 7, 66, 10, 8, 0xac, 2, 18, 5][..], b"hello"].concat());
}

/// The next question that a master asks, answered.
fn answer(agent: &mut Agent, answer: Answer) -> Question {
    let Some(ToAgent::Ask { number, question }) = agent.next() else { panic!("not asked") };
    agent.say(&FromAgent::Answer { number, answer });
    question
}

#[test]
fn programs_beside_tasks_write_and_read_in_protobuf() {
    let master = Master::start();
    let mut agent = Agent::register(&master, &registration(None));
    let path = format!("/agent/{}/api/v1", agent.id);
    let container = [field(1, "s"), field(2, field(1, "task-1"))].concat();
    let launch = [field(1, &container), field(2, field(3, "ls"))].concat();
    let headers = format!("Content-Type: {PROTOBUF}\r\nAccept: application/recordio\r\nMessage-Accept: {PROTOBUF}\r\n");
    let mut stream = connect(master.address);
    stream.write_all(&request(&path, &headers, &[number(1, 17), field(9, launch)].concat())).unwrap();
    assert!(matches!(answer(&mut agent, Answer::Done), Question::Launch(launch) if launch.session == "task-1.s"));
    let mut stream = BufReader::new(stream);
    let head = crate::http::Answer::read_head(&mut stream);
    assert_eq!((head.status, head.header("content-type")), (200, Some("application/recordio")));
    assert_eq!(head.header("message-content-type"), Some(PROTOBUF));
    let pieces = vec![Piece { error: true, data: "Yg==".to_owned() }];
    answer(&mut agent, Answer::Written(pieces, true));
    assert_eq!(next(&mut stream), Some(Message::read(&[8, 1, 18, 5, 8, 3, 18, 1, b'b'])));
    assert_eq!(next(&mut stream), None);

    let io = |io: Vec<u8>| [number(1, 18), field(10, [number(1, 2), field(3, io)].concat())].concat();
    let size = field(1, [number(1, 3), number(2, 4)].concat());
    let records = [
        [number(1, 18), field(10, [number(1, 1), field(2, &container)].concat())].concat(),
        io([number(1, 1), field(2, [number(1, 1), field(2, "a")].concat())].concat()),
        io([number(1, 2), field(3, [number(1, 1), field(2, size)].concat())].concat()),
    ];
    let body: Vec<u8> = records.iter().flat_map(|it| [format!("{}\n", it.len()).as_bytes(), it].concat()).collect();
    let headers = format!("Content-Type: application/recordio\r\nMessage-Content-Type: {PROTOBUF}\r\n");
    let mut attached = connect(master.address);
    attached.write_all(&request(&path, &headers, &body)).unwrap();
    for input in [Input::Data("YQ==".to_owned()), Input::Window(Window { rows: 3, columns: 4 })] {
        let question = answer(&mut agent, Answer::Done);
        assert_eq!(question, Question::Input { session: "task-1.s".to_owned(), input: Some(input) });
    }
    assert_eq!(crate::http::Answer::read(&mut BufReader::new(attached)).status, 200);
    let text = request(&path, &headers.replace(PROTOBUF, "text/plain"), &body);
    assert_eq!(exchange(master.address, &text).0, 415);

    let mut waiting = connect(master.address);
    let wait = [number(1, 23), field(14, field(1, &container))].concat();
    waiting.write_all(&request(&path, &only_protobuf(), &wait)).unwrap();
    answer(&mut agent, Answer::Ended(Some(3)));
    let mut body = Vec::new();
    let mut waiting = BufReader::new(waiting);
    assert_eq!(crate::http::Answer::read_head(&mut waiting).status, 200);
    std::io::Read::read_to_end(&mut waiting, &mut body).unwrap();
    assert_eq!(body, [8, 15, 0x82, 1, 3, 8, 0x80, 6]);
}

#[test]
fn what_is_welcome_decides_what_an_answer_is() {
    let master = Master::start();
    let json = r#"{"type": "GET_HEALTH"}"#;
    let answer = |accept: &str| exchange(master.address, post(OPERATOR, accept, json).as_bytes());
    let (as_json, as_protobuf) = (Some("application/json".to_owned()), Some(PROTOBUF.to_owned()));
    for (accept, expected) in [
        ("", &as_json),
        ("Accept: */*\r\n", &as_json),
        ("Accept: application/x-protobuf, application/json\r\n", &as_json),
        ("Accept: Application/X-Protobuf; q=1, */*; q=0.1\r\n", &as_protobuf),
    ] {
        let (status, content_type, _) = answer(accept);
        assert_eq!((status, &content_type), (200, expected), "{accept}");
    }
    let (status, _, says) = answer("Accept: text/html\r\n");
    let says = String::from_utf8(says).unwrap();
    assert!(status == 406 && says.contains("application/json or application/x-protobuf"), "{status} {says}");
    // One that speaks protobuf and does not care is answered in JSON, as by Mesos.
    let headers = format!("Content-Type: {PROTOBUF}; charset=x\r\n");
    let (status, content_type, body) = exchange(master.address, &request(OPERATOR, &headers, &number(1, 1)));
    assert_eq!((status, content_type), (200, as_json));
    assert_eq!(body, br#"{"get_health":{"healthy":true},"type":"GET_HEALTH"}"#);
    // berth's own calls have no numbers.
    let own = post(OPERATOR, &format!("Accept: {PROTOBUF}\r\n"), r#"{"type": "GET_FAIRNESS"}"#);
    let (status, _, says) = exchange(master.address, own.as_bytes());
    assert!(status == 406 && String::from_utf8(says).unwrap().contains("GET_FAIRNESS"));
    // Machines that join are not Mesos'.
    let join = request("/berth/join", &only_protobuf().replace("Accept: application/x-protobuf", "Accept: */*"), &[]);
    assert_ne!(exchange(master.address, &join).0, 200);
}

#[test]
fn what_is_no_protobuf_or_not_enough_is_said() {
    let master = Master::start();
    let deep = (0..1000).fold(Vec::new(), |inner, _| field(2, inner));
    let subscribe = subscribe();
    let subscribe_as = |info: &[u8]| [number(2, SUBSCRIBE), field(3, field(1, info))].concat();
    let whole = "request: is no message of protobuf";
    let framework = field(1, id("f"));
    let resource = [field(1, "cpus"), number(2, 0), field(3, double(1, f64::NAN))].concat();
    let task = [field(2, id("t")), field(3, id("a")), field(4, resource)].concat();
    let accept = field(4, field(2, [number(1, 1), field(2, field(1, task))].concat()));
    let cases: [(&str, Vec<u8>, &str); 11] = [
        ("nothing", Vec::new(), "type"),
        ("JSON", subscribe_call(None).to_string().into_bytes(), whole),
        ("truncated", subscribe[..subscribe.len() - 1].to_vec(), whole),
        (
            "more than there is",
            [&[0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f][..], b"x"].concat(),
            whole,
        ),
        ("too long a number", [vec![0x10], vec![0xff; 11]].concat(), whole),
        ("no field", vec![0, 0], whole),
        ("another type", field(2, "SUBSCRIBE"), whole),
        ("no text", subscribe_as(&field(2, [0xff, 0xfe])), whole),
        ("no name", subscribe_as(&field(1, "root")), "subscribe.framework_info"),
        ("no such call", [number(2, 99), framework.clone()].concat(), "type: `UNKNOWN`"),
        ("no number", [framework, number(2, ACCEPT), accept].concat(), "resources[0].scalar.value"),
    ];
    for (name, body, says) in cases {
        let (status, _, answer) = exchange(master.address, &request(SCHEDULER, &only_protobuf(), &body));
        let answer = String::from_utf8(answer).unwrap();
        assert!(status == 400 && answer.contains(says), "{name}: {status} {answer}");
    }
    // Containers are in others, for ever.
    let wait = [number(1, 23), field(14, field(1, deep))].concat();
    let (status, _, answer) = exchange(master.address, &request("/agent/x/api/v1", &only_protobuf(), &wait));
    assert!(status == 400 && String::from_utf8(answer).unwrap().contains(whole));
    let typed = post(SCHEDULER, "", "x").replace("application/json", "application/protobuf");
    let (status, _, says) = exchange(master.address, typed.as_bytes());
    assert!(status == 415 && String::from_utf8(says).unwrap().contains(PROTOBUF));
    // It takes more memory than JSON to read, so less of it is.
    let huge = format!("POST {SCHEDULER} HTTP/1.1\r\nHost: m\r\n{}Content-Length: 6000000\r\n\r\n", only_protobuf());
    assert_eq!(exchange(master.address, huge.as_bytes()).0, 413);
    // Who is right is let in after all of that.
    assert_eq!(begin(master.address, &request(SCHEDULER, &only_protobuf(), &subscribe)).0.status, 200);
}
