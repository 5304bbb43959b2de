//! The agent's end of its connection with the master.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Collected, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt as _, split};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Happening;
use crate::master::{FromAgent, Registration};
use crate::masters::{Elsewhere, OPENING, SILENCE};
use crate::recordio::{self, Decoder};
use crate::server::queue::{Feed, queue};
use crate::server::{AGENT_PATH, AGENT_PROTOCOL};
use crate::tls::{self, Client};

/// The largest message of a master: a task with all that is to be known of it.
const MOST: usize = 64 << 20;
/// The longest reason for a refusal, in bytes.
const MOST_SAID: usize = 64 << 10;

/// How many bytes may wait for the master to read them before executors' messages are refused, and nothing is said again. What else
/// is said is bounded where it comes from: one update of a task at a time, and the answers to so many questions.
pub const MOST_WAITING: usize = 8 << 20;

/// A connection, which is closed when it is dropped.
#[derive(Debug)]
pub struct Link {
    /// Which it is.
    pub number: u64,
    feed: Feed,
    _tasks: JoinSet<()>,
}

impl Link {
    /// Connects. What the master says comes as happenings with this number, as does the end of the connection.
    pub async fn open(
        master: SocketAddr,
        tls: Option<Client>,
        number: u64,
        happenings: UnboundedSender<Happening>,
    ) -> io::Result<Link> {
        let upgraded = timeout(OPENING, upgrade(master, tls.as_ref())).await.map_err(|_| io::ErrorKind::TimedOut)??;
        let (mut reader, mut writer) = split(TokioIo::new(upgraded));
        let (feed, mut queue) = queue();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Some(record) = queue.next().await {
                if writer.write_all(&record).await.is_err() || writer.flush().await.is_err() {
                    // The reader notices as well.
                    return;
                }
            }
        });
        tasks.spawn(async move {
            let mut decoder = Decoder::new(MOST);
            loop {
                let message = match timeout(SILENCE, decoder.read(&mut reader)).await {
                    Ok(Ok(Some(record))) => serde_json::from_slice(&record).map_err(io::Error::other),
                    Ok(Ok(None)) => Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(Err(error)) => Err(error),
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                };
                let happening = match message {
                    Ok(message) => Happening::Heard(number, message),
                    Err(error) => {
                        tracing::debug!(%error, "the connection with the master is lost");
                        Happening::Lost(number)
                    }
                };
                let lost = matches!(happening, Happening::Lost(_));
                if happenings.send(happening).is_err() || lost {
                    return;
                }
            }
        });
        Ok(Link { number, feed, _tasks: tasks })
    }

    /// Says who the agent is, before anything else: the master is silent until then.
    pub fn register(&self, registration: &Registration) {
        self.send(&serde_json::to_vec(registration).expect("registrations have texts for keys"));
    }

    /// Says something, which is lost if the connection is.
    pub fn say(&self, message: &FromAgent) {
        self.send(&serde_json::to_vec(message).expect("messages have texts for keys"));
    }

    /// How many bytes wait for the master to read them.
    pub fn waiting(&self) -> usize {
        self.feed.waiting()
    }

    fn send(&self, record: &[u8]) {
        // Of a connection that is no more, the reader tells.
        let _ = self.feed.push(recordio::frame(record), usize::MAX);
    }
}

async fn upgrade(master: SocketAddr, tls: Option<&Client>) -> io::Result<hyper::upgrade::Upgraded> {
    let stream = tls::connect(master, tls).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection.with_upgrades());
    let request = Request::get(AGENT_PATH)
        .header(HOST, master.to_string())
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, AGENT_PROTOCOL)
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let answer = sender.send_request(request).await.map_err(|error| tls::explained(&error, tls))?;
    if let Some(elsewhere) = Elsewhere::of(&answer) {
        return Err(io::Error::other(elsewhere));
    }
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = answer.status();
        let said = Limited::new(answer.into_body(), MOST_SAID).collect().await.map(Collected::to_bytes);
        let said = String::from_utf8_lossy(&said.unwrap_or_default()).trim().to_owned();
        return Err(io::Error::other(format!("the master answers {status}: {said}")));
    }
    hyper::upgrade::on(answer).await.map_err(io::Error::other)
}
