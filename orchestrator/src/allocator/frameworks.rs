//! Frameworks and the roles they are in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::explain::Tally;
use super::filters::Filters;
use super::{Allocator, Error, FrameworkKey, MemberKey, Offer, OfferKey, RoleKey};
use crate::attributes::Constraints;
use crate::resources::Quantities;

/// What a framework wants in one role.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Subscription {
    /// Which agents it wants to be offered.
    pub constraints: Constraints,
    /// Whether it wants no offers for now.
    pub suppressed: bool,
}

#[derive(Debug)]
pub(super) struct Framework {
    /// Whether it can be made offers now.
    pub(super) active: bool,
    pub(super) members: BTreeMap<RoleKey, MemberKey>,
    /// Removed, and kept only for what it still uses.
    pub(super) gone: bool,
}

/// A framework in one of its roles.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) framework: FrameworkKey,
    pub(super) role: RoleKey,
    /// What the framework wants; none if it left the role, and is kept here only for what it still uses.
    pub(super) subscription: Option<Subscription>,
    pub(super) offered: Quantities,
    pub(super) used: Quantities,
    /// On how many agents it uses something, if only ports.
    pub(super) agents: usize,
    /// How many offers it was ever made.
    pub(super) turns: u64,
    pub(super) filters: Filters,
    /// What happened to it in the last cycle.
    pub(super) tally: Tally,
}

impl Member {
    /// What it was offered and what it uses.
    pub(super) fn held(&self) -> Quantities {
        let mut held = self.used;
        held += &self.offered;
        held
    }
}

impl Allocator {
    /// A framework subscribes with its roles.
    pub fn add_framework(&mut self, roles: BTreeMap<String, Subscription>) -> FrameworkKey {
        let key = self.frameworks.insert(Framework { active: true, members: BTreeMap::new(), gone: false });
        for (role, subscription) in roles {
            self.join(key, &role, Some(subscription));
        }
        key
    }

    /// A framework has other roles, or wants other agents in them, than before. Offers in roles it left are withdrawn.
    pub fn update_framework(
        &mut self,
        key: FrameworkKey,
        mut roles: BTreeMap<String, Subscription>,
    ) -> Result<Vec<(OfferKey, Offer)>, Error> {
        let members = self.framework(key)?.members.clone();
        let mut left = Vec::new();
        for (role, member) in members {
            let subscription = roles.remove(&*self.roles[role].name);
            if subscription.is_none() {
                left.push(member);
            }
            self.members[member].subscription = subscription;
        }
        let rescinded = self.rescind_where(|offer| left.contains(&offer.member));
        for member in left {
            self.forget_member_if_unused(member);
        }
        for (role, subscription) in roles {
            self.join(key, &role, Some(subscription));
        }
        Ok(rescinded)
    }

    /// Whether a framework can be made offers: not while it is disconnected. Offers to one that no longer can are withdrawn.
    pub fn set_framework_active(&mut self, key: FrameworkKey, active: bool) -> Result<Vec<(OfferKey, Offer)>, Error> {
        self.framework(key)?;
        self.frameworks[key].active = active;
        Ok(if active { Vec::new() } else { self.rescind_where(|offer| offer.framework == key) })
    }

    /// A framework is gone. What it uses stays in use until it is released, task by task.
    pub fn remove_framework(&mut self, key: FrameworkKey) -> Result<Vec<(OfferKey, Offer)>, Error> {
        let rescinded = self.update_framework(key, BTreeMap::new())?;
        self.frameworks[key].gone = true;
        if self.frameworks[key].members.is_empty() {
            self.frameworks.remove(key);
        }
        Ok(rescinded)
    }

    /// A framework wants no offers in these roles for now; in none, if it names none.
    pub fn suppress(&mut self, key: FrameworkKey, roles: &[String]) -> Result<(), Error> {
        self.subscribed(key, roles, |_, subscription| subscription.suppressed = true)
    }

    /// A framework wants offers in these roles again, of whatever it refused before too; in all, if it names none.
    pub fn revive(&mut self, key: FrameworkKey, roles: &[String]) -> Result<(), Error> {
        self.subscribed(key, roles, |filters, subscription| {
            subscription.suppressed = false;
            filters.clear();
        })
    }

    /// Changes what a framework wants in the roles named, or in all.
    fn subscribed(
        &mut self,
        key: FrameworkKey,
        roles: &[String],
        change: impl Fn(&mut Filters, &mut Subscription),
    ) -> Result<(), Error> {
        let members: Vec<MemberKey> = if roles.is_empty() {
            self.framework(key)?.members.values().copied().collect()
        } else {
            roles.iter().map(|role| self.member(key, role)).collect::<Result<_, _>>()?
        };
        for member in members {
            let Member { filters, subscription, .. } = &mut self.members[member];
            if let Some(subscription) = subscription {
                change(filters, subscription);
            }
        }
        Ok(())
    }

    /// A framework that is not gone.
    fn framework(&self, key: FrameworkKey) -> Result<&Framework, Error> {
        self.frameworks.get(key).filter(|framework| !framework.gone).ok_or(Error::UnknownFramework)
    }

    /// A framework, gone or not, in a role.
    pub(super) fn member(&self, key: FrameworkKey, role: &str) -> Result<MemberKey, Error> {
        let framework = self.frameworks.get(key).ok_or(Error::UnknownFramework)?;
        let role_key = self.role_names.get(role);
        let member = role_key.and_then(|role| framework.members.get(role));
        member.copied().ok_or_else(|| Error::UnknownRole(role.to_owned()))
    }

    /// The same, but a framework that is not in the role is made a member that wants nothing.
    pub(super) fn member_or_join(&mut self, key: FrameworkKey, role: &str) -> Result<MemberKey, Error> {
        match self.member(key, role) {
            Err(Error::UnknownRole(_)) => Ok(self.join(key, role, None)),
            known => known,
        }
    }

    fn join(&mut self, framework: FrameworkKey, role: &str, subscription: Option<Subscription>) -> MemberKey {
        let role = self.role(role);
        let member = self.members.insert(Member {
            framework,
            role,
            subscription,
            offered: Quantities::ZERO,
            used: Quantities::ZERO,
            agents: 0,
            turns: 0,
            filters: Filters::default(),
            tally: Tally::default(),
        });
        self.roles[role].members.push(member);
        self.frameworks[framework].members.insert(role, member);
        member
    }

    /// A member lasts while the framework wants to be one or holds something as such; a framework that is gone, while it has
    /// members.
    pub(super) fn forget_member_if_unused(&mut self, key: MemberKey) {
        let Some(member) = self.members.get(key) else { return };
        if member.subscription.is_some() || member.agents > 0 || !member.offered.is_zero() {
            return;
        }
        let (role, framework) = (member.role, member.framework);
        self.members.remove(key);
        self.roles[role].members.retain(|other| *other != key);
        self.forget_role_if_unused(role);
        let members = &mut self.frameworks[framework].members;
        members.remove(&role);
        if members.is_empty() && self.frameworks[framework].gone {
            self.frameworks.remove(framework);
        }
    }
}
