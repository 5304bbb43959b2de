//! What is asked of etcd, in JSON over HTTP, as its gRPC gateway takes it
//! (<https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/>; the messages are those of
//! <https://etcd.io/docs/v3.4/learning/api/>).
//!
//! The gateway is part of every etcd since 3.4 and needs nothing that is not here for other reasons. The crate
//! `etcd-client` speaks gRPC itself, and brings tonic, tower and what they need for six short messages.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

/// The largest answer: a page of rows.
const LARGEST_ANSWER: usize = 64 << 20;
/// The largest message of a watch that is looked into.
const LARGEST_MESSAGE: usize = 1 << 20;
/// How long to wait where etcd cannot be watched.
const PAUSE: Duration = Duration::from_millis(250);
/// How many rows are asked for at once: of the usual size they stay far below gRPC's 4 MiB for an answer.
const PAGE: usize = 1000;

/// Why etcd does not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No endpoint answers: each, and why. What was asked may have been done.
    #[error("no etcd answers: {0}")]
    Unreachable(String),
    /// One answers, and it is no.
    #[error("etcd at {0} refuses: {1}")]
    Refused(SocketAddr, String),
    /// What answers is no etcd.
    #[error("what answers at {0} is no etcd: {1}")]
    Strange(SocketAddr, String),
}

/// A key and what there is at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub key: String,
    pub value: String,
    /// When it was made.
    pub created: i64,
    /// When it was last written.
    pub modified: i64,
}

/// The rows of a range, and how old that is.
#[derive(Debug)]
pub struct Range {
    pub rows: Vec<Row>,
    pub revision: i64,
}

/// What became of a transaction.
#[derive(Debug)]
pub struct Done {
    /// Whether what it compares was as it says.
    pub succeeded: bool,
    pub revision: i64,
    /// What the ranges among the operations that were done have found.
    pub rows: Vec<Row>,
}

type Sender = SendRequest<Full<Bytes>>;

/// As whom etcd is asked, where it wants to know (<https://etcd.io/docs/v3.4/op-guide/authentication/>).
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub user: String,
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// The endpoints of one etcd. They are tried in turn, each for so long, beginning with the one that answered last.
#[derive(Debug)]
pub struct Client {
    endpoints: Vec<SocketAddr>,
    credentials: Option<Credentials>,
    /// What the credentials were exchanged for.
    token: Mutex<Option<String>>,
    patience: Duration,
    /// Which answered last.
    latest: AtomicUsize,
    /// The connection that the last request came back over.
    idle: Mutex<Option<(usize, Sender)>>,
}

impl Client {
    pub fn new(endpoints: Vec<SocketAddr>, credentials: Option<Credentials>, patience: Duration) -> Client {
        let (token, latest, idle) = (Mutex::new(None), AtomicUsize::new(0), Mutex::new(None));
        Client { endpoints, credentials, token, patience, latest, idle }
    }

    /// Makes a lease that lasts for `ttl` seconds without being renewed: its id, and how long it lasts indeed.
    pub async fn grant(&self, ttl: u64) -> Result<(i64, Duration), Error> {
        let (at, answer) = self.ask("/v3/lease/grant", &json!({ "TTL": ttl.to_string() })).await?;
        match (number(&answer["ID"]), seconds(&answer["TTL"])) {
            (id @ 1.., Some(ttl)) => Ok((id, ttl)),
            _ => Err(Error::Strange(at, format!("a lease is granted as {answer}"))),
        }
    }

    /// Renews a lease: how long it lasts from now on; none if it has ended.
    pub async fn renew(&self, lease: i64) -> Result<Option<Duration>, Error> {
        let (_, answer) = self.ask("/v3/lease/keepalive", &json!({ "ID": lease.to_string() })).await?;
        Ok(seconds(&answer["result"]["TTL"]))
    }

    /// Ends a lease, and with it all keys that were written under it.
    pub async fn revoke(&self, lease: i64) -> Result<(), Error> {
        self.ask("/v3/lease/revoke", &json!({ "ID": lease.to_string() })).await.map(drop)
    }

    /// All rows whose keys begin with `prefix`, the oldest first.
    pub async fn list(&self, prefix: &str) -> Result<Range, Error> {
        let mut request = interval(prefix);
        request["limit"] = json!(PAGE.to_string());
        let mut rows: Vec<Row> = Vec::new();
        loop {
            let (at, answer) = self.ask("/v3/kv/range", &request).await?;
            rows.extend(read_rows(at, &answer["kvs"])?);
            let Some(last) = rows.last().filter(|_| answer["more"] == true) else {
                rows.sort_by_key(|row| row.created);
                return Ok(Range { rows, revision: number(&answer["header"]["revision"]) });
            };
            // The next key there can be.
            request["key"] = json!(encode(&format!("{}\0", last.key)));
        }
    }

    /// One row, if it is there.
    pub async fn get(&self, key: &str) -> Result<Option<Row>, Error> {
        let (at, answer) = self.ask("/v3/kv/range", &json!({ "key": encode(key) })).await?;
        Ok(read_rows(at, &answer["kvs"])?.pop())
    }

    /// Does the operations `then` if what it compares is so, and `otherwise` if not.
    pub async fn transact(&self, compare: Vec<Value>, then: Vec<Value>, otherwise: Vec<Value>) -> Result<Done, Error> {
        let request = json!({ "compare": compare, "success": then, "failure": otherwise });
        let (at, answer) = self.ask("/v3/kv/txn", &request).await?;
        let mut rows = Vec::new();
        for response in answer["responses"].as_array().into_iter().flatten() {
            rows.extend(read_rows(at, &response["response_range"]["kvs"])?);
        }
        let revision = number(&answer["header"]["revision"]);
        if revision == 0 {
            return Err(Error::Strange(at, format!("a transaction is answered with {answer}")));
        }
        Ok(Done { succeeded: answer["succeeded"] == true, revision, rows })
    }

    /// Returns when something below `prefix` has changed since `revision`, or may have: after `at_most`, or when nobody tells.
    pub async fn wait_for_change(&self, prefix: &str, revision: i64, at_most: Duration) {
        let end = Instant::now() + at_most;
        let mut create = interval(prefix);
        create["start_revision"] = json!((revision + 1).to_string());
        let request = json!({ "create_request": create });
        let watch = async {
            let index = self.latest.load(Ordering::Relaxed);
            let (at, token) = (self.endpoints[index], self.token(index).await?);
            let mut sender = connect(at).await?;
            let answer = send(&mut sender, at, "/v3/watch", &request, token.as_deref()).await?;
            let mut body = answer.into_body();
            // Each message is a line. That something has changed is all that matters.
            let mut line = Vec::new();
            while let Some(frame) = body.frame().await {
                for byte in frame.map_err(io::Error::other)?.into_data().unwrap_or_default() {
                    if byte != b'\n' {
                        line.push(byte);
                        continue;
                    }
                    let message: Value = serde_json::from_slice(&line).unwrap_or_default();
                    if message["result"]["events"].is_array() {
                        return Ok(());
                    }
                    line.clear();
                }
                if line.len() > LARGEST_MESSAGE {
                    return Ok(());
                }
            }
            Err(io::Error::from(io::ErrorKind::UnexpectedEof))
        };
        if let Ok(Err(error)) = timeout_at(end, watch).await {
            tracing::debug!(%error, "etcd is not watched");
            sleep_until(end.min(Instant::now() + PAUSE)).await;
        }
    }

    /// What the first endpoint says that does not fail.
    async fn ask(&self, path: &str, request: &Value) -> Result<(SocketAddr, Value), Error> {
        let (first, count) = (self.latest.load(Ordering::Relaxed), self.endpoints.len());
        let mut failures = Vec::new();
        for index in (0..count).map(|step| (first + step) % count) {
            let at = self.endpoints[index];
            let (status, body) = match timeout(self.patience, self.ask_one(index, path, request)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => {
                    failures.push(format!("{at}: {error}"));
                    continue;
                }
                Err(_) => {
                    failures.push(format!("{at}: not within {} ms", self.patience.as_millis()));
                    continue;
                }
            };
            let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
            // A member that knows no leader, or is overtaxed: another one may do better.
            if status.is_server_error() {
                failures.push(format!("{at}: {}", message(status, &answer)));
                continue;
            }
            self.latest.store(index, Ordering::Relaxed);
            if !status.is_success() {
                return Err(Error::Refused(at, message(status, &answer)));
            }
            if !answer.is_object() {
                return Err(Error::Strange(at, format!("{path} is answered with something that is not JSON")));
            }
            return Ok((at, answer));
        }
        Err(Error::Unreachable(failures.join("; ")))
    }

    async fn ask_one(&self, index: usize, path: &str, request: &Value) -> io::Result<(StatusCode, Bytes)> {
        let token = self.token(index).await?;
        let answer = self.post(index, path, request, token.as_deref()).await?;
        if token.is_none() || answer.0 != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        // Tokens end, with their time or with the member that made them.
        if let Ok(mut token) = self.token.lock() {
            *token = None;
        }
        let token = self.token(index).await?;
        self.post(index, path, request, token.as_deref()).await
    }

    /// What to show to etcd; none where it does not want to see anything.
    async fn token(&self, index: usize) -> io::Result<Option<String>> {
        let Some(Credentials { user, password }) = &self.credentials else { return Ok(None) };
        if let Some(token) = self.token.lock().ok().and_then(|token| token.clone()) {
            return Ok(Some(token));
        }
        let request = json!({ "name": user, "password": password });
        let (status, body) = self.post(index, "/v3/auth/authenticate", &request, None).await?;
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        let fresh = answer["token"].as_str().filter(|_| status.is_success());
        let fresh = fresh.ok_or_else(|| io::Error::other(message(status, &answer)))?.to_owned();
        if let Ok(mut token) = self.token.lock() {
            *token = Some(fresh.clone());
        }
        Ok(Some(fresh))
    }

    async fn post(
        &self,
        index: usize,
        path: &str,
        request: &Value,
        token: Option<&str>,
    ) -> io::Result<(StatusCode, Bytes)> {
        let at = self.endpoints[index];
        let idle = self.idle.lock().ok().and_then(|mut idle| idle.take()).filter(|(of, _)| *of == index);
        if let Some((_, mut sender)) = idle
            && sender.ready().await.is_ok()
            && let Ok(answer) = self.exchange(index, sender, path, request, token).await
        {
            return Ok(answer);
        }
        // A connection that idled may be closed any time. Whatever is asked here may be asked twice.
        self.exchange(index, connect(at).await?, path, request, token).await
    }

    async fn exchange(
        &self,
        index: usize,
        mut sender: Sender,
        path: &str,
        request: &Value,
        token: Option<&str>,
    ) -> io::Result<(StatusCode, Bytes)> {
        let answer = send(&mut sender, self.endpoints[index], path, request, token).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LARGEST_ANSWER).collect().await;
        let body = body.map_err(io::Error::other)?.to_bytes();
        if let Ok(mut idle) = self.idle.lock() {
            *idle = Some((index, sender));
        }
        Ok((status, body))
    }
}

async fn send(
    sender: &mut Sender,
    at: SocketAddr,
    path: &str,
    request: &Value,
    token: Option<&str>,
) -> io::Result<Response<Incoming>> {
    let mut head = Request::post(path).header(HOST, at.to_string()).header(CONTENT_TYPE, "application/json");
    if let Some(token) = token {
        head = head.header(AUTHORIZATION, token);
    }
    let request = head.body(Full::from(request.to_string())).map_err(io::Error::other)?;
    sender.send_request(request).await.map_err(io::Error::other)
}

async fn connect(at: SocketAddr) -> io::Result<Sender> {
    let stream = TcpStream::connect(at).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // It ends with its sender; whoever waits for an answer is told of an earlier end.
    tokio::spawn(connection);
    Ok(sender)
}

/// Why etcd does not do something, in its words.
fn message(status: StatusCode, answer: &Value) -> String {
    answer["error"].as_str().or(answer["message"].as_str()).map_or_else(|| status.to_string(), str::to_owned)
}

/// A condition: that a row was made at a revision; at 0, that it is not there.
pub fn was_created(key: &str, revision: i64) -> Value {
    json!({ "key": encode(key), "target": "CREATE", "result": "EQUAL", "create_revision": revision.to_string() })
}

/// A condition: that a row was last written at a revision; at 0, that it is not there.
pub fn was_modified(key: &str, revision: i64) -> Value {
    json!({ "key": encode(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision.to_string() })
}

/// An operation: writes a row, which ends with its lease, if it has one.
pub fn put(key: &str, value: &str, lease: Option<i64>) -> Value {
    let lease = lease.unwrap_or_default().to_string();
    json!({ "request_put": { "key": encode(key), "value": encode(value), "lease": lease } })
}

/// An operation: removes a row, if it is there.
pub fn remove(key: &str) -> Value {
    json!({ "request_delete_range": { "key": encode(key) } })
}

/// An operation: reads a row, if it is there.
pub fn read(key: &str) -> Value {
    json!({ "request_range": { "key": encode(key) } })
}

/// The keys that begin with a prefix, which ends in a character of one byte that is not the last.
fn interval(prefix: &str) -> Value {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    json!({ "key": encode(prefix), "range_end": STANDARD.encode(end) })
}

fn read_rows(at: SocketAddr, rows: &Value) -> Result<Vec<Row>, Error> {
    let rows = rows.as_array().into_iter().flatten().map(|row| {
        let text = |field: &str| {
            let bytes = STANDARD.decode(row[field].as_str().unwrap_or_default()).ok();
            bytes.and_then(|bytes| String::from_utf8(bytes).ok())
        };
        let strange = || Error::Strange(at, format!("a row that nobody here writes: {row}"));
        let (key, value) = text("key").zip(text("value")).ok_or_else(strange)?;
        Ok(Row { key, value, created: number(&row["create_revision"]), modified: number(&row["mod_revision"]) })
    });
    rows.collect()
}

/// A 64-bit number, which JSON from protobuf has as text, or not at all if it is 0.
fn number(value: &Value) -> i64 {
    value.as_i64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_default()
}

fn seconds(value: &Value) -> Option<Duration> {
    u64::try_from(number(value)).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

fn encode(text: &str) -> String {
    STANDARD.encode(text)
}
