//! `/api/v1`

use std::convert::Infallible;

use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{HeaderMap, Response, StatusCode};
use serde_json::Value;

use super::answer::{self, Body, Problem};
use super::core::Core;
use super::format::Format;
use super::scheduler::Events;
use super::{Shared, join, limits};
use crate::api::events;
use crate::api::operator::{self, Change, Identity, Request};
use crate::api::protobuf::Message;
use crate::recordio;

/// Answers one call.
pub async fn answer(shared: &Shared, headers: &HeaderMap, body: Incoming) -> Result<Response<Body>, Problem> {
    let (call, format) = answer::read_call(headers, body, Message::MasterCall, limits::BODY).await?;
    shared.admit()?;
    match operator::read(call)? {
        Request::Look(look) => {
            let snapshot = shared.core.ask(Core::snapshot).await?;
            let identity = Identity { master_info: &shared.master_info, started: shared.started };
            let found = operator::answer(&look, &snapshot, &identity);
            let unknown = || {
                Problem::new(
                    StatusCode::NOT_FOUND,
                    "explain_task.task_id: no task has this id; those that have ended and were acknowledged are forgotten",
                )
            };
            found.map(|found| format.answer(&found, Message::MasterResponse)).ok_or_else(unknown)
        }
        Request::Subscribe => subscribe(shared, format).await,
        Request::Token(call) => match join::operate(shared, call).await? {
            Value::Null => Ok(answer::empty(StatusCode::OK)),
            found => Ok(format.answer(&found, Message::MasterResponse)),
        },
        Request::Change(change) => {
            shared.core.ask(move |core| change_core(core, change)).await??;
            Ok(answer::empty(StatusCode::OK))
        }
    }
}

/// The state there is, and then all that happens, until the client leaves or is too slow.
async fn subscribe(shared: &Shared, format: Format) -> Result<Response<Body>, Problem> {
    let handle = shared.core.clone();
    let subscribed = shared.core.ask(move |core| {
        if core.master.observers() >= limits::OBSERVERS {
            let message = format!("there are {} subscribers already, which is the most", limits::OBSERVERS);
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, message));
        }
        let now = core.now();
        if !core.subscriptions.take(now) {
            return Err(Problem::too_often());
        }
        let (connection, queue) = core.open_observer();
        core.master.observe(connection, now);
        // What is told afterwards has happened after exactly this.
        core.refresh();
        Ok((core.snapshot(), core.master.heartbeat(), Events { queue, connection, core: handle }))
    });
    let (snapshot, heartbeat, events) = subscribed.await??;
    let state = recordio::frame(events::subscribed(&snapshot, heartbeat).to_string().as_bytes());
    let state = stream::iter([Ok::<_, Infallible>(Frame::data(state))]);
    let body = BodyExt::boxed(StreamBody::new(state.chain(events)));
    Ok(format.stream(body, Message::MasterEvent))
}

fn change_core(core: &mut Core, change: Change) -> Result<(), Problem> {
    core.wants_allocation();
    core.refresh();
    match change {
        Change::Weights(weights) => {
            for (role, weight) in weights {
                core.master.set_weight(&role, weight);
            }
        }
        Change::Quota(quotas) => {
            for (role, quota) in quotas {
                core.master.set_quota(&role, quota)?;
            }
        }
        Change::Drain(agent, draining) => core.master.drain(&agent, draining)?,
        Change::Gone(agent) => core.master.mark_gone(&agent)?,
        Change::TearDown(framework) => core.master.tear_down(&framework)?,
    }
    Ok(())
}
