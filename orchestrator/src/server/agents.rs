//! The master's end of its connections with agents.
//!
//! An agent asks for `/berth/agent` and an upgrade to [`PROTOCOL`]. From then on both ends send `RecordIO` records of
//! JSON: the agent one [`Registration`] and then [`FromAgent`], the master [`ToAgent`](crate::master::ToAgent).

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncWriteExt as _, ReadHalf, split};
use tokio::time::timeout;

use super::Shared;
use super::answer::{self, Body, Problem, header};
use super::core::Handle;
use super::limits;
use super::queue::Queue;
use crate::master::{Connection, FromAgent, Registration};
use crate::recordio::Decoder;

/// What connections with agents are upgraded to.
pub const PROTOCOL: &str = "berth-agent-1";
/// Where agents ask for it.
pub const PATH: &str = "/berth/agent";

type Io = TokioIo<Upgraded>;

/// Lets an agent in.
pub fn answer(shared: &Shared, request: Request<Incoming>) -> Result<Response<Body>, Problem> {
    if header(request.headers(), &UPGRADE)? != Some(PROTOCOL) {
        return Err(Problem::new(
            StatusCode::UPGRADE_REQUIRED,
            format!("this is for agents, which upgrade to {PROTOCOL}"),
        ));
    }
    let core = shared.core.clone();
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => serve(&core, TokioIo::new(upgraded)).await,
            Err(error) => tracing::debug!(%error, "an agent left before it was let in"),
        }
    });
    let mut answer = answer::empty(StatusCode::SWITCHING_PROTOCOLS);
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    Ok(answer)
}

async fn serve(core: &Handle, io: Io) {
    let (mut reader, mut writer) = split(io);
    let mut decoder = Decoder::new(limits::AGENT_RECORD);
    let first = timeout(limits::PATIENCE, read::<Registration>(&mut decoder, &mut reader)).await;
    let registration = match first {
        Ok(Ok(Some(registration))) => registration,
        Ok(Ok(None)) | Err(_) => return,
        Ok(Err(error)) => return tracing::warn!(error, "what registers is no agent"),
    };
    let opened = core.ask(|core| {
        let (connection, queue) = core.open_agent();
        let now = core.now();
        core.master.register(connection, registration, now);
        core.wants_allocation();
        (connection, queue)
    });
    let Ok((connection, mut queue)) = opened.await else { return };
    // Whichever ends first ends the connection: the master has closed it, or the agent has.
    tokio::select! {
        () = write(&mut queue, &mut writer) => {}
        () = listen(core, connection, &mut decoder, &mut reader) => {}
    }
    core.tell(move |core| core.closed(connection));
    // The agent may have gone already.
    let _ = writer.shutdown().await;
}

async fn write(queue: &mut Queue, writer: &mut (impl tokio::io::AsyncWrite + Unpin)) {
    while let Some(record) = queue.next().await {
        if writer.write_all(&record).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
}

async fn listen(core: &Handle, connection: Connection, decoder: &mut Decoder, reader: &mut ReadHalf<Io>) {
    loop {
        let message: FromAgent = match read(decoder, reader).await {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(error) => return tracing::warn!(error, "an agent is disconnected for what it says"),
        };
        let heard = core.ask(move |core| {
            if let FromAgent::Answer { number, answer } = message {
                return core.answered(connection, number, answer);
            }
            let now = core.now();
            let ended = matches!(&message, FromAgent::Update { latest, .. } if latest.is_terminal());
            core.master.agent_says(connection, message, now);
            if ended {
                core.wants_allocation();
            }
        });
        if heard.await.is_err() {
            return;
        }
    }
}

/// The next message; none at the end.
async fn read<T: DeserializeOwned>(decoder: &mut Decoder, reader: &mut ReadHalf<Io>) -> Result<Option<T>, String> {
    let record: Option<Bytes> = decoder.read(reader).await.map_err(|error| error.to_string())?;
    let message = |record: Bytes| serde_json::from_slice(&record).map_err(|error| error.to_string());
    record.map(message).transpose()
}
