//! Resources and attributes as Mesos writes them.
//!
//! Memory and disk are counted in MiB there and in bytes here, CPUs in thousandths; powers of two keep the former
//! exact.

use std::ops::RangeInclusive;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Invalid;
use crate::attributes::Attributes;
use crate::resources::{Kind, Ports, Quantities, Resources};

/// The most ranges of ports in one request.
const MOST_RANGES: usize = 1024;
const MIB: f64 = 1_048_576.0;

/// `Resource`
#[derive(Debug, Clone, Deserialize)]
pub struct Resource {
    name: String,
    scalar: Option<Scalar>,
    ranges: Option<Ranges>,
    #[serde(default = "anybody")]
    role: String,
    #[serde(default)]
    reservations: Vec<Value>,
    reservation: Option<Value>,
    disk: Option<Value>,
    shared: Option<Value>,
    revocable: Option<Value>,
}

#[derive(Debug, Clone, Deserialize)]
struct Scalar {
    value: f64,
}

#[derive(Debug, Clone, Deserialize)]
struct Ranges {
    #[serde(default)]
    range: Vec<Range>,
}

#[derive(Debug, Clone, Deserialize)]
struct Range {
    begin: u64,
    end: u64,
}

fn anybody() -> String {
    "*".to_owned()
}

/// Adds up a list of resources; `field` is where it is.
pub fn read(list: &[Resource], field: &str) -> Result<Resources, Invalid> {
    let mut sum = Resources::default();
    for (index, resource) in list.iter().enumerate() {
        let here = format!("{field}[{index}]");
        let one = resource.read().map_err(|wrong| wrong.within(&here))?;
        if !sum.add(&one) {
            let problem = "together with those before it is more than a cluster may have, or a port is named twice";
            return Err(Invalid::new(here, problem));
        }
    }
    Ok(sum)
}

impl Resource {
    fn read(&self) -> Result<Resources, Invalid> {
        self.check_plain()?;
        let scalar = || self.scalar.as_ref().map(|scalar| scalar.value).ok_or_else(|| Invalid::missing("scalar"));
        let (kind, unit) = match self.name.as_str() {
            "ports" => return Ok(Resources { ports: self.read_ports()?, ..Resources::default() }),
            "cpus" => (Kind::Cpus, 1000.0),
            "mem" => (Kind::Memory, MIB),
            "disk" => (Kind::Disk, MIB),
            "gpus" => (Kind::Gpus, 1.0),
            other => {
                let problem = format!("`{other}` is not known; there are cpus, mem, disk, gpus and ports");
                return Err(Invalid::new("name", problem));
            }
        };
        let amount = (scalar()? * unit).round();
        // Also false for what is no number.
        #[expect(clippy::cast_precision_loss, reason = "limits are powers of two")]
        let possible = (0.0..=kind.cluster_limit() as f64).contains(&amount);
        if !possible {
            return Err(Invalid::new("scalar.value", "is negative, or more than a cluster may have"));
        }
        Ok(Quantities::ZERO.with(kind, amount as u64).into())
    }

    /// Reservations, volumes and the like do not exist here; to overlook one would be to give something else than was
    /// asked for.
    fn check_plain(&self) -> Result<(), Invalid> {
        if self.role != "*" {
            return Err(Invalid::new("role", "there are no reserved resources; it can only be `*`"));
        }
        let special = [
            ("reservations", !self.reservations.is_empty()),
            ("reservation", self.reservation.is_some()),
            ("disk", self.disk.is_some()),
            ("shared", self.shared.is_some()),
            ("revocable", self.revocable.is_some()),
        ];
        match special.into_iter().find(|(_, is_there)| *is_there) {
            Some((field, _)) => Err(Invalid::new(field, "is not supported: resources are plain amounts and ports")),
            None => Ok(()),
        }
    }

    fn read_ports(&self) -> Result<Ports, Invalid> {
        let ranges = &self.ranges.as_ref().ok_or_else(|| Invalid::missing("ranges"))?.range;
        if ranges.len() > MOST_RANGES {
            return Err(Invalid::new("ranges.range", format!("has more than {MOST_RANGES} entries")));
        }
        let port = |number: u64, field: String| {
            u16::try_from(number).map_err(|_| Invalid::new(field, format!("{number} is no port")))
        };
        let mut all = Resources::default();
        for (index, range) in ranges.iter().enumerate() {
            let here = format!("ranges.range[{index}]");
            let (begin, end) = (port(range.begin, format!("{here}.begin"))?, port(range.end, format!("{here}.end"))?);
            if begin > end {
                return Err(Invalid::new(here, "ends before it begins"));
            }
            let one = Resources { ports: [begin..=end].into_iter().collect(), ..Resources::default() };
            if !all.add(&one) {
                return Err(Invalid::new(here, "overlaps one before it"));
            }
        }
        Ok(all.ports)
    }
}

/// How a framework wants resources to be written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dialect {
    /// With the role they are offered in (capability `MULTI_ROLE`).
    pub multi_role: bool,
    /// Without the field `role`, which says for whom they are reserved (capability `RESERVATION_REFINEMENT`).
    pub reservation_refinement: bool,
}

/// Resources, offered in a role or nobody's.
pub fn write(resources: &Resources, role: Option<&str>, dialect: Dialect) -> Vec<Value> {
    let common = |mut resource: Value| {
        if !dialect.reservation_refinement {
            resource["role"] = json!("*");
        }
        if let Some(role) = role.filter(|_| dialect.multi_role) {
            resource["allocation_info"] = json!({ "role": role });
        }
        resource
    };
    let amounts = resources.quantities.iter().filter(|(_, amount)| *amount > 0);
    let amounts = amounts.map(|(kind, amount)| {
        let scalar = json!({ "value": amount_of(kind, amount) });
        common(json!({ "name": kind.to_string(), "type": "SCALAR", "scalar": scalar }))
    });
    let range = |range: &RangeInclusive<u16>| json!({ "begin": range.start(), "end": range.end() });
    let ranges: Vec<Value> = resources.ports.ranges().map(range).collect();
    let ports = (!ranges.is_empty())
        .then(|| common(json!({ "name": "ports", "type": "RANGES", "ranges": { "range": ranges } })));
    amounts.chain(ports).collect()
}

/// Amounts alone, by name.
pub fn amounts(quantities: &Quantities) -> Value {
    quantities.iter().map(|(kind, amount)| (kind.to_string(), json!(amount_of(kind, amount)))).collect()
}

/// An amount in the unit Mesos counts it in.
#[expect(clippy::cast_precision_loss, reason = "what clusters have is far below 2⁵³")]
fn amount_of(kind: Kind, amount: u64) -> f64 {
    match kind {
        Kind::Cpus => amount as f64 / 1000.0,
        Kind::Memory | Kind::Disk => amount as f64 / MIB,
        Kind::Gpus => amount as f64,
    }
}

/// Attributes, which are all texts here.
pub fn attributes(attributes: &Attributes) -> Vec<Value> {
    let one = |(name, text)| json!({ "name": name, "type": "TEXT", "text": { "value": text } });
    attributes.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{decode_list, parse};
    use super::*;

    fn read_text(text: &str) -> Result<Resources, Invalid> {
        read(&decode_list::<Resource>(parse(text.as_bytes())?)?, "resources")
    }

    #[test]
    fn what_is_written_is_read_again() {
        let resources = Resources {
            quantities: Quantities::new(1500, (3 << 20) + 1).with(Kind::Disk, 7).with(Kind::Gpus, 2),
            ports: [31_000..=31_005, 80..=80].into_iter().collect(),
        };
        for dialect in [Dialect::default(), Dialect { multi_role: true, reservation_refinement: true }] {
            let text = serde_json::to_string(&write(&resources, Some("a"), dialect)).unwrap();
            assert_eq!(text.contains("allocation_info"), dialect.multi_role);
            assert_eq!(text.contains(r#""role":"*""#), !dialect.reservation_refinement);
            assert_eq!(read_text(&text), Ok(resources.clone()), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        let cases = [
            (r#"[{"name": "cpus"}]"#, "resources[0].scalar"),
            (r#"[{"name": "cpus", "scalar": {"value": -1}}]"#, "resources[0].scalar.value"),
            (r#"[{"name": "mem", "scalar": {"value": 1e30}}]"#, "resources[0].scalar.value"),
            (r#"[{"name": "wheels", "scalar": {"value": 1}}]"#, "resources[0].name"),
            (r#"[{"name": "ports"}]"#, "resources[0].ranges"),
            (
                r#"[{"name": "ports", "ranges": {"range": [{"begin": 1, "end": 65536}]}}]"#,
                "resources[0].ranges.range[0].end",
            ),
            (r#"[{"name": "ports", "ranges": {"range": [{"begin": 2, "end": 1}]}}]"#, "resources[0].ranges.range[0]"),
            (r#"[{"name": "cpus", "scalar": {"value": 1}, "role": "a"}]"#, "resources[0].role"),
            (r#"[{"name": "disk", "scalar": {"value": 1}, "disk": {"persistence": {}}}]"#, "resources[0].disk"),
            (
                r#"[{"name": "cpus", "scalar": {"value": 1e9}}, {"name": "cpus", "scalar": {"value": 1e9}}]"#,
                "resources[1]",
            ),
        ];
        for (text, field) in cases {
            assert_eq!(read_text(text).unwrap_err().field, field, "{text}");
        }
    }
}
