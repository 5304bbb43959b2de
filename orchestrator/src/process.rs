//! The orchestrator's processes, and how other programs ask a master: for whoever has no runtime of their own.

use std::error::Error as StdError;
use std::fmt::Display;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Collected, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{SigSet, Signal};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::descriptors;
use crate::masters::{Elsewhere, Masters};
use crate::recordio::Decoder;
use crate::server::{self, JOIN_PATH, Join, Joined, Server};
use crate::store::etcd::{Candidate, Location};
use crate::store::{self, FileStore};
use crate::tls::{self, Client, Key, Pinned, Token};
use crate::{agent, jobs, server::Config};

/// How long a master may take to answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The largest event of a master: the state of all that there is.
const MOST: usize = 1 << 30;

/// Why a process ends, or a master does not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process lacks something.
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
    /// The master's database cannot be opened.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The master cannot go on.
    #[error(transparent)]
    Server(#[from] server::Error),
    /// The agent cannot go on.
    #[error(transparent)]
    Agent(#[from] agent::Error),
    /// The job framework cannot go on.
    #[error(transparent)]
    Jobs(#[from] jobs::Error),
    /// Nobody answers.
    #[error("no job framework answers at {path}: {1}; `berth cluster up` starts one", path = .0.display())]
    NoJobs(PathBuf, String),
    /// The answer is no.
    #[error("{0}")]
    Refusal(String),
    /// Something is wrong with certificates.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// Nobody answers.
    #[error("no master answers: {0}; `berth cluster up` starts one")]
    Unreachable(String),
    /// The answer is no.
    #[error("the master at {0} refuses: {1}")]
    Refused(SocketAddr, String),
    /// A stream is over.
    #[error("the stream of events of the master at {0} has ended: {1}")]
    Lost(SocketAddr, String),
    /// What was seen cannot be passed on.
    #[error(transparent)]
    Output(io::Error),
}

/// Where a master keeps its state.
#[derive(Debug, Clone)]
pub enum State {
    /// In a database in this directory: it is the only master.
    Directory(PathBuf),
    /// In an etcd that it shares with others.
    Etcd {
        /// Where that is.
        location: Location,
        /// How long another master may have to wait after this one was last heard of.
        lease: Duration,
    },
}

/// Whom operators ask.
#[derive(Debug, Clone)]
pub struct Contact {
    /// Where masters listen.
    pub masters: Masters,
    /// What the operator is known by there, if they speak TLS.
    pub tls: Option<Client>,
}

/// Runs a master until it is told to end by `SIGTERM` or `SIGINT`, or cannot go on. `ready` is told where it listens, once
/// it does.
pub fn run_master(config: Config, state: State, ready: impl FnOnce(SocketAddr) + Send) -> Result<(), Error> {
    descriptors::raise();
    block_on(&runtime()?, async || {
        let shutdown = terminated()?;
        let server = match state {
            State::Directory(directory) => {
                let made = std::fs::create_dir_all(&directory);
                made.map_err(|error| Error::System("make the master's directory", error))?;
                let store = FileStore::open(&directory.join("master.redb"))?;
                Server::bind(config, Box::new(store)).await?
            }
            State::Etcd { location, lease } => Server::stand_by(config, Candidate::new(location, lease)).await?,
        };
        ready(server.address());
        Ok(server.serve(shutdown).await?)
    })
}

/// Runs an agent until it is told to end by `SIGTERM` or `SIGINT`, which leaves its tasks running, or cannot go on.
pub fn run_agent(config: agent::Config) -> Result<(), Error> {
    descriptors::raise();
    block_on(&runtime()?, async || {
        let shutdown = terminated()?;
        Ok(agent::run(config, shutdown).await?)
    })
}

/// Runs a job framework until it is told to end by `SIGTERM` or `SIGINT`, which leaves its tasks running, or cannot go on.
/// `ready` is called once people can reach it.
pub fn run_jobs(config: jobs::Config, ready: impl FnOnce() + Send) -> Result<(), Error> {
    block_on(&runtime()?, async || {
        let shutdown = terminated()?;
        Ok(jobs::run(config, ready, shutdown).await?)
    })
}

/// Asks the master that leads something, as operators do: what it answers, null if nothing.
pub fn ask(contact: &Contact, call: &Value) -> Result<Value, Error> {
    ask_at(contact, "/api/v1", call)
}

/// Asks an agent something by way of the master that leads.
pub fn ask_agent(contact: &Contact, agent: &str, call: &Value) -> Result<Value, Error> {
    ask_at(contact, &format!("/agent/{agent}/api/v1"), call)
}

/// Reads a piece of a task's file through its agent: the size of the whole, and what there is from `offset` on, nothing at
/// its end.
pub fn read_file(contact: &Contact, agent: &str, path: &str, offset: u64) -> Result<(u64, Vec<u8>), Error> {
    let call = json!({ "type": "READ_FILE", "read_file": { "path": path, "offset": offset } });
    let mut answer = ask_agent(contact, agent, &call)?;
    let read = answer["read_file"].take();
    let data = read["data"].as_str().and_then(|data| BASE64_STANDARD.decode(data).ok());
    let wrong = || Error::Unreachable(format!("{}: what answers is no agent", contact.masters));
    read["size"].as_u64().zip(data).ok_or_else(wrong)
}

/// What becomes of a question.
pub(crate) enum Answered<T> {
    With(T),
    Elsewhere(SocketAddr),
}

/// Tries masters in turn, and where they send, until one answers. An attempt says why a master does not.
pub(crate) fn lead<T>(
    masters: &Masters,
    mut attempt: impl FnMut(SocketAddr, Duration) -> Result<Result<Answered<T>, String>, Error>,
) -> Result<T, Error> {
    // One that hangs takes no more than its part of the time.
    let patience = PATIENCE / u32::try_from(masters.addresses().len()).unwrap_or(u32::MAX);
    let mut causes = Vec::new();
    for master in masters.addresses() {
        let mut at = *master;
        let mut answered = attempt(at, patience)?;
        if let Ok(Answered::Elsewhere(leader)) = answered {
            at = leader;
            answered = attempt(at, patience)?;
        }
        match answered {
            Ok(Answered::With(answer)) => return Ok(answer),
            Ok(Answered::Elsewhere(_)) => causes.push(format!("{at}: it has just ceased to lead")),
            Err(cause) => causes.push(format!("{at}: {cause}")),
        }
    }
    Err(Error::Unreachable(causes.join("; ")))
}

fn ask_at(contact: &Contact, path: &str, call: &Value) -> Result<Value, Error> {
    let tls = contact.tls.as_ref();
    lead(&contact.masters, |master, patience| {
        let connect = async { post(tls::connect(master, tls).await?, tls, &master.to_string(), path, call).await };
        understand(master, exchange(connect, patience)?)
    })
}

/// What a master's answer means.
fn understand(master: SocketAddr, exchanged: Exchanged) -> Result<Result<Answered<Value>, String>, Error> {
    let answer = match exchanged {
        Ok(answer) => answer,
        Err(cause) => return Ok(Err(cause)),
    };
    if let Some(Elsewhere(leader)) = Elsewhere::of(&answer) {
        return Ok(Ok(Answered::Elsewhere(leader)));
    }
    let (status, body) = (answer.status(), answer.into_body());
    match status {
        StatusCode::OK if body.is_empty() => Ok(Ok(Answered::With(Value::Null))),
        StatusCode::OK => Ok(serde_json::from_slice(&body)
            .map(Answered::With)
            .map_err(|error| format!("what answers is no master: {error}"))),
        StatusCode::SERVICE_UNAVAILABLE => Ok(Err(said(&body))),
        _ => Err(Error::Refused(master, said(&body))),
    }
}

/// What a master says in words.
pub(crate) fn said(body: &Bytes) -> String {
    String::from_utf8_lossy(body).trim().to_owned()
}

/// A stream that has begun, and who it is of.
pub(crate) type Events = (SocketAddr, SendRequest<Full<Bytes>>, Response<Incoming>);

/// Watches what happens to agents, frameworks and tasks, as operators do, until `seen` says that it is enough. Heartbeats
/// are not shown.
pub fn watch(contact: &Contact, mut seen: impl FnMut(Value) -> io::Result<ControlFlow<()>>) -> Result<(), Error> {
    let runtime = runtime()?;
    let call = json!({ "type": "SUBSCRIBE" });
    let (master, _sender, mut answer) = open(&runtime, contact, "/api/v1", &call)?;
    let lost = |cause: &dyn Display| Error::Lost(master, cause.to_string());
    // Nothing is sent any more, and what is seen is written as any other output.
    runtime.block_on(async {
        let mut decoder = Decoder::new(MOST);
        loop {
            // There is a heartbeat far more often.
            let frame = match timeout(PATIENCE, answer.frame()).await {
                Err(_) => return Err(lost(&format!("nothing was heard of it for {} s", PATIENCE.as_secs()))),
                Ok(None) => return Err(lost(&"it closed the stream")),
                Ok(Some(frame)) => frame.map_err(|error| lost(&error))?,
            };
            decoder.push(frame.data_ref().map_or(&[], |data| data));
            while let Some(record) = decoder.next_record().map_err(|malformed| lost(&malformed))? {
                let event: Value = serde_json::from_slice(&record).map_err(|error| lost(&error))?;
                let enough = event["type"] != "HEARTBEAT" && seen(event).map_err(Error::Output)?.is_break();
                if enough {
                    return Ok(());
                }
            }
        }
    })
}

/// Makes a call whose answer is a stream, to the master that leads.
pub(crate) fn open(runtime: &Runtime, contact: &Contact, path: &str, call: &Value) -> Result<Events, Error> {
    lead(&contact.masters, |master, patience| {
        block_on(runtime, async move || open_at(master, contact.tls.as_ref(), path, call, patience).await)
    })
}

async fn open_at(
    master: SocketAddr,
    tls: Option<&Client>,
    path: &str,
    call: &Value,
    patience: Duration,
) -> Result<Result<Answered<Events>, String>, Error> {
    let open = async { send(tls::connect(master, tls).await?, tls, &master.to_string(), path, call).await };
    let (sender, answer) = match timeout(patience, open).await {
        Err(_) => return Ok(Err(late(patience))),
        Ok(Err(error)) => return Ok(Err(error.to_string())),
        Ok(Ok(opened)) => opened,
    };
    if let Some(Elsewhere(leader)) = Elsewhere::of(&answer) {
        return Ok(Ok(Answered::Elsewhere(leader)));
    }
    if answer.status() == StatusCode::OK {
        return Ok(Ok(Answered::With((master, sender, answer))));
    }
    let status = answer.status();
    let body = answer.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        Ok(Err(said(&body)))
    } else {
        Err(Error::Refused(master, said(&body)))
    }
}

/// Gets an agent's certificate from the master that leads, for a new key, and keeps both in a directory that is not there or
/// empty.
pub fn join(masters: &Masters, token: &Token, name: &str, directory: &Path) -> Result<(), Error> {
    let no_master = |what: &dyn Display| Error::Unreachable(format!("{masters}: what answers is no master: {what}"));
    // Before a token is spent for nothing.
    tls::expect_vacant(directory)?;
    let key = Key::generate()?;
    let request = BASE64_STANDARD.encode(key.request()?);
    let join = Join { token: token.id.clone(), secret: token.secret(), name: name.to_owned(), request };
    let call = json!(join);
    let mut authority = None;
    let joined = lead(masters, |master, patience| {
        let connect = async {
            let (stream, found) = Pinned::connect(master, token).await?;
            authority = Some(found);
            post(stream, None, &master.to_string(), JOIN_PATH, &call).await
        };
        understand(master, exchange(connect, patience)?)
    })?;
    let joined: Joined = serde_json::from_value(joined).map_err(|error| no_master(&error))?;
    let authority = authority.ok_or_else(|| no_master(&"it has shown no certificate"))?;
    Ok(tls::install(directory, &tls::agent_files(&authority, &joined.certificate, &key))?)
}

/// Asks a job framework something.
pub fn ask_jobs(socket: &Path, request: &jobs::Request) -> Result<Value, Error> {
    let unreachable = |cause: String| Error::NoJobs(socket.to_owned(), cause);
    let request = serde_json::to_value(request).map_err(|error| unreachable(error.to_string()))?;
    let connect = async { post(UnixStream::connect(socket).await?, None, "jobs", jobs::PATH, &request).await };
    let answer = exchange(connect, PATIENCE)?.map_err(unreachable)?;
    if answer.status() != StatusCode::OK {
        return Err(Error::Refusal(said(answer.body())));
    }
    serde_json::from_slice(answer.body())
        .map_err(|error| unreachable(format!("what answers is no job framework: {error}")))
}

/// An answer, or why there is none.
type Exchanged = Result<Response<Bytes>, String>;

fn exchange(
    exchange: impl Future<Output = io::Result<Response<Bytes>>> + Send,
    patience: Duration,
) -> Result<Exchanged, Error> {
    block_on(&runtime()?, async || {
        Ok(match timeout(patience, exchange).await {
            Err(_) => Err(late(patience)),
            Ok(answer) => answer.map_err(|error| error.to_string()),
        })
    })
}

fn late(patience: Duration) -> String {
    format!("not within {} s", patience.as_secs())
}

async fn post(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    tls: Option<&Client>,
    host: &str,
    path: &str,
    call: &Value,
) -> io::Result<Response<Bytes>> {
    let (_sender, answer) = send(stream, tls, host, path, call).await?;
    let (head, body) = answer.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?;
    Ok(Response::from_parts(head, body.to_bytes()))
}

/// Sends a call: the connection, which is closed when that is dropped, and the answer.
async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    tls: Option<&Client>,
    host: &str,
    path: &str,
    call: &Value,
) -> io::Result<(SendRequest<Full<Bytes>>, Response<Incoming>)> {
    send_body(stream, tls, host, path, "application/json", Full::<Bytes>::from(call.to_string())).await
}

/// The same, of a body of any type.
pub(crate) async fn send_body<B>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    tls: Option<&Client>,
    host: &str,
    path: &str,
    content_type: &str,
    body: B,
) -> io::Result<(SendRequest<B>, Response<Incoming>)>
where
    B: Body<Data = Bytes, Error: StdError + Send + Sync> + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    let request = Request::post(path).header(HOST, host).header(CONTENT_TYPE, content_type).body(body);
    let answer = sender.send_request(request.map_err(io::Error::other)?).await;
    Ok((sender, answer.map_err(|error| tls::explained(&error, tls))?))
}

pub(crate) fn runtime() -> Result<Runtime, Error> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().on_thread_start(block_sigpipe).build();
    runtime.map_err(|error| Error::System("start the threads of the process", error))
}

/// Does something to its end in a thread of its own, which is as those of the runtime are.
pub(crate) fn block_on<T: Send>(runtime: &Runtime, work: impl AsyncFnOnce() -> T + Send) -> T {
    let run = || {
        block_sigpipe();
        runtime.block_on(work())
    };
    thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

/// A peer that hangs up while it is written to is an error of the write, not a signal that ends the program, which may have
/// the signal's default action: nothing else keeps a write of several buffers from raising it. Threads and no programs that
/// this thread starts inherit the mask.
fn block_sigpipe() {
    SigSet::from(Signal::SIGPIPE).thread_block().expect("the signal is one");
}

/// Is ready when the process is told to end.
fn terminated() -> Result<impl Future<Output = ()>, Error> {
    let listen = |kind| signal(kind).map_err(|error| Error::System("listen to signals", error));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
