//! The master's process: the master core on a socket.
//!
//! ```text
//! frameworks ── HTTP ──▶ scheduler ─┐
//! people ────── HTTP ──▶ operator ──┼─▶ core (one thread) ─▶ store
//! agents ── upgraded ──▶ agents ────┘
//! ```
//!
//! Start reading at [`Server`], then `core.rs`, which says what is durable when. What calls and events look like is in
//! [`crate::api`].

mod access;
mod agents;
mod answer;
mod authentication;
mod core;
mod join;
mod limits;
mod metrics;
mod operator;
mod peer;
mod scheduler;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use uuid::Uuid;

use access::{Client, Gate};
use answer::{Body, Problem};
use core::{Core, Handle};
use limits::{Bucket, FRAMEWORK_CALLS, OTHER_CALLS};

pub use agents::{PATH as AGENT_PATH, PROTOCOL as AGENT_PROTOCOL};
pub use authentication::{Credential, Credentials, Error as CredentialsError};
pub(crate) use join::{Join, Joined, PATH as JOIN_PATH};
pub use limits::Rate;
pub(crate) use limits::{PATIENCE, SILENCE};

use crate::api;
use crate::master::{self, Master};
use crate::store::{self, Store};
use crate::tls;

/// How a master's process behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens; port 0 for any that is free.
    pub listen: SocketAddr,
    /// How the core behaves. Its id is chosen by the server.
    pub master: master::Config,
    /// The longest time between two allocation cycles. What happens in between may cause one at once.
    pub allocation_interval: Duration,
    /// How many calls one framework may make.
    pub framework_calls: Rate,
    /// What it is known by. Without it there is no TLS, and everything stays on this machine.
    pub tls: Option<tls::Server>,
    /// How long a client may take to shake hands.
    pub handshake_timeout: Duration,
    /// Who may be a framework. Without it, who may use the master may.
    pub credentials: Option<Credentials>,
}

impl Config {
    /// The timeouts of Mesos, but for two: clients that read a stream line by line see an event only when the next
    /// begins, so there is a heartbeat every second; and offers that nobody answers are withdrawn.
    pub fn new(listen: SocketAddr) -> Config {
        let mut master = master::Config::new("");
        master.heartbeat = Duration::from_secs(1);
        master.allocator.offer_timeout = Some(Duration::from_mins(5));
        master.allocator.seed = u64::from_ne_bytes(Uuid::new_v4().as_bytes()[..8].try_into().unwrap_or_default());
        let (allocation_interval, framework_calls) = (Duration::from_secs(1), FRAMEWORK_CALLS);
        let handshake_timeout = limits::HANDSHAKE;
        Config { listen, master, allocation_interval, framework_calls, tls: None, handshake_timeout, credentials: None }
    }
}

/// Why a master cannot start, or has to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It would be open to everybody.
    #[error(
        "cannot listen on {0}: without --tls a master listens on loopback addresses only, such as 127.0.0.1:5050; \
         `berth cluster init` makes what --tls takes"
    )]
    NotLoopback(SocketAddr),
    /// The address cannot be had.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    /// What it has to remember is out of reach.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Its thread cannot be started, or did not end as it should.
    #[error("the master's thread failed: {0}")]
    Thread(io::Error),
}

/// What all requests share.
struct Shared {
    core: Handle,
    /// The master's id.
    id: Arc<str>,
    /// `MasterInfo`
    master_info: Arc<Value>,
    /// When it started: on the clock of the process, and in seconds since 1970.
    start: Instant,
    started: f64,
    /// What bounds the calls of one framework.
    framework_calls: Rate,
    /// What bounds all requests that are no calls of subscribed frameworks.
    others: Mutex<Bucket>,
    /// Who is let in.
    gate: Arc<Gate>,
}

impl Shared {
    /// Whether there was not too much of late.
    fn admit(&self) -> Result<(), Problem> {
        let admitted = self.others.lock().is_ok_and(|mut bucket| bucket.take(self.start.elapsed()));
        if admitted { Ok(()) } else { Err(Problem::too_often()) }
    }
}

/// A master that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
    end: oneshot::Receiver<Result<(), store::Error>>,
}

/// How the master's thread ended. One that panicked says nothing.
fn ended(end: Result<Result<(), store::Error>, oneshot::error::RecvError>) -> Result<(), Error> {
    end.map_err(|_| Error::Thread(io::Error::other("it panicked")))?.map_err(Error::from)
}

impl Server {
    /// Takes over from earlier masters, and listens.
    pub async fn bind(config: Config, mut store: Box<dyn Store>) -> Result<Server, Error> {
        if config.tls.is_none() && !config.listen.ip().is_loopback() {
            return Err(Error::NotLoopback(config.listen));
        }
        let listener = TcpListener::bind(config.listen).await;
        let listener = listener.map_err(|error| Error::Listen(config.listen, error))?;
        let address = listener.local_addr().map_err(|error| Error::Listen(config.listen, error))?;
        let registry = store.load()?;
        let start = Instant::now();
        let id: Arc<str> = Uuid::new_v4().to_string().into();
        let master_config = master::Config { id: id.to_string(), ..config.master };
        let core = Core::new(Master::new(master_config, registry, Duration::ZERO), store, start);
        let (handle, work) = core::channel();
        let (ended, end) = oneshot::channel();
        let run = move || {
            // If nobody listens any more, nobody has to be told.
            let _ = ended.send(core.run(&work, config.allocation_interval));
        };
        thread::Builder::new().name("master".to_owned()).spawn(run).map_err(Error::Thread)?;
        let shared = Shared {
            core: handle,
            master_info: Arc::new(master_info(&id, address)),
            id,
            start,
            started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            framework_calls: config.framework_calls,
            others: Mutex::new(Bucket::new(OTHER_CALLS, Duration::ZERO)),
            gate: Arc::new(Gate::new(config.tls, config.handshake_timeout, config.credentials)),
        };
        Ok(Server { listener, address, shared: Arc::new(shared), end })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` is ready, or nothing can be stored any more. All connections are closed then.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let Server { listener, shared, mut end, .. } = self;
        let slots = Arc::new(Semaphore::new(limits::CONNECTIONS));
        let mut connections = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                end = &mut end => return ended(end),
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = listener.accept() => accepted,
            };
            // Without descriptors for more, those that are there go on; so do they when there are too many.
            let Ok((stream, client)) = accepted else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
            let shared = Arc::clone(&shared);
            connections.spawn(async move {
                serve_connection(stream, client, shared).await;
                drop(slot);
            });
        }
        shared.core.tell(Core::stop);
        let end = end.await;
        connections.shutdown().await;
        ended(end)
    }
}

async fn serve_connection(stream: TcpStream, client: SocketAddr, shared: Arc<Shared>) {
    let Some((client, stream)) = Client::meet(&shared.gate, stream, client).await else { return };
    let client = Arc::new(client);
    let service = service_fn(move |request| {
        let (shared, client) = (Arc::clone(&shared), Arc::clone(&client));
        async move { Ok::<_, Infallible>(route(&shared, request, &client).await.unwrap_or_else(Problem::answer)) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits::PATIENCE).max_buf_size(limits::HEAD);
    // What goes wrong on a connection is the client's affair.
    let _ = builder.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}

/// Answers a request.
async fn route(shared: &Shared, request: Request<Incoming>, client: &Client) -> Result<Response<Body>, Problem> {
    let path = request.uri().path().trim_end_matches('/').to_owned();
    let wanted = match path.as_str() {
        "/api/v1/scheduler" | "/api/v1" | JOIN_PATH => Method::POST,
        "/version" | "/health" | "/metrics" | AGENT_PATH => Method::GET,
        _ => return Err(Problem::new(StatusCode::NOT_FOUND, format!("there is nothing at {path}"))),
    };
    if *request.method() != wanted {
        let message = format!("{path} takes {wanted} requests");
        let mut answer = Problem::new(StatusCode::METHOD_NOT_ALLOWED, message).answer();
        let allow = HeaderValue::from_str(wanted.as_str()).expect("methods are printable");
        answer.headers_mut().insert(ALLOW, allow);
        return Ok(answer);
    }
    let principal = client.check(&shared.gate, &path, request.headers())?;
    match path.as_str() {
        "/api/v1/scheduler" => {
            let (parts, body) = request.into_parts();
            scheduler::answer(shared, principal, &parts.headers, body).await
        }
        "/api/v1" => {
            let (parts, body) = request.into_parts();
            operator::answer(shared, &parts.headers, body).await
        }
        JOIN_PATH => {
            let (parts, body) = request.into_parts();
            join::answer(shared, &parts.headers, body).await
        }
        AGENT_PATH => {
            shared.admit()?;
            agents::answer(shared, request)
        }
        "/version" => Ok(answer::json(&api::operator::version())),
        "/health" => {
            shared.core.ask(|_| ()).await?;
            Ok(answer::empty(StatusCode::OK))
        }
        _ => {
            shared.admit()?;
            let (counters, snapshot) = shared.core.ask(|core| (core.counters, core.snapshot())).await?;
            Ok(answer::text(StatusCode::OK, counters.write(&snapshot, shared.start.elapsed())))
        }
    }
}

/// `MasterInfo`
fn master_info(id: &str, address: SocketAddr) -> Value {
    // The number that an IPv4 address is in the memory of a little-endian machine, as in Mesos.
    let number = match address.ip() {
        IpAddr::V4(ip) => u32::from_le_bytes(ip.octets()),
        IpAddr::V6(_) => 0,
    };
    let (ip, port) = (address.ip().to_string(), address.port());
    json!({
        "id": id,
        "ip": number,
        "port": port,
        "hostname": ip,
        "version": api::VERSION,
        "pid": format!("master@{address}"),
        "address": { "hostname": ip, "ip": ip, "port": port },
    })
}
