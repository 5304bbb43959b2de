//! What a framework says of itself: `FrameworkInfo`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::resources::Dialect;
use super::{Id, Invalid, name};
use crate::allocator::Subscription;
use crate::attributes::{Constraint, Constraints, Pattern};
use crate::master::{FrameworkId, FrameworkInfo};

/// The most roles of a framework.
const MOST_ROLES: usize = 1000;
/// The most constraints on offers in one role.
const MOST_CONSTRAINTS: usize = 1000;
/// The longest name of a principal, in bytes.
pub(crate) const LONGEST_PRINCIPAL: usize = 1024;
/// The longest time that tasks may live without their framework: ten years.
const LONGEST_FAILOVER: f64 = 10.0 * 365.0 * 86_400.0;

/// `Subscribe` and `UpdateFramework`, which say the same.
#[derive(Debug, Deserialize)]
pub struct Declaration {
    framework_info: Info,
    #[serde(default)]
    suppressed_roles: Vec<String>,
    #[serde(default)]
    offer_constraints: OfferConstraints,
}

#[derive(Debug, Deserialize)]
struct Info {
    id: Option<Id>,
    name: String,
    principal: Option<String>,
    role: Option<String>,
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    failover_timeout: f64,
    #[serde(default)]
    capabilities: Vec<Capability>,
}

#[derive(Debug, Deserialize)]
struct Capability {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Default, Deserialize)]
struct OfferConstraints {
    #[serde(default)]
    role_constraints: BTreeMap<String, RoleConstraints>,
}

#[derive(Debug, Deserialize)]
struct RoleConstraints {
    #[serde(default)]
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
struct Group {
    #[serde(default)]
    attribute_constraints: Vec<AttributeConstraint>,
}

#[derive(Debug, Deserialize)]
struct AttributeConstraint {
    selector: Selector,
    predicate: Predicate,
}

#[derive(Debug, Deserialize)]
struct Selector {
    attribute_name: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Predicate {
    exists: Option<Nothing>,
    not_exists: Option<Nothing>,
    text_equals: Option<Id>,
    text_not_equals: Option<Id>,
    text_matches: Option<Regex>,
    text_not_matches: Option<Regex>,
}

#[derive(Debug, Deserialize)]
struct Nothing {}

#[derive(Debug, Deserialize)]
struct Regex {
    regex: String,
}

/// A framework, as it wants to be known.
#[derive(Debug)]
pub struct Framework {
    /// The id it says it has.
    pub id: Option<FrameworkId>,
    /// What the master has to know.
    pub info: FrameworkInfo,
    /// How it wants offers to be written.
    pub dialect: Dialect,
}

impl Declaration {
    /// Checks what is said.
    pub fn read(self) -> Result<Framework, Invalid> {
        let info = self.framework_info;
        let has = |capability: &str| info.capabilities.iter().any(|known| known.kind == capability);
        let dialect = Dialect { multi_role: has("MULTI_ROLE"), reservation_refinement: has("RESERVATION_REFINEMENT") };
        let partition_aware = has("PARTITION_AWARE");
        if !(0.0..=LONGEST_FAILOVER).contains(&info.failover_timeout) {
            return Err(Invalid::new("framework_info.failover_timeout", "has to be between 0 and 315360000 seconds"));
        }
        let roles = match (dialect.multi_role, info.role) {
            (true, Some(_)) => {
                let problem = "cannot be set by a framework with the capability MULTI_ROLE, which sets `roles`";
                return Err(Invalid::new("framework_info.role", problem));
            }
            (true, None) => info.roles,
            (false, _) if !info.roles.is_empty() => {
                let problem = "takes the capability MULTI_ROLE; without it, set `role`";
                return Err(Invalid::new("framework_info.roles", problem));
            }
            (false, role) => vec![role.unwrap_or_else(|| "*".to_owned())],
        };
        if roles.len() > MOST_ROLES {
            return Err(Invalid::new("framework_info.roles", format!("has more than {MOST_ROLES} entries")));
        }
        let mut subscriptions = BTreeMap::new();
        for (index, role) in roles.into_iter().enumerate() {
            let field = format!("framework_info.roles[{index}]");
            check_role(&role, &field)?;
            if subscriptions.insert(role, Subscription::default()).is_some() {
                return Err(Invalid::new(field, "is named twice"));
            }
        }
        for (index, role) in self.suppressed_roles.iter().enumerate() {
            let field = || format!("suppressed_roles[{index}]");
            let subscription = subscriptions.get_mut(role);
            subscription.ok_or_else(|| Invalid::new(field(), "is none of the framework's roles"))?.suppressed = true;
        }
        for (role, constraints) in self.offer_constraints.role_constraints {
            let field = format!("offer_constraints.role_constraints.{role}");
            let subscription = subscriptions.get_mut(&role);
            let subscription = subscription.ok_or_else(|| Invalid::new(&field, "is none of the framework's roles"))?;
            subscription.constraints = constraints.read().map_err(|wrong| wrong.within(&field))?;
        }
        if info.name.len() > super::NAME_LENGTH {
            return Err(Invalid::new("framework_info.name", format!("has more than {} bytes", super::NAME_LENGTH)));
        }
        if info.principal.as_ref().is_some_and(|principal| principal.len() > LONGEST_PRINCIPAL) {
            let problem = format!("has more than {LONGEST_PRINCIPAL} bytes");
            return Err(Invalid::new("framework_info.principal", problem));
        }
        // Clients of old say an empty id when they have none.
        let id = info.id.filter(|id| !id.value.is_empty());
        Ok(Framework {
            id: id.map(|id| id.checked("framework_info.id.value")).transpose()?.map(FrameworkId::from),
            info: FrameworkInfo {
                name: info.name,
                roles: subscriptions,
                failover_timeout: Duration::from_secs_f64(info.failover_timeout),
                partition_aware,
                principal: info.principal.map(Into::into),
            },
            dialect,
        })
    }
}

/// Whether a text can be the name of a role.
pub(crate) fn check_role(role: &str, field: &str) -> Result<(), Invalid> {
    name(role, field)?;
    if role == "." || role == ".." || role.starts_with('-') || role.contains(char::is_whitespace) {
        return Err(Invalid::new(field, "a role is not `.` or `..`, starts with no dash and has no white space"));
    }
    Ok(())
}

impl RoleConstraints {
    fn read(self) -> Result<Constraints, Invalid> {
        let count: usize = self.groups.iter().map(|group| group.attribute_constraints.len()).sum();
        if count > MOST_CONSTRAINTS || self.groups.len() > MOST_CONSTRAINTS {
            return Err(Invalid::new("groups", format!("has more than {MOST_CONSTRAINTS} constraints")));
        }
        let mut groups = Vec::new();
        for (outer, group) in self.groups.into_iter().enumerate() {
            let mut constraints = Vec::new();
            for (inner, constraint) in group.attribute_constraints.into_iter().enumerate() {
                let field = format!("groups[{outer}].attribute_constraints[{inner}]");
                constraints.push(constraint.read().map_err(|wrong| wrong.within(&field))?);
            }
            groups.push(constraints);
        }
        Ok(Constraints { groups })
    }
}

impl AttributeConstraint {
    fn read(self) -> Result<Constraint, Invalid> {
        let unnamed = || Invalid::new("selector.attribute_name", "is missing; there are no pseudo-attributes here");
        let name = self.selector.attribute_name.ok_or_else(unnamed)?;
        let pattern = |regex: Regex, field: &str| {
            Pattern::new(&regex.regex).map_err(|error| Invalid::new(format!("predicate.{field}.regex"), error))
        };
        match self.predicate {
            Predicate { exists: Some(Nothing {}), .. } => Ok(Constraint::Exists(name)),
            Predicate { not_exists: Some(Nothing {}), .. } => Ok(Constraint::Absent(name)),
            Predicate { text_equals: Some(text), .. } => Ok(Constraint::Equals(name, text.value)),
            Predicate { text_not_equals: Some(text), .. } => Ok(Constraint::Differs(name, text.value)),
            Predicate { text_matches: Some(it), .. } => Ok(Constraint::Matches(name, pattern(it, "text_matches")?)),
            Predicate { text_not_matches: Some(it), .. } => {
                Ok(Constraint::Mismatches(name, pattern(it, "text_not_matches")?))
            }
            _ => Err(Invalid::new("predicate", "is none that is known")),
        }
    }
}
