//! Frameworks with a principal and a secret.

use std::fs::{self, Permissions};
use std::io::{BufReader, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth_orchestrator::server::Credentials;
use berth_orchestrator::store::MemoryStore;
use serde_json::{Value, json};

use crate::client::Master;
use crate::http::{Answer, connect, next_event, post, subscribe_call};
use crate::tls::Secured;

const SCHEDULER: &str = "/api/v1/scheduler";

fn credentials() -> Credentials {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("credentials.json");
    let all = json!({ "credentials": [
        { "principal": "alpha", "secret": "first secret", "roles": ["a", "b"] },
        { "principal": "beta", "secret": "second secret" },
        { "principal": "slow", "secret": "third secret", "qps": 1, "capacity": 5 },
    ] });
    fs::write(&path, all.to_string()).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    Credentials::load(&path).unwrap()
}

fn master() -> Master {
    Master::with(Box::<MemoryStore>::default(), |config| config.credentials = Some(credentials()))
}

fn basic(principal: &str, secret: &str) -> String {
    format!("Authorization: Basic {}\r\n", BASE64_STANDARD.encode(format!("{principal}:{secret}")))
}

fn alpha() -> String {
    basic("alpha", "first secret")
}

fn beta() -> String {
    basic("beta", "second secret")
}

/// A framework's call to subscribe, with something else in its `FrameworkInfo`.
fn subscribe_as(id: Option<&str>, more: Value) -> Value {
    let mut call = subscribe_call(id);
    let Value::Object(more) = more else { panic!("{more} has no fields") };
    call["subscribe"]["framework_info"].as_object_mut().unwrap().extend(more);
    call
}

/// Subscribes: the first event, by which stream, and what has to stay open.
fn subscribe(master: &Master, headers: &str, call: &Value) -> (Value, String, BufReader<TcpStream>) {
    let mut stream = connect(master.address);
    stream.write_all(post(SCHEDULER, headers, &call.to_string()).as_bytes()).unwrap();
    let mut stream = BufReader::new(stream);
    let head = Answer::read_head(&mut stream);
    assert_eq!(head.status, 200, "{head:?}");
    let id = head.header("mesos-stream-id").unwrap().to_owned();
    (next_event(&mut stream).expect("an event"), id, stream)
}

#[test]
fn who_has_no_secret_is_asked_for_one() {
    let master = master();
    let call = subscribe_call(None).to_string();
    for (who, headers) in [
        ("nobody", String::new()),
        ("a wrong secret", basic("alpha", "second secret")),
        ("an unknown principal", basic("gamma", "first secret")),
        ("another scheme", "Authorization: Bearer x\r\n".to_owned()),
    ] {
        let answer = master.send(post(SCHEDULER, &headers, &call).as_bytes());
        assert_eq!(answer.status, 401, "{who}: {}", answer.body);
        assert_eq!(answer.header("www-authenticate"), Some(r#"Basic realm="berth""#));
    }
    // The operator API is the operator's, as before.
    assert_eq!(master.operator(&json!({ "type": "GET_HEALTH" }))["get_health"]["healthy"], true);
}

#[test]
fn a_framework_is_what_its_principal_may_be() {
    let master = master();
    let (event, stream, _open) = subscribe(&master, &alpha(), &subscribe_as(None, json!({ "principal": "alpha" })));
    assert_eq!(event["type"], "SUBSCRIBED");
    let id = event["subscribed"]["framework_id"]["value"].as_str().unwrap();
    let known = master.operator(&json!({ "type": "GET_FRAMEWORKS" }));
    assert_eq!(known["get_frameworks"]["frameworks"][0]["framework_info"]["principal"], "alpha");

    let claimed = subscribe_as(None, json!({ "principal": "beta" })).to_string();
    let answer = master.send(post(SCHEDULER, &alpha(), &claimed).as_bytes());
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("framework_info.principal"), "{}", answer.body);

    let call = |headers: &str, call: Value| {
        let headers = format!("{headers}Mesos-Stream-Id: {stream}\r\n");
        master.send(post(SCHEDULER, &headers, &call.to_string()).as_bytes())
    };
    let revive = json!({ "type": "REVIVE", "framework_id": { "value": id } });
    assert_eq!(call(&alpha(), revive.clone()).status, 202);
    assert_eq!(call("", revive.clone()).status, 401);
    let answer = call(&beta(), revive);
    assert_eq!(answer.status, 403);
    assert!(answer.body.contains("another principal's"), "{}", answer.body);

    let update = |roles: Value| {
        let info = subscribe_as(Some(id), json!({ "roles": roles }))["subscribe"]["framework_info"].take();
        let update = json!({ "framework_info": info });
        call(
            &alpha(),
            json!({ "type": "UPDATE_FRAMEWORK", "framework_id": { "value": id }, "update_framework": update }),
        )
    };
    assert_eq!(update(json!(["a", "b"])).status, 200);
    let answer = update(json!(["a", "c"]));
    assert_eq!(answer.status, 403);
    assert!(answer.body.contains("may not use `c` as a role"), "{}", answer.body);

    // Roles that it may not use, and other principals' frameworks, end a subscription with an ERROR, as in Mesos.
    let (event, ..) = subscribe(&master, &alpha(), &subscribe_as(None, json!({ "roles": ["a", "x", "y"] })));
    assert_eq!(event["type"], "ERROR");
    assert!(event["error"]["message"].as_str().unwrap().contains("may not use `x`, `y`"), "{event}");
    let (event, ..) = subscribe(&master, &beta(), &subscribe_call(Some(id)));
    assert!(event["error"]["message"].as_str().unwrap().contains("another principal"), "{event}");
    let (event, ..) = subscribe(&master, &beta(), &subscribe_as(None, json!({ "roles": ["x"] })));
    assert_eq!(event["type"], "SUBSCRIBED", "whose roles are not named may use all");
    let (event, ..) = subscribe(&master, &alpha(), &subscribe_call(Some(id)));
    assert_eq!(event["subscribed"]["framework_id"]["value"], id, "it is still its own");
}

#[test]
fn a_principal_has_its_calls_for_all_its_frameworks() {
    let master = master();
    let flood = |headers: &str| {
        let call = post(SCHEDULER, headers, "{}").replace("Connection: close\r\n", "");
        master.flood(&call, 50)
    };
    let statuses = flood(&basic("slow", "third secret"));
    assert!(statuses.contains(&429) && statuses.contains(&400), "{statuses:?}");
    assert!(statuses.iter().filter(|status| **status == 429).count() >= 40, "{statuses:?}");
    assert!(flood(&beta()).iter().all(|status| *status == 400), "others have their own");
}

#[test]
fn over_tls_a_secret_is_enough_and_guesses_are_few() {
    let secured = Secured::with(Box::<MemoryStore>::default(), |config| config.credentials = Some(credentials()));
    let nobody = secured.client(None);
    let call = |headers: &str| secured.send(&nobody, &post(SCHEDULER, headers, "{}")).status;
    assert_eq!(call(&alpha()), 400, "it is in, and has said nothing");
    assert_eq!(call(""), 401);
    assert_eq!(secured.send(&secured.client(Some("operator")), &post(SCHEDULER, "", "{}")).status, 401);
    assert_eq!(secured.send(&nobody, &post("/api/v1", &alpha(), r#"{"type": "GET_STATE"}"#)).status, 403);
    let guesses: Vec<u16> = (0..300).map(|number| call(&basic("alpha", &number.to_string()))).collect();
    assert!(guesses.contains(&401) && guesses.contains(&429), "{guesses:?}");
}
