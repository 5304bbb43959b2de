//! What a master has to remember for its successors: which agents there are, and what people decided. Tasks and frameworks are not
//! among it; agents bring those back.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::AgentId;
use crate::allocator::{Quota, Weight};
use crate::tls::{JoinToken, TokenId};

/// All that masters remember.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    /// Agents that take part, whether or not they can be reached.
    pub agents: BTreeMap<AgentId, Admission>,
    /// Agents that are never to come back.
    pub gone: BTreeSet<AgentId>,
    /// The weights of roles, where they are not 1.
    pub weights: BTreeMap<String, Weight>,
    /// The quotas of roles that have one.
    pub quotas: BTreeMap<String, Quota>,
    /// What lets agents in.
    pub tokens: BTreeMap<TokenId, JoinToken>,
}

/// An agent that takes part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// It was not heard of for too long, and frameworks were told. It stays so after its return until the tasks that are lost to
    /// frameworks that are not partition-aware have ended: a master that takes over meanwhile has to know which agents have such.
    pub unreachable: bool,
    /// It gets no new tasks.
    pub draining: bool,
}

impl Admission {
    /// Whether tasks may be launched on it.
    pub(super) fn is_open(self) -> bool {
        !self.unreachable && !self.draining
    }
}

/// What to remember from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An agent, new or changed.
    Agent(AgentId, Admission),
    /// An agent that is gone.
    Gone(AgentId),
    /// A role's weight.
    Weight(String, Weight),
    /// A role's quota.
    Quota(String, Quota),
    /// A join token, new or used.
    Token(TokenId, JoinToken),
    /// A join token that is good no more.
    TokenGone(TokenId),
}

impl Registry {
    /// Remembers a change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Agent(agent, admission) => {
                self.agents.insert(agent, admission);
            }
            Change::Gone(agent) => {
                self.agents.remove(&agent);
                self.gone.insert(agent);
            }
            Change::Weight(role, Weight::ONE) => {
                self.weights.remove(&role);
            }
            Change::Weight(role, weight) => {
                self.weights.insert(role, weight);
            }
            Change::Quota(role, quota) if quota == Quota::default() => {
                self.quotas.remove(&role);
            }
            Change::Quota(role, quota) => {
                self.quotas.insert(role, quota);
            }
            Change::Token(id, token) => {
                self.tokens.insert(id, token);
            }
            Change::TokenGone(id) => {
                self.tokens.remove(&id);
            }
        }
    }
}
