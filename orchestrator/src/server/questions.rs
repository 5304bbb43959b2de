//! `/agent/ID/api/v1`: the operator API of an agent, which the master passes on. Agents need not be reachable from outside
//! for that, nor listen at all.

use hyper::body::Incoming;
use hyper::{HeaderMap, Response, StatusCode};
use tokio::time::timeout;

use super::Shared;
use super::answer::{self, Body, Problem};
use super::limits::PATIENCE;
use crate::api::agent::{self as api, Answer};
use crate::master::AgentId;

/// The agent that a path is about, if it is about one.
pub fn agent(path: &str) -> Option<AgentId> {
    let id = path.strip_prefix("/agent/")?.strip_suffix("/api/v1")?;
    (!id.is_empty() && !id.contains('/')).then(|| AgentId::from(id))
}

/// Answers one call.
pub async fn answer(
    shared: &Shared,
    agent: AgentId,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Response<Body>, Problem> {
    let call = answer::read_call(headers, body).await?;
    shared.admit()?;
    let question = api::read(call)?;
    let asked = shared.core.ask(move |core| core.ask_agent(&agent, question)).await??;
    let answer = timeout(PATIENCE, asked).await;
    let late = || Problem::new(StatusCode::GATEWAY_TIMEOUT, "the agent does not answer; try again");
    let left = || Problem::new(StatusCode::BAD_GATEWAY, "the agent left before it answered; try again");
    match answer.map_err(|_| late())?.map_err(|_| left())? {
        Answer::Listed(infos) => Ok(answer::json(&api::listed(&infos))),
        Answer::Read(size, data) => Ok(answer::json(&api::file(size, &data))),
        Answer::Present => Ok(answer::json(&api::prefetched(true))),
        Answer::Pulling => Ok(answer::json(&api::prefetched(false))),
        Answer::NotFound(message) => Err(Problem::new(StatusCode::NOT_FOUND, message)),
        Answer::Refused(message) => Err(Problem::bad(message)),
        Answer::Busy => Err(Problem::too_often()),
        Answer::Failed(message) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, message)),
    }
}
