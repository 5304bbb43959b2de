//! Why everybody got what they got.
//!
//! Every offer carries the [`Decision`] that made it; a member's [`Tally`] counts what happened to it in the last cycle; and
//! [`Allocator::fairness`] is what all hold, with their shares. Nothing is decided by any of it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Allocator, FrameworkKey, OfferKey, Policy, Prices, Quota, Share, Weight};
use crate::resources::Quantities;

/// One allocation cycle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// Its number, from 1.
    pub number: u64,
    /// When it was.
    pub time: Duration,
    /// What everything cost in it.
    pub prices: Prices,
    /// How many agents had something to offer.
    pub agents: u64,
}

impl Round {
    pub(super) fn first(policy: Policy) -> Round {
        Round { number: 0, time: Duration::ZERO, prices: Prices::new(policy, Quantities::ZERO, &[]), agents: 0 }
    }
}

/// In which stage of a cycle an offer was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The role had less than it is guaranteed.
    Guarantee,
    /// It was the role's turn by fairness.
    FairShare,
}

/// Why somebody whose turn it was did not get an offer of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// The agent does not satisfy the framework's constraints.
    Constraints,
    /// The framework refused the same before, and the time for that is not over.
    Refused,
    /// Beyond the role's limit, or beyond its guarantee in that stage, too little is left for an offer.
    Quota,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Skip::Constraints => "the agent does not satisfy the framework's constraints",
            Skip::Refused => "the framework refused the agent a short while ago",
            Skip::Quota => "the role's quota leaves too little for an offer",
        })
    }
}

/// One who would have come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassedOver {
    /// The framework.
    pub framework: FrameworkKey,
    /// Why it was not offered the agent.
    pub reason: Skip,
}

/// Why an offer was made to whom it was made.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The cycle.
    pub round: Arc<Round>,
    /// The stage of it.
    pub stage: Stage,
    /// What the role held before.
    pub role_held: Quantities,
    /// What the role weighed.
    pub role_weight: Weight,
    /// What the framework held before, in this role.
    pub framework_held: Quantities,
    /// Some of those who came before, and why they were passed over.
    pub passed_over: Vec<PassedOver>,
    /// How many more there were.
    pub passed_over_more: u64,
}

impl Decision {
    /// How many of those passed over are named.
    pub(super) const NAMED: usize = 8;

    /// The share the role had: nobody else who wanted and could have the agent had a smaller one.
    pub fn role_share(&self) -> Share {
        self.round.prices.share(&self.role_held, self.role_weight)
    }

    /// The share the framework had, in its role.
    pub fn framework_share(&self) -> Share {
        self.round.prices.share(&self.framework_held, Weight::ONE)
    }
}

/// What happened to a framework in one role in the last cycle. An agent that somebody before it took was no turn of its own; one
/// whose role is at its limit has no turns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Which cycle this is about; an earlier one than the last if it did not take part in that.
    pub round: u64,
    /// Offers made to it.
    pub offers: u64,
    /// Turns it lost because of its constraints.
    pub constraints: u64,
    /// Turns it lost because it had refused the agent.
    pub refused: u64,
    /// Turns it lost because of its role's quota.
    pub quota: u64,
}

impl Tally {
    pub(super) fn count(&mut self, skip: Skip) {
        *match skip {
            Skip::Constraints => &mut self.constraints,
            Skip::Refused => &mut self.refused,
            Skip::Quota => &mut self.quota,
        } += 1;
    }
}

/// What a framework holds in one role, and what it waits for.
#[derive(Debug, Clone)]
pub struct FrameworkFairness {
    /// The framework.
    pub framework: FrameworkKey,
    /// What it was offered.
    pub offered: Quantities,
    /// What it uses.
    pub used: Quantities,
    /// Its share, of both.
    pub share: Share,
    /// Whether it takes offers now: it is connected, in the role, and not suppressed.
    pub wants_offers: bool,
    /// What happened to it in the last cycle.
    pub tally: Tally,
}

/// What a role holds.
#[derive(Debug, Clone)]
pub struct RoleFairness {
    /// Its name.
    pub role: Arc<str>,
    /// Its weight.
    pub weight: Weight,
    /// Its guarantee and limit.
    pub quota: Quota,
    /// What it was offered.
    pub offered: Quantities,
    /// What it uses.
    pub used: Quantities,
    /// Its weighted share, of both.
    pub share: Share,
    /// Its frameworks.
    pub frameworks: Vec<FrameworkFairness>,
}

/// What everybody has.
#[derive(Debug, Clone)]
pub struct Fairness {
    /// The last cycle; shares are by its prices.
    pub round: Arc<Round>,
    /// The roles, by name.
    pub roles: Vec<RoleFairness>,
}

impl Allocator {
    /// What everybody has, and waits for.
    pub fn fairness(&self) -> Fairness {
        let roles = self.role_names.values().map(|key| {
            let role = &self.roles[*key];
            let frameworks = role.members.iter().map(|key| {
                let member = &self.members[*key];
                FrameworkFairness {
                    framework: member.framework,
                    offered: member.offered,
                    used: member.used,
                    share: self.round.prices.share(&member.held(), Weight::ONE),
                    wants_offers: self.wants_offers(*key),
                    tally: member.tally,
                }
            });
            RoleFairness {
                role: Arc::clone(&role.name),
                weight: role.weight,
                quota: role.quota,
                offered: role.offered,
                used: role.used,
                share: self.round.prices.share(&role.held(), role.weight),
                frameworks: frameworks.collect(),
            }
        });
        Fairness { round: Arc::clone(&self.round), roles: roles.collect() }
    }

    /// Why an open offer was made.
    pub fn explain(&self, key: OfferKey) -> Option<&Decision> {
        self.offers.get(key).map(|offer| &offer.decision)
    }
}
