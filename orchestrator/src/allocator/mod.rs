//! The allocator: which framework is offered what.
//!
//! A state machine without clock or input and output. Its methods are the events (an agent appeared, an offer was declined, a task
//! ended), [`Allocator::allocate`] is one cycle of decisions; time is an argument, chance a seed. The master, the simulator,
//! tests and benchmarks run this same code.
//!
//! ```text
//!                  allocate              accept
//!       ┌─ free ─────────────▶ offered ─────────▶ used ─┐
//!       │    ▲   decline, rescind, │                    │
//!       │    └────────expire───────┘      release       │
//!       └───────────────────────────────────────────────┘
//! ```
//!
//! Everything an agent has is in exactly one of these states. Frameworks are clients of *roles*; a framework in one of its roles is
//! a *member*, and what is offered or used is always a member's. A cycle is described in [`cycle`], what counts as fair in
//! [`policy`], guarantees and limits in [`quota`], why somebody got something in [`explain`].
//!
//! # Where the paper and Mesos differ
//!
//! - The paper's algorithm *stops* at the first task that does not fit, Mesos *skips* the client and goes on. berth skips: a role
//!   that waits for a large machine keeps nobody from using small ones, and nothing stays free that somebody could use, which is
//!   what Pareto efficiency means with whole tasks. The price is that large tasks may starve on a full cluster; a guarantee is
//!   the remedy, for what is missing to it is kept free.
//! - In the paper a client is given one task at a time. Here, as in Mesos, it is offered all that is free on one agent and takes
//!   as many tasks as it likes, so fairness is reached in steps of an agent. What is offered counts as held.
//! - Roles have no hierarchy, resources no reservations.

mod agents;
mod cycle;
mod explain;
mod filters;
mod frameworks;
mod ideal;
mod market;
mod offers;
mod policy;
mod quota;
mod roles;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use slotmap::{SlotMap, new_key_type};

use agents::Agent;
use frameworks::{Framework, Member};
use roles::Role;

pub use explain::{Decision, Fairness, FrameworkFairness, PassedOver, RoleFairness, Round, Skip, Stage, Tally};
pub use frameworks::Subscription;
pub use ideal::{Claim, Ideal, ideal};
pub use offers::Offer;
pub use policy::{Policy, Prices, Share, Weight};
pub use quota::Quota;

use crate::resources::{Kind, Quantities};

new_key_type! {
    /// An agent.
    pub struct AgentKey;
    /// A framework.
    pub struct FrameworkKey;
    /// An offer.
    pub struct OfferKey;
    /// A framework in one of its roles.
    struct MemberKey;
    /// A role.
    struct RoleKey;
}

/// How an allocator decides.
#[derive(Debug, Clone)]
pub struct Config {
    /// What fair means.
    pub policy: Policy,
    /// How long a framework may keep an offer; forever if none.
    pub offer_timeout: Option<Duration>,
    /// An offer has at least one of these; everything is offered if there is none.
    pub minimum: Vec<Quantities>,
    /// Where the order of agents comes from.
    pub seed: u64,
}

/// Unlike Mesos, which offers what has a hundredth of a CPU *or* 32 MiB: no task can run on one of them alone.
impl Default for Config {
    fn default() -> Config {
        Config { policy: Policy::default(), offer_timeout: None, minimum: vec![Quantities::new(10, 32 << 20)], seed: 0 }
    }
}

/// Why an event was refused. Nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No agent has this key.
    #[error("no such agent")]
    UnknownAgent,
    /// No framework has this key.
    #[error("no such framework")]
    UnknownFramework,
    /// The framework is not a member of the role.
    #[error("the framework has no role {0:?}")]
    UnknownRole(String),
    /// An offer is no longer, or never was, valid.
    #[error("the offer is no longer valid")]
    UnknownOffer,
    /// Offers to be accepted together are of different agents, frameworks or roles.
    #[error("offers accepted together are of one agent, to one framework in one role")]
    MixedOffers,
    /// No offers at all.
    #[error("no offers are named")]
    NoOffers,
    /// More is taken than is there.
    #[error("{wanted} is more than there is: {available}")]
    TooMuch {
        /// What is wanted.
        wanted: Quantities,
        /// What could be had.
        available: Quantities,
    },
    /// Ports are taken that are not there.
    #[error("ports are wanted that are not there")]
    NoSuchPorts,
    /// Together with this agent the cluster is larger than can be counted.
    #[error("the cluster would have more than {limit} of {kind}", limit = kind.cluster_limit())]
    ClusterTooLarge {
        /// Of what it would have too much.
        kind: Kind,
    },
    /// All guarantees together are more than any cluster may have.
    #[error("more than {limit} of {kind} would be guaranteed, which is more than any cluster has", limit = kind.cluster_limit())]
    GuaranteesTooLarge {
        /// Of what too much would be guaranteed.
        kind: Kind,
    },
    /// A quota whose limit is below its guarantee.
    #[error("the limit on {0} is below its guarantee")]
    LimitBelowGuarantee(Kind),
}

/// The allocator.
#[derive(Debug)]
pub struct Allocator {
    config: Config,
    chance: fastrand::Rng,
    agents: SlotMap<AgentKey, Agent>,
    frameworks: SlotMap<FrameworkKey, Framework>,
    members: SlotMap<MemberKey, Member>,
    roles: SlotMap<RoleKey, Role>,
    role_names: BTreeMap<Arc<str>, RoleKey>,
    offers: SlotMap<OfferKey, Offer>,
    /// What all agents have together.
    total: Quantities,
    /// The last cycle.
    round: Arc<Round>,
}

impl Allocator {
    /// An allocator of an empty cluster.
    pub fn new(config: Config) -> Allocator {
        let round = Round::first(config.policy);
        Allocator {
            chance: fastrand::Rng::with_seed(config.seed),
            config,
            agents: SlotMap::with_key(),
            frameworks: SlotMap::with_key(),
            members: SlotMap::with_key(),
            roles: SlotMap::with_key(),
            role_names: BTreeMap::new(),
            offers: SlotMap::with_key(),
            total: Quantities::ZERO,
            round: Arc::new(round),
        }
    }

    /// What all agents have together.
    pub fn total(&self) -> Quantities {
        self.total
    }

    /// Whether so much is worth an offer.
    fn is_allocatable(&self, free: &Quantities) -> bool {
        let minimum = &self.config.minimum;
        !free.is_zero() && (minimum.is_empty() || minimum.iter().any(|minimum| free.contains(minimum)))
    }
}
