//! Whether the allocator can say why.

use std::time::Duration;

use berth_orchestrator::allocator::{PassedOver, Quota, Skip, Stage, Weight};
use berth_orchestrator::resources::{Kind, Quantities};

use crate::offers::{cluster, subscribe};
use crate::paper::GIB;

const SECOND: Duration = Duration::from_secs(1);
const AGENT: Quantities = Quantities::new(4000, 16 * GIB);

#[test]
fn an_offer_says_who_was_passed_over_and_what_shares_decided() {
    let (mut allocator, _) = cluster(4, AGENT);
    let first = subscribe(&mut allocator, &["a"]);
    let offers = allocator.allocate(SECOND);
    let task = Quantities::new(1000, 8 * GIB);
    allocator.accept(&offers[..1], &task.into(), SECOND, Duration::ZERO).unwrap();
    for offer in &offers[1..] {
        allocator.decline(*offer, SECOND, Duration::ZERO).unwrap();
    }
    let fussy = subscribe(&mut allocator, &["b"]);
    allocator.suppress(first, &[]).unwrap();
    for offer in allocator.allocate(2 * SECOND) {
        allocator.decline(offer, 2 * SECOND, 60 * SECOND).unwrap();
    }
    allocator.revive(first, &[]).unwrap();
    // The fussy one has nothing, so it would come first.
    let offers = allocator.allocate(3 * SECOND);
    let why = allocator.explain(offers[0]).unwrap();
    assert_eq!(why.passed_over, [PassedOver { framework: fussy, reason: Skip::Refused }]);
    assert_eq!((why.stage, why.round.number), (Stage::FairShare, 3));
    let share = why.role_share();
    assert_eq!((share.dominant, share.of.map(|(_, total)| total)), (Some(Kind::Memory), Some(64 * GIB)));
    assert_eq!(share.millionths, 125_000);
}

#[test]
fn fairness_says_what_all_hold_and_wait_for() {
    let (mut allocator, _) = cluster(2, AGENT);
    allocator.set_weight("heavy", Weight::from_thousandths(2000).unwrap());
    let guarantee = Quantities::new(4000, 4 * GIB);
    allocator.set_quota("safe", Quota { guarantee, limit: guarantee }).unwrap();
    let heavy = subscribe(&mut allocator, &["heavy"]);
    let safe = subscribe(&mut allocator, &["safe"]);
    let offers = allocator.allocate(SECOND);
    for offer in &offers {
        let wanted = allocator.offer(*offer).unwrap().resources.clone();
        allocator.accept(&[*offer], &wanted, SECOND, Duration::ZERO).unwrap();
    }
    allocator.allocate(2 * SECOND);
    let fairness = allocator.fairness();
    let [of_heavy, of_safe] = &fairness.roles[..] else { panic!("{fairness:?}") };
    assert_eq!((&*of_heavy.role, &*of_safe.role), ("heavy", "safe"));
    assert_eq!(of_safe.used, guarantee);
    assert_eq!((of_safe.share.dominant, of_safe.share.millionths), (Some(Kind::Cpus), 500_000));
    assert_eq!(of_heavy.used, Quantities::new(4000, 16 * GIB));
    assert_eq!((of_heavy.share.dominant, of_heavy.share.millionths), (Some(Kind::Cpus), 250_000));
    let [member] = &of_heavy.frameworks[..] else { panic!("{of_heavy:?}") };
    assert_eq!((member.framework, member.wants_offers, member.share.millionths), (heavy, true, 500_000));
    assert_eq!(of_safe.frameworks[0].framework, safe);
    assert_eq!(member.tally.offers, 0);
    assert_eq!(member.tally.round, 2);
}
