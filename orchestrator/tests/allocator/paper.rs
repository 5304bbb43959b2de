//! The paper's model in few words, for tests.

use berth_orchestrator::allocator::{Claim, Policy, Weight, ideal};
use berth_orchestrator::resources::Quantities;
use num_rational::BigRational;

/// Bytes.
pub const GIB: u64 = 1 << 30;

/// An exact number.
pub fn ratio(numerator: u64, denominator: u64) -> BigRational {
    BigRational::new(numerator.into(), denominator.into())
}

/// One who wants such tasks.
pub fn claim(task: Quantities, thousandths: u32) -> Claim {
    Claim { task, weight: Weight::from_thousandths(thousandths).unwrap() }
}

/// How many of its tasks each gets, by exact arithmetic.
pub fn divide(policy: Policy, total: &Quantities, tasks: &[Quantities]) -> Vec<BigRational> {
    let claims: Vec<Claim> = tasks.iter().map(|task| claim(*task, 1000)).collect();
    divide_claims(policy, total, &claims)
}

/// The same with weights.
pub fn divide_claims(policy: Policy, total: &Quantities, claims: &[Claim]) -> Vec<BigRational> {
    let ideal = ideal(policy, total, claims).unwrap();
    assert!(ideal.exact, "{policy:?}");
    ideal.tasks
}
