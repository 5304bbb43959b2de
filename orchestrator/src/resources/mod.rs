//! What agents have and tasks need: countable amounts and ports.
//!
//! Amounts are integers in units so small that nothing is ever rounded: thousandths of a CPU, bytes, whole GPUs.

mod ports;

use std::fmt;
use std::ops::{AddAssign, Index, IndexMut, SubAssign};

pub use ports::Ports;
use serde::{Deserialize, Serialize};

/// What can be counted, and is shared fairly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Thousandths of a CPU.
    Cpus,
    /// Bytes of memory.
    Memory,
    /// Bytes of disk.
    Disk,
    /// Whole GPUs.
    Gpus,
}

impl Kind {
    /// How many there are.
    pub const COUNT: usize = Kind::ALL.len();
    /// Every kind, in the order of their discriminants.
    pub const ALL: [Kind; 4] = [Kind::Cpus, Kind::Memory, Kind::Disk, Kind::Gpus];

    /// What a whole cluster may have of it. The products that shares are compared by stay below 2²⁵⁶ thanks to this
    /// (see `allocator::prices`): a billion CPUs, an exbibyte of memory and of disk, a billion GPUs.
    pub const fn cluster_limit(self) -> u64 {
        match self {
            Kind::Cpus => 1 << 40,
            Kind::Memory | Kind::Disk => 1 << 60,
            Kind::Gpus => 1 << 30,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Cpus => "cpus",
            Kind::Memory => "mem",
            Kind::Disk => "disk",
            Kind::Gpus => "gpus",
        })
    }
}

/// An amount of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Amounts", into = "Amounts")]
pub struct Quantities([u64; Kind::COUNT]);

/// Quantities as they are written down.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Amounts {
    milli_cpus: u64,
    memory: u64,
    disk: u64,
    gpus: u64,
}

impl From<Amounts> for Quantities {
    fn from(amounts: Amounts) -> Quantities {
        Quantities([amounts.milli_cpus, amounts.memory, amounts.disk, amounts.gpus])
    }
}

impl From<Quantities> for Amounts {
    fn from(quantities: Quantities) -> Amounts {
        let [milli_cpus, memory, disk, gpus] = quantities.0;
        Amounts { milli_cpus, memory, disk, gpus }
    }
}

impl Quantities {
    /// Nothing of any kind.
    pub const ZERO: Quantities = Quantities([0; Kind::COUNT]);
    /// More than any cluster has.
    pub const UNLIMITED: Quantities = Quantities([u64::MAX; Kind::COUNT]);

    /// Thousandths of a CPU and bytes of memory, nothing else.
    pub const fn new(milli_cpus: u64, memory: u64) -> Quantities {
        Quantities([milli_cpus, memory, 0, 0])
    }

    /// The same with another amount of one kind.
    #[must_use]
    pub const fn with(mut self, kind: Kind, amount: u64) -> Quantities {
        self.0[kind as usize] = amount;
        self
    }

    /// Each kind with its amount.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, u64)> {
        Kind::ALL.into_iter().zip(self.0)
    }

    /// Whether there is nothing of any kind.
    pub fn is_zero(&self) -> bool {
        *self == Quantities::ZERO
    }

    /// Whether there is at least `other` of every kind.
    pub fn contains(&self, other: &Quantities) -> bool {
        (0..Kind::COUNT).all(|kind| self.0[kind] >= other.0[kind])
    }

    /// The smaller amount of each kind.
    #[must_use]
    pub fn min(&self, other: &Quantities) -> Quantities {
        Quantities(std::array::from_fn(|kind| self.0[kind].min(other.0[kind])))
    }

    /// What is left of each kind, none where `other` has more.
    #[must_use]
    pub fn saturating_sub(&self, other: &Quantities) -> Quantities {
        Quantities(std::array::from_fn(|kind| self.0[kind].saturating_sub(other.0[kind])))
    }

    /// The sum, or the first kind of which it is more than a cluster may have.
    pub fn within_a_cluster(&self, other: &Quantities) -> Result<Quantities, Kind> {
        let mut sum = *self;
        for (kind, amount) in other.iter() {
            let all = sum[kind].checked_add(amount).filter(|all| *all <= kind.cluster_limit());
            sum[kind] = all.ok_or(kind)?;
        }
        Ok(sum)
    }
}

impl Index<Kind> for Quantities {
    type Output = u64;

    fn index(&self, kind: Kind) -> &u64 {
        &self.0[kind as usize]
    }
}

impl IndexMut<Kind> for Quantities {
    fn index_mut(&mut self, kind: Kind) -> &mut u64 {
        &mut self.0[kind as usize]
    }
}

/// Sums of what agents have: below [`Kind::cluster_limit`], so they never overflow.
impl AddAssign<&Quantities> for Quantities {
    fn add_assign(&mut self, other: &Quantities) {
        for (into, amount) in self.0.iter_mut().zip(other.0) {
            *into += amount;
        }
    }
}

/// Gives back part of a sum. More than the sum is a fault in the accounts, which must not be hidden by a wrong number.
impl SubAssign<&Quantities> for Quantities {
    fn sub_assign(&mut self, other: &Quantities) {
        for (into, amount) in self.0.iter_mut().zip(other.0) {
            *into = into.checked_sub(amount).expect("no more is given back than was taken");
        }
    }
}

/// `cpus 1.5, mem 1 GiB`, exact; kinds of which there is nothing are left out.
impl fmt::Display for Quantities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (kind, amount) in self.iter().filter(|(_, amount)| *amount > 0) {
            write!(f, "{separator}{kind} ")?;
            match kind {
                Kind::Cpus => {
                    let digits = format!("{}.{:03}", amount / 1000, amount % 1000);
                    f.write_str(digits.trim_end_matches('0').trim_end_matches('.'))?;
                }
                Kind::Memory | Kind::Disk => {
                    let (bits, unit) = match amount.trailing_zeros() {
                        40.. => (40, "TiB"),
                        30.. => (30, "GiB"),
                        20.. => (20, "MiB"),
                        10.. => (10, "KiB"),
                        _ => (0, "bytes"),
                    };
                    write!(f, "{} {unit}", amount >> bits)?;
                }
                Kind::Gpus => write!(f, "{amount}")?,
            }
            separator = ", ";
        }
        if separator.is_empty() { f.write_str("nothing") } else { Ok(()) }
    }
}

/// Amounts and ports of one agent, or part of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// What is counted.
    pub quantities: Quantities,
    /// Which ports.
    pub ports: Ports,
}

impl Resources {
    /// Whether `other` is part of it.
    pub fn contains(&self, other: &Resources) -> bool {
        self.quantities.contains(&other.quantities) && self.ports.contains(&other.ports)
    }

    /// Whether there is nothing at all.
    pub fn is_empty(&self) -> bool {
        self.quantities.is_zero() && self.ports.is_empty()
    }

    /// Adds what is not part of it yet: false, and nothing is changed, if a port is, or an amount would be more than a cluster
    /// may have.
    pub fn add(&mut self, other: &Resources) -> bool {
        let sum = self.quantities.within_a_cluster(&other.quantities);
        let Some(sum) = sum.ok().filter(|_| !self.ports.overlaps(&other.ports)) else { return false };
        self.quantities = sum;
        self.ports.insert(&other.ports);
        true
    }

    /// Takes away a part: false, and nothing is changed, if it is none.
    pub fn take(&mut self, part: &Resources) -> bool {
        let contained = self.contains(part);
        if contained {
            self.quantities -= &part.quantities;
            self.ports.remove(&part.ports);
        }
        contained
    }
}

impl From<Quantities> for Resources {
    fn from(quantities: Quantities) -> Resources {
        Resources { quantities, ports: Ports::default() }
    }
}
