//! The life of an offer, from the cycle that made it to its end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::agents::take;
use super::explain::Decision;
use super::{AgentKey, Allocator, Error, FrameworkKey, MemberKey, OfferKey};
use crate::resources::Resources;

/// Resources of one agent that a framework may use, in one of its roles.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Whose they are.
    pub agent: AgentKey,
    /// To whom they are offered.
    pub framework: FrameworkKey,
    /// In which role.
    pub role: Arc<str>,
    /// What is offered.
    pub resources: Resources,
    /// When it was made.
    pub made: Duration,
    /// Why.
    pub decision: Decision,
    pub(super) member: MemberKey,
}

impl Allocator {
    /// An offer that is still open.
    pub fn offer(&self, key: OfferKey) -> Option<&Offer> {
        self.offers.get(key)
    }

    /// All open offers.
    pub fn offers(&self) -> impl Iterator<Item = (OfferKey, &Offer)> {
        self.offers.iter()
    }

    /// A framework uses part of what it was offered on one agent; the rest is free, and refused for a while. Returns the offers,
    /// which are closed.
    pub fn accept(
        &mut self,
        keys: &[OfferKey],
        part: &Resources,
        now: Duration,
        refuse: Duration,
    ) -> Result<Vec<Offer>, Error> {
        let first = self.offers.get(*keys.first().ok_or(Error::NoOffers)?).ok_or(Error::UnknownOffer)?;
        let (agent, member) = (first.agent, first.member);
        let mut rest = Resources::default();
        let mut named = BTreeSet::new();
        for key in keys {
            let offer = self.offers.get(*key).filter(|_| named.insert(*key)).ok_or(Error::UnknownOffer)?;
            if (offer.agent, offer.member) != (agent, member) {
                return Err(Error::MixedOffers);
            }
            rest.add(&offer.resources);
        }
        take(&mut rest, part)?;
        let offers = keys.iter().map(|key| self.close(*key)).collect::<Result<Vec<_>, _>>()?;
        take(&mut self.agents[agent].free, part)?;
        self.put_to_use(agent, member, part);
        if !rest.is_empty() {
            self.members[member].filters.refuse(agent, rest.quantities, now, refuse);
        }
        self.forget_member_if_unused(member);
        Ok(offers)
    }

    /// A framework does not want an offer, nor the same again for a while.
    pub fn decline(&mut self, key: OfferKey, now: Duration, refuse: Duration) -> Result<Offer, Error> {
        let offer = self.close(key)?;
        self.members[offer.member].filters.refuse(offer.agent, offer.resources.quantities, now, refuse);
        Ok(offer)
    }

    /// An offer is withdrawn.
    pub fn rescind(&mut self, key: OfferKey) -> Result<Offer, Error> {
        let offer = self.close(key)?;
        self.forget_member_if_unused(offer.member);
        Ok(offer)
    }

    /// Withdraws the offers that were kept for too long.
    pub fn expire(&mut self, now: Duration) -> Vec<(OfferKey, Offer)> {
        match self.config.offer_timeout {
            Some(timeout) => self.rescind_where(|offer| offer.made.saturating_add(timeout) <= now),
            None => Vec::new(),
        }
    }

    /// Withdraws the offers that satisfy a condition.
    pub(super) fn rescind_where(&mut self, condition: impl Fn(&Offer) -> bool) -> Vec<(OfferKey, Offer)> {
        let keys = self.offers.iter().filter(|(_, offer)| condition(offer)).map(|(key, _)| key);
        let keys: Vec<OfferKey> = keys.collect();
        keys.into_iter().filter_map(|key| Some((key, self.rescind(key).ok()?))).collect()
    }

    /// Opens an offer of what is free.
    pub(super) fn open(&mut self, offer: Offer) -> OfferKey {
        let part = offer.resources.quantities;
        self.agents[offer.agent].free.take(&offer.resources);
        let member = &mut self.members[offer.member];
        member.offered += &part;
        member.turns += 1;
        let role = &mut self.roles[member.role];
        role.offered += &part;
        role.turns += 1;
        let agent = offer.agent;
        let key = self.offers.insert(offer);
        self.agents[agent].offers.insert(key);
        key
    }

    /// Closes an offer: what was offered is free.
    fn close(&mut self, key: OfferKey) -> Result<Offer, Error> {
        let offer = self.offers.remove(key).ok_or(Error::UnknownOffer)?;
        let part = offer.resources.quantities;
        let agent = &mut self.agents[offer.agent];
        agent.offers.remove(&key);
        agent.free.add(&offer.resources);
        let member = &mut self.members[offer.member];
        member.offered -= &part;
        self.roles[member.role].offered -= &part;
        Ok(offer)
    }
}
