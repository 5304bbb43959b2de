//! One allocation cycle.
//!
//! The agents come in a random order, so that no framework always gets the same ones. In the first stage each is cut up for
//! roles that have less than they are guaranteed; in the second, what is free on it goes to the members whose turn it is: the role
//! with the smallest weighted score, and in it the framework with the smallest. After each offer the scores of both are those
//! they have with it.
//!
//! What a cycle costs: sorting the members once, and for each agent the members that are asked before it is given away, most often one.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use ethnum::U256;
use slotmap::{Key, SecondaryMap};

use super::explain::{Decision, PassedOver, Round, Skip, Stage, Tally};
use super::{AgentKey, Allocator, MemberKey, Offer, OfferKey, Prices, RoleKey, Weight};
use crate::resources::{Quantities, Resources};

/// Whose turn it is: smaller weighted scores first, then those who had fewer turns, then the older.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rank<K> {
    score: U256,
    weight: Weight,
    turns: u64,
    key: K,
}

impl<K: Key> Ord for Rank<K> {
    fn cmp(&self, other: &Rank<K>) -> std::cmp::Ordering {
        let crosswise = |score: U256, weight: Weight| score * U256::from(weight.thousandths());
        let scores = crosswise(self.score, other.weight).cmp(&crosswise(other.score, self.weight));
        scores.then(self.turns.cmp(&other.turns)).then(self.key.cmp(&other.key))
    }
}

impl<K: Key> PartialOrd for Rank<K> {
    fn partial_cmp(&self, other: &Rank<K>) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

type Queue<K> = BTreeSet<Rank<K>>;

/// The one who comes after `last`, or the first.
fn next<K: Key>(queue: &Queue<K>, last: Option<Rank<K>>) -> Option<Rank<K>> {
    match last {
        None => queue.first().copied(),
        Some(last) => queue.range((Bound::Excluded(last), Bound::Unbounded)).next().copied(),
    }
}

/// A cycle under way.
struct Cycle<'a> {
    allocator: &'a mut Allocator,
    round: Arc<Round>,
    /// The members of each role that want offers.
    members: SecondaryMap<RoleKey, Queue<MemberKey>>,
    /// What is free on all agents that can be offered.
    free: Quantities,
    /// What of it is kept for guarantees.
    kept: Quantities,
    offers: Vec<OfferKey>,
}

impl Allocator {
    /// Offers what is free. The offers are open until they are accepted, declined or withdrawn.
    pub fn allocate(&mut self, now: Duration) -> Vec<OfferKey> {
        let mut free = Quantities::ZERO;
        let mut agents = Vec::new();
        for (key, agent) in self.agents.iter().filter(|(_, agent)| agent.active) {
            free += &agent.free.quantities;
            if self.is_allocatable(&agent.free.quantities) {
                agents.push(key);
            }
        }
        self.chance.shuffle(&mut agents);

        let clients: Vec<_> = self.roles.values().map(|role| (role.used, role.weight)).collect();
        let prices = Prices::new(self.config.policy, self.total, &clients);
        let round = Round { number: self.round.number + 1, time: now, prices, agents: agents.len() as u64 };
        self.round = Arc::new(round);

        let mut cycle = Cycle {
            round: Arc::clone(&self.round),
            members: SecondaryMap::new(),
            free,
            kept: Quantities::ZERO,
            offers: Vec::new(),
            allocator: self,
        };
        cycle.run(&agents);
        cycle.offers
    }

    /// Whether a member can be made offers.
    pub(super) fn wants_offers(&self, key: MemberKey) -> bool {
        let member = &self.members[key];
        let wants = member.subscription.as_ref().is_some_and(|subscription| !subscription.suppressed);
        wants && self.frameworks[member.framework].active
    }
}

impl Cycle<'_> {
    fn run(&mut self, agents: &[AgentKey]) {
        let keys: Vec<RoleKey> = self.allocator.roles.keys().collect();
        for key in &keys {
            self.kept += &self.missing(*key);
            let members = self.allocator.roles[*key].members.iter().copied();
            let members: Vec<MemberKey> = members.filter(|member| self.allocator.wants_offers(*member)).collect();
            if !members.is_empty() {
                let queue = members.iter().map(|member| self.member_rank(*member)).collect();
                self.members.insert(*key, queue);
            }
            for member in members {
                self.allocator.members[member].tally = Tally { round: self.round.number, ..Tally::default() };
            }
        }
        let below = |cycle: &Self, key: &RoleKey| !cycle.missing(*key).is_zero();
        let mut roles = self.queue(keys.iter().filter(|key| below(self, key)));
        for agent in agents {
            self.offer(*agent, &mut roles, Stage::Guarantee);
        }
        let mut roles = self.queue(keys.iter());
        for agent in agents {
            self.offer(*agent, &mut roles, Stage::FairShare);
        }
    }

    /// Offers an agent to those whose turn it is, until too little of it is left or all were asked.
    fn offer(&mut self, agent: AgentKey, roles: &mut Queue<RoleKey>, stage: Stage) {
        let mut passed = Passed::default();
        let mut last = None;
        while self.is_worth(agent, stage)
            && let Some(rank) = next(roles, last)
        {
            last = Some(rank);
            match self.part(agent, rank.key, stage) {
                // It cannot be given any more in this stage.
                None => {
                    roles.remove(&rank);
                }
                Some(part) if self.offer_within(agent, rank, part, stage, &mut passed) => {
                    roles.remove(&rank);
                    roles.insert(self.role_rank(rank.key));
                }
                Some(_) => {}
            }
        }
    }

    /// Whether anybody could be offered something of an agent.
    fn is_worth(&self, agent: AgentKey, stage: Stage) -> bool {
        let free = &self.allocator.agents[agent].free.quantities;
        self.allocator.is_allocatable(&match stage {
            Stage::Guarantee => *free,
            Stage::FairShare => free.min(&self.surplus()),
        })
    }

    /// How much of an agent a role may be offered; none if it can be offered nothing more of any agent in this stage.
    fn part(&self, agent: AgentKey, role: RoleKey, stage: Stage) -> Option<Quantities> {
        let free = &self.allocator.agents[agent].free.quantities;
        let below_limit = self.allocator.roles[role].below_limit();
        let mut part = free.min(&self.surplus()).min(&below_limit);
        if stage == Stage::FairShare {
            return self.allocator.is_allocatable(&below_limit).then_some(part);
        }
        let missing = self.missing(role);
        let mut helps = false;
        for (kind, missing) in missing.iter().filter(|(_, missing)| *missing > 0) {
            part[kind] = free[kind].min(missing);
            helps |= part[kind] > 0;
        }
        (!missing.is_zero()).then_some(if helps { part } else { Quantities::ZERO })
    }

    /// Offers a part of an agent to the first framework in a role that wants it, if there is one.
    fn offer_within(
        &mut self,
        agent: AgentKey,
        role: Rank<RoleKey>,
        part: Quantities,
        stage: Stage,
        passed: &mut Passed,
    ) -> bool {
        let mut last = None;
        while let Some(rank) = next(&self.members[role.key], last) {
            last = Some(rank);
            if let Some(reason) = self.skip(agent, rank.key, &part) {
                let member = &mut self.allocator.members[rank.key];
                member.tally.count(reason);
                passed.add(PassedOver { framework: member.framework, reason });
                continue;
            }
            self.open(agent, rank.key, part, stage, passed);
            let rank_now = self.member_rank(rank.key);
            let queue = &mut self.members[role.key];
            queue.remove(&rank);
            queue.insert(rank_now);
            return true;
        }
        false
    }

    fn skip(&mut self, agent: AgentKey, member: MemberKey, part: &Quantities) -> Option<Skip> {
        if !self.allocator.is_allocatable(part) {
            return Some(Skip::Quota);
        }
        let attributes = &self.allocator.agents[agent].attributes;
        let member = &mut self.allocator.members[member];
        if !member.subscription.as_ref().is_some_and(|subscription| subscription.constraints.hold(attributes)) {
            return Some(Skip::Constraints);
        }
        member.filters.refuses(agent, part, self.round.time).then_some(Skip::Refused)
    }

    fn open(&mut self, agent: AgentKey, key: MemberKey, part: Quantities, stage: Stage, passed: &Passed) {
        let member = &self.allocator.members[key];
        let role_key = member.role;
        let role = &self.allocator.roles[role_key];
        let decision = Decision {
            round: Arc::clone(&self.round),
            stage,
            role_held: role.held(),
            role_weight: role.weight,
            framework_held: member.held(),
            passed_over: passed.named.clone(),
            passed_over_more: passed.more,
        };
        // Ports are nobody's by fairness: all that are free go with the first offer of the agent, and come back with its rest.
        let ports = self.allocator.agents[agent].free.ports.clone();
        let offer = Offer {
            agent,
            framework: member.framework,
            role: Arc::clone(&role.name),
            resources: Resources { quantities: part, ports },
            made: self.round.time,
            decision,
            member: key,
        };
        self.kept -= &self.missing(role_key);
        self.offers.push(self.allocator.open(offer));
        self.kept += &self.missing(role_key);
        self.free -= &part;
        self.allocator.members[key].tally.offers += 1;
    }

    fn missing(&self, role: RoleKey) -> Quantities {
        self.allocator.roles[role].missing()
    }

    /// What is free beyond what is kept for guarantees.
    fn surplus(&self) -> Quantities {
        self.free.saturating_sub(&self.kept)
    }

    /// Those of some roles that have members who want offers.
    fn queue<'k>(&self, roles: impl Iterator<Item = &'k RoleKey>) -> Queue<RoleKey> {
        roles.filter(|key| self.members.contains_key(**key)).map(|key| self.role_rank(*key)).collect()
    }

    fn role_rank(&self, key: RoleKey) -> Rank<RoleKey> {
        let role = &self.allocator.roles[key];
        Rank { score: self.round.prices.score(&role.held()), weight: role.weight, turns: role.turns, key }
    }

    fn member_rank(&self, key: MemberKey) -> Rank<MemberKey> {
        let member = &self.allocator.members[key];
        Rank { score: self.round.prices.score(&member.held()), weight: Weight::ONE, turns: member.turns, key }
    }
}

/// Those who came before, and did not get an agent.
#[derive(Default)]
struct Passed {
    named: Vec<PassedOver>,
    more: u64,
}

impl Passed {
    fn add(&mut self, passed: PassedOver) {
        if self.named.len() < Decision::NAMED {
            self.named.push(passed);
        } else {
            self.more += 1;
        }
    }
}
