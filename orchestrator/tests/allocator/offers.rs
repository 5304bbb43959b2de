//! Who is offered what.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_orchestrator::allocator::{
    AgentKey, Allocator, Config, Error, FrameworkKey, OfferKey, Policy, Quota, Subscription,
};
use berth_orchestrator::attributes::{Attributes, Constraint, Constraints};
use berth_orchestrator::resources::{Kind, Quantities, Resources};

use crate::paper::GIB;

const SECOND: Duration = Duration::from_secs(1);

pub fn cluster(agents: usize, each: Quantities) -> (Allocator, Vec<AgentKey>) {
    let mut allocator = Allocator::new(Config::default());
    let agents = (0..agents).map(|_| allocator.add_agent(each.into(), Attributes::new()).unwrap()).collect();
    (allocator, agents)
}

pub fn subscribe(allocator: &mut Allocator, roles: &[&str]) -> FrameworkKey {
    allocator.add_framework(roles.iter().map(|role| ((*role).to_owned(), Subscription::default())).collect())
}

/// What each framework is offered in one cycle.
fn offered(allocator: &mut Allocator, now: Duration) -> BTreeMap<FrameworkKey, Quantities> {
    let mut to = BTreeMap::new();
    for key in allocator.allocate(now) {
        let offer = allocator.offer(key).unwrap();
        *to.entry(offer.framework).or_insert(Quantities::ZERO) += &offer.resources.quantities;
    }
    to
}

fn only(offers: &[OfferKey]) -> OfferKey {
    match offers {
        [only] => *only,
        _ => panic!("{} offers", offers.len()),
    }
}

const AGENT: Quantities = Quantities::new(4000, 16 * GIB);

#[test]
fn agents_are_shared_equally_by_roles_and_in_them_by_frameworks() {
    let (mut allocator, _) = cluster(12, AGENT);
    let alone = subscribe(&mut allocator, &["a"]);
    let pair = [subscribe(&mut allocator, &["b"]), subscribe(&mut allocator, &["b"])];
    let offered = offered(&mut allocator, SECOND);
    assert_eq!(offered[&alone], Quantities::new(24_000, 96 * GIB));
    assert_eq!(pair.map(|framework| offered[&framework]), [Quantities::new(12_000, 48 * GIB); 2]);
}

#[test]
fn a_framework_in_two_roles_is_offered_the_parts_of_both() {
    let (mut allocator, _) = cluster(8, AGENT);
    let both = subscribe(&mut allocator, &["a", "b"]);
    let one = subscribe(&mut allocator, &["b"]);
    let offered = offered(&mut allocator, SECOND);
    assert_eq!(offered[&both], Quantities::new(24_000, 96 * GIB));
    assert_eq!(offered[&one], Quantities::new(8000, 32 * GIB));
}

#[test]
fn what_is_refused_is_offered_to_others_and_again_after_its_time() {
    let (mut allocator, _) = cluster(1, AGENT);
    let first = subscribe(&mut allocator, &["a"]);
    let offer = only(&allocator.allocate(SECOND));
    allocator.decline(offer, SECOND, 5 * SECOND).unwrap();
    assert_eq!(offered(&mut allocator, 2 * SECOND), BTreeMap::new());
    let second = subscribe(&mut allocator, &["a"]);
    let offer = only(&allocator.allocate(3 * SECOND));
    assert_eq!(allocator.offer(offer).unwrap().framework, second);
    allocator.decline(offer, 3 * SECOND, 60 * SECOND).unwrap();
    assert_eq!(offered(&mut allocator, 6 * SECOND).into_keys().collect::<Vec<_>>(), [first]);
}

#[test]
fn the_rest_of_an_accepted_offer_is_refused_but_not_what_is_freed_later() {
    let (mut allocator, agents) = cluster(1, AGENT);
    let framework = subscribe(&mut allocator, &["a"]);
    let task = Resources::from(Quantities::new(1000, GIB));
    let offer = only(&allocator.allocate(SECOND));
    allocator.accept(&[offer], &task, SECOND, 60 * SECOND).unwrap();
    assert_eq!(allocator.allocate(2 * SECOND), []);
    allocator.release(agents[0], framework, "a", &task).unwrap();
    assert_eq!(offered(&mut allocator, 3 * SECOND)[&framework], AGENT);
}

#[test]
fn reviving_ends_refusals_and_suppression() {
    let (mut allocator, _) = cluster(1, AGENT);
    let framework = subscribe(&mut allocator, &["a", "b"]);
    for _ in 0..2 {
        let offer = only(&allocator.allocate(SECOND));
        allocator.decline(offer, SECOND, 60 * SECOND).unwrap();
    }
    assert_eq!(allocator.allocate(SECOND), []);
    allocator.suppress(framework, &[]).unwrap();
    allocator.revive(framework, &["b".to_owned()]).unwrap();
    let offer = only(&allocator.allocate(SECOND));
    assert_eq!(&*allocator.rescind(offer).unwrap().role, "b");
    allocator.suppress(framework, &["b".to_owned()]).unwrap();
    assert_eq!(allocator.allocate(SECOND), []);
    assert_eq!(allocator.revive(framework, &["c".to_owned()]), Err(Error::UnknownRole("c".to_owned())));
}

#[test]
fn offers_that_are_kept_too_long_are_withdrawn() {
    let mut allocator = Allocator::new(Config { offer_timeout: Some(10 * SECOND), ..Config::default() });
    allocator.add_agent(AGENT.into(), Attributes::new()).unwrap();
    let hoarder = subscribe(&mut allocator, &["a"]);
    let offer = only(&allocator.allocate(SECOND));
    assert!(allocator.expire(10 * SECOND).is_empty());
    let expired = allocator.expire(11 * SECOND);
    assert_eq!(expired.iter().map(|(key, offer)| (*key, offer.framework)).collect::<Vec<_>>(), [(offer, hoarder)]);
    let accepted = allocator.accept(&[offer], &AGENT.into(), 11 * SECOND, SECOND);
    assert_eq!(accepted.unwrap_err(), Error::UnknownOffer);
}

#[test]
fn constraints_choose_agents() {
    let mut allocator = Allocator::new(Config::default());
    for zone in ["a", "b", "c"] {
        allocator.add_agent(AGENT.into(), [("zone".to_owned(), zone.to_owned())].into()).unwrap();
    }
    let constraints = Constraints { groups: vec![vec![Constraint::Differs("zone".to_owned(), "b".to_owned())]] };
    let subscription = Subscription { constraints, suppressed: false };
    let framework = allocator.add_framework([("a".to_owned(), subscription)].into());
    assert_eq!(offered(&mut allocator, SECOND)[&framework], Quantities::new(8000, 32 * GIB));
}

#[test]
fn a_guarantee_is_served_first_and_kept_free_while_nobody_takes_it() {
    let (mut allocator, _) = cluster(4, AGENT);
    let greedy = subscribe(&mut allocator, &["greedy"]);
    let guarantee = Quantities::new(6000, 20 * GIB);
    allocator.set_quota("safe", Quota { guarantee, ..Quota::default() }).unwrap();
    assert_eq!(offered(&mut allocator, SECOND)[&greedy], Quantities::new(10_000, 44 * GIB));
    let safe = subscribe(&mut allocator, &["safe"]);
    assert_eq!(offered(&mut allocator, SECOND), [(safe, guarantee)].into());
}

#[test]
fn a_limit_holds_for_all_frameworks_of_a_role_together() {
    let (mut allocator, _) = cluster(4, AGENT);
    let limit = Quantities::UNLIMITED.with(Kind::Cpus, 6000);
    allocator.set_quota("a", Quota { limit, ..Quota::default() }).unwrap();
    let pair = [subscribe(&mut allocator, &["a"]), subscribe(&mut allocator, &["a"])];
    let both: u64 = offered(&mut allocator, SECOND).values().map(|offered| offered[Kind::Cpus]).sum();
    assert_eq!(both, 6000);
    assert_eq!(allocator.allocate(SECOND), []);
    let held = allocator.fairness().roles[0].frameworks.iter().filter(|one| pair.contains(&one.framework)).count();
    assert_eq!(held, 2);
}

#[test]
fn impossible_quotas_are_refused() {
    let (mut allocator, _) = cluster(1, AGENT);
    let quota = |guarantee, limit| Quota {
        guarantee: Quantities::ZERO.with(Kind::Memory, guarantee),
        limit: Quantities::UNLIMITED.with(Kind::Memory, limit),
    };
    assert_eq!(allocator.set_quota("a", quota(2, 1)), Err(Error::LimitBelowGuarantee(Kind::Memory)));
    allocator.set_quota("a", quota(1 << 59, u64::MAX)).unwrap();
    allocator.set_quota("a", quota(1 << 60, u64::MAX)).unwrap();
    let beyond = Error::GuaranteesTooLarge { kind: Kind::Memory };
    assert_eq!(allocator.set_quota("b", quota(1, u64::MAX)), Err(beyond));
}

#[test]
fn absurd_agents_are_refused() {
    let mut allocator = Allocator::new(Config::default());
    let absurd = Quantities::new(u64::MAX, 0);
    let added = allocator.add_agent(absurd.into(), Attributes::new());
    assert_eq!(added, Err(Error::ClusterTooLarge { kind: Kind::Cpus }));
    assert_eq!(allocator.total(), Quantities::ZERO);
    // As large as can be, under every policy.
    let largest = Quantities::ZERO;
    let largest = Kind::ALL.into_iter().fold(largest, |largest, kind| largest.with(kind, kind.cluster_limit()));
    for policy in [Policy::Drf, Policy::MaxMin(Kind::Memory), Policy::Asset, Policy::Ceei] {
        let mut allocator = Allocator::new(Config { policy, ..Config::default() });
        allocator.add_agent(largest.into(), Attributes::new()).unwrap();
        subscribe(&mut allocator, &["a"]);
        let offer = only(&allocator.allocate(SECOND));
        allocator.accept(&[offer], &largest.into(), SECOND, SECOND).unwrap();
        subscribe(&mut allocator, &["b"]);
        assert_eq!(allocator.allocate(SECOND), []);
        assert!(allocator.fairness().roles[0].share.millionths >= 999_999, "{policy:?}");
    }
}

#[test]
fn only_what_was_offered_together_is_accepted_together() {
    let (mut allocator, _) = cluster(2, AGENT);
    subscribe(&mut allocator, &["a"]);
    let offers = allocator.allocate(SECOND);
    let accept = |allocator: &mut Allocator, keys: &[OfferKey], cpus| {
        allocator.accept(keys, &Quantities::new(cpus, 0).into(), SECOND, SECOND).map(|offers| offers.len())
    };
    assert_eq!(accept(&mut allocator, &offers, 1), Err(Error::MixedOffers));
    assert_eq!(accept(&mut allocator, &[], 1), Err(Error::NoOffers));
    assert_eq!(accept(&mut allocator, &[offers[0], offers[0]], 5000), Err(Error::UnknownOffer));
    let too_much = Error::TooMuch { wanted: Quantities::new(4001, 0), available: AGENT };
    assert_eq!(accept(&mut allocator, &offers[..1], 4001), Err(too_much));
    assert_eq!(accept(&mut allocator, &offers[..1], 4000), Ok(1));
}

#[test]
fn what_a_framework_that_is_gone_uses_is_free_only_when_it_is_released() {
    let (mut allocator, agents) = cluster(1, AGENT);
    let gone = subscribe(&mut allocator, &["a"]);
    let offer = only(&allocator.allocate(SECOND));
    let ports = Resources { ports: [80..=80].into_iter().collect(), ..Resources::default() };
    // It keeps no more than a port, of an agent that has none: refused.
    assert_eq!(allocator.accept(&[offer], &ports, SECOND, SECOND).unwrap_err(), Error::NoSuchPorts);
    allocator.accept(&[offer], &AGENT.into(), SECOND, SECOND).unwrap();
    allocator.remove_framework(gone).unwrap();
    subscribe(&mut allocator, &["b"]);
    assert_eq!(allocator.allocate(2 * SECOND), []);
    assert_eq!(allocator.remove_framework(gone).unwrap_err(), Error::UnknownFramework);
    allocator.release(agents[0], gone, "a", &AGENT.into()).unwrap();
    assert_eq!(allocator.allocate(2 * SECOND).len(), 1);
    assert_eq!(allocator.release(agents[0], gone, "a", &AGENT.into()), Err(Error::UnknownFramework));
}

#[test]
fn tasks_that_come_back_with_their_agent_are_claimed() {
    let (mut allocator, agents) = cluster(1, AGENT);
    let framework = subscribe(&mut allocator, &["a"]);
    let task = Resources::from(Quantities::new(3000, GIB));
    allocator.claim(agents[0], framework, "left-since", &task).unwrap();
    let too_much = Error::TooMuch { wanted: task.quantities, available: Quantities::new(1000, 15 * GIB) };
    assert_eq!(allocator.claim(agents[0], framework, "a", &task), Err(too_much));
    assert_eq!(offered(&mut allocator, SECOND)[&framework], Quantities::new(1000, 15 * GIB));
    allocator.release(agents[0], framework, "left-since", &task).unwrap();
    assert_eq!(allocator.fairness().roles.len(), 1);
}
