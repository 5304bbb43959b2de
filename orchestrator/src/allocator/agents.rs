//! Agents: where resources come from.

use std::collections::{BTreeMap, BTreeSet};

use super::{AgentKey, Allocator, Error, FrameworkKey, MemberKey, Offer, OfferKey};
use crate::attributes::Attributes;
use crate::resources::{Quantities, Resources};

#[derive(Debug)]
pub(super) struct Agent {
    pub(super) total: Resources,
    pub(super) attributes: Attributes,
    /// Whether it can be offered now.
    pub(super) active: bool,
    /// What nobody was offered or uses.
    pub(super) free: Resources,
    pub(super) offers: BTreeSet<OfferKey>,
    pub(super) used: BTreeMap<MemberKey, Resources>,
}

impl Allocator {
    /// An agent appears, with nothing in use.
    pub fn add_agent(&mut self, total: Resources, attributes: Attributes) -> Result<AgentKey, Error> {
        self.total = cluster_sum(&self.total, &total.quantities)?;
        Ok(self.agents.insert(Agent {
            free: total.clone(),
            total,
            attributes,
            active: true,
            offers: BTreeSet::new(),
            used: BTreeMap::new(),
        }))
    }

    /// An agent has other resources or attributes than before. Its offers are withdrawn, for they may no longer be right. What is
    /// used must be part of its new resources.
    pub fn update_agent(
        &mut self,
        key: AgentKey,
        total: Resources,
        attributes: Attributes,
    ) -> Result<Vec<(OfferKey, Offer)>, Error> {
        let agent = self.agents.get(key).ok_or(Error::UnknownAgent)?;
        let mut free = total.clone();
        for used in agent.used.values() {
            take(&mut free, used)?;
        }
        let others = self.total.saturating_sub(&agent.total.quantities);
        let sum = cluster_sum(&others, &total.quantities)?;
        let rescinded = self.rescind_all(key);
        self.total = sum;
        let agent = self.agents.get_mut(key).ok_or(Error::UnknownAgent)?;
        (agent.total, agent.attributes, agent.free) = (total, attributes, free);
        Ok(rescinded)
    }

    /// An agent says something else of itself. What is offered of it stays offered: whoever has the offer decides by what it says.
    pub fn set_attributes(&mut self, key: AgentKey, attributes: Attributes) {
        if let Some(agent) = self.agents.get_mut(key) {
            agent.attributes = attributes;
        }
    }

    /// Whether an agent can be offered: not while it is unreachable or being drained. What is used on it stays used; offers of one
    /// that no longer can are withdrawn.
    pub fn set_agent_active(&mut self, key: AgentKey, active: bool) -> Result<Vec<(OfferKey, Offer)>, Error> {
        self.agents.get_mut(key).ok_or(Error::UnknownAgent)?.active = active;
        Ok(if active { Vec::new() } else { self.rescind_all(key) })
    }

    /// An agent is gone, with all that was used on it.
    pub fn remove_agent(&mut self, key: AgentKey) -> Result<Vec<(OfferKey, Offer)>, Error> {
        if !self.agents.contains_key(key) {
            return Err(Error::UnknownAgent);
        }
        let rescinded = self.rescind_all(key);
        let agent = self.agents.remove(key).ok_or(Error::UnknownAgent)?;
        self.total -= &agent.total.quantities;
        for (member, used) in agent.used {
            self.members[member].agents -= 1;
            self.give_up(member, &used.quantities);
        }
        for member in self.members.values_mut() {
            member.filters.remove(key);
        }
        Ok(rescinded)
    }

    /// Something on an agent turns out to be in use, as when it comes back to a new master with its tasks.
    pub fn claim(&mut self, key: AgentKey, framework: FrameworkKey, role: &str, part: &Resources) -> Result<(), Error> {
        let agent = self.agents.get(key).ok_or(Error::UnknownAgent)?;
        take(&mut agent.free.clone(), part)?;
        let member = self.member_or_join(framework, role)?;
        let agent = self.agents.get_mut(key).ok_or(Error::UnknownAgent)?;
        take(&mut agent.free, part)?;
        self.put_to_use(key, member, part);
        Ok(())
    }

    /// What a framework used on an agent is free again.
    pub fn release(
        &mut self,
        key: AgentKey,
        framework: FrameworkKey,
        role: &str,
        part: &Resources,
    ) -> Result<(), Error> {
        let member = self.member(framework, role)?;
        let agent = self.agents.get_mut(key).ok_or(Error::UnknownAgent)?;
        let mut nothing = Resources::default();
        let used = agent.used.get_mut(&member).unwrap_or(&mut nothing);
        take(used, part)?;
        if used.is_empty() {
            agent.used.remove(&member);
            self.members[member].agents -= 1;
        }
        agent.free.add(part);
        self.give_up(member, &part.quantities);
        Ok(())
    }

    /// Counts as used by a member what is no longer free or offered.
    pub(super) fn put_to_use(&mut self, key: AgentKey, member: MemberKey, part: &Resources) {
        if part.is_empty() {
            return;
        }
        let used = self.agents[key].used.entry(member).or_default();
        let member = &mut self.members[member];
        member.agents += usize::from(used.is_empty());
        used.add(part);
        member.used += &part.quantities;
        self.roles[member.role].used += &part.quantities;
    }

    /// The reverse for a member's own accounts and its role's; then forgets either if it was kept for this only.
    fn give_up(&mut self, key: MemberKey, part: &Quantities) {
        let member = &mut self.members[key];
        member.used -= part;
        let role = member.role;
        self.roles[role].used -= part;
        self.forget_member_if_unused(key);
    }

    fn rescind_all(&mut self, key: AgentKey) -> Vec<(OfferKey, Offer)> {
        let offers = self.agents[key].offers.clone();
        offers.into_iter().filter_map(|offer| Some((offer, self.rescind(offer).ok()?))).collect()
    }
}

fn cluster_sum(others: &Quantities, agent: &Quantities) -> Result<Quantities, Error> {
    others.within_a_cluster(agent).map_err(|kind| Error::ClusterTooLarge { kind })
}

/// Takes a part away, or says why that cannot be.
pub(super) fn take(from: &mut Resources, part: &Resources) -> Result<(), Error> {
    if from.take(part) {
        Ok(())
    } else if from.quantities.contains(&part.quantities) {
        Err(Error::NoSuchPorts)
    } else {
        Err(Error::TooMuch { wanted: part.quantities, available: from.quantities })
    }
}
