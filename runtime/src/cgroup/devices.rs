//! Which devices a group may open and make: the rules of the OCI configuration on the v1 controller, or as a program on v2.

use std::fmt;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::hierarchies::Controller;
use super::resources::unsupported;
use super::{CgroupManager, Error, Result, device_program, file::write_each, write};

/// Rights on a device, as bits.
pub(super) const MKNOD: u8 = 1;
pub(super) const READ: u8 = 2;
pub(super) const WRITE: u8 = 4;
pub(super) const ALL: u8 = MKNOD | READ | WRITE;

/// More rules than any container has; the kernel bounds the program made of them.
pub(super) const MAX_RULES: usize = 500;

/// Block or character device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Block,
    Char,
}

/// Rights on one device, or on several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub(super) allow: bool,
    pub(super) kind: Kind,
    /// `None`: every one.
    pub(super) major: Option<u32>,
    /// `None`: every one.
    pub(super) minor: Option<u32>,
    /// [`MKNOD`], [`READ`], [`WRITE`].
    pub(super) access: u8,
}

impl Rule {
    const fn allow(kind: Kind, major: Option<u32>, minor: Option<u32>, access: u8) -> Self {
        Self { allow: true, kind, major, minor, access }
    }
}

/// What every sandbox may use, whatever its configuration says (config-linux.md, "Default Devices"): any node may be made
/// (making one gives no right to open it), and null, zero, full, random, urandom, tty, console, ptmx and the
/// pseudo terminals opened.
pub const DEFAULT_DEVICES: &[Rule] = &[
    Rule::allow(Kind::Char, None, None, MKNOD),
    Rule::allow(Kind::Block, None, None, MKNOD),
    Rule::allow(Kind::Char, Some(1), Some(3), ALL),
    Rule::allow(Kind::Char, Some(1), Some(5), ALL),
    Rule::allow(Kind::Char, Some(1), Some(7), ALL),
    Rule::allow(Kind::Char, Some(1), Some(8), ALL),
    Rule::allow(Kind::Char, Some(1), Some(9), ALL),
    Rule::allow(Kind::Char, Some(5), Some(0), ALL),
    Rule::allow(Kind::Char, Some(5), Some(1), ALL),
    Rule::allow(Kind::Char, Some(5), Some(2), ALL),
    Rule::allow(Kind::Char, Some(136), None, ALL),
];

/// A rule as the v1 controller reads it.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.kind == Kind::Block { "b " } else { "c " })?;
        match self.major {
            Some(major) => write!(f, "{major}:")?,
            None => f.write_str("*:")?,
        }
        match self.minor {
            Some(minor) => write!(f, "{minor} ")?,
            None => f.write_str("* ")?,
        }
        for (bit, letter) in [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')] {
            if self.access & bit != 0 {
                write!(f, "{letter}")?;
            }
        }
        Ok(())
    }
}

/// Applies `rules`, later ones before earlier ones, then [`DEFAULT_DEVICES`] before them all. What no rule
/// mentions is denied.
pub(super) fn apply(cgroup: &CgroupManager, rules: &[LinuxDeviceCgroup]) -> Result<()> {
    let mut all = Vec::with_capacity(rules.len() + DEFAULT_DEVICES.len());
    for rule in rules {
        all.extend(parse(rule)?);
    }
    all.extend_from_slice(DEFAULT_DEVICES);
    if all.len() > MAX_RULES {
        return Err(invalid(format!("there are {} rules, and {MAX_RULES} are allowed", all.len())));
    }
    if let Controller::V1(dir) = cgroup.controller("devices") {
        let policy = Policy::of(&all)?;
        let (reset, except) = if policy.allow { ("allow", "deny") } else { ("deny", "allow") };
        write(&dir.join(format!("devices.{reset}")), "a")?;
        return write_each(&dir.join(format!("devices.{except}")), &policy.exceptions);
    }
    match &cgroup.hierarchies.v2 {
        Some(v2) => device_program::attach(&v2.point.join(&cgroup.path), &all),
        None => Err(unsupported("devices", "device rules")),
    }
}

fn invalid(reason: String) -> Error {
    Error::Invalid { limit: "devices".to_owned(), reason }
}

/// The rule of an OCI configuration; two if it is about devices of both kinds.
fn parse(rule: &LinuxDeviceCgroup) -> Result<Vec<Rule>> {
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| invalid(format!("rule '{rule}' has a device number out of range"))),
    };
    let mut access = 0;
    match rule.access().as_deref() {
        None | Some("") => access = ALL,
        Some(letters) => {
            for letter in letters.chars() {
                access |= match letter {
                    'r' => READ,
                    'w' => WRITE,
                    'm' => MKNOD,
                    _ => {
                        return Err(invalid(format!("rule '{rule}' has an access other than r, w and m")));
                    }
                };
            }
        }
    }
    let kinds: &[Kind] = match rule.typ().unwrap_or_default() {
        LinuxDeviceType::A => &[Kind::Block, Kind::Char],
        LinuxDeviceType::B => &[Kind::Block],
        LinuxDeviceType::C | LinuxDeviceType::U => &[Kind::Char],
        LinuxDeviceType::P => {
            return Err(invalid(format!("rule '{rule}' is about a fifo, which needs no right")));
        }
    };
    let (major, minor) = (number(rule.major())?, number(rule.minor())?);
    Ok(kinds.iter().map(|kind| Rule { allow: rule.allow(), kind: *kind, major, minor, access }).collect())
}

/// Rules as the v1 controller has them: a default and exceptions to it, without order.
#[derive(Debug, PartialEq, Eq)]
struct Policy {
    allow: bool,
    exceptions: Vec<Rule>,
}

impl Policy {
    fn of(rules: &[Rule]) -> Result<Self> {
        let everything =
            |rule: &Rule, kind| rule.kind == kind && rule.major.is_none() && rule.minor.is_none() && rule.access == ALL;
        let mut policy = Self { allow: false, exceptions: Vec::new() };
        let mut rest = rules;
        while let Some((rule, after)) = rest.split_first() {
            rest = after;
            // A rule about everything is two, one for each kind.
            if let Some((next, after)) = after.split_first()
                && everything(rule, Kind::Block)
                && everything(next, Kind::Char)
                && rule.allow == next.allow
            {
                policy = Self { allow: rule.allow, exceptions: Vec::new() };
                rest = after;
            } else if rule.allow == policy.allow {
                policy.drop_exceptions(rule)?;
            } else {
                policy.add_exception(rule);
            }
        }
        Ok(policy)
    }

    fn add_exception(&mut self, rule: &Rule) {
        match self.exceptions.iter_mut().find(|exception| same_devices(exception, rule)) {
            Some(exception) => exception.access |= rule.access,
            None => self.exceptions.push(*rule),
        }
    }

    /// Takes back what earlier rules excepted. Exceptions have no order, so a part of a wider one cannot be taken back.
    fn drop_exceptions(&mut self, rule: &Rule) -> Result<()> {
        let covers = |wide: Option<u32>, narrow: Option<u32>| wide.is_none() || wide == narrow;
        let meets = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        for exception in &mut self.exceptions {
            if exception.kind != rule.kind || exception.access & rule.access == 0 {
                continue;
            }
            if covers(rule.major, exception.major) && covers(rule.minor, exception.minor) {
                exception.access &= !rule.access;
            } else if meets(rule.major, exception.major) && meets(rule.minor, exception.minor) {
                return Err(invalid(format!("cgroup v1 cannot except '{rule}' from '{exception}'")));
            }
        }
        self.exceptions.retain(|exception| exception.access != 0);
        Ok(())
    }
}

fn same_devices(a: &Rule, b: &Rule) -> bool {
    (a.kind, a.major, a.minor) == (b.kind, b.major, b.minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(rules: &serde_json::Value) -> Result<(bool, Vec<String>)> {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(rules.clone()).unwrap();
        let mut parsed = Vec::new();
        for rule in &rules {
            parsed.extend(parse(rule)?);
        }
        let policy = Policy::of(&parsed)?;
        Ok((policy.allow, policy.exceptions.iter().map(ToString::to_string).collect()))
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn later_rules_count() {
        let rules = serde_json::json!([
            {"allow": true, "type": "c", "major": 9, "minor": 9, "access": "rwm"},
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "r"},
            {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "wm"},
            {"allow": true, "type": "b", "major": 8, "minor": -1, "access": "rw"},
            {"allow": false, "type": "b", "major": 8, "access": "w"},
        ]);
        assert_eq!(policy(&rules).unwrap(), (false, strings(&["c 10:200 rwm", "b 8:* r"])));
    }

    #[test]
    fn everything_may_be_allowed_with_exceptions() {
        let rules = serde_json::json!([
            {"allow": true, "type": "a", "access": "rwm"},
            {"allow": false, "type": "a", "major": 8, "access": "w"},
        ]);
        assert_eq!(policy(&rules).unwrap(), (true, strings(&["b 8:* w", "c 8:* w"])));
    }

    #[test]
    fn what_cannot_be_said_is_refused() {
        for rules in [
            serde_json::json!([{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rx"}]),
            serde_json::json!([{"allow": true, "type": "c", "major": -7, "minor": 3, "access": "r"}]),
            serde_json::json!([{"allow": true, "type": "p", "access": "r"}]),
            serde_json::json!([
                {"allow": true, "type": "c", "major": 1, "access": "r"},
                {"allow": false, "type": "c", "major": 1, "minor": 3, "access": "r"},
            ]),
        ] {
            assert!(matches!(policy(&rules), Err(Error::Invalid { .. })), "{rules}");
        }
    }
}
