//! `/api/v1/scheduler`

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Response, StatusCode};
use uuid::Uuid;

use super::Shared;
use super::answer::{self, Body, Problem, header};
use super::authentication::Principal;
use super::core::{Core, FrameworkLink, Handle};
use super::format::Format;
use super::limits::{self, Bucket};
use super::queue::Queue;
use crate::api::framework::Framework;
use crate::api::protobuf::Message;
use crate::api::scheduler::{self, Request, Writer};
use crate::master::{Call, Connection, FrameworkId};

const STREAM_ID: HeaderName = HeaderName::from_static("mesos-stream-id");

/// Answers one call.
pub async fn answer(
    shared: &Shared,
    principal: Option<Arc<Principal>>,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Response<Body>, Problem> {
    let (call, format) = answer::read_call(headers, body, Message::SchedulerCall, limits::BODY).await?;
    let mut request = scheduler::read(call, &shared.id)?;
    if let (Some(principal), Request::Subscribe(framework) | Request::Update(_, framework)) = (&principal, &mut request)
    {
        principal.claim(&mut framework.info)?;
    }
    let stream = header(headers, &STREAM_ID)?;
    let framework = match request {
        Request::Subscribe(framework) => {
            if stream.is_some() {
                return Err(Problem::bad("a SUBSCRIBE call comes without the header Mesos-Stream-Id"));
            }
            return subscribe(shared, principal, framework, format).await;
        }
        Request::Update(ref id, ref framework) => {
            if let Some(refusal) = principal.as_ref().and_then(|principal| principal.refusal(&framework.info)) {
                return Err(Problem::new(StatusCode::FORBIDDEN, refusal));
            }
            id.clone()
        }
        Request::Call(ref id, _) | Request::Nothing(ref id) => id.clone(),
    };
    let missing = || Problem::bad("the header Mesos-Stream-Id is missing: every call but SUBSCRIBE has it");
    let wrong = || Problem::bad("the header Mesos-Stream-Id is not that of the framework's present subscription");
    let stream = Uuid::parse_str(stream.ok_or_else(missing)?).map_err(|_| wrong())?;
    shared
        .core
        .ask(move |core| {
            let done = check(core, &framework, stream, principal.as_deref(), wrong)
                .and_then(|from| call_core(core, from, request));
            match done {
                Ok(_) => core.counters.calls += 1,
                Err(Problem { status: StatusCode::TOO_MANY_REQUESTS, .. }) => core.counters.throttled += 1,
                Err(_) => core.counters.refused += 1,
            }
            done
        })
        .await?
        .map(answer::empty)
}

/// Whether a call comes from whoever is subscribed as its framework, and not too often.
fn check(
    core: &mut Core,
    id: &FrameworkId,
    stream: Uuid,
    principal: Option<&Principal>,
    wrong: impl Fn() -> Problem,
) -> Result<Connection, Problem> {
    let connection = core.master.connection_of(id).ok_or_else(|| {
        Problem::new(StatusCode::FORBIDDEN, format!("framework_id: framework {id} is not subscribed"))
    })?;
    let now = core.now();
    let link = core.framework_link(connection).ok_or_else(&wrong)?;
    if link.stream != stream {
        return Err(wrong());
    }
    if link.principal.as_deref() != principal.map(|principal| &*principal.name) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            format!("framework_id: framework {id} is another principal's"),
        ));
    }
    if !link.calls.take(now) {
        return Err(Problem::too_often());
    }
    Ok(connection)
}

fn call_core(core: &mut Core, from: Connection, request: Request) -> Result<StatusCode, Problem> {
    let now = core.now();
    match request {
        Request::Subscribe(_) | Request::Nothing(_) => Ok(StatusCode::ACCEPTED),
        Request::Update(id, framework) => {
            core.master.call(from, &id, Call::Update(framework.info), now)?;
            if let Some(link) = core.framework_link(from) {
                link.writer.dialect = framework.dialect;
            }
            core.wants_allocation();
            Ok(StatusCode::OK)
        }
        Request::Call(id, call) => {
            if matches!(call, Call::Revive(_) | Call::Teardown) {
                core.wants_allocation();
            }
            core.master.call(from, &id, call, now)?;
            Ok(StatusCode::ACCEPTED)
        }
    }
}

async fn subscribe(
    shared: &Shared,
    principal: Option<Arc<Principal>>,
    framework: Framework,
    format: Format,
) -> Result<Response<Body>, Problem> {
    shared.admit()?;
    let stream = Uuid::new_v4();
    let writer = Writer {
        master: shared.id.clone(),
        master_info: shared.master_info.clone(),
        framework: framework.id.clone().unwrap_or_else(|| FrameworkId::from("")),
        dialect: framework.dialect,
    };
    let (handle, rate) = (shared.core.clone(), shared.framework_calls);
    let subscribed = shared.core.ask(move |core| {
        let now = core.now();
        let refusal = principal.as_ref().and_then(|principal| principal.refusal(&framework.info));
        let principal = principal.map(|principal| Arc::clone(&principal.name));
        let link = FrameworkLink { stream, writer, calls: Bucket::new(rate, now), principal };
        let (connection, queue) = core.open_framework(link);
        // From here on the connection is closed when the stream is dropped, whoever drops it.
        let events = Events { queue, connection, core: handle };
        let refusal = match refusal {
            None => core.master.subscribe(connection, framework.id, framework.info, now).err().map(|it| it.to_string()),
            refusal => refusal,
        };
        if let Some(refusal) = refusal {
            core.refuse(connection, refusal);
        }
        core.wants_allocation();
        events
    });
    let events = subscribed.await?;
    let mut answer = format.stream(StreamBody::new(events).boxed(), Message::SchedulerEvent);
    let id = HeaderValue::try_from(stream.to_string()).expect("a UUID is printable");
    answer.headers_mut().insert(STREAM_ID, id);
    Ok(answer)
}

/// The events of a subscription, one record a frame, which becomes one HTTP chunk. The connection is closed when it is dropped.
pub(super) struct Events {
    pub queue: Queue,
    pub connection: Connection,
    pub core: Handle,
}

impl Stream for Events {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.queue.poll_next(context).map(|record| record.map(|record| Ok(Frame::data(record))))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let connection = self.connection;
        self.core.tell(move |core| core.closed(connection));
    }
}
