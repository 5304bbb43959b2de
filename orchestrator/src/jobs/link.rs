//! The job framework's connections with the master: one that events come by, and one for calls.
//!
//! Calls are made one after the other, so that a master hears of them in the order they were meant.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Collected, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::process::Happening;
use super::scheduler::Own;
use super::wire::{self, Call, Event};
use crate::master::{FrameworkId, TaskId};
use crate::masters::{Elsewhere, OPENING, SILENCE};
use crate::recordio::Decoder;
use crate::server::{Credential, PATIENCE};
use crate::tls::{self, Client};

/// The header by which calls belong to a subscription.
const STREAM_ID: &str = "mesos-stream-id";
/// The largest event.
const MOST: usize = 64 << 20;
/// How long to wait when there were too many calls.
const PAUSE: Duration = Duration::from_secs(1);

/// A subscription, which is over when this is dropped.
#[derive(Debug)]
pub struct Link {
    /// Which it is.
    pub number: u64,
    calls: UnboundedSender<(Call, FrameworkId)>,
    happenings: UnboundedSender<Happening>,
    /// What events come out of, until somebody listens, and the connection that is closed with it.
    events: Option<(SendRequest<Full<Bytes>>, Response<Incoming>)>,
    tasks: JoinSet<()>,
}

impl Link {
    /// Subscribes.
    pub async fn open(
        master: Master,
        number: u64,
        own: Own,
        roles: Vec<(String, bool)>,
        happenings: UnboundedSender<Happening>,
    ) -> io::Result<Link> {
        let call = wire::subscribe(&own, &roles);
        let mut tasks = JoinSet::new();
        let open = async {
            let mut sender = master.connect(&mut tasks).await?;
            let sent = sender.send_request(master.request(&call, None)?).await;
            let answer = sent.map_err(|error| tls::explained(&error, master.tls.as_ref()))?;
            Ok::<_, io::Error>((sender, answer))
        };
        let (sender, answer) = timeout(OPENING, open).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if let Some(elsewhere) = Elsewhere::of(&answer) {
            return Err(io::Error::other(elsewhere));
        }
        let stream = answer.headers().get(STREAM_ID).cloned();
        if answer.status() != StatusCode::OK {
            let (status, message) = (answer.status(), text(answer).await);
            return Err(io::Error::other(format!("the master answers {status}: {message}")));
        }
        let stream = stream.ok_or_else(|| io::Error::other("the master gave the subscription no id"))?;
        let (calls, queue) = unbounded_channel();
        let caller = Caller { master: master.clone(), number, stream, happenings: happenings.clone() };
        tasks.spawn(caller.run(queue));
        Ok(Link { number, calls, happenings, events: Some((sender, answer)), tasks })
    }

    /// From now on, what the master says comes as happenings with this number, as does the end of it.
    pub fn listen(&mut self) {
        let (number, happenings) = (self.number, self.happenings.clone());
        let Some((sender, answer)) = self.events.take() else { return };
        self.tasks.spawn(async move {
            let lost = listen(answer, number, &happenings).await;
            tracing::debug!(%lost, "the subscription has ended");
            let _ = happenings.send(Happening::Lost(number));
            drop(sender);
        });
    }

    /// Asks something of the master.
    pub fn call(&self, call: Call, framework: FrameworkId) {
        // Of a connection that is no more, a happening tells.
        let _ = self.calls.send((call, framework));
    }
}

/// Passes on what the master says, until there is nothing more.
async fn listen(mut answer: Response<Incoming>, number: u64, happenings: &UnboundedSender<Happening>) -> io::Error {
    let mut decoder = Decoder::new(MOST);
    loop {
        let frame = match timeout(SILENCE, answer.frame()).await {
            Err(_) => return io::ErrorKind::TimedOut.into(),
            Ok(None) => return io::ErrorKind::UnexpectedEof.into(),
            Ok(Some(Err(error))) => return io::Error::other(error),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        decoder.push(&data);
        loop {
            let event = match decoder.next_record() {
                Ok(None) => break,
                Ok(Some(record)) => wire::read(&record).map_err(io::Error::other),
                Err(malformed) => Err(io::Error::other(malformed)),
            };
            match event {
                Ok(Event::Other) => {}
                Ok(event) => {
                    if happenings.send(Happening::Heard(number, event)).is_err() {
                        return io::ErrorKind::BrokenPipe.into();
                    }
                }
                Err(error) => return error,
            }
        }
    }
}

/// Makes the calls of one subscription.
struct Caller {
    master: Master,
    number: u64,
    stream: HeaderValue,
    happenings: UnboundedSender<Happening>,
}

impl Caller {
    async fn run(self, mut queue: UnboundedReceiver<(Call, FrameworkId)>) {
        let failed = self.make_calls(&mut queue).await;
        if let Err(error) = failed {
            tracing::debug!(%error, "a call did not reach the master");
            // Those that were not sent are known not to have been.
            queue.close();
            while let Ok((call, _)) = queue.try_recv() {
                self.refused(&call, "the connection with the master was lost before");
            }
            let _ = self.happenings.send(Happening::Lost(self.number));
        }
    }

    async fn make_calls(&self, queue: &mut UnboundedReceiver<(Call, FrameworkId)>) -> io::Result<()> {
        let mut tasks = JoinSet::new();
        let mut sender = self.master.connect(&mut tasks).await?;
        while let Some((call, framework)) = queue.recv().await {
            let body = call.write(&framework);
            loop {
                let request = self.master.request(&body, Some(&self.stream))?;
                let answer = timeout(PATIENCE, sender.send_request(request)).await;
                let answer = answer.map_err(|_| io::ErrorKind::TimedOut)?.map_err(io::Error::other)?;
                let status = answer.status();
                let message = text(answer).await;
                if status == StatusCode::TOO_MANY_REQUESTS {
                    sleep(PAUSE).await;
                    continue;
                }
                if !status.is_success() {
                    tracing::warn!(%status, message, "the master refuses a call");
                    self.refused(&call, &message);
                }
                break;
            }
        }
        Ok(())
    }

    /// A call has had, and will have, no effect.
    fn refused(&self, call: &Call, message: &str) {
        if let Call::Accept { tasks, .. } = call {
            let tasks: Vec<TaskId> = tasks.iter().map(|(id, _)| id.clone()).collect();
            let _ = self.happenings.send(Happening::Refused(tasks, message.to_owned()));
        }
    }
}

/// Where a master is, and what the framework is known by there.
#[derive(Debug, Clone)]
pub struct Master {
    pub address: SocketAddr,
    pub tls: Option<Client>,
    pub credential: Option<Credential>,
}

impl Master {
    async fn connect(&self, tasks: &mut JoinSet<()>) -> io::Result<SendRequest<Full<Bytes>>> {
        let stream = tls::connect(self.address, self.tls.as_ref()).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tasks.spawn(async move {
            // Whoever waits for an answer is told of its end.
            let _ = connection.await;
        });
        Ok(sender)
    }

    fn request(&self, body: &Value, stream: Option<&HeaderValue>) -> io::Result<Request<Full<Bytes>>> {
        let mut request = Request::post("/api/v1/scheduler")
            .header(HOST, self.address.to_string())
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json");
        if let Some(credential) = &self.credential {
            request = request.header(AUTHORIZATION, credential.header());
        }
        if let Some(stream) = stream {
            request = request.header(STREAM_ID, stream);
        }
        request.body(Full::from(body.to_string())).map_err(io::Error::other)
    }
}

/// What an answer says.
async fn text(answer: Response<Incoming>) -> String {
    let body = answer.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
    String::from_utf8_lossy(&body).trim().to_owned()
}
