//! What the paper computes by hand, and what it proves, about the ideal division and about offers.

use std::time::Duration;

use crate::paper::{GIB, claim, divide, divide_claims, ratio};
use berth_orchestrator::allocator::{Allocator, Config, Policy, Subscription, Weight};
use berth_orchestrator::resources::{Kind, Quantities};

const HOUR: Duration = Duration::from_hours(1);

/// Two frameworks, in roles of their own, share one agent. Each takes one task at a time and refuses what none fits into. Returns
/// how many tasks each has when nothing more is offered, and what share.
fn by_offers(policy: Policy, total: Quantities, tasks: [(Quantities, u32); 2]) -> [(u64, u64); 2] {
    let mut allocator = Allocator::new(Config { policy, ..Config::default() });
    allocator.add_agent(total.into(), [].into()).unwrap();
    let frameworks =
        ["a", "b"].map(|role| allocator.add_framework([(role.to_owned(), Subscription::default())].into()));
    for (role, (_, weight)) in ["a", "b"].into_iter().zip(tasks) {
        allocator.set_weight(role, Weight::from_thousandths(weight).unwrap());
    }
    let mut running = [0, 0];
    while let [offer] = allocator.allocate(Duration::ZERO)[..] {
        let to = allocator.offer(offer).unwrap();
        let index = frameworks.iter().position(|framework| *framework == to.framework).unwrap();
        let task = tasks[index].0;
        if to.resources.quantities.contains(&task) {
            allocator.accept(&[offer], &task.into(), Duration::ZERO, Duration::ZERO).unwrap();
            running[index] += 1;
        } else {
            allocator.decline(offer, Duration::ZERO, HOUR).unwrap();
        }
    }
    // One more cycle, in which nothing is offered, for prices that know of all tasks.
    assert_eq!(allocator.allocate(Duration::ZERO), []);
    let fairness = allocator.fairness();
    [0, 1].map(|index| (running[index], fairness.roles[index].share.millionths))
}

#[test]
fn drf_gives_three_and_two_tasks_of_nine_cpus_and_18_gib() {
    let total = Quantities::new(9000, 18 * GIB);
    let tasks = [Quantities::new(1000, 4 * GIB), Quantities::new(3000, GIB)];
    assert_eq!(divide(Policy::Drf, &total, &tasks), [ratio(3, 1), ratio(2, 1)]);
    assert_eq!(by_offers(Policy::Drf, total, tasks.map(|task| (task, 1000))), [(3, 666_666), (2, 666_666)]);
}

#[test]
fn drf_gives_14_and_7_tasks_and_asset_fairness_12_and_8() {
    let total = Quantities::new(28_000, 56 * GIB);
    let tasks = [Quantities::new(1000, 2 * GIB), Quantities::new(1000, 4 * GIB)];
    assert_eq!(divide(Policy::Drf, &total, &tasks), [ratio(14, 1), ratio(7, 1)]);
    assert_eq!(divide(Policy::Asset, &total, &tasks), [ratio(12, 1), ratio(8, 1)]);
    let tasks = tasks.map(|task| (task, 1000));
    assert_eq!(by_offers(Policy::Drf, total, tasks), [(14, 500_000), (7, 500_000)]);
    assert_eq!(by_offers(Policy::Asset, total, tasks), [(12, 857_142), (8, 857_142)]);
}

#[test]
fn ceei_clears_the_market_at_45_and_18_elevenths() {
    let total = Quantities::new(9000, 18 * GIB);
    let tasks = [Quantities::new(1000, 4 * GIB), Quantities::new(3000, GIB)];
    assert_eq!(divide(Policy::Ceei, &total, &tasks), [ratio(45, 11), ratio(18, 11)]);
    // In whole tasks; of all that fit, these have the largest product.
    let [(first, _), (second, _)] = by_offers(Policy::Ceei, total, tasks.map(|task| (task, 1000)));
    assert_eq!((first, second), (3, 2));
}

#[test]
fn max_min_divides_one_kind_and_ignores_the_others() {
    let total = Quantities::new(12_000, 48 * GIB);
    let tasks = [Quantities::new(1000, GIB), Quantities::new(1000, 6 * GIB)];
    assert_eq!(divide(Policy::MaxMin(Kind::Cpus), &total, &tasks), [ratio(6, 1), ratio(6, 1)]);
    assert_eq!(
        by_offers(Policy::MaxMin(Kind::Cpus), total, tasks.map(|task| (task, 1000))),
        [(6, 500_000), (6, 500_000)]
    );
    // By memory the first may have six times as many, but runs out of CPUs.
    assert_eq!(divide(Policy::MaxMin(Kind::Memory), &total, &tasks), [ratio(72, 7), ratio(12, 7)]);
}

#[test]
fn weights_divide_in_proportion() {
    let total = Quantities::new(12_000, 12 * GIB);
    let task = Quantities::new(1000, GIB);
    for policy in [Policy::Drf, Policy::MaxMin(Kind::Memory), Policy::Asset, Policy::Ceei] {
        let claims = [claim(task, 3000), claim(task, 1000)];
        assert_eq!(divide_claims(policy, &total, &claims), [ratio(9, 1), ratio(3, 1)], "{policy:?}");
        let [(three, _), (one, _)] = by_offers(policy, total, [(task, 3000), (task, 1000)]);
        assert_eq!((three, one), (9, 3), "{policy:?}");
    }
}

#[test]
fn where_a_task_does_not_fit_others_still_run() {
    // The paper's algorithm would stop at the large task, which comes first when it has the smaller share.
    let total = Quantities::new(10_000, 10 * GIB);
    let tasks = [(Quantities::new(6000, GIB), 1000), (Quantities::new(1000, GIB), 1000)];
    let [(large, _), (small, _)] = by_offers(Policy::Drf, total, tasks);
    assert_eq!((large, small), (1, 4));
}
