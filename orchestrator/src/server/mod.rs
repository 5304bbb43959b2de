//! The master's process: the master core on a socket.
//!
//! ```text
//! frameworks ── HTTP ──▶ scheduler ─┐
//! people ────── HTTP ──▶ operator ──┼─▶ core (one thread) ─▶ store
//! agents ── upgraded ──▶ agents ────┘
//! ```
//!
//! Of several masters that share an etcd one is like that. The others answer by `standby.rs` until they lead.
//!
//! Start reading at [`Server`], then `core.rs`, which says what is durable when. What calls and events look like is in
//! [`crate::api`]; whether they are JSON or protobuf is a matter of `format.rs` alone.

mod access;
mod agents;
pub(crate) mod answer;
mod authentication;
mod core;
pub(crate) mod door;
pub(crate) mod format;
mod join;
pub(crate) mod limits;
mod metrics;
mod operator;
pub(crate) mod peer;
mod questions;
pub(crate) mod queue;
mod scheduler;
mod sessions;
mod standby;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock};
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
use tokio::runtime::Handle as Runtime;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};
use uuid::Uuid;

use access::{Client, Gate};
use answer::{Body, Problem};
use core::{Core, Handle};
use limits::{Bucket, FRAMEWORK_CALLS, OTHER_CALLS};

pub use agents::{PATH as AGENT_PATH, PROTOCOL as AGENT_PROTOCOL};
pub use authentication::{Credential, Credentials, Error as CredentialsError};
pub(crate) use join::{Join, Joined, PATH as JOIN_PATH};
pub(crate) use limits::PATIENCE;
pub use limits::Rate;

use crate::api;
use crate::master::{self, Master};
use crate::store::etcd::{Candidate, EtcdStore};
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
    /// Nobody could be sent there.
    #[error(
        "cannot listen on {0}: other masters send clients to where this one listens; give the address they reach it by"
    )]
    Unspecified(SocketAddr),
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

/// What all connections share: they outlast the change from a standby to a leader.
struct Host {
    /// Who is let in.
    gate: Gate,
    /// What there is once this master leads.
    leads: OnceLock<Arc<Shared>>,
    /// Which other master leads, as far as this one knows.
    leader: watch::Sender<Option<SocketAddr>>,
}

impl Host {
    fn new(config: &Config) -> Host {
        let gate = Gate::new(config.tls.clone(), config.handshake_timeout, config.credentials.clone());
        Host { gate, leads: OnceLock::new(), leader: watch::Sender::default() }
    }
}

/// What all requests to a master that leads share.
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
    /// What it is known by, and signs certificates with.
    tls: Option<tls::Server>,
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
    config: Config,
    host: Arc<Host>,
    turn: Turn,
}

/// How the master's thread will have ended.
type End = oneshot::Receiver<Result<(), store::Error>>;

/// When a master leads.
enum Turn {
    /// It does.
    Has(End),
    /// When it is elected.
    Wants(Arc<Candidate>),
}

async fn listen(config: &Config) -> Result<(TcpListener, SocketAddr), Error> {
    let at = config.listen;
    if config.tls.is_none() && !at.ip().is_loopback() {
        return Err(Error::NotLoopback(at));
    }
    let listener = TcpListener::bind(at).await.map_err(|error| Error::Listen(at, error))?;
    let address = listener.local_addr().map_err(|error| Error::Listen(at, error))?;
    Ok((listener, address))
}

impl Server {
    /// Takes over from earlier masters, and listens.
    pub async fn bind(config: Config, store: Box<dyn Store>) -> Result<Server, Error> {
        let (listener, address) = listen(&config).await?;
        let host = Arc::new(Host::new(&config));
        let turn = Turn::Has(lead(address, &host, &config, store).await?);
        Ok(Server { listener, address, config, host, turn })
    }

    /// Listens, and stands by until it is elected.
    pub async fn stand_by(config: Config, candidate: Candidate) -> Result<Server, Error> {
        if config.listen.ip().is_unspecified() {
            return Err(Error::Unspecified(config.listen));
        }
        let (listener, address) = listen(&config).await?;
        let host = Arc::new(Host::new(&config));
        Ok(Server { listener, address, config, host, turn: Turn::Wants(Arc::new(candidate)) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` is ready, or nothing can be stored any more, or another master may lead. All connections are
    /// closed then.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let Server { listener, address, config, host, turn } = self;
        let slots = Arc::new(Semaphore::new(limits::CONNECTIONS));
        let mut connections = JoinSet::new();
        let candidate = if let Turn::Wants(candidate) = &turn { Some(Arc::clone(candidate)) } else { None };
        let reign = reign(turn, address, &host, &config);
        tokio::pin!(shutdown, reign);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                end = &mut reign => return end,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = listener.accept() => accepted,
            };
            // Without descriptors for more, those that are there go on; so do they when there are too many.
            let Ok((stream, client)) = accepted else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
            let host = Arc::clone(&host);
            connections.spawn(async move {
                serve_connection(stream, client, host).await;
                drop(slot);
            });
        }
        let mut end = Ok(());
        if let Some(shared) = host.leads.get() {
            shared.core.tell(Core::stop);
            end = reign.await;
        }
        connections.shutdown().await;
        if let Some(candidate) = candidate {
            candidate.resign().await;
        }
        end
    }
}

/// Leads, when it is this master's turn, until its thread ends.
async fn reign(turn: Turn, address: SocketAddr, host: &Host, config: &Config) -> Result<(), Error> {
    let end = match turn {
        Turn::Has(end) => end,
        Turn::Wants(candidate) => {
            let leadership = candidate.win(address, &host.leader).await;
            lead(address, host, config, Box::new(EtcdStore::new(leadership, Runtime::current()))).await?
        }
    };
    // One that panicked says nothing.
    end.await.map_err(|_| Error::Thread(io::Error::other("it panicked")))?.map_err(Error::from)
}

/// Takes over from earlier masters.
async fn lead(address: SocketAddr, host: &Host, config: &Config, mut store: Box<dyn Store>) -> Result<End, Error> {
    let load = spawn_blocking(move || store.load().map(|registry| (registry, store))).await;
    let (registry, store) = load.map_err(|error| Error::Thread(io::Error::other(error)))??;
    let start = Instant::now();
    let id: Arc<str> = Uuid::new_v4().to_string().into();
    let master_config = master::Config { id: id.to_string(), ..config.master.clone() };
    let core = Core::new(Master::new(master_config, registry, Duration::ZERO), store, start);
    let (handle, work) = core::channel();
    let (ended, end) = oneshot::channel();
    let interval = config.allocation_interval;
    let run = move || {
        // If nobody listens any more, nobody has to be told.
        let _ = ended.send(core.run(&work, interval));
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
        tls: config.tls.clone(),
    };
    // A master leads once in its life.
    let _ = host.leads.set(Arc::new(shared));
    Ok(end)
}

async fn serve_connection(stream: TcpStream, client: SocketAddr, host: Arc<Host>) {
    let Some((client, stream)) = Client::meet(&host.gate, stream, client).await else { return };
    let client = Arc::new(client);
    let service = service_fn(move |request| {
        let (host, client) = (Arc::clone(&host), Arc::clone(&client));
        async move { Ok::<_, Infallible>(route(&host, request, &client).await.unwrap_or_else(Problem::answer)) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits::PATIENCE).max_buf_size(limits::HEAD);
    // What goes wrong on a connection is the client's affair.
    let _ = builder.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}

/// Answers a request.
async fn route(host: &Host, request: Request<Incoming>, client: &Client) -> Result<Response<Body>, Problem> {
    let path = request.uri().path().trim_end_matches('/').to_owned();
    let wanted = match path.as_str() {
        "/api/v1/scheduler" | "/api/v1" | JOIN_PATH => Method::POST,
        path if questions::agent(path).is_some() => Method::POST,
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
    let principal = client.check(&host.gate, &path, request.headers())?;
    let Some(shared) = host.leads.get() else { return standby::answer(&path, request.uri(), *host.leader.borrow()) };
    if let Some(agent) = questions::agent(&path) {
        let (parts, body) = request.into_parts();
        return questions::answer(shared, agent, &parts.headers, body).await;
    }
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
            let (counters, snapshot) = shared.core.ask(|core| (core.counters(), core.snapshot())).await?;
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
