//! What fair means: how much a client has, as one number.
//!
//! A client (a role, or a framework in a role) holds amounts of several kinds, and the next offer goes to the client with the
//! smallest *score*. Every policy is a price for each kind and a way to combine what the kinds cost:
//!
//! | policy | price of a kind | combined by |
//! | --- | --- | --- |
//! | DRF | 1 / total | the largest: the dominant share |
//! | max-min on a kind | 1 / total of that kind, the others are free | either |
//! | asset fairness | 1 / total | the sum |
//! | CEEI | what clears the market: demand / total | the sum: what the client has spent |
//!
//! All are weighted: a score is divided by the client's weight, and with every weight 1, the default, it is the policy without
//! weights.
//!
//! Scores are compared exactly. All prices are put over one denominator, the product of the totals, which is the same for every
//! client and so need not be divided by; weights are multiplied crosswise. With [`Kind::cluster_limit`] the product is at most 2¹⁹⁰,
//! a score at most 2²¹⁴ ([`market::UNIT`] is 2²⁴) and a score times a weight below 2²⁴⁵.

use ethnum::U256;
use serde::{Deserialize, Serialize};

use super::market;
use crate::resources::{Kind, Quantities};

/// What fair means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Policy {
    /// Dominant Resource Fairness: a client's largest share of any kind counts.
    #[default]
    Drf,
    /// Max-min fairness on one kind; what is held of the others does not count.
    MaxMin(Kind),
    /// Asset fairness: the sum of a client's shares of all kinds counts.
    Asset,
    /// Competitive equilibrium from equal incomes: what a client's resources cost counts, at the prices at which the clients'
    /// equal incomes, spent in the proportions in which they use resources now, would buy the whole cluster.
    Ceei,
}

/// How much more than others a client is to have, in thousandths: 1 is [`Weight::ONE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Weight(u32);

impl Weight {
    /// What a client weighs if nobody says otherwise.
    pub const ONE: Weight = Weight(1000);
    /// The largest: a million.
    pub const MAX: Weight = Weight(1_000_000_000);

    /// A weight between a thousandth and [`Weight::MAX`].
    pub fn from_thousandths(thousandths: u32) -> Option<Weight> {
        (1..=Weight::MAX.0).contains(&thousandths).then_some(Weight(thousandths))
    }

    /// The weight in thousandths.
    pub fn thousandths(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Weight {
    type Error = &'static str;

    fn try_from(thousandths: u32) -> Result<Weight, &'static str> {
        Weight::from_thousandths(thousandths).ok_or("a weight is between a thousandth and a million")
    }
}

impl From<Weight> for u32 {
    fn from(weight: Weight) -> u32 {
        weight.0
    }
}

impl Default for Weight {
    fn default() -> Weight {
        Weight::ONE
    }
}

/// What everything costs in one allocation cycle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prices {
    policy: Policy,
    total: Quantities,
    each: [U256; Kind::COUNT],
    /// The score of one who has everything, under a policy that takes the largest.
    one: U256,
}

impl Prices {
    /// The prices in a cluster with this `total`. `clients` are what each client uses, with its weight.
    pub fn new(policy: Policy, total: Quantities, clients: &[(Quantities, Weight)]) -> Prices {
        let totals = total.iter().map(|(_, amount)| amount).filter(|amount| *amount > 0);
        let product = totals.fold(U256::ONE, |product, amount| product * U256::from(amount));
        let demand = match policy {
            Policy::Drf | Policy::Asset => [1; Kind::COUNT],
            Policy::MaxMin(only) => Kind::ALL.map(|kind| u64::from(kind == only)),
            Policy::Ceei => market::demand(&total, clients),
        };
        let each = Kind::ALL.map(|kind| match total[kind] {
            0 => U256::ZERO,
            amount => product / U256::from(amount) * U256::from(demand[kind as usize]),
        });
        let one = if policy == Policy::Ceei { product * U256::from(market::UNIT) } else { product };
        Prices { policy, total, each, one }
    }

    /// The score of one who holds this, before weights.
    pub(super) fn score(&self, held: &Quantities) -> U256 {
        let costs = held.iter().map(|(kind, amount)| U256::from(amount) * self.each[kind as usize]);
        match self.policy {
            Policy::Drf => costs.max().unwrap_or_default(),
            Policy::MaxMin(_) | Policy::Asset | Policy::Ceei => costs.sum(),
        }
    }

    /// What a client's part is, for people to read.
    pub fn share(&self, held: &Quantities, weight: Weight) -> Share {
        let cost = |kind: Kind| U256::from(held[kind]) * self.each[kind as usize];
        // The first of those that cost the same.
        let dominant =
            Kind::ALL.into_iter().rev().max_by_key(|kind| cost(*kind)).filter(|kind| cost(*kind) > U256::ZERO);
        let scale = U256::from(1_000_000_u32) * U256::from(Weight::ONE.0);
        let millionths = self.score(held) * scale / (self.one * U256::from(weight.0));
        Share { millionths: millionths.as_u64(), dominant, of: dominant.map(|kind| (held[kind], self.total[kind])) }
    }
}

/// A client's part of the cluster, for people to read: nothing is decided by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// The weighted score in millionths of the whole, rounded down.
    pub millionths: u64,
    /// The kind that costs the client most, if it holds anything that costs.
    pub dominant: Option<Kind>,
    /// How much it holds of that kind, and how much the cluster has.
    pub of: Option<(u64, u64)>,
}
