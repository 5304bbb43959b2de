//! The files of tasks, by way of the master: what agents are asked, and what becomes of their answers.

use berth_orchestrator::api::agent::{Answer, FileInfo, Question};
use berth_orchestrator::master::{FromAgent, ToAgent};
use serde_json::{Value, json};

use std::thread;
use std::time::Duration;

use crate::client::{Agent, Master, registration};
use crate::http::{self, Framework, subscribe_call};

/// Asks something while the agent answers what it likes: the status and the body.
fn ask(master: &Master, agent: &mut Agent, call: &Value, answer: impl FnOnce(&Question) -> Answer) -> (u16, String) {
    let request = http::post(&format!("/agent/{}/api/v1", agent.id), "", &call.to_string());
    let address = master.address;
    let asking = thread::spawn(move || http::send(address, request.as_bytes()));
    let Some(ToAgent::Ask { number, question }) = agent.next() else { panic!("not asked") };
    let answer = answer(&question);
    agent.say(&FromAgent::Answer { number, answer });
    let got = asking.join().unwrap();
    (got.status, got.body)
}

#[test]
fn an_agent_is_asked_by_way_of_the_master() {
    let master = Master::start();
    let mut framework = Framework::new(master.address, &subscribe_call(None));
    let mut without_port = registration(None);
    without_port.info.port = 0;
    let mut agent = Agent::register(&master, &without_port);
    // Who does not listen is reached where the master does.
    let url = framework.offer()["url"].clone();
    assert_eq!(url["path"], format!("/agent/{}", agent.id));
    assert_eq!(url["address"]["port"], master.address.port());

    let call = json!({ "type": "LIST_FILES", "list_files": { "path": "/a/b" } });
    let (status, body) = ask(&master, &mut agent, &call, |question| {
        assert_eq!(*question, Question::List { path: "/a/b".to_owned() });
        let (path, modified) = ("/a/b/c".to_owned(), Duration::new(7, 5));
        Answer::Listed(vec![FileInfo { path, links: 1, size: 9, modified, mode: 0o100_644, user: 0, group: 33 }])
    });
    let mtime = json!({ "nanoseconds": 7_000_000_005_u64 });
    let file =
        json!({ "path": "/a/b/c", "nlink": 1, "size": 9, "mtime": mtime, "mode": 33188, "uid": "root", "gid": "33" });
    let expected = json!({ "type": "LIST_FILES", "list_files": { "file_infos": [file] } });
    assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()), (200, expected));

    let call = json!({ "type": "READ_FILE", "read_file": { "path": "p", "offset": 3, "length": 5 } });
    let (status, body) = ask(&master, &mut agent, &call, |question| {
        assert_eq!(*question, Question::Read { path: "p".to_owned(), offset: 3, length: 5 });
        Answer::Read(4, "b2R5".to_owned())
    });
    let expected = json!({ "type": "READ_FILE", "read_file": { "size": 4, "data": "b2R5" } });
    assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()), (200, expected));

    let said = || "why".to_owned();
    for (answer, expected) in [
        (Answer::NotFound(said()), 404),
        (Answer::Refused(said()), 400),
        (Answer::Busy, 429),
        (Answer::Failed(said()), 500),
    ] {
        assert_eq!(ask(&master, &mut agent, &call, |_| answer).0, expected);
    }
}

#[test]
fn an_agent_says_something_else_of_itself_and_its_offers_stay() {
    let master = Master::start();
    let mut framework = Framework::new(master.address, &subscribe_call(None));
    let mut agent = Agent::register(&master, &registration(None));
    let offer = framework.offer();
    agent.say(&FromAgent::Attributes([("image.i:1".to_owned(), "true".to_owned())].into()));
    let expected = json!([{ "name": "image.i:1", "type": "TEXT", "text": { "value": "true" } }]);
    let attributes = |all: &Value| all["get_agents"]["agents"][0]["agent_info"]["attributes"].clone();
    master.until(&json!({ "type": "GET_AGENTS" }), |all| attributes(all) == expected);
    // The offer is good as it was, and what is left of it is offered by what is said now.
    framework.launch(&offer, "t", 1.0, 64.0);
    assert!(matches!(agent.next(), Some(ToAgent::Run { .. })));
    assert_eq!(framework.offer()["attributes"], expected);
}

#[test]
fn whoever_cannot_be_asked_is_not_waited_for() {
    let master = Master::start();
    let mut agent = Agent::register(&master, &registration(None));
    let mut other = Agent::register(&master, &registration(None));
    let call = json!({ "type": "READ_FILE", "read_file": { "path": "p", "offset": 0 } });
    let post = |agent: &str, call: &Value| master.post(&format!("/agent/{agent}/api/v1"), "", call).status;
    assert_eq!(post("nobody", &call), 404);
    assert_eq!(master.get(&format!("/agent/{}/api/v1", agent.id)).status, 405);
    for wrong in [
        json!({ "type": "GET_STATE" }),
        json!({ "type": "READ_FILE" }),
        json!({ "type": "READ_FILE", "read_file": { "path": "p" } }),
        json!({ "type": "READ_FILE", "read_file": { "path": "p", "offset": -1 } }),
        json!({ "type": "LIST_FILES", "list_files": { "path": "x".repeat(5000) } }),
        json!({ "type": "LIST_FILES", "list_files": { "path": "a\0b" } }),
    ] {
        assert_eq!(post(agent.id.as_str(), &wrong), 400, "{wrong}");
    }

    // It leaves without an answer, and nobody can answer in its place.
    let request = http::post(&format!("/agent/{}/api/v1", agent.id), "", &call.to_string());
    let address = master.address;
    let asking = thread::spawn(move || http::send(address, request.as_bytes()));
    let Some(ToAgent::Ask { number, .. }) = agent.next() else { panic!("not asked") };
    other.say(&FromAgent::Answer { number, answer: Answer::Read(0, String::new()) });
    other.say(&FromAgent::Answer { number: 77, answer: Answer::Busy });
    assert_eq!(ask(&master, &mut other, &call, |_| Answer::Busy).0, 429, "what it said before was heard");
    let id = agent.id.clone();
    drop(agent);
    assert_eq!(asking.join().unwrap().status, 502);
    assert_eq!(post(id.as_str(), &call), 503);
}
