//! `/api/v1`

use hyper::body::Incoming;
use hyper::{HeaderMap, Response, StatusCode};
use serde_json::Value;

use super::Shared;
use super::answer::{self, Body, Problem};
use super::core::Core;
use super::join;
use crate::api::operator::{self, Change, Identity, Request};

/// Answers one call.
pub async fn answer(shared: &Shared, headers: &HeaderMap, body: Incoming) -> Result<Response<Body>, Problem> {
    let call = answer::read_call(headers, body).await?;
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
            found.map(|found| answer::json(&found)).ok_or_else(unknown)
        }
        Request::Token(call) => match join::operate(shared, call).await? {
            Value::Null => Ok(answer::empty(StatusCode::OK)),
            found => Ok(answer::json(&found)),
        },
        Request::Change(change) => {
            shared.core.ask(move |core| change_core(core, change)).await??;
            Ok(answer::empty(StatusCode::OK))
        }
    }
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
