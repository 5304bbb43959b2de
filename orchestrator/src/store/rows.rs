//! The registry as rows of text, for stores of keys and values: keys are `agent/ID`, `gone/ID`, `weight/ROLE`,
//! `quota/ROLE` and `token/ID`, values JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::allocator::{Quota, Weight};
use crate::master::{AgentId, Change};
use crate::tls::JoinToken;

/// The rows to write for a change; to remove, where there is no value.
pub(super) fn write(change: &Change) -> Vec<(String, Option<String>)> {
    match change {
        Change::Agent(id, admission) => vec![(format!("agent/{id}"), Some(text(admission)))],
        Change::Gone(id) => vec![(format!("agent/{id}"), None), (format!("gone/{id}"), Some("{}".to_owned()))],
        Change::Weight(role, weight) => vec![(format!("weight/{role}"), Some(text(weight)))],
        Change::Quota(role, quota) => vec![(format!("quota/{role}"), Some(text(quota)))],
        Change::Token(id, token) => vec![(format!("token/{id}"), Some(text(token)))],
        Change::TokenGone(id) => vec![(format!("token/{id}"), None)],
    }
}

/// What a row says; none if it is damaged.
pub(super) fn read(key: &str, value: &str) -> Option<Change> {
    fn json<T: DeserializeOwned>(value: &str) -> Option<T> {
        serde_json::from_str(value).ok()
    }
    let (kind, name) = key.split_once('/')?;
    Some(match kind {
        "agent" => Change::Agent(AgentId::from(name), json(value)?),
        "gone" => Change::Gone(AgentId::from(name)),
        "weight" => Change::Weight(name.to_owned(), json::<Weight>(value)?),
        "quota" => Change::Quota(name.to_owned(), json::<Quota>(value)?),
        "token" => Change::Token(name.parse().ok()?, json::<JoinToken>(value)?),
        _ => return None,
    })
}

fn text<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("what is kept has texts for keys")
}
