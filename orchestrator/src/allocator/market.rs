//! The prices that clear a market (CEEI).
//!
//! Every client has an income in proportion to its weight and spends all of it on resources in its own fixed proportions. There
//! are prices at which exactly the whole cluster is bought; what is bought then maximizes the weighted product of the clients'
//! tasks. Written as the part of all income that is spent on each kind, the prices are found by a fixed-point iteration: each
//! kind's next part is the part of the incomes that is spent on it at the present prices. That this converges is the convergence
//! of expectation maximization for the weights of a mixture, which is the same problem.

use super::Weight;
use crate::resources::{Kind, Quantities};

/// The sum of what [`demand`] says of all kinds, but for rounding.
pub(super) const UNIT: u64 = 1 << 24;
/// What the parts are counted in during the iteration.
pub(super) const FINE: u64 = 1 << 40;
/// How many steps an allocation cycle can afford; the prices of the next cycle start anew.
const STEPS: u32 = 64;

/// A client in the market.
pub(super) struct Buyer {
    weight: Weight,
    /// In which proportions it buys shares of the kinds, the largest [`Buyer::LARGEST`].
    proportions: [u64; Kind::COUNT],
}

impl Buyer {
    const LARGEST: u64 = 1 << 32;

    /// A client that buys in the proportions of `amounts`, or the same share of everything if it has shown none.
    pub(super) fn new(amounts: &Quantities, weight: Weight, total: &Quantities) -> Buyer {
        let share = |kind: Kind| match total[kind] {
            0 => 0,
            // Amounts are at most 2⁶⁰.
            all => (u128::from(amounts[kind]) << 64) / u128::from(all),
        };
        let largest = Kind::ALL.into_iter().map(share).max().unwrap_or(0);
        // Keeps the products below 2¹²⁸.
        let excess = (u128::BITS - largest.leading_zeros()).saturating_sub(64);
        let proportions = Kind::ALL.map(|kind| match largest {
            0 => u64::from(total[kind] > 0) * Buyer::LARGEST,
            _ => ((share(kind) >> excess) * u128::from(Buyer::LARGEST) / (largest >> excess)) as u64,
        });
        Buyer { weight, proportions }
    }
}

/// The part of all incomes that is spent on each kind, in units of [`UNIT`].
pub(super) fn demand(total: &Quantities, clients: &[(Quantities, Weight)]) -> [u64; Kind::COUNT] {
    let buyers: Vec<Buyer> = clients.iter().map(|(amounts, weight)| Buyer::new(amounts, *weight, total)).collect();
    settle(&buyers, STEPS).map(|part| part / (FINE / UNIT))
}

/// The part of all incomes that is spent on each kind when the market is cleared, in units of [`FINE`], after at most so many
/// steps.
pub(super) fn settle(buyers: &[Buyer], steps: u32) -> [u64; Kind::COUNT] {
    let mut parts = [FINE / Kind::COUNT as u64; Kind::COUNT];
    let income: u128 = buyers.iter().map(|buyer| u128::from(buyer.weight.thousandths())).sum();
    if income == 0 {
        return parts;
    }
    for _ in 0..steps {
        let mut spent = [0_u128; Kind::COUNT];
        for buyer in buyers {
            let costs = |kind: usize| u128::from(parts[kind]) * u128::from(buyer.proportions[kind]);
            let all: u128 = (0..Kind::COUNT).map(costs).sum::<u128>().max(1);
            for (kind, spent) in spent.iter_mut().enumerate() {
                // Costs are at most 2⁷², times 2⁴⁰.
                *spent += costs(kind) * u128::from(FINE) / all * u128::from(buyer.weight.thousandths());
            }
        }
        let next = spent.map(|spent| (spent / income) as u64);
        if next == parts {
            break;
        }
        parts = next;
    }
    parts
}
