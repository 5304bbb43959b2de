//! The orchestrator's processes, and how other programs ask a master: for whoever has no runtime of their own.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::server::{self, JOIN_PATH, Join, Joined, Server};
use crate::store::{self, FileStore};
use crate::tls::{self, Client, Key, Pinned, Token};
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
    /// Something is wrong with certificates.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// Nobody answers.
    #[error("no master answers at {0}: {1}; `berth cluster up` starts one")]
    Unreachable(SocketAddr, String),
    /// The answer is no.
    #[error("the master at {0} refuses: {1}")]
    Refused(SocketAddr, String),
}

/// Runs a master, which keeps its state in `directory`, until it is told to end by `SIGTERM` or `SIGINT`. `ready` is
/// told where it listens, once it does.
pub fn run_master(config: Config, directory: &Path, ready: impl FnOnce(SocketAddr)) -> Result<(), Error> {
    std::fs::create_dir_all(directory).map_err(|error| Error::System("make the master's directory", error))?;
    let store = FileStore::open(&directory.join("master.redb"))?;
    runtime()?.block_on(async {
        let shutdown = terminated()?;
        let server = Server::bind(config, Box::new(store)).await?;
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

/// Asks a master something, as operators do: what it answers, null if nothing.
pub fn ask(master: SocketAddr, tls: Option<&Client>, call: &Value) -> Result<Value, Error> {
    let unreachable = |cause: String| Error::Unreachable(master, cause);
    let connect = async { post(tls::connect(master, tls).await?, tls, &master.to_string(), "/api/v1", call).await };
    let (status, body) = exchange(connect)?.map_err(unreachable)?;
    if status != StatusCode::OK {
        return Err(Error::Refused(master, String::from_utf8_lossy(&body).trim().to_owned()));
    }
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&body).map_err(|error| unreachable(format!("what answers is no master: {error}")))
}

/// Gets an agent's certificate from a master, for a new key, and keeps both in a directory that is not there or empty.
pub fn join(master: SocketAddr, token: &Token, name: &str, directory: &Path) -> Result<(), Error> {
    let unreachable = |cause: String| Error::Unreachable(master, cause);
    // Before a token is spent for nothing.
    tls::expect_vacant(directory)?;
    let key = Key::generate()?;
    let request = BASE64_STANDARD.encode(key.request()?);
    let join = Join { token: token.id.clone(), secret: token.secret(), name: name.to_owned(), request };
    let call = serde_json::to_value(join).map_err(|error| unreachable(error.to_string()))?;
    let mut authority = None;
    let connect = async {
        let (stream, found) = Pinned::connect(master, token).await?;
        authority = Some(found);
        post(stream, None, &master.to_string(), JOIN_PATH, &call).await
    };
    let (status, body) = exchange(connect)?.map_err(unreachable)?;
    if status != StatusCode::OK {
        return Err(Error::Refused(master, String::from_utf8_lossy(&body).trim().to_owned()));
    }
    let joined: Result<Joined, _> = serde_json::from_slice(&body);
    let (Ok(joined), Some(authority)) = (joined, authority) else {
        return Err(unreachable("what answers is no master".to_owned()));
    };
    Ok(tls::install(directory, &tls::agent_files(&authority, &joined.certificate, &key))?)
}

/// Asks a job framework something.
pub fn ask_jobs(socket: &Path, request: &jobs::Request) -> Result<Value, Error> {
    let unreachable = |cause: String| Error::NoJobs(socket.to_owned(), cause);
    let request = serde_json::to_value(request).map_err(|error| unreachable(error.to_string()))?;
    let connect = async { post(UnixStream::connect(socket).await?, None, "jobs", jobs::PATH, &request).await };
    let (status, body) = exchange(connect)?.map_err(unreachable)?;
    if status != StatusCode::OK {
        return Err(Error::Refusal(String::from_utf8_lossy(&body).trim().to_owned()));
    }
    serde_json::from_slice(&body).map_err(|error| unreachable(format!("what answers is no job framework: {error}")))
}

/// An answer, or why there is none.
type Exchanged = Result<(StatusCode, Bytes), String>;

fn exchange(exchange: impl Future<Output = io::Result<(StatusCode, Bytes)>>) -> Result<Exchanged, Error> {
    runtime()?.block_on(async {
        Ok(match timeout(PATIENCE, exchange).await {
            Err(_) => Err(format!("not within {} s", PATIENCE.as_secs())),
            Ok(answer) => answer.map_err(|error| error.to_string()),
        })
    })
}

async fn post(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    tls: Option<&Client>,
    host: &str,
    path: &str,
    call: &Value,
) -> io::Result<(StatusCode, Bytes)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    let request = Request::post(path)
        .header(HOST, host)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::<Bytes>::from(call.to_string()))
        .map_err(io::Error::other)?;
    let answer = sender.send_request(request).await.map_err(|error| tls::explained(&error, tls))?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(io::Error::other)?;
    Ok((status, body.to_bytes()))
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
