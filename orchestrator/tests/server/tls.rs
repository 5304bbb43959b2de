//! Masters with TLS: who may do what, how agents join, and what strangers can use up.

use std::fs;
use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_orchestrator::process::{self, Contact};
use berth_orchestrator::server::Config;
use berth_orchestrator::store::{FileStore, MemoryStore, Store};
use berth_orchestrator::tls::{self, Client, Role, Server, Token};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::Master;
use crate::http::{Answer, DEADLINE, connect, post, subscribe_call};

const UPGRADE: &str = "GET /berth/agent HTTP/1.1\r\nHost: m\r\nConnection: upgrade\r\nUpgrade: berth-agent-1\r\n\r\n";

/// A master with an authority of its own.
pub struct Secured {
    pub master: Master,
    home: TempDir,
}

impl Secured {
    pub fn start() -> Secured {
        Secured::with(Box::<MemoryStore>::default(), |_| {})
    }

    pub fn with(store: Box<dyn Store>, adjust: impl FnOnce(&mut Config)) -> Secured {
        let home = tempfile::tempdir().unwrap();
        tls::init(&home.path().join("tls"), &["master.example".to_owned()]).unwrap();
        Secured { master: Secured::in_place(home.path(), store, adjust), home }
    }

    fn in_place(home: &Path, store: Box<dyn Store>, adjust: impl FnOnce(&mut Config)) -> Master {
        let server = Server::load(&home.join("tls")).unwrap();
        Master::with(store, |config| {
            config.tls = Some(server);
            adjust(config);
        })
    }

    pub fn directory(&self) -> PathBuf {
        self.home.path().join("tls")
    }

    /// A client with a certificate, or without.
    pub fn client(&self, role: Option<&str>) -> ClientConfig {
        client(&self.directory(), role, &[&rustls::version::TLS13])
    }

    pub fn send(&self, config: &ClientConfig, request: &str) -> Answer {
        exchange(self.master.address, config, request).unwrap()
    }

    /// What an operator asks, and is answered.
    fn operate(&self, call: &Value) -> Value {
        let client = Client::load(&self.directory(), Role::Operator).unwrap();
        process::ask(&contact(self.master.address, Some(client)), call).unwrap()
    }

    fn token(&self, seconds: u32, uses: u32) -> Token {
        let wanted = json!({ "ttl_seconds": seconds, "uses": uses });
        let token = self.operate(&json!({ "type": "CREATE_JOIN_TOKEN", "create_join_token": wanted }));
        token["create_join_token"]["token"].as_str().unwrap().parse().unwrap()
    }

    fn tokens(&self) -> Vec<Value> {
        let tokens = self.operate(&json!({ "type": "GET_JOIN_TOKENS" }));
        tokens["get_join_tokens"]["tokens"].as_array().unwrap().clone()
    }

    /// Joins as an agent: where its certificate is.
    fn join(&self, token: &Token, name: &str) -> Result<PathBuf, String> {
        let directory = self.home.path().join(name);
        let joined = process::join(&self.master.address.into(), token, name, &directory);
        joined.map(|()| directory).map_err(|error| error.to_string())
    }
}

pub fn contact(master: SocketAddr, tls: Option<Client>) -> Contact {
    Contact { masters: master.into(), tls }
}

pub fn client(directory: &Path, role: Option<&str>, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let certificates = |name: &str| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(directory.join(name)).unwrap().map(Result::unwrap).collect()
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates("ca.pem"));
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_protocol_versions(versions).unwrap().with_root_certificates(roots);
    let Some(role) = role else { return builder.with_no_client_auth() };
    let key = PrivateKeyDer::from_pem_file(directory.join(format!("{role}-key.pem"))).unwrap();
    builder.with_client_auth_cert(certificates(&format!("{role}.pem")), key).unwrap()
}

pub fn open(
    stream: TcpStream,
    config: &ClientConfig,
    name: &'static str,
) -> BufReader<StreamOwned<ClientConnection, TcpStream>> {
    let name = ServerName::try_from(name).unwrap();
    let connection = ClientConnection::new(Arc::new(config.clone()), name).unwrap();
    BufReader::new(StreamOwned::new(connection, stream))
}

/// Sends a request over a connection of its own, and reads the answer unless it is the beginning of a stream.
pub fn exchange(master: SocketAddr, config: &ClientConfig, request: &str) -> io::Result<Answer> {
    let mut stream = open(connect(master), config, "localhost");
    stream.get_mut().write_all(request.as_bytes())?;
    let mut first = [0];
    let count = stream.get_mut().read(&mut first)?;
    assert_eq!(count, 1, "the master says nothing");
    Ok(Answer::read(&mut io::BufReader::new(first.chain(stream))))
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n")
}

#[test]
fn certificates_decide_who_may_do_what() {
    let secured = Secured::start();
    let agent = secured.join(&secured.token(60, 1), "agent-1").unwrap();
    let agent = client(&agent, Some("agent"), &[&rustls::version::TLS13]);
    let (operator, nobody) = (secured.client(Some("operator")), secured.client(None));
    let state = post("/api/v1", "", r#"{"type": "GET_STATE"}"#);
    let events = post("/api/v1", "", r#"{"type": "SUBSCRIBE"}"#);
    let files = post("/agent/a/api/v1", "", r#"{"type": "LIST_FILES", "list_files": {"path": "/"}}"#);
    let subscribe = post("/api/v1/scheduler", "", &subscribe_call(None).to_string());
    for (what, request, by_nobody, by_agent, by_operator) in [
        ("the version", get("/version"), 200, 200, 200),
        ("health", get("/health"), 200, 200, 200),
        ("metrics", get("/metrics"), 403, 403, 200),
        ("the state", state, 403, 403, 200),
        ("what happens", events, 403, 403, 200),
        // There is no such agent.
        ("an agent's files", files, 403, 403, 404),
        ("a subscription", subscribe, 403, 403, 200),
        ("the agents' protocol", UPGRADE.to_owned(), 403, 101, 403),
        ("joining without a token", post("/berth/join", "", "{}"), 400, 400, 400),
        ("nothing", get("/"), 404, 404, 404),
    ] {
        let status = |config| secured.send(config, &request).status;
        let found = (status(&nobody), status(&agent), status(&operator));
        assert_eq!(found, (by_nobody, by_agent, by_operator), "{what}: by nobody, an agent, an operator");
    }
    let refused = secured.send(&agent, &get("/metrics"));
    assert!(refused.body.contains("operator's certificate"), "{}", refused.body);
}

#[test]
fn other_authorities_and_names_and_old_versions_are_refused() {
    let (secured, other) = (Secured::start(), Secured::start());
    let address = secured.master.address;
    let get = get("/version");
    // Trusts the right master, and comes with the wrong certificate.
    let operator = |name: &str| other.directory().join(name);
    for name in ["operator.pem", "operator-key.pem"] {
        fs::copy(operator(name), secured.directory().join(name)).unwrap();
    }
    let forged = exchange(address, &secured.client(Some("operator")), &get).unwrap_err();
    assert!(forged.to_string().contains("alert"), "{forged}");
    // A certificate for servers is none for clients.
    assert!(exchange(address, &secured.client(Some("master")), &get).is_err());
    // A client of the other authority does not trust this one.
    let untrusted = exchange(address, &other.client(None), &get).unwrap_err();
    assert!(untrusted.to_string().contains("certificate"), "{untrusted}");
    // The certificate is for the names it was made for, and for the role.
    let nobody = secured.client(None);
    for (name, is_good) in
        [("master.example", true), (Role::Master.name(), true), ("127.0.0.1", true), ("other", false)]
    {
        let mut stream = open(connect(address), &nobody, name);
        assert_eq!(stream.get_mut().write_all(get.as_bytes()).is_ok(), is_good, "{name}");
    }
    let old = client(&secured.directory(), None, &[&rustls::version::TLS12]);
    assert_eq!(exchange(address, &old, &get).unwrap().status, 200, "TLS 1.2 is good enough");
    // Without TLS nobody is answered.
    let mut plain = connect(address);
    plain.write_all(get.as_bytes()).unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said);
    assert!(!said.starts_with(b"HTTP"), "{said:?}");
    let asked = process::ask(&contact(address, None), &json!({ "type": "GET_STATE" })).unwrap_err().to_string();
    assert!(asked.contains("--tls"), "{asked}");
    let client = Client::load(&other.directory(), Role::Operator).unwrap();
    let asked =
        process::ask(&contact(address, Some(client.clone())), &json!({ "type": "GET_STATE" })).unwrap_err().to_string();
    assert!(asked.contains("UnknownIssuer"), "{asked}");
    let plain = Master::start();
    let asked =
        process::ask(&contact(plain.address, Some(client)), &json!({ "type": "GET_STATE" })).unwrap_err().to_string();
    assert!(asked.contains("does not speak TLS"), "{asked}");
}

#[test]
fn certificates_are_renewed_by_their_authority() {
    let secured = Secured::start();
    let token = secured.token(60, 1);
    let (before, address) = (secured.client(Some("operator")), secured.master.address);
    tls::renew(&secured.directory(), &["new.example".to_owned()]).unwrap();
    // The master that runs knows those that are new, and the next one those of before, agents among them.
    let state = post("/api/v1", "", r#"{"type": "GET_STATE"}"#);
    assert_eq!(secured.send(&secured.client(Some("operator")), &state).status, 200);
    secured.join(&token, "agent").unwrap();
    let next = Secured::in_place(secured.home.path(), Box::<MemoryStore>::default(), |_| {});
    assert_ne!(next.address, address);
    assert_eq!(exchange(next.address, &before, &state).unwrap().status, 200);
    let agent = client(&secured.home.path().join("agent"), Some("agent"), &[&rustls::version::TLS13]);
    assert_eq!(exchange(next.address, &agent, UPGRADE).unwrap().status, 101);
    let mut stream = open(connect(next.address), &before, "new.example");
    stream.get_mut().write_all(get("/version").as_bytes()).unwrap();
    let mode = fs::metadata(secured.directory().join("master-key.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    fs::remove_file(secured.directory().join("ca-key.pem")).unwrap();
    assert!(tls::renew(&secured.directory(), &[]).unwrap_err().to_string().contains("no ca-key.pem"));
}

#[test]
fn directories_with_something_else_are_no_good() {
    let secured = Secured::start();
    let directory = secured.directory();
    let agent = Client::load(&directory, Role::Agent).unwrap_err().to_string();
    assert!(agent.contains("agent.pem"), "{agent}");
    fs::copy(directory.join("operator.pem"), directory.join("agent.pem")).unwrap();
    let agent = Client::load(&directory, Role::Agent).unwrap_err().to_string();
    assert!(agent.contains("no certificate for agent.berth.internal"), "{agent}");
    fs::copy(directory.join("operator-key.pem"), directory.join("master-key.pem")).unwrap();
    assert!(Server::load(&directory).unwrap_err().to_string().contains("master.pem is not usable"));
    fs::write(directory.join("ca.pem"), "nothing").unwrap();
    assert!(Server::load(&directory).unwrap_err().to_string().contains("no certificate in it"));
    tls::renew(&directory, &[]).unwrap_err();
    let again = tls::init(&directory, &[]).unwrap_err().to_string();
    assert!(again.contains("is there already"), "{again}");
    let host = tls::init(&directory.join("new"), &["no host".to_owned()]).unwrap_err().to_string();
    assert!(host.contains("`no host`") && !directory.join("new").exists(), "{host}");
}

#[test]
fn tokens_let_in_as_many_as_they_say_for_as_long_as_they_say() {
    let secured = Secured::start();
    let refused = |token: &Token, why: &str| {
        let error = secured.join(token, "late").unwrap_err();
        assert!(error.contains("the join token is not good"), "{why}: {error}");
        assert!(!secured.home.path().join("late").exists(), "{why}: nothing is left");
    };
    let once = secured.token(60, 1);
    secured.join(&once, "one").unwrap();
    refused(&once, "used up");
    let twice = secured.token(60, 2);
    for name in ["two", "three"] {
        secured.join(&twice, name).unwrap();
    }
    refused(&twice, "used up");

    let (kept, gone) = (secured.token(60, 1), secured.token(60, 1));
    let listed: Vec<Value> = secured.tokens().iter().map(|token| token["id"].clone()).collect();
    let secret = kept.to_string();
    let secret = secret.split('.').nth(1).unwrap();
    assert!(listed.contains(&json!(kept.id)) && listed.len() == 2, "{listed:?}");
    assert!(!json!(secured.tokens()).to_string().contains(secret));
    let revoke = json!({ "type": "REVOKE_JOIN_TOKEN", "revoke_join_token": { "id": gone.id } });
    assert_eq!(secured.operate(&revoke), Value::Null);
    refused(&gone, "revoked");
    let forged: Token = gone.to_string().replace(gone.id.as_str(), kept.id.as_str()).parse().unwrap();
    refused(&forged, "another token's secret");
    secured.join(&kept, "four").unwrap();

    let short = secured.token(1, 1);
    let end = Instant::now() + DEADLINE;
    while !secured.tokens().is_empty() {
        assert!(Instant::now() < end, "the token does not expire");
        std::thread::sleep(Duration::from_millis(50));
    }
    refused(&short, "expired");
}

#[test]
fn a_token_knows_its_master_and_is_not_shown_to_another() {
    let (secured, other) = (Secured::start(), Secured::start());
    let token = other.token(60, 1);
    let error = secured.join(&token, "lost").unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
    other.join(&token, "found").unwrap();
    // What is in the way is found before the token is spent.
    let token = other.token(60, 1);
    assert!(other.join(&token, "found").unwrap_err().contains("is there already"));
    assert_eq!(other.tokens().len(), 1);
    // Without the authority's key a master serves, and signs nothing.
    fs::remove_file(other.directory().join("ca-key.pem")).unwrap();
    let unsigned = Secured::in_place(other.home.path(), Box::<MemoryStore>::default(), |_| {});
    let directory = other.home.path().join("unsigned");
    let error = process::join(&unsigned.address.into(), &token, "n", &directory).unwrap_err().to_string();
    assert!(error.contains("ca-key.pem"), "{error}");
    // And one without TLS has no tokens at all.
    let plain = Master::start();
    let create = json!({ "type": "CREATE_JOIN_TOKEN", "create_join_token": { "ttl_seconds": 1, "uses": 1 } });
    assert_eq!(plain.post("/api/v1", "", &create).status, 403);
}

#[test]
fn tokens_outlive_their_master_and_wrong_requests_cost_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = || Box::new(FileStore::open(&dir.path().join("registry")).unwrap());
    let mut secured = Secured::with(store(), |_| {});
    let token = secured.token(3600, 1);
    let text = token.to_string();
    let secret = text.split('.').nth(1).unwrap();
    let join = |request: &str| json!({ "token": token.id, "secret": secret, "name": "n", "request": request });
    let long = "A".repeat(100_000);
    for (what, body, status) in [
        ("no request", join(""), 400),
        ("no base64", join("???"), 400),
        ("no request in it", join("AAAA"), 400),
        ("much", join(&long), 413),
        ("an unknown field", json!({ "token": token.id, "ca": true }), 400),
        ("no token's id", json!({ "token": "../..", "secret": "", "name": "n", "request": "" }), 400),
    ] {
        let answer = secured.send(&secured.client(None), &post("/berth/join", "", &body.to_string()));
        assert_eq!(answer.status, status, "{what}: {}", answer.body);
    }
    for (field, call) in [
        ("ttl_seconds", json!({ "ttl_seconds": 0, "uses": 1 })),
        ("ttl_seconds", json!({ "ttl_seconds": 4_000_000, "uses": 1 })),
        ("uses", json!({ "ttl_seconds": 60, "uses": 0 })),
    ] {
        let call = json!({ "type": "CREATE_JOIN_TOKEN", "create_join_token": call });
        let answer = secured.send(&secured.client(Some("operator")), &post("/api/v1", "", &call.to_string()));
        assert_eq!(answer.status, 400);
        assert!(answer.body.contains(&format!("create_join_token.{field}")), "{}", answer.body);
    }
    // The first lets go of the file before the next one opens it.
    let Secured { master, home } = secured;
    drop(master);
    secured = Secured { master: Secured::in_place(home.path(), store(), |_| {}), home };
    secured.join(&token, "later").unwrap();
    assert_eq!(secured.tokens(), Vec::<Value>::new());
}

#[test]
fn strangers_hold_only_so_many_places_and_only_for_so_long() {
    let patient = Secured::start();
    let operator = patient.client(Some("operator"));
    // From another address than the crowd.
    let from_elsewhere = |config: &ClientConfig| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let stream = runtime.block_on(socket.connect(patient.master.address)).unwrap().into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        let mut stream = open(stream, config, "localhost");
        stream.get_mut().write_all(get("/metrics").as_bytes()).unwrap();
        Answer::read(&mut stream).status
    };
    let end = Instant::now() + DEADLINE;
    let is_let_in = || exchange(patient.master.address, &operator, &get("/metrics")).is_ok();
    let mut crowd = Vec::new();
    while is_let_in() {
        crowd.extend((0..20).map(|_| connect(patient.master.address)));
        assert!(crowd.len() <= 1000, "there is no end of them");
    }
    assert_eq!(from_elsewhere(&operator), 200, "others are not kept waiting");
    crowd.clear();
    while !is_let_in() {
        assert!(Instant::now() < end, "places are never free again");
    }

    let hasty = Secured::with(Box::<MemoryStore>::default(), |config| {
        config.handshake_timeout = Duration::from_millis(100);
    });
    let mut idle = connect(hasty.master.address);
    assert_eq!(idle.read(&mut [0]).unwrap_or(0), 0, "who does not shake hands is let go");
    assert_eq!(hasty.send(&hasty.client(None), &get("/health")).status, 200);
}

#[test]
fn strangers_may_not_ask_often_and_those_with_a_certificate_may() {
    let secured = Secured::start();
    let (nobody, operator) = (secured.client(None), secured.client(Some("operator")));
    let flood = |config: &ClientConfig, path: &str| -> Vec<u16> {
        const COUNT: usize = 300;
        let mut stream = open(connect(secured.master.address), config, "localhost");
        let request = get(path).replace("Connection: close\r\n", "");
        (0..COUNT)
            .map(|_| {
                stream.get_mut().write_all(request.as_bytes()).unwrap();
                Answer::read(&mut stream).status
            })
            .collect()
    };
    let statuses = flood(&nobody, "/version");
    assert!(statuses.contains(&200) && statuses.contains(&429), "{statuses:?}");
    assert!(flood(&operator, "/version").iter().all(|status| *status == 200));
    let answer = secured.send(&nobody, &get("/version"));
    assert!(answer.status == 200 || answer.header("retry-after") == Some("1"));
}
