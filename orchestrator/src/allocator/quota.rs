//! Guarantees and limits of roles.
//!
//! A *guarantee* is served before fairness: while a role holds less of a kind than guaranteed, and has a framework that takes offers,
//! agents are cut up for it in the first stage of a cycle. What is missing to guarantees is kept free in the second stage, whether
//! or not anybody can take it now, so a guarantee can be called in at any time. A *limit* is what a role never holds more of;
//! what is offered counts. Guarantees together may be larger than the cluster: then they are served in order of fairness.

use serde::{Deserialize, Serialize};

use super::Error;
use crate::resources::{Kind, Quantities};

/// What a role is guaranteed and limited to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// What it is to have at least; zero of a kind is no guarantee.
    pub guarantee: Quantities,
    /// What it is to have at most.
    pub limit: Quantities,
}

impl Default for Quota {
    fn default() -> Quota {
        Quota { guarantee: Quantities::ZERO, limit: Quantities::UNLIMITED }
    }
}

impl Quota {
    pub(super) fn check(&self) -> Result<(), Error> {
        match Kind::ALL.into_iter().find(|kind| self.limit[*kind] < self.guarantee[*kind]) {
            Some(kind) => Err(Error::LimitBelowGuarantee(kind)),
            None => Ok(()),
        }
    }
}
