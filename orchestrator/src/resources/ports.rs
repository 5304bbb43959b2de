//! Sets of ports.

use std::ops::RangeInclusive;

use rangemap::RangeInclusiveSet;
use serde::{Deserialize, Serialize};

/// A set of ports, kept as ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(u16, u16)>", into = "Vec<(u16, u16)>")]
pub struct Ports(RangeInclusiveSet<u16>);

impl Ports {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges, in order, no two of which touch.
    pub fn ranges(&self) -> impl Iterator<Item = &RangeInclusive<u16>> {
        self.0.iter()
    }

    /// Whether all of `other` is in it.
    pub fn contains(&self, other: &Ports) -> bool {
        // Ranges that touch are one, so a range is in the set only if it is in one of the set's.
        other.ranges().all(|range| self.0.get(range.start()).is_some_and(|own| own.end() >= range.end()))
    }

    /// Whether any port is in both.
    pub fn overlaps(&self, other: &Ports) -> bool {
        other.ranges().any(|range| self.0.overlaps(range))
    }

    pub(super) fn insert(&mut self, other: &Ports) {
        self.0.extend(other.ranges().cloned());
    }

    pub(super) fn remove(&mut self, other: &Ports) {
        for range in other.ranges() {
            self.0.remove(range.clone());
        }
    }
}

impl From<Vec<(u16, u16)>> for Ports {
    fn from(ranges: Vec<(u16, u16)>) -> Ports {
        ranges.into_iter().map(|(first, last)| first..=last).collect()
    }
}

impl From<Ports> for Vec<(u16, u16)> {
    fn from(ports: Ports) -> Vec<(u16, u16)> {
        ports.ranges().map(|range| (*range.start(), *range.end())).collect()
    }
}

/// Empty ranges (whose end is before their start) are left out.
impl FromIterator<RangeInclusive<u16>> for Ports {
    fn from_iter<I: IntoIterator<Item = RangeInclusive<u16>>>(ranges: I) -> Ports {
        Ports(ranges.into_iter().filter(|range| !range.is_empty()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(ranges: &[RangeInclusive<u16>]) -> Ports {
        ranges.iter().cloned().collect()
    }

    #[test]
    fn ranges_that_touch_are_one() {
        let set = ports(&[1..=9, 10..=20, 0..=0, 65_535..=65_535]);
        assert_eq!(set.ranges().cloned().collect::<Vec<_>>(), [0..=20, 65_535..=65_535]);
        assert!(set.contains(&ports(&[5..=15, 65_535..=65_535])));
        assert!(!set.contains(&ports(&[5..=21])));
        assert!(set.contains(&ports(&[])));
    }

    #[test]
    fn what_is_taken_away_no_longer_overlaps() {
        let mut set = ports(&[0..=65_535]);
        set.remove(&ports(&[80..=80, 443..=500]));
        assert_eq!(set.ranges().cloned().collect::<Vec<_>>(), [0..=79, 81..=442, 501..=65_535]);
        assert!(!set.overlaps(&ports(&[80..=80, 450..=460])));
        set.insert(&ports(&[80..=80, 443..=500]));
        assert_eq!(set, ports(&[0..=65_535]));
    }

    #[test]
    fn backward_ranges_are_empty() {
        #[expect(clippy::reversed_empty_ranges, reason = "what the test is about")]
        let set = ports(&[9..=1]);
        assert!(set.is_empty());
    }
}
