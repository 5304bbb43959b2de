//! `/api/v1/executor`, which an agent serves to its executors: on the loopback interface of wherever it and they are, on a port
//! that stays the same as long as the agent keeps its directory, because they come back to it.
//!
//! Anybody on the machine can connect. Who cannot show a token is told so before more than the head of the request is read.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{ALLOW, AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use super::Happening;
use super::tasks::Refusal;
use super::tokens::Tokens;
use crate::api::executor::{self, Call, Event};
use crate::api::protobuf::Message;
use crate::master::AgentInfo;
use crate::recordio;
use crate::resources::Ports;
use crate::server::answer::{self, Body, Problem, header};
use crate::server::door::{Door, Place};
use crate::server::limits::{self, Rate};
use crate::server::peer;
use crate::server::queue::Queue;

/// What executors ask.
const PATH: &str = "/api/v1/executor";
/// The largest body of a call, in bytes.
const MOST_BODY: usize = 4 << 20;
/// How many calls of one executor are read, or wait for their answers, at once.
const CALLS_AT_ONCE: usize = 16;
/// How often one may call.
pub const CALLS: Rate = limits::FRAMEWORK_CALLS;
/// How many bytes may wait for an executor to read them; one that is slower is disconnected.
pub const MOST_QUEUED: usize = 8 << 20;
/// The most subscriptions of one executor that are still open, of which all but one are superseded.
const STREAMS: usize = 8;
/// The most connections of executors at once, and of one.
const CONNECTIONS: usize = 4000;
const CONNECTIONS_OF_ONE: usize = 100;
/// The most connections on which nobody has shown a token yet, and of one user.
const STRANGERS: usize = 500;
const STRANGERS_OF_ONE: usize = 100;
/// How often an executor hears from its agent: one that reads lines sees an event only when the next begins.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Where the ports begin that may be listened on, and those that the kernel gives away, unless it says otherwise.
const FIRST_PORT: u16 = 10_000;
const EPHEMERAL: u16 = 32_768;
/// How many ports are tried.
const MOST_TRIES: usize = 1000;
/// How often an address is tried that another program has.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// Finds a port to listen on: none of those that are for tasks, and none that the kernel gives to whoever connects to something.
/// Such a one is likely to be gone when the agent comes back, or an executor that tries to reach it connects to itself.
pub async fn bind(for_tasks: &Ports) -> io::Result<(TcpListener, SocketAddr)> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let ephemeral: u16 = range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(EPHEMERAL);
    // Where the kernel gives away all, one of those has to do.
    let ours = if ephemeral > FIRST_PORT { FIRST_PORT..ephemeral } else { FIRST_PORT..u16::MAX };
    let mut tries = MOST_TRIES;
    loop {
        let port = fastrand::u16(ours.clone());
        tries -= 1;
        if for_tasks.ranges().any(|range| range.contains(&port)) && tries > 0 {
            continue;
        }
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            listener => {
                let listener = listener?;
                let address = listener.local_addr()?;
                return Ok((listener, address));
            }
        }
    }
}

/// Listens where the agent has listened before. Who has taken its place meanwhile is waited for.
pub async fn bind_again(address: SocketAddr) -> TcpListener {
    let mut complained = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(%error, %address, "executors cannot come back until the agent can listen where it did");
                }
            }
        }
        sleep(TRY_AGAIN).await;
    }
}

/// What a call is answered.
#[derive(Debug)]
pub enum Answer {
    /// It is done.
    Accepted,
    /// The executor is subscribed; what it is told comes out of here. Each subscription has a number of its own.
    Subscribed(Queue, u64),
    /// It is not done.
    Refused(Refusal),
    /// There are too many.
    TooOften,
}

/// A call of the executor in a sandbox.
#[derive(Debug)]
pub struct Called {
    /// The sandbox, which its token names.
    pub name: String,
    /// What it says.
    pub request: executor::Request,
    /// Who waits for an answer.
    pub answer: oneshot::Sender<Answer>,
    /// Its place among the calls of that executor, until it is answered: whether anybody waits for that or has left.
    pub slot: OwnedSemaphorePermit,
}

/// Writes an event as it is sent.
pub fn record(event: &Event, agent: &AgentInfo) -> Bytes {
    recordio::frame(executor::write(event, agent).to_string().as_bytes())
}

struct Host {
    tokens: Tokens,
    happenings: UnboundedSender<Happening>,
    /// How many more calls of an executor may be under way now.
    calls: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// Where those come in who are known by nothing but the user whose their process is.
    strangers: Door<Option<u32>>,
    /// Those who have shown the token of a sandbox.
    known: Door<String>,
    streams: Door<String>,
}

/// What keeps a connection's place.
enum Visitor {
    Stranger { _place: Place<Option<u32>> },
    Known(Place<String>),
}

/// Serves executors, for ever.
pub async fn serve(
    listener: impl Future<Output = TcpListener>,
    tokens: Tokens,
    happenings: UnboundedSender<Happening>,
) {
    let listener = listener.await;
    let host = Arc::new(Host {
        tokens,
        happenings,
        calls: Mutex::default(),
        strangers: Door::new(STRANGERS, STRANGERS_OF_ONE),
        known: Door::new(CONNECTIONS, CONNECTIONS_OF_ONE),
        streams: Door::new(CONNECTIONS, STREAMS),
    });
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        // Without descriptors for more, those that are there go on.
        let Ok((stream, address)) = accepted else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        connections.spawn(serve_connection(stream, address, Arc::clone(&host)));
    }
}

async fn serve_connection(stream: TcpStream, address: SocketAddr, host: Arc<Host>) {
    // One user's processes cannot keep another's out.
    let user = stream.local_addr().ok().and_then(|server| peer::owner(address, server));
    let Some(place) = host.strangers.enter(user) else { return };
    // Events are small and wanted at once; one who does not read for long is gone.
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, limits::SILENCE.as_millis() as u32);
    let visitor = Arc::new(Mutex::new(Visitor::Stranger { _place: place }));
    let service = service_fn(move |request| {
        let (host, visitor) = (Arc::clone(&host), Arc::clone(&visitor));
        async move { Ok::<_, Infallible>(route(&host, &visitor, request).await.unwrap_or_else(refuse)) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits::PATIENCE).max_buf_size(limits::HEAD);
    // What goes wrong on a connection is the client's affair.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

fn refuse(problem: Problem) -> Response<Body> {
    let unknown = problem.status == StatusCode::UNAUTHORIZED;
    let mut answer = problem.answer();
    if unknown {
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(r#"Bearer realm="berth""#));
    }
    answer
}

async fn route(host: &Host, visitor: &Mutex<Visitor>, request: Request<Incoming>) -> Result<Response<Body>, Problem> {
    let path = request.uri().path();
    if path.trim_end_matches('/') != PATH {
        return Err(Problem::new(StatusCode::NOT_FOUND, format!("there is nothing at {path}")));
    }
    if request.method() != Method::POST {
        let mut answer = Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{PATH} takes POST requests")).answer();
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return Ok(answer);
    }
    let (parts, body) = request.into_parts();
    let name = host.caller(&parts.headers)?;
    host.welcome(visitor, &name)?;
    let slot = host.slot(&name).ok_or_else(Problem::too_often)?;
    let (call, format) = answer::read_call(&parts.headers, body, Message::ExecutorCall, MOST_BODY).await?;
    let request = executor::read(call)?;
    let place = match request.call {
        Call::Subscribe { .. } => Some(host.streams.enter(name.clone()).ok_or_else(Problem::too_often)?),
        Call::Update(_) | Call::Message(_) | Call::Heartbeat => None,
    };
    let (sender, receiver) = oneshot::channel();
    let called = Called { name: name.clone(), request, answer: sender, slot };
    let stopped = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the agent is shutting down");
    host.happenings.send(Happening::Called(called)).map_err(|_| stopped())?;
    match receiver.await.map_err(|_| stopped())? {
        Answer::Accepted => Ok(answer::empty(StatusCode::ACCEPTED)),
        Answer::Subscribed(queue, number) => {
            let mut heartbeat = interval(HEARTBEAT);
            // One that does not read does not have to hear it several times then.
            heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let events = Events { queue, heartbeat, name, number, happenings: host.happenings.clone(), _place: place };
            Ok(format.stream(StreamBody::new(events).boxed(), Message::ExecutorEvent))
        }
        Answer::TooOften => Err(Problem::too_often()),
        Answer::Refused(refusal) => {
            let status = match refusal {
                Refusal::Over => StatusCode::BAD_REQUEST,
                Refusal::Another(..) | Refusal::NotSubscribed => StatusCode::FORBIDDEN,
                Refusal::TooMany(_) | Refusal::TooMuch | Refusal::Busy => StatusCode::TOO_MANY_REQUESTS,
            };
            Err(Problem::new(status, refusal.to_string()))
        }
    }
}

impl Host {
    /// In which sandbox whoever calls is.
    fn caller(&self, headers: &HeaderMap) -> Result<String, Problem> {
        let unknown = |message: &str| Problem::new(StatusCode::UNAUTHORIZED, message);
        let missing = || unknown("an executor says `Authorization: Bearer $MESOS_EXECUTOR_AUTHENTICATION_TOKEN`");
        let (scheme, token) = header(headers, &AUTHORIZATION)?.and_then(|it| it.split_once(' ')).ok_or_else(missing)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(missing());
        }
        let name = self.tokens.read(token.trim()).ok_or_else(|| unknown("the token is none of this agent's"))?;
        Ok(name.to_owned())
    }

    /// Whoever has shown the token of this sandbox is no stranger.
    fn welcome(&self, visitor: &Mutex<Visitor>, name: &str) -> Result<(), Problem> {
        let mut visitor = visitor.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(&*visitor, Visitor::Known(place) if place.kind() == name) {
            *visitor = Visitor::Known(self.known.enter(name.to_owned()).ok_or_else(Problem::too_often)?);
        }
        Ok(())
    }

    /// The right to have a call read, if the executor has not too many already.
    fn slot(&self, name: &str) -> Option<OwnedSemaphorePermit> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.retain(|_, slots| Arc::strong_count(slots) > 1);
        let slots = calls.entry(name.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(CALLS_AT_ONCE)));
        Arc::clone(slots).try_acquire_owned().ok()
    }
}

/// What a subscribed executor is told, one record a frame, which becomes one HTTP chunk.
struct Events {
    queue: Queue,
    heartbeat: Interval,
    name: String,
    number: u64,
    happenings: UnboundedSender<Happening>,
    _place: Option<Place<String>>,
}

impl Stream for Events {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(record) = self.queue.poll_next(context) {
            return Poll::Ready(record.map(|record| Ok(Frame::data(record))));
        }
        self.heartbeat.poll_tick(context).map(|_| {
            let heartbeat = record(&Event::Heartbeat, &AgentInfo::default());
            Some(Ok(Frame::data(heartbeat)))
        })
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.happenings.send(Happening::Unsubscribed(std::mem::take(&mut self.name), self.number));
    }
}
