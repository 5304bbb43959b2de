//! Random events against accounts that are kept here, from what the allocator says alone.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_orchestrator::allocator::{
    AgentKey, Allocator, Config, FrameworkKey, Offer, OfferKey, Policy, Quota, Subscription, Weight,
};
use berth_orchestrator::attributes::{Constraint, Constraints};
use berth_orchestrator::resources::{Kind, Quantities, Resources};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::paper::GIB;

const ROLES: [&str; 4] = ["a", "b", "c", "d"];
const MINIMUM: Quantities = Quantities::new(10, 32 << 20);

#[derive(Debug, Clone)]
enum Event {
    AddAgent { cpus: u64, gib: u64, zone: u8 },
    RemoveAgent(Index),
    ResizeAgent { agent: Index, cpus: u64 },
    SetAgentActive(Index, bool),
    AddFramework { roles: Vec<Index>, zone: Option<u8> },
    UpdateFramework { framework: Index, roles: Vec<Index> },
    RemoveFramework(Index),
    SetFrameworkActive(Index, bool),
    Suppress(Index),
    Revive(Index),
    SetWeight { role: Index, weight: u32 },
    SetQuota { role: Index, guarantee: u64, limit: u64 },
    Allocate,
    Accept { offer: Index, cpus: u64, refuse: u64 },
    Decline { offer: Index, refuse: u64 },
    Rescind(Index),
    Release(Index),
    Wait { seconds: u64 },
}

fn event() -> impl Strategy<Value = Event> {
    use Event::*;
    let roles = || prop::collection::vec(any::<Index>(), 1..3);
    prop_oneof![
        4 => (1..=16_u64, 1..=64_u64, 0..3_u8).prop_map(|(cpus, gib, zone)| AddAgent { cpus, gib, zone }),
        1 => any::<Index>().prop_map(RemoveAgent),
        1 => (any::<Index>(), 1..=16_u64).prop_map(|(agent, cpus)| ResizeAgent { agent, cpus }),
        1 => any::<(Index, bool)>().prop_map(|(agent, active)| SetAgentActive(agent, active)),
        3 => (roles(), prop::option::of(0..3_u8)).prop_map(|(roles, zone)| AddFramework { roles, zone }),
        1 => (any::<Index>(), roles()).prop_map(|(framework, roles)| UpdateFramework { framework, roles }),
        1 => any::<Index>().prop_map(RemoveFramework),
        1 => any::<(Index, bool)>().prop_map(|(framework, active)| SetFrameworkActive(framework, active)),
        1 => any::<Index>().prop_map(Suppress),
        1 => any::<Index>().prop_map(Revive),
        1 => (any::<Index>(), 1..=9_u32).prop_map(|(role, weight)| SetWeight { role, weight }),
        1 => (any::<Index>(), 0..=20_u64, 0..=20_u64)
            .prop_map(|(role, guarantee, more)| SetQuota { role, guarantee, limit: guarantee + more }),
        8 => Just(Allocate),
        8 => (any::<Index>(), 0..=8_u64, 0..=20_u64).prop_map(|(offer, cpus, refuse)| Accept { offer, cpus, refuse }),
        2 => (any::<Index>(), 0..=20_u64).prop_map(|(offer, refuse)| Decline { offer, refuse }),
        1 => any::<Index>().prop_map(Rescind),
        4 => any::<Index>().prop_map(Release),
        2 => (1..=10_u64).prop_map(|seconds| Wait { seconds }),
    ]
}

/// Something in use.
#[derive(Debug, Clone)]
struct Task {
    agent: AgentKey,
    framework: FrameworkKey,
    role: String,
    resources: Resources,
}

/// The allocator, and what it should be about.
struct Ledger {
    allocator: Allocator,
    now: Duration,
    agents: Vec<(AgentKey, Resources, u8)>,
    frameworks: Vec<FrameworkKey>,
    offers: BTreeMap<OfferKey, Offer>,
    tasks: Vec<Task>,
    limits: BTreeMap<&'static str, u64>,
}

fn agent_resources(cpus: u64, gib: u64) -> Resources {
    Resources { quantities: Quantities::new(cpus * 1000, gib * GIB), ports: [31_000..=32_000].into_iter().collect() }
}

fn subscriptions(roles: &[Index], zone: Option<u8>) -> BTreeMap<String, Subscription> {
    let constraint = |zone: u8| vec![Constraint::Equals("zone".to_owned(), zone.to_string())];
    let constraints = Constraints { groups: zone.map(constraint).into_iter().collect() };
    let name = |role: &Index| ROLES[role.index(ROLES.len())].to_owned();
    roles
        .iter()
        .map(|role| (name(role), Subscription { constraints: constraints.clone(), suppressed: false }))
        .collect()
}

impl Ledger {
    fn new(policy: Policy, seed: u64) -> Ledger {
        let offer_timeout = Some(Duration::from_secs(15));
        Ledger {
            allocator: Allocator::new(Config { policy, seed, offer_timeout, minimum: vec![MINIMUM] }),
            now: Duration::ZERO,
            agents: Vec::new(),
            frameworks: Vec::new(),
            offers: BTreeMap::new(),
            tasks: Vec::new(),
            limits: BTreeMap::new(),
        }
    }

    fn withdrawn(&mut self, offers: Vec<(OfferKey, Offer)>) {
        for (key, _) in offers {
            assert!(self.offers.remove(&key).is_some(), "only open offers are withdrawn");
        }
    }

    fn offer(&self, index: Index) -> Option<OfferKey> {
        (!self.offers.is_empty()).then(|| *self.offers.keys().nth(index.index(self.offers.len())).unwrap())
    }

    /// The framework or agent an index stands for, if there are any.
    fn pick<T: Clone>(from: &[T], index: Index) -> Option<T> {
        (!from.is_empty()).then(|| index.get(from).clone())
    }

    fn used_on(&self, agent: AgentKey) -> Quantities {
        let mut used = Quantities::ZERO;
        for task in self.tasks.iter().filter(|task| task.agent == agent) {
            used += &task.resources.quantities;
        }
        used
    }

    fn apply(&mut self, event: &Event) -> Option<()> {
        let now = self.now;
        match event {
            Event::AddAgent { cpus, gib, zone } => {
                let total = agent_resources(*cpus, *gib);
                let attributes = [("zone".to_owned(), zone.to_string())].into();
                let key = self.allocator.add_agent(total.clone(), attributes).unwrap();
                self.agents.push((key, total, *zone));
            }
            Event::RemoveAgent(index) => {
                let (key, ..) = Self::pick(&self.agents, *index)?;
                let rescinded = self.allocator.remove_agent(key).unwrap();
                self.withdrawn(rescinded);
                self.agents.retain(|(other, ..)| *other != key);
                self.tasks.retain(|task| task.agent != key);
            }
            Event::ResizeAgent { agent, cpus } => {
                let (key, total, zone) = Self::pick(&self.agents, *agent)?;
                let mut total = total;
                total.quantities[Kind::Cpus] = cpus * 1000;
                let attributes = [("zone".to_owned(), zone.to_string())].into();
                let fits = total.quantities.contains(&self.used_on(key));
                let updated = self.allocator.update_agent(key, total.clone(), attributes);
                assert_eq!(updated.is_ok(), fits);
                self.withdrawn(updated.ok()?);
                self.agents.iter_mut().find(|(other, ..)| *other == key)?.1 = total;
            }
            Event::SetAgentActive(index, active) => {
                let (key, ..) = Self::pick(&self.agents, *index)?;
                let rescinded = self.allocator.set_agent_active(key, *active).unwrap();
                self.withdrawn(rescinded);
            }
            Event::AddFramework { roles, zone } => {
                self.frameworks.push(self.allocator.add_framework(subscriptions(roles, *zone)));
            }
            Event::UpdateFramework { framework, roles } => {
                let key = Self::pick(&self.frameworks, *framework)?;
                let rescinded = self.allocator.update_framework(key, subscriptions(roles, None)).unwrap();
                self.withdrawn(rescinded);
            }
            Event::RemoveFramework(index) => {
                let key = Self::pick(&self.frameworks, *index)?;
                let rescinded = self.allocator.remove_framework(key).unwrap();
                self.withdrawn(rescinded);
                self.frameworks.retain(|other| *other != key);
            }
            Event::SetFrameworkActive(index, active) => {
                let key = Self::pick(&self.frameworks, *index)?;
                let rescinded = self.allocator.set_framework_active(key, *active).unwrap();
                self.withdrawn(rescinded);
            }
            Event::Suppress(index) => self.allocator.suppress(Self::pick(&self.frameworks, *index)?, &[]).unwrap(),
            Event::Revive(index) => self.allocator.revive(Self::pick(&self.frameworks, *index)?, &[]).unwrap(),
            Event::SetWeight { role, weight } => {
                let weight = Weight::from_thousandths(weight * 1000).unwrap();
                self.allocator.set_weight(ROLES[role.index(ROLES.len())], weight);
            }
            Event::SetQuota { role, guarantee, limit } => {
                let role = ROLES[role.index(ROLES.len())];
                let quota = Quota {
                    guarantee: Quantities::ZERO.with(Kind::Cpus, guarantee * 1000),
                    limit: Quantities::UNLIMITED.with(Kind::Cpus, limit * 1000),
                };
                self.allocator.set_quota(role, quota).unwrap();
                self.limits.insert(role, limit * 1000);
            }
            Event::Allocate => {
                let before: BTreeMap<&str, u64> = ROLES.into_iter().map(|role| (role, self.cpus_of(role))).collect();
                for key in self.allocator.allocate(now) {
                    let offer = self.allocator.offer(key).unwrap().clone();
                    assert!(offer.resources.quantities.contains(&MINIMUM));
                    assert!(self.offers.insert(key, offer).is_none());
                }
                // A limit may have been lowered below what is held; then nothing is added.
                for (role, limit) in &self.limits {
                    assert!(self.cpus_of(role) <= before[role].max(*limit), "{role} is beyond its limit");
                }
            }
            Event::Accept { offer, cpus, refuse } => {
                let key = self.offer(*offer)?;
                let offer = self.offers[&key].clone();
                let part = Resources {
                    quantities: Quantities::new(cpus * 1000, cpus * GIB),
                    ports: offer
                        .resources
                        .ports
                        .ranges()
                        .take(1)
                        .map(|range| *range.start()..=*range.start())
                        .collect(),
                };
                let fits = offer.resources.contains(&part);
                let accepted = self.allocator.accept(&[key], &part, now, Duration::from_secs(*refuse));
                assert_eq!(accepted.is_ok(), fits, "as much as was offered can be used, and no more");
                accepted.ok()?;
                self.offers.remove(&key);
                let Offer { agent, framework, role, .. } = offer;
                if !part.is_empty() {
                    self.tasks.push(Task { agent, framework, role: role.to_string(), resources: part });
                }
            }
            Event::Decline { offer, refuse } => {
                let key = self.offer(*offer)?;
                self.allocator.decline(key, now, Duration::from_secs(*refuse)).unwrap();
                self.offers.remove(&key);
            }
            Event::Rescind(offer) => {
                let key = self.offer(*offer)?;
                self.allocator.rescind(key).unwrap();
                self.offers.remove(&key);
                assert!(self.allocator.rescind(key).is_err(), "an offer ends once");
            }
            Event::Release(index) => {
                let task = Self::pick(&self.tasks, *index)?;
                self.allocator.release(task.agent, task.framework, &task.role, &task.resources).unwrap();
                let position = self.tasks.iter().position(|other| {
                    other.resources == task.resources
                        && (other.agent, other.framework, &other.role) == (task.agent, task.framework, &task.role)
                });
                self.tasks.remove(position.unwrap());
            }
            Event::Wait { seconds } => {
                self.now += Duration::from_secs(*seconds);
                let expired = self.allocator.expire(self.now);
                self.withdrawn(expired);
                assert!(self.offers.values().all(|offer| offer.made + Duration::from_secs(15) > self.now));
            }
        }
        Some(())
    }

    /// What a role is offered and uses.
    fn cpus_of(&self, role: &str) -> u64 {
        let offered = self.offers.values().filter(|offer| &*offer.role == role).map(|offer| &offer.resources);
        let used = self.tasks.iter().filter(|task| task.role == role).map(|task| &task.resources);
        offered.chain(used).map(|resources| resources.quantities[Kind::Cpus]).sum()
    }

    fn check(&self) {
        for (key, total, _) in &self.agents {
            let mut free = total.clone();
            let offered = self.offers.values().filter(|offer| offer.agent == *key).map(|offer| &offer.resources);
            let used = self.tasks.iter().filter(|task| task.agent == *key).map(|task| &task.resources);
            for part in offered.chain(used) {
                assert!(free.take(part), "more is offered and used than there is");
            }
        }
        let open: Vec<OfferKey> = self.allocator.offers().map(|(key, _)| key).collect();
        assert_eq!(open.len(), self.offers.len());
        for offer in self.offers.values() {
            assert!(self.frameworks.contains(&offer.framework), "offers are made to frameworks that are there");
        }
        let fairness = self.allocator.fairness();
        for role in ROLES {
            let said = fairness.roles.iter().find(|known| &*known.role == role);
            let said = said.map_or(0, |role| role.offered[Kind::Cpus] + role.used[Kind::Cpus]);
            assert_eq!(said, self.cpus_of(role), "what role {role} holds");
        }
    }
}

fn policy() -> impl Strategy<Value = Policy> {
    prop::sample::select(vec![Policy::Drf, Policy::MaxMin(Kind::Cpus), Policy::Asset, Policy::Ceei])
}

proptest! {
    #[test]
    fn nothing_is_ever_given_twice(policy in policy(), seed: u64, events in prop::collection::vec(event(), 1..120)) {
        let mut ledger = Ledger::new(policy, seed);
        for event in &events {
            ledger.apply(event);
            ledger.check();
        }
    }

    #[test]
    fn the_same_events_and_seed_make_the_same_offers(seed: u64, events in prop::collection::vec(event(), 1..60)) {
        let [one, other] = [(), ()].map(|()| {
            let mut ledger = Ledger::new(Policy::Drf, seed);
            let made: Vec<_> = events.iter().map(|event| {
                ledger.apply(event);
                format!("{:?}", ledger.offers)
            }).collect();
            made
        });
        prop_assert_eq!(one, other);
    }

    #[test]
    fn when_all_is_over_nothing_is_left(events in prop::collection::vec(event(), 1..120)) {
        let mut ledger = Ledger::new(Policy::Drf, 0);
        for event in &events {
            ledger.apply(event);
        }
        for framework in ledger.frameworks.clone() {
            ledger.allocator.remove_framework(framework).unwrap();
        }
        for task in std::mem::take(&mut ledger.tasks) {
            ledger.allocator.release(task.agent, task.framework, &task.role, &task.resources).unwrap();
        }
        for role in ROLES {
            ledger.allocator.set_weight(role, Weight::ONE);
            ledger.allocator.set_quota(role, Quota::default()).unwrap();
        }
        prop_assert!(ledger.allocator.fairness().roles.is_empty());
        prop_assert_eq!(ledger.allocator.offers().count(), 0);
    }
}
