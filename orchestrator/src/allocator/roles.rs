//! Roles: who shares, with which weight and quota.

use std::sync::Arc;

use super::{Allocator, Error, MemberKey, Quota, RoleKey, Weight};
use crate::resources::Quantities;

#[derive(Debug)]
pub(super) struct Role {
    pub(super) name: Arc<str>,
    pub(super) weight: Weight,
    pub(super) quota: Quota,
    pub(super) members: Vec<MemberKey>,
    pub(super) offered: Quantities,
    pub(super) used: Quantities,
    /// How many offers it was ever made: of roles with the same score, the one with fewest comes first.
    pub(super) turns: u64,
}

impl Role {
    /// What its members were offered and what they use: both count as theirs.
    pub(super) fn held(&self) -> Quantities {
        let mut held = self.used;
        held += &self.offered;
        held
    }

    /// What it holds less than it is guaranteed.
    pub(super) fn missing(&self) -> Quantities {
        self.quota.guarantee.saturating_sub(&self.held())
    }

    /// What it may be offered before it reaches its limit.
    pub(super) fn below_limit(&self) -> Quantities {
        self.quota.limit.saturating_sub(&self.held())
    }
}

impl Allocator {
    /// A role weighs more or less than others from now on.
    pub fn set_weight(&mut self, role: &str, weight: Weight) {
        let key = self.role(role);
        self.roles[key].weight = weight;
        self.forget_role_if_unused(key);
    }

    /// A role is guaranteed and limited to other amounts from now on. What it already holds beyond a new limit it keeps.
    pub fn set_quota(&mut self, role: &str, quota: Quota) -> Result<(), Error> {
        quota.check()?;
        let others = self.roles.values().filter(|other| *other.name != *role).map(|other| &other.quota.guarantee);
        let others = others.fold(Quantities::ZERO, |mut sum, guarantee| {
            sum += guarantee;
            sum
        });
        others.within_a_cluster(&quota.guarantee).map_err(|kind| Error::GuaranteesTooLarge { kind })?;
        let key = self.role(role);
        self.roles[key].quota = quota;
        self.forget_role_if_unused(key);
        Ok(())
    }

    /// The role of this name, made where there is none.
    pub(super) fn role(&mut self, name: &str) -> RoleKey {
        if let Some(key) = self.role_names.get(name) {
            return *key;
        }
        let name: Arc<str> = name.into();
        let key = self.roles.insert(Role {
            name: Arc::clone(&name),
            weight: Weight::ONE,
            quota: Quota::default(),
            members: Vec::new(),
            offered: Quantities::ZERO,
            used: Quantities::ZERO,
            turns: 0,
        });
        self.role_names.insert(name, key);
        key
    }

    /// A role lasts while it has members or a setting of its own.
    pub(super) fn forget_role_if_unused(&mut self, key: RoleKey) {
        let role = &self.roles[key];
        if role.members.is_empty() && role.weight == Weight::ONE && role.quota == Quota::default() {
            self.role_names.remove(&role.name);
            self.roles.remove(key);
        }
    }
}
