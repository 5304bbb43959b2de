//! What a policy would give if tasks could be cut at will and the cluster were one machine.
//!
//! This is the model of the paper (Ghodsi et al., "Dominant Resource Fairness", NSDI 2011) and what the properties proved there
//! are about. Offers approach it: they come in agents and are used up in whole tasks.

use num_rational::BigRational;
use num_traits::{One as _, Signed as _, Zero as _};

use super::market::{self, Buyer};
use super::{Policy, Weight};
use crate::resources::{Kind, Quantities};

/// How many steps towards prices that clear the market.
const MARKET_STEPS: u32 = 200_000;
/// How far a price may be from the simple fraction it is taken for, one part of this many.
const MARKET_PRECISION: u64 = 1 << 26;

/// One who wants as many tasks as possible.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// What one task needs.
    pub task: Quantities,
    /// How much the claim counts.
    pub weight: Weight,
}

/// How many tasks each claim gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ideal {
    /// In the order of the claims.
    pub tasks: Vec<BigRational>,
    /// Whether the numbers are exact. They always are, but for [`Policy::Ceei`] where the prices are no simple fractions: then
    /// they are right to about one part in ten million.
    pub exact: bool,
}

/// Divides a cluster with this `total` among `claims`; none if a claim's tasks cost nothing under the policy, so that there is no
/// end to how many it may have.
pub fn ideal(policy: Policy, total: &Quantities, claims: &[Claim]) -> Option<Ideal> {
    match policy {
        Policy::Ceei => clear_market(total, claims),
        Policy::Drf | Policy::MaxMin(_) | Policy::Asset => {
            fill(policy, total, claims).map(|tasks| Ideal { tasks, exact: true })
        }
    }
}

fn ratio(numerator: u64, denominator: u64) -> BigRational {
    BigRational::new(numerator.into(), denominator.into())
}

fn integer(number: u64) -> BigRational {
    ratio(number, 1)
}

/// Which part of the cluster one task takes, in the measure of the policy.
fn cost(policy: Policy, total: &Quantities, task: &Quantities) -> BigRational {
    let shares = task.iter().filter(|(kind, amount)| *amount > 0 && total[*kind] > 0);
    let shares = shares.map(|(kind, amount)| (kind, ratio(amount, total[kind])));
    match policy {
        Policy::Drf => shares.map(|(_, share)| share).max().unwrap_or_else(BigRational::zero),
        Policy::MaxMin(only) => shares.filter(|(kind, _)| *kind == only).map(|(_, share)| share).sum(),
        Policy::Asset | Policy::Ceei => shares.map(|(_, share)| share).sum(),
    }
}

/// Progressive filling: the scores of all claims rise together; when a kind is used up, the claims that need it stay as they are.
fn fill(policy: Policy, total: &Quantities, claims: &[Claim]) -> Option<Vec<BigRational>> {
    // Tasks for each unit of score.
    let mut rates = Vec::with_capacity(claims.len());
    for claim in claims {
        let cost = cost(policy, total, &claim.task);
        if cost.is_zero() {
            return None;
        }
        rates.push(integer(claim.weight.thousandths().into()) / cost);
    }
    let needs = |index: usize, kind: Kind| claims[index].task[kind] > 0;
    let mut free = Kind::ALL.map(|kind| integer(total[kind]));
    let mut tasks = vec![BigRational::zero(); claims.len()];
    let mut rising: Vec<usize> = (0..claims.len()).collect();
    loop {
        rising.retain(|index| Kind::ALL.iter().all(|kind| !needs(*index, *kind) || !free[*kind as usize].is_zero()));
        let speeds =
            Kind::ALL.map(|kind| rising.iter().map(|index| &rates[*index] * integer(claims[*index].task[kind])).sum());
        let steps = free.iter().zip(&speeds).filter(|(_, speed): &(_, &BigRational)| !speed.is_zero());
        let Some(step) = steps.map(|(free, speed)| free / speed).min() else { return Some(tasks) };
        for (free, speed) in free.iter_mut().zip(&speeds) {
            *free -= &step * speed;
        }
        for index in &rising {
            tasks[*index] += &step * &rates[*index];
        }
    }
}

/// Finds the prices numerically, takes them for the simplest fractions nearby, and checks exactly whether those clear the market.
fn clear_market(total: &Quantities, claims: &[Claim]) -> Option<Ideal> {
    if claims.iter().any(|claim| claim.task.is_zero()) {
        return None;
    }
    let impossible = |claim: &Claim| claim.task.iter().any(|(kind, amount)| amount > 0 && total[kind] == 0);
    let buyers = claims.iter().filter(|claim| !impossible(claim));
    let buyers: Vec<Buyer> = buyers.map(|claim| Buyer::new(&claim.task, claim.weight, total)).collect();
    let parts = market::settle(&buyers, MARKET_STEPS);
    let income: u64 =
        claims.iter().filter(|claim| !impossible(claim)).map(|claim| u64::from(claim.weight.thousandths())).sum();
    // What each claim can pay for if so much of all income is spent on each kind.
    let bought = |parts: &[BigRational; Kind::COUNT]| -> Vec<BigRational> {
        let tasks = claims.iter().map(|claim| {
            let costs = claim.task.iter().filter(|(kind, amount)| *amount > 0 && total[*kind] > 0);
            let price: BigRational =
                costs.map(|(kind, amount)| &parts[kind as usize] * ratio(amount, total[kind])).sum();
            if impossible(claim) || price.is_zero() {
                BigRational::zero()
            } else {
                ratio(claim.weight.thousandths().into(), income) / price
            }
        });
        tasks.collect()
    };
    let used = |tasks: &[BigRational], kind: Kind| -> BigRational {
        tasks.iter().zip(claims).map(|(tasks, claim)| tasks * integer(claim.task[kind])).sum()
    };

    let simple = parts.map(|part| simplest_near(&ratio(part, market::FINE), &ratio(1, MARKET_PRECISION)));
    let tasks = bought(&simple);
    let clears = |kind: Kind| {
        let (used, all) = (used(&tasks, kind), integer(total[kind]));
        used == all || used < all && simple[kind as usize].is_zero()
    };
    if simple.iter().sum::<BigRational>().is_one() && Kind::ALL.into_iter().all(clears) {
        return Some(Ideal { tasks, exact: true });
    }
    let tasks = bought(&parts.map(|part| ratio(part, market::FINE)));
    // What is too much by rounding is taken from all alike.
    let existing = Kind::ALL.into_iter().filter(|kind| total[*kind] > 0);
    let most = existing.map(|kind| used(&tasks, kind) / integer(total[kind])).max().unwrap_or_else(BigRational::one);
    let scale = most.max(BigRational::one());
    Some(Ideal { tasks: tasks.into_iter().map(|tasks| tasks / &scale).collect(), exact: false })
}

/// The fraction with the smallest denominator that is no further than `distance` from a `value` that is not negative.
fn simplest_near(value: &BigRational, distance: &BigRational) -> BigRational {
    let low = value - distance;
    if low.is_negative() { BigRational::zero() } else { simplest_between(&low, &(value + distance)) }
}

fn simplest_between(low: &BigRational, high: &BigRational) -> BigRational {
    let floor = low.floor();
    if floor == *low {
        floor
    } else if floor < high.floor() {
        floor + BigRational::one()
    } else {
        &floor + simplest_between(&(high - &floor).recip(), &(low - &floor).recip()).recip()
    }
}
