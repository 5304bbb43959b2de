//! The properties of the paper's table 2, over random clusters and tasks: those that hold, and where those that do not fail.

use crate::paper::{claim, divide, divide_claims, ratio};
use berth_orchestrator::allocator::{Claim, Policy, ideal};
use berth_orchestrator::resources::{Kind, Quantities};
use num_rational::BigRational;
use num_traits::{One as _, Zero as _};
use proptest::prelude::*;

/// Two kinds suffice for every property; three find more ways to fail.
fn quantities(amounts: std::ops::RangeInclusive<u64>) -> impl Strategy<Value = Quantities> {
    [amounts.clone(), amounts.clone(), amounts]
        .prop_map(|[cpus, memory, disk]| Quantities::new(cpus, memory).with(Kind::Disk, disk))
}

fn cluster() -> impl Strategy<Value = (Quantities, Vec<Quantities>)> {
    (quantities(20..=200), prop::collection::vec(quantities(1..=20), 2..6))
}

/// How many tasks fit into amounts.
fn tasks_in(amounts: &[BigRational; Kind::COUNT], task: &Quantities) -> BigRational {
    let needed = task.iter().filter(|(_, amount)| *amount > 0);
    needed.map(|(kind, amount)| &amounts[kind as usize] / ratio(amount, 1)).min().unwrap()
}

/// What so many tasks hold.
fn held(tasks: &BigRational, task: &Quantities) -> [BigRational; Kind::COUNT] {
    Kind::ALL.map(|kind| tasks * ratio(task[kind], 1))
}

/// Nobody has fewer tasks than with an equal part of the cluster for itself.
fn sharing_incentive(total: &Quantities, tasks: &[Quantities], got: &[BigRational], slack: &BigRational) -> bool {
    let parts = tasks.len() as u64;
    tasks.iter().zip(got).all(|(task, got)| {
        let alone = tasks_in(&Kind::ALL.map(|kind| ratio(total[kind], parts)), task);
        got * slack >= alone
    })
}

/// Nobody would have more tasks with what another has.
fn envy_freeness(tasks: &[Quantities], got: &[BigRational], slack: &BigRational) -> bool {
    let others = || tasks.iter().zip(got);
    others().all(|(task, own)| others().all(|(other, theirs)| own * slack >= tasks_in(&held(theirs, other), task)))
}

/// Nobody can have more unless another has less: everybody needs something of which nothing is left. And nothing is given out that
/// is not there.
fn pareto_efficiency(total: &Quantities, tasks: &[Quantities], got: &[BigRational], slack: &BigRational) -> bool {
    let used =
        Kind::ALL.map(|kind| tasks.iter().zip(got).map(|(task, got)| got * ratio(task[kind], 1)).sum::<BigRational>());
    let there = |kind: Kind| ratio(total[kind], 1);
    let full = |kind: Kind| &used[kind as usize] * slack >= there(kind);
    Kind::ALL.into_iter().all(|kind| used[kind as usize] <= there(kind))
        && tasks.iter().all(|task| Kind::ALL.into_iter().any(|kind| task[kind] > 0 && full(kind)))
}

/// How many real tasks somebody gets who asks for others.
fn after_lying(policy: Policy, total: &Quantities, tasks: &[Quantities], liar: usize, lie: Quantities) -> BigRational {
    let mut told = tasks.to_vec();
    told[liar] = lie;
    let got = divide(policy, total, &told);
    tasks_in(&held(&got[liar], &lie), &tasks[liar])
}

proptest! {
    #[test]
    fn drf_gives_an_incentive_to_share_is_free_of_envy_and_efficient((total, tasks) in cluster()) {
        let got = divide(Policy::Drf, &total, &tasks);
        let exactly = BigRational::one();
        prop_assert!(sharing_incentive(&total, &tasks, &got, &exactly));
        prop_assert!(envy_freeness(&tasks, &got, &exactly));
        prop_assert!(pareto_efficiency(&total, &tasks, &got, &exactly));
    }

    #[test]
    fn under_drf_nobody_gains_by_lying((total, tasks) in cluster(), liar: prop::sample::Index, lie in quantities(1..=20)) {
        let liar = liar.index(tasks.len());
        let honest = &divide(Policy::Drf, &total, &tasks)[liar];
        prop_assert!(after_lying(Policy::Drf, &total, &tasks, liar, lie) <= *honest);
    }

    #[test]
    fn asset_fairness_is_strategy_proof_free_of_envy_and_efficient(
        (total, tasks) in cluster(), liar: prop::sample::Index, lie in quantities(1..=20),
    ) {
        let got = divide(Policy::Asset, &total, &tasks);
        let exactly = BigRational::one();
        prop_assert!(envy_freeness(&tasks, &got, &exactly));
        prop_assert!(pareto_efficiency(&total, &tasks, &got, &exactly));
        let liar = liar.index(tasks.len());
        prop_assert!(after_lying(Policy::Asset, &total, &tasks, liar, lie) <= got[liar]);
    }

    #[test]
    fn weights_entitle_to_as_much_as_they_say((total, tasks) in cluster(), weights in prop::collection::vec(1..=9_u32, 5)) {
        let claims: Vec<Claim> = tasks.iter().zip(&weights).map(|(task, weight)| claim(*task, weight * 1000)).collect();
        let all: u32 = weights[..tasks.len()].iter().sum();
        for (claim, got) in claims.iter().zip(divide_claims(Policy::Drf, &total, &claims)) {
            let entitled = ratio(claim.weight.thousandths().into(), u64::from(all) * 1000);
            let alone = tasks_in(&Kind::ALL.map(|kind| ratio(total[kind], 1) * &entitled), &claim.task);
            prop_assert!(got >= alone);
        }
    }

    #[test]
    fn all_policies_agree_on_a_single_kind(total in 20..=200_u64, tasks in prop::collection::vec(1..=20_u64, 2..6)) {
        let total = Quantities::new(total, 0);
        let tasks: Vec<Quantities> = tasks.iter().map(|cpus| Quantities::new(*cpus, 0)).collect();
        let drf = divide(Policy::Drf, &total, &tasks);
        for (task, got) in tasks.iter().zip(&drf) {
            prop_assert_eq!(got * ratio(task[Kind::Cpus], 1), ratio(total[Kind::Cpus], tasks.len() as u64));
        }
        for policy in [Policy::Asset, Policy::MaxMin(Kind::Cpus), Policy::Ceei] {
            prop_assert_eq!(&divide(policy, &total, &tasks), &drf);
        }
    }
}

proptest! {
    // Each takes thousands of steps to the prices, which are seldom simple fractions: right to one part in a million.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn ceei_gives_an_incentive_to_share_is_free_of_envy_and_efficient((total, tasks) in cluster()) {
        let claims: Vec<Claim> = tasks.iter().map(|task| claim(*task, 1000)).collect();
        let got = ideal(Policy::Ceei, &total, &claims).unwrap().tasks;
        let slack = ratio(1_000_001, 1_000_000);
        prop_assert!(sharing_incentive(&total, &tasks, &got, &slack));
        prop_assert!(envy_freeness(&tasks, &got, &slack));
        prop_assert!(pareto_efficiency(&total, &tasks, &got, &slack));
    }
}

#[test]
fn asset_fairness_gives_no_incentive_to_share() {
    // The paper's figure 4: the second holds 12 of each, less than half of both.
    let total = Quantities::new(30, 30);
    let tasks = [Quantities::new(1, 3), Quantities::new(1, 1)];
    let got = divide(Policy::Asset, &total, &tasks);
    assert_eq!(got, [ratio(6, 1), ratio(12, 1)]);
    assert!(!sharing_incentive(&total, &tasks, &got, &BigRational::one()));
}

#[test]
fn under_ceei_a_lie_pays() {
    // The paper's figure 5: the first asks for memory it does not use, and so raises its price for the second.
    let total = Quantities::new(100, 100);
    let tasks = [Quantities::new(16, 1), Quantities::new(1, 2)];
    let honest = divide(Policy::Ceei, &total, &tasks);
    assert_eq!(honest, [ratio(100, 31), ratio(1500, 31)]);
    let lying = after_lying(Policy::Ceei, &total, &tasks, 0, Quantities::new(16, 8));
    assert_eq!(lying, ratio(25, 6));
    assert!(lying > honest[0]);
    // The same lie does not pay under DRF.
    let honest = &divide(Policy::Drf, &total, &tasks)[0];
    assert!(after_lying(Policy::Drf, &total, &tasks, 0, Quantities::new(16, 8)) <= *honest);
}

#[test]
fn a_task_that_costs_nothing_has_no_division() {
    let total = Quantities::new(10, 10);
    let claims = [claim(Quantities::new(0, 1), 1000)];
    assert_eq!(ideal(Policy::MaxMin(Kind::Cpus), &total, &claims), None);
    assert_eq!(ideal(Policy::Ceei, &total, &[claim(Quantities::ZERO, 1000)]), None);
    // What the cluster has nothing of, nobody gets, and others are not held back by it.
    let claims = [claim(Quantities::new(1, 1).with(Kind::Gpus, 1), 1000), claim(Quantities::new(1, 1), 1000)];
    for policy in [Policy::Drf, Policy::Asset, Policy::Ceei] {
        assert_eq!(divide_claims(policy, &total, &claims), [BigRational::zero(), ratio(10, 1)], "{policy:?}");
    }
}
