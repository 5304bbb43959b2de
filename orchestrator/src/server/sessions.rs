//! Programs beside a task, as streams of records (`api/sessions.rs`). An agent is asked for every piece of them, when whoever
//! reads it is ready for more: nothing piles up, and what nobody listens to any more ends.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Response, StatusCode};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::answer::{self, Body, Problem};
use super::core::Handle;
use super::format::Format;
use super::limits::{self, PATIENCE};
use super::questions::{ask, refusal};
use crate::api::agent::{Answer, Question};
use crate::api::protobuf::Message;
use crate::api::sessions::{self as api, Input, Launch, Record};
use crate::master::AgentId;
use crate::recordio::{self, Decoder};

/// Starts a program, and answers with what it writes until it has ended. It ends with the stream.
pub async fn launch(core: &Handle, agent: AgentId, format: Format, launch: Launch) -> Result<Response<Body>, Problem> {
    let (sender, receiver) = mpsc::channel(1);
    let (started, start) = oneshot::channel();
    // Whoever asks may leave at any time.
    tokio::spawn(run(core.clone(), agent, launch, started, sender));
    let lost = || Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the session was lost");
    start.await.map_err(|_| lost())??;
    Ok(format.records(StreamBody::new(Pieces(receiver)).boxed(), Message::ProcessIo))
}

async fn run(
    core: Handle,
    agent: AgentId,
    launch: Launch,
    started: oneshot::Sender<Result<(), Problem>>,
    to: mpsc::Sender<Bytes>,
) {
    let session = launch.session.clone();
    let answer = ask(&core, &agent, Question::Launch(launch)).await;
    let is_refused = matches!(&answer, Ok(answer) if *answer != Answer::Done);
    let start = done(answer);
    let runs = start.is_ok();
    // Who has left is noticed below.
    let _ = started.send(start);
    let has_ended = is_refused || runs && relay(&core, &agent, &session, &to).await;
    if !has_ended {
        // Also where an answer did not come in time: it may have been started, and nobody listens.
        let _ = ask(&core, &agent, Question::End { session }).await;
    }
}

/// Passes on what a program writes: whether it has ended. Else nobody listens, or its agent does not answer.
async fn relay(core: &Handle, agent: &AgentId, session: &str, to: &mpsc::Sender<Bytes>) -> bool {
    loop {
        let answer = tokio::select! {
            () = to.closed() => return false,
            answer = ask(core, agent, Question::Output { session: session.to_owned() }) => answer,
        };
        let Ok(Answer::Written(pieces, last)) = answer else { return false };
        for piece in pieces {
            if to.send(recordio::frame(api::written(&piece).to_string().as_bytes())).await.is_err() {
                return false;
            }
        }
        if last {
            return true;
        }
    }
}

/// Passes on what a program is to read, until there is no more of it or the program has ended.
pub async fn attach(
    core: &Handle,
    agent: &AgentId,
    format: Format,
    mut body: Incoming,
) -> Result<Response<Body>, Problem> {
    let passed = pass_all_on(core, agent, format, &mut body).await;
    if passed.is_err() {
        // Who is still sending when the connection is closed would see that instead of the answer.
        let _ = timeout(PATIENCE, answer::read_in_vain(&mut body)).await;
    }
    passed.map(|()| answer::empty(StatusCode::OK))
}

async fn pass_all_on(core: &Handle, agent: &AgentId, format: Format, body: &mut Incoming) -> Result<(), Problem> {
    let mut decoder = Decoder::new(limits::INPUT_RECORD);
    let mut session: Option<String> = None;
    loop {
        let frame = match (timeout(PATIENCE, body.frame()).await, &session) {
            (Ok(None), _) => return Ok(()),
            (Ok(Some(frame)), _) => {
                frame.map_err(|error| Problem::bad(format!("the body could not be read: {error}")))?
            }
            (Err(_), None) => {
                return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "the first record took too long to arrive"));
            }
            // People pause to think, but not beyond its end.
            (Err(_), Some(session)) => {
                pass_on(core, agent, session, None).await?;
                continue;
            }
        };
        decoder.push(frame.data_ref().map_or(&[], |data| data));
        while let Some(record) = decoder.next_record().map_err(|wrong| Problem::bad(wrong.to_string()))? {
            match (api::record(format.read(&record, Message::AgentCall)?)?, &session) {
                (Record::Session(name), None) => session = Some(name),
                (Record::Input(input), Some(session)) => pass_on(core, agent, session, Some(input)).await?,
                (Record::Heartbeat, Some(_)) => {}
                _ => return Err(Problem::bad("the first record, and no other, is of type CONTAINER_ID")),
            }
        }
    }
}

/// Passes something on as soon as the program takes it.
async fn pass_on(core: &Handle, agent: &AgentId, session: &str, input: Option<Input>) -> Result<(), Problem> {
    loop {
        let question = Question::Input { session: session.to_owned(), input: input.clone() };
        match ask(core, agent, question).await {
            Ok(Answer::Busy) => {}
            answer => return done(answer),
        }
    }
}

/// Waits for the end of a program, and says how it was.
pub async fn wait(core: &Handle, agent: &AgentId, session: String) -> Result<Value, Problem> {
    loop {
        match ask(core, agent, Question::Wait { session: session.clone() }).await? {
            Answer::Ended(None) => {}
            Answer::Ended(Some(code)) => return Ok(api::ended(code)),
            other => return Err(refusal(other)),
        }
    }
}

fn done(answer: Result<Answer, Problem>) -> Result<(), Problem> {
    match answer? {
        Answer::Done => Ok(()),
        other => Err(refusal(other)),
    }
}

/// What a program writes, one record a frame, which becomes one HTTP chunk.
struct Pieces(mpsc::Receiver<Bytes>);

impl Stream for Pieces {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|record| record.map(|record| Ok(Frame::data(record))))
    }
}
