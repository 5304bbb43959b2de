//! `/agent/ID/api/v1`: the operator API of an agent, which the master passes on. Agents need not be reachable from outside
//! for that, nor listen at all.

use hyper::body::Incoming;
use hyper::{HeaderMap, Response, StatusCode};
use tokio::time::timeout;

use super::answer::{self, Body, Problem};
use super::core::Handle;
use super::format::{Format, RECORDS};
use super::limits::{self, PATIENCE};
use super::{Shared, sessions};
use crate::api::agent::{self as api, Answer, Question};
use crate::api::protobuf::Message;
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
    if answer::sent_type(headers)? == RECORDS {
        shared.admit()?;
        return sessions::attach(&shared.core, &agent, Format::of_sent_records(headers)?, body).await;
    }
    let call = answer::read_sent(headers, body, Message::AgentCall, limits::BODY).await?;
    shared.admit()?;
    let format = Format::of_answer(headers, &call, Message::AgentCall);
    let question = api::read(call)?;
    if let Question::Launch(launch) = question {
        return sessions::launch(&shared.core, agent, Format::of_records(headers)?, launch).await;
    }
    let format = format?;
    let found = match question {
        Question::Wait { session } => sessions::wait(&shared.core, &agent, session).await?,
        question => match ask(&shared.core, &agent, question).await? {
            Answer::Listed(infos) => api::listed(&infos),
            Answer::Read(size, data) => api::file(size, &data),
            Answer::Present => api::prefetched(true),
            Answer::Pulling => api::prefetched(false),
            other => return Err(refusal(other)),
        },
    };
    Ok(format.answer(&found, Message::AgentResponse))
}

/// Asks an agent something.
pub async fn ask(core: &Handle, agent: &AgentId, question: Question) -> Result<Answer, Problem> {
    let agent = agent.clone();
    let asked = core.ask(move |core| core.ask_agent(&agent, question)).await??;
    let late = || Problem::new(StatusCode::GATEWAY_TIMEOUT, "the agent does not answer; try again");
    let left = || Problem::new(StatusCode::BAD_GATEWAY, "the agent left before it answered; try again");
    timeout(PATIENCE, asked).await.map_err(|_| late())?.map_err(|_| left())
}

/// What it means that an agent does not answer what was asked.
pub fn refusal(answer: Answer) -> Problem {
    match answer {
        Answer::NotFound(message) => Problem::new(StatusCode::NOT_FOUND, message),
        Answer::Refused(message) => Problem::bad(message),
        Answer::Busy => Problem::too_often(),
        Answer::Failed(message) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        _ => Problem::new(StatusCode::BAD_GATEWAY, "the agent answers something else than it was asked"),
    }
}
