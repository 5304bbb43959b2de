//! Several masters that share an etcd.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_orchestrator::allocator::Weight;
use berth_orchestrator::master::{Admission, Change, Registry};
use berth_orchestrator::process;
use berth_orchestrator::server::{Config, Error, Server};
use berth_orchestrator::store::Store;
use berth_orchestrator::store::etcd::{Candidate, EtcdStore, Location};
use berth_orchestrator::tls::{self, Role, Token};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};

use crate::etcd::Etcd;
use crate::http::{Answer, DEADLINE, connect, post, send};
use crate::tls::{client, contact, exchange};

/// A lease that does not end while a test runs.
const LONG: Duration = Duration::from_mins(1);
/// The shortest there is.
const SHORT: Duration = Duration::from_secs(2);

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn weights(role: &str, weight: f64) -> Value {
    let weights = json!([{ "role": role, "weight": weight }]);
    json!({ "type": "UPDATE_WEIGHTS", "update_weights": { "weight_infos": weights } })
}

/// One of several masters.
struct Master {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<(), Error>>,
}

impl Master {
    fn start(url: &str, lease: Duration) -> Master {
        Master::with(url, lease, |_| {})
    }

    fn with(url: &str, lease: Duration, adjust: impl FnOnce(&mut Config)) -> Master {
        let runtime = runtime();
        let candidate = Candidate::new(url.parse().unwrap(), lease);
        let mut config = Config::new("127.0.0.1:0".parse().unwrap());
        adjust(&mut config);
        let server = runtime.block_on(Server::stand_by(config, candidate)).unwrap();
        let address = server.address();
        let (stop, stopped) = oneshot::channel();
        let run = move || runtime.block_on(server.serve(async { drop(stopped.await) }));
        Master { address, stop, thread: thread::spawn(run) }
    }

    /// The same, when it leads.
    fn leading(url: &str, lease: Duration) -> Master {
        let master = Master::start(url, lease);
        master.until(Master::leads);
        master
    }

    fn get(&self, path: &str) -> Answer {
        send(self.address, format!("GET {path} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").as_bytes())
    }

    fn call(&self, path: &str, call: &Value) -> Answer {
        send(self.address, post(path, "", &call.to_string()).as_bytes())
    }

    fn leads(&self) -> bool {
        self.get("/metrics").body.contains("\nberth_master_elected 1\n")
    }

    /// How it answers an operator.
    fn status(&self) -> u16 {
        self.call("/api/v1", &json!({ "type": "GET_WEIGHTS" })).status
    }

    fn until(&self, condition: impl Fn(&Master) -> bool) {
        let end = Instant::now() + DEADLINE;
        while !condition(self) {
            assert!(Instant::now() < end, "waited in vain");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn weigh(&self, role: &str, weight: f64) -> u16 {
        self.call("/api/v1", &weights(role, weight)).status
    }

    fn stop(self) {
        let _ = self.stop.send(());
        self.thread.join().unwrap().unwrap();
    }

    /// Waits until it ends by itself, and returns why.
    fn end(self) -> Error {
        self.thread.join().unwrap().unwrap_err()
    }
}

#[test]
fn who_stands_by_says_who_leads_and_takes_over() {
    let etcd = Etcd::start();
    let leader = Master::leading(&etcd.url(), LONG);
    let standby = Master::start(&etcd.url(), LONG);
    standby.until(|standby| standby.status() == 307);
    for (path, call) in [
        ("/api/v1", json!({ "type": "GET_STATE" })),
        ("/api/v1?a=b", json!({ "type": "GET_STATE" })),
        ("/api/v1/scheduler", json!({ "type": "SUBSCRIBE" })),
    ] {
        let answer = standby.call(path, &call);
        assert_eq!((answer.status, &*answer.body), (307, ""), "{path}");
        assert_eq!(answer.header("location"), Some(&*format!("//{}{path}", leader.address)));
    }
    let answer = standby.get("/berth/agent");
    assert_eq!(
        answer.header("location"),
        Some(&*format!("//{}/berth/agent", leader.address)),
        "agents are sent on too"
    );
    assert_eq!(standby.get("/health").status, 200);
    assert_eq!(standby.get("/version").body, leader.get("/version").body);
    assert_eq!(standby.get("/api/v1").status, 405);
    assert_eq!(standby.get("/nothing").status, 404);
    assert!(standby.get("/metrics").body.contains("\nberth_master_elected 0\n"));

    assert_eq!(leader.weigh("science", 2.5), 200);
    let begin = Instant::now();
    leader.stop();
    standby.until(Master::leads);
    assert!(begin.elapsed() < LONG / 2, "a leader that is told to end gives its lease back");
    let weights = standby.call("/api/v1", &json!({ "type": "GET_WEIGHTS" })).body;
    let weights: Value = serde_json::from_str(&weights).unwrap();
    assert_eq!(weights["get_weights"]["weight_infos"], json!([{ "role": "science", "weight": 2.5 }]));
    standby.stop();
    let rows = etcd.rows();
    let keys: Vec<String> = rows.as_array().unwrap().iter().map(|row| decode(&row["key"])).collect();
    assert_eq!(keys, ["berth/commits", "berth/registry/weight/science"], "no master is left in the election");
}

fn decode(value: &Value) -> String {
    String::from_utf8(STANDARD.decode(value.as_str().unwrap()).unwrap()).unwrap()
}

#[test]
fn with_tls_too_who_stands_by_sends_on_and_join_tokens_outlast_their_master() {
    let (etcd, home) = (Etcd::start(), tempfile::tempdir().unwrap());
    let authority = home.path().join("tls");
    tls::init(&authority, &[]).unwrap();
    let start = || Master::with(&etcd.url(), LONG, |config| config.tls = Some(tls::Server::load(&authority).unwrap()));
    let operator = tls::Client::load(&authority, Role::Operator).unwrap();
    let ask = |master: &Master, call: Value| process::ask(&contact(master.address, Some(operator.clone())), &call);
    let answers = |master: &Master| ask(master, json!({ "type": "GET_WEIGHTS" })).is_ok();
    let leader = start();
    leader.until(answers);
    let standby = start();
    standby.until(answers);
    let create = json!({ "type": "CREATE_JOIN_TOKEN", "create_join_token": { "ttl_seconds": 600, "uses": 2 } });
    let token = ask(&standby, create).unwrap();
    let token: Token = token["create_join_token"]["token"].as_str().unwrap().parse().unwrap();
    let join = |name: &str| process::join(&standby.address.into(), &token, name, &home.path().join(name));
    join("a").unwrap();
    // Of an agent it takes no questions, as a leader does not.
    let agent = client(&home.path().join("a"), Some("agent"), &[&rustls::version::TLS13]);
    let state = post("/api/v1", "", r#"{"type": "GET_STATE"}"#);
    assert_eq!(exchange(standby.address, &agent, &state).unwrap().status, 403);
    leader.stop();
    standby.until(answers);
    join("b").unwrap();
    let refused = join("c").unwrap_err().to_string();
    assert!(refused.contains("the join token is not good"), "{refused}");
    standby.stop();
}

#[test]
fn others_have_to_be_able_to_reach_who_stands_by() {
    let home = tempfile::tempdir().unwrap();
    let authority = home.path().join("tls");
    tls::init(&authority, &[]).unwrap();
    let mut config = Config::new("0.0.0.0:0".parse().unwrap());
    config.tls = Some(tls::Server::load(&authority).unwrap());
    let candidate = Candidate::new("etcd://127.0.0.1:1".parse().unwrap(), LONG);
    let error = runtime().block_on(Server::stand_by(config, candidate)).err().unwrap();
    assert!(matches!(error, Error::Unspecified(_)) && error.to_string().contains("0.0.0.0"), "{error}");
}

#[test]
fn masters_of_different_prefixes_have_nothing_to_do_with_each_other() {
    let etcd = Etcd::start();
    let one = Master::leading(&etcd.url(), LONG);
    let other = Master::leading(&format!("{}/other", etcd.url()), LONG);
    assert!(one.leads());
    one.stop();
    other.stop();
}

#[test]
fn an_etcd_that_wants_a_password_is_given_one() {
    let etcd = Etcd::start();
    etcd.ask("/v3/auth/user/add", &json!({ "name": "root", "password": "ahoy" }));
    etcd.ask("/v3/auth/role/add", &json!({ "name": "root" }));
    etcd.ask("/v3/auth/user/grant", &json!({ "user": "root", "role": "root" }));
    etcd.ask("/v3/auth/enable", &json!({}));
    let location: Location = format!("etcd://root@{}", etcd.address()).parse().unwrap();
    let runtime = runtime();
    let candidate = |password: &str| Candidate::new(location.clone().with_password(password.to_owned()), SHORT);
    let (address, told) = ("127.0.0.1:1".parse().unwrap(), watch::Sender::new(None));
    let wrong = candidate("wrong");
    let refused = async { tokio::time::timeout(SHORT, wrong.win(address, &told)).await.is_err() };
    assert!(runtime.block_on(refused));
    let leadership = runtime.block_on(candidate("ahoy").win(address, &told));
    let mut store = EtcdStore::new(leadership, runtime.handle().clone());
    store.commit(&[Change::Gone("a".into())]).unwrap();
    assert!(store.load().unwrap().gone.contains(&"a".into()));
}

#[test]
fn without_etcd_nobody_leads_and_with_it_again_somebody_does() {
    let mut etcd = Etcd::start();
    etcd.kill();
    // The second endpoint is the one that will be there.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("etcd://{nobody},{}", etcd.address());
    let first = Master::start(&url, SHORT);
    let answer = first.call("/api/v1/scheduler", &json!({}));
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{}", answer.body);
    assert!(answer.body.contains("no master leads"), "{}", answer.body);
    assert_eq!(first.get("/health").status, 200);
    assert!(etcd.run());
    first.until(Master::leads);
    let second = Master::start(&url, SHORT);
    second.until(|second| second.status() == 307);

    // Gone for longer than the lease: whoever leads ends, whoever stands by does not.
    etcd.kill();
    let error = first.end().to_string();
    assert!(error.contains("not heard of by etcd in time"), "{error}");
    second.until(|second| second.status() == 503);
    assert!(etcd.run());
    second.until(Master::leads);
    second.stop();
}

/// Removes the key of the only master.
fn depose(etcd: &Etcd) {
    let rows = etcd.rows();
    let election = rows.as_array().unwrap().iter().find(|row| decode(&row["key"]).contains("election")).unwrap();
    etcd.ask("/v3/kv/deleterange", &json!({ "key": election["key"] }));
}

#[test]
fn a_master_whose_key_is_gone_ends_and_has_written_nothing() {
    let etcd = Etcd::start();
    // It tries to write before it has noticed: its lease is long.
    let leader = Master::leading(&etcd.url(), LONG);
    assert_eq!(leader.weigh("before", 2.0), 200);
    depose(&etcd);
    let rows = etcd.rows();
    let mut late = connect(leader.address);
    late.write_all(post("/api/v1", "", &weights("after", 2.0).to_string()).as_bytes()).unwrap();
    let error = leader.end().to_string();
    assert!(error.contains("another one may lead"), "{error}");
    assert_eq!(etcd.rows(), rows);
    let mut answer = Vec::new();
    // Its end may cut that off.
    let _ = late.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    // It has nothing to write.
    let leader = Master::leading(&etcd.url(), SHORT);
    depose(&etcd);
    assert!(leader.end().to_string().contains("another one may lead"));
}

/// What becomes of the next transaction that comes by.
const PASS: u8 = 0;
const LOSE_REQUEST: u8 = 1;
const LOSE_ANSWER: u8 = 2;

/// A way to an etcd on which things are lost.
fn lossy(etcd: SocketAddr, fate: &Arc<AtomicU8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, fate) = (listener.local_addr().unwrap(), Arc::clone(fate));
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(etcd).unwrap();
            let both = || (client.try_clone().unwrap(), server.try_clone().unwrap());
            let loses = Arc::new(AtomicBool::new(false));
            let (one, other) = (both(), both());
            let (fate, is_lost) = (Arc::clone(&fate), Arc::clone(&loses));
            thread::spawn(move || {
                relay(&one.0, &one.1, |data| {
                    let is_transaction = data.starts_with(b"POST /v3/kv/txn");
                    let fate = if is_transaction { fate.swap(PASS, Ordering::SeqCst) } else { PASS };
                    loses.fetch_or(fate == LOSE_ANSWER, Ordering::SeqCst);
                    fate != LOSE_REQUEST
                });
            });
            thread::spawn(move || relay(&other.1, &other.0, |_| !is_lost.load(Ordering::SeqCst)));
        }
    });
    address
}

/// Passes data on until it is not to be passed on.
fn relay(mut from: &TcpStream, mut to: &TcpStream, mut passes: impl FnMut(&[u8]) -> bool) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if !passes(&buffer[..length]) || to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// The store of a master that leads.
fn store(runtime: &Runtime, url: &str) -> EtcdStore {
    let candidate = Candidate::new(url.parse().unwrap(), LONG);
    let address = "127.0.0.1:1".parse().unwrap();
    let leadership = runtime.block_on(candidate.win(address, &watch::Sender::new(None)));
    EtcdStore::new(leadership, runtime.handle().clone())
}

#[test]
fn what_is_committed_is_there_once_whatever_is_lost_on_the_way() {
    let etcd = Etcd::start();
    let (runtime, fate) = (runtime(), Arc::new(AtomicU8::new(PASS)));
    let url = format!("etcd://{},{}", lossy(etcd.address(), &fate), lossy(etcd.address(), &fate));
    let mut kept = store(&runtime, &url);
    assert_eq!(kept.load().unwrap(), Registry::default());
    let mut expected = Registry::default();
    let weight = |thousandths| Change::Weight("r".to_owned(), Weight::from_thousandths(thousandths).unwrap());
    let many = (0..400).map(|number| Change::Agent(format!("a{number}").as_str().into(), Admission::default()));
    let commits = [
        (PASS, many.collect()),
        (LOSE_REQUEST, vec![weight(2000), Change::Gone("a7".into())]),
        (LOSE_ANSWER, vec![weight(3000)]),
        (PASS, vec![weight(4000), Change::Agent("ü".into(), Admission { draining: true, ..Admission::default() })]),
    ];
    for (what, changes) in commits {
        fate.store(what, Ordering::SeqCst);
        kept.commit(&changes).unwrap();
        assert_eq!(fate.load(Ordering::SeqCst), PASS, "a transaction came by");
        for change in changes {
            expected.apply(change);
        }
    }
    let rows = etcd.rows();
    let commits = rows.as_array().unwrap().iter().find(|row| decode(&row["key"]) == "berth/commits").unwrap();
    // 400 agents in four transactions, and then one each.
    assert_eq!(commits["version"], "7");

    // The next one knows it all, and the one before, which was not told, can do no more.
    depose(&etcd);
    let mut next = store(&runtime, &etcd.url());
    assert_eq!(next.load().unwrap(), expected);
    assert!(kept.commit(&[weight(5000)]).unwrap_err().to_string().contains("another one may lead"));
    next.commit(&[weight(6000)]).unwrap();
    assert_eq!(next.load().unwrap().weights["r"], Weight::from_thousandths(6000).unwrap());
}
