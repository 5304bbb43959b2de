//! Programs beside tasks, by way of the master: calls and streams as Mesos' documents have them.

use std::io::{BufReader, Write as _};
use std::net::TcpStream;

use berth_orchestrator::api::agent::{Answer, Question};
use berth_orchestrator::api::sessions::{Input, Launch, Piece, Window};
use berth_orchestrator::master::{FromAgent, ToAgent};
use serde_json::{Value, json};

use crate::client::{Agent, Master, registration};
use crate::http::{self, connect, next_event};

const SESSION: &str = "task-1.s";

fn container_id() -> Value {
    json!({ "value": "s", "parent": { "value": "task-1" } })
}

fn launch_call() -> Value {
    let launch = json!({ "container_id": container_id(), "command": { "value": "ls" } });
    json!({ "type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session": launch })
}

/// The next question that a master asks, and its number.
fn asked(agent: &mut Agent) -> (u64, Question) {
    let Some(ToAgent::Ask { number, question }) = agent.next() else { panic!("not asked") };
    (number, question)
}

fn say(agent: &mut Agent, number: u64, answer: Answer) {
    agent.say(&FromAgent::Answer { number, answer });
}

/// Begins a session: the connection over which what is written comes.
fn launch(master: &Master, agent: &mut Agent) -> BufReader<TcpStream> {
    let mut stream = connect(master.address);
    let headers = "Accept: application/recordio\r\nMessage-Accept: application/json\r\n";
    let request = http::post(&format!("/agent/{}/api/v1", agent.id), headers, &launch_call().to_string());
    stream.write_all(request.as_bytes()).unwrap();
    let (number, question) = asked(agent);
    let program = ["/bin/sh", "-c", "ls"].map(str::to_owned).to_vec();
    let (session, sandbox) = (SESSION.to_owned(), "task-1".to_owned());
    let expected = Launch { session, sandbox, flags: Vec::new(), program, terminal: None };
    assert_eq!(question, Question::Launch(expected));
    say(agent, number, Answer::Done);
    let mut stream = BufReader::new(stream);
    let answer = http::Answer::read_head(&mut stream);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/recordio"));
    assert_eq!(answer.header("message-content-type"), Some("application/json"));
    stream
}

#[test]
fn what_a_program_writes_comes_as_records_until_it_has_ended() {
    let master = Master::start();
    let mut agent = Agent::register(&master, &registration(None));
    let mut stream = launch(&master, &mut agent);
    let piece = |error, data: &str| Piece { error, data: data.to_owned() };
    let output = Question::Output { session: SESSION.to_owned() };
    for (pieces, last) in
        [(vec![piece(false, "YQ=="), piece(true, "Yg==")], false), (vec![], false), (vec![piece(false, "Yw==")], true)]
    {
        let (number, question) = asked(&mut agent);
        assert_eq!(question, output);
        say(&mut agent, number, Answer::Written(pieces, last));
    }
    for (kind, data) in [("STDOUT", "YQ=="), ("STDERR", "Yg=="), ("STDOUT", "Yw==")] {
        let expected = json!({ "type": "DATA", "data": { "type": kind, "data": data } });
        assert_eq!(next_event(&mut stream), Some(expected));
    }
    assert_eq!(next_event(&mut stream), None);

    let call = json!({ "type": "WAIT_CONTAINER", "wait_container": { "container_id": container_id() } });
    let mut waiting = connect(master.address);
    let path = format!("/agent/{}/api/v1", agent.id);
    waiting.write_all(http::post(&path, "", &call.to_string()).as_bytes()).unwrap();
    for code in [None, Some(3)] {
        let (number, question) = asked(&mut agent);
        assert_eq!(question, Question::Wait { session: SESSION.to_owned() });
        say(&mut agent, number, Answer::Ended(code));
    }
    let answer = http::Answer::read(&mut BufReader::new(waiting));
    let expected = json!({ "type": "WAIT_CONTAINER", "wait_container": { "exit_status": 3 << 8 } });
    assert_eq!((answer.status, serde_json::from_str::<Value>(&answer.body).unwrap()), (200, expected));
}

#[test]
fn a_program_to_which_nobody_listens_ends() {
    let master = Master::start();
    let mut agent = Agent::register(&master, &registration(None));
    let stream = launch(&master, &mut agent);
    let (_, question) = asked(&mut agent);
    assert_eq!(question, Question::Output { session: SESSION.to_owned() });
    drop(stream);
    assert_eq!(asked(&mut agent).1, Question::End { session: SESSION.to_owned() });
    // What cannot be started is an error, and nothing to be ended.
    let path = format!("/agent/{}/api/v1", agent.id);
    for (answer, status) in [(Answer::NotFound("no".to_owned()), 404), (Answer::Busy, 429)] {
        let mut stream = connect(master.address);
        stream.write_all(http::post(&path, "", &launch_call().to_string()).as_bytes()).unwrap();
        let (number, question) = asked(&mut agent);
        assert!(matches!(question, Question::Launch(_)), "{question:?}");
        say(&mut agent, number, answer);
        assert_eq!(http::Answer::read(&mut BufReader::new(stream)).status, status);
    }
    let refused = master.post(&path, "Accept: application/json\r\n", &launch_call());
    assert_eq!(refused.status, 406, "{}", refused.body);
}

/// Records as one request.
fn attach(path: &str, records: &[Value]) -> Vec<u8> {
    let record = |record: &Value| {
        let call = json!({ "type": "ATTACH_CONTAINER_INPUT", "attach_container_input": record }).to_string();
        format!("{}\n{call}", call.len())
    };
    let body: String = records.iter().map(record).collect();
    let head = "Host: m\r\nConnection: close\r\nContent-Type: application/recordio\r\n\
                Message-Content-Type: application/json";
    format!("POST {path} HTTP/1.1\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[test]
fn what_a_program_is_to_read_comes_as_records() {
    let master = Master::start();
    let mut agent = Agent::register(&master, &registration(None));
    let path = format!("/agent/{}/api/v1", agent.id);
    let first = json!({ "type": "CONTAINER_ID", "container_id": container_id() });
    let io = |io: Value| json!({ "type": "PROCESS_IO", "process_io": io });
    let data = io(json!({ "type": "DATA", "data": { "type": "STDIN", "data": "YQ==" } }));
    let size = json!({ "window_size": { "rows": 3, "columns": 4 } });
    let window = io(json!({ "type": "CONTROL", "control": { "type": "TTY_INFO", "tty_info": size } }));
    let heartbeat = io(json!({ "type": "CONTROL", "control": { "type": "HEARTBEAT" } }));
    let mut stream = connect(master.address);
    stream.write_all(&attach(&path, &[first.clone(), data.clone(), heartbeat, window])).unwrap();
    let data_input = Input::Data("YQ==".to_owned());
    // A program that takes nothing now is asked again.
    for (input, answer) in [
        (data_input.clone(), Answer::Busy),
        (data_input, Answer::Done),
        (Input::Window(Window { rows: 3, columns: 4 }), Answer::Done),
    ] {
        let (number, question) = asked(&mut agent);
        assert_eq!(question, Question::Input { session: SESSION.to_owned(), input: Some(input) });
        say(&mut agent, number, answer);
    }
    assert_eq!(http::Answer::read(&mut BufReader::new(stream)).status, 200);

    let wrong = json!({ "type": "PROCESS_IO", "process_io": { "type": "X" } });
    for (records, said) in [
        (vec![data], "CONTAINER_ID"),
        (vec![first.clone(), first.clone()], "CONTAINER_ID"),
        (vec![first, wrong], "attach_container_input.process_io.type"),
    ] {
        let answer = master.send(&attach(&path, &records));
        assert!(answer.status == 400 && answer.body.contains(said), "{answer:?}");
    }
    let nonsense = format!("POST {path} HTTP/1.1\r\nHost: m\r\nContent-Type: application/recordio\r\n");
    let answer = master.send(format!("{nonsense}Content-Length: 3\r\n\r\nabc").as_bytes());
    assert!(answer.status == 400 && answer.body.contains("decimal digits"), "{answer:?}");
    let answer = master.post(&path, "", &json!({ "type": "ATTACH_CONTAINER_INPUT" }));
    assert!(answer.status == 400 && answer.body.contains("application/recordio"), "{answer:?}");
}
