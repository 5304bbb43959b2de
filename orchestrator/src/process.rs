//! The orchestrator's processes, and how other programs ask a master: for whoever has no runtime of their own.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::masters::{Elsewhere, Masters};
use crate::server::{self, Server};
use crate::store::etcd::{Candidate, Location};
use crate::store::{self, FileStore};
use crate::{agent, jobs, server::Config};

/// How long a master may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

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
    /// Nobody answers.
    #[error("no master answers: {0}; `berth cluster up` starts one")]
    Unreachable(String),
    /// The answer is no.
    #[error("the master at {0} refuses: {1}")]
    Refused(SocketAddr, String),
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

/// Runs a master until it is told to end by `SIGTERM` or `SIGINT`, or cannot go on. `ready` is told where it listens, once
/// it does.
pub fn run_master(config: Config, state: State, ready: impl FnOnce(SocketAddr)) -> Result<(), Error> {
    runtime()?.block_on(async {
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
    runtime()?.block_on(async {
        let shutdown = terminated()?;
        Ok(agent::run(config, shutdown).await?)
    })
}

/// Runs a job framework until it is told to end by `SIGTERM` or `SIGINT`, which leaves its tasks running, or cannot go on.
/// `ready` is called once people can reach it.
pub fn run_jobs(config: jobs::Config, ready: impl FnOnce()) -> Result<(), Error> {
    runtime()?.block_on(async {
        let shutdown = terminated()?;
        Ok(jobs::run(config, ready, shutdown).await?)
    })
}

/// Asks the master that leads something, as operators do: what it answers, null if nothing.
pub fn ask(masters: &Masters, call: &Value) -> Result<Value, Error> {
    // One that hangs takes no more than its part of the time.
    let patience = PATIENCE / u32::try_from(masters.addresses().len()).unwrap_or(u32::MAX);
    let mut causes = Vec::new();
    for master in masters.addresses() {
        let mut at = *master;
        let mut answered = ask_one(at, call, patience)?;
        if let Ok(Answered::Elsewhere(leader)) = answered {
            at = leader;
            answered = ask_one(at, call, patience)?;
        }
        match answered {
            Ok(Answered::With(answer)) => return Ok(answer),
            Ok(Answered::Elsewhere(_)) => causes.push(format!("{at}: it has just ceased to lead")),
            Err(cause) => causes.push(format!("{at}: {cause}")),
        }
    }
    Err(Error::Unreachable(causes.join("; ")))
}

/// What becomes of a question.
enum Answered {
    With(Value),
    Elsewhere(SocketAddr),
}

/// Asks one master: what it answers, or why it does not.
fn ask_one(master: SocketAddr, call: &Value, patience: Duration) -> Result<Result<Answered, String>, Error> {
    let connect = async { post(TcpStream::connect(master).await?, &master.to_string(), "/api/v1", call).await };
    let answer = match exchange(connect, patience)? {
        Ok(answer) => answer,
        Err(cause) => return Ok(Err(cause)),
    };
    if let Some(Elsewhere(leader)) = Elsewhere::of(&answer) {
        return Ok(Ok(Answered::Elsewhere(leader)));
    }
    let (status, body) = (answer.status(), answer.into_body());
    let text = || String::from_utf8_lossy(&body).trim().to_owned();
    Ok(match status {
        StatusCode::OK if body.is_empty() => Ok(Answered::With(Value::Null)),
        StatusCode::OK => serde_json::from_slice(&body)
            .map(Answered::With)
            .map_err(|error| format!("what answers is no master: {error}")),
        StatusCode::SERVICE_UNAVAILABLE => Err(text()),
        _ => return Err(Error::Refused(master, text())),
    })
}

/// Asks a job framework something.
pub fn ask_jobs(socket: &Path, request: &jobs::Request) -> Result<Value, Error> {
    let unreachable = |cause: String| Error::NoJobs(socket.to_owned(), cause);
    let request = serde_json::to_value(request).map_err(|error| unreachable(error.to_string()))?;
    let connect = async { post(UnixStream::connect(socket).await?, "jobs", jobs::PATH, &request).await };
    let answer = exchange(connect, PATIENCE)?.map_err(unreachable)?;
    if answer.status() != StatusCode::OK {
        return Err(Error::Refusal(String::from_utf8_lossy(answer.body()).trim().to_owned()));
    }
    serde_json::from_slice(answer.body())
        .map_err(|error| unreachable(format!("what answers is no job framework: {error}")))
}

/// An answer, or why there is none.
type Exchanged = Result<Response<Bytes>, String>;

fn exchange(
    exchange: impl Future<Output = io::Result<Response<Bytes>>>,
    patience: Duration,
) -> Result<Exchanged, Error> {
    runtime()?.block_on(async {
        Ok(match timeout(patience, exchange).await {
            Err(_) => Err(format!("not within {} s", patience.as_secs())),
            Ok(answer) => answer.map_err(|error| error.to_string()),
        })
    })
}

async fn post(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: &str,
    path: &str,
    call: &Value,
) -> io::Result<Response<Bytes>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    let request = Request::post(path)
        .header(HOST, host)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::<Bytes>::from(call.to_string()))
        .map_err(io::Error::other)?;
    let answer = sender.send_request(request).await.map_err(io::Error::other)?;
    let (head, body) = answer.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?;
    Ok(Response::from_parts(head, body.to_bytes()))
}

fn runtime() -> Result<Runtime, Error> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|error| Error::System("start the threads of the process", error))
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
