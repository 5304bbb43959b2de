//! What many times come to.

use serde::{Deserialize, Serialize};

/// Up to how much of the median the interquartile range may be before a measurement counts as noisy.
pub const QUIET_SPREAD: f64 = 0.3;

/// Order statistics of some values. A quantile is the smallest value that at least that share of them does not exceed (nearest
/// rank), so each is a value that was measured; of fewer than 100 values the 99th percentile is the largest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many values there are.
    pub count: usize,
    /// The smallest.
    pub min: f64,
    /// The first quartile.
    pub q1: f64,
    /// The median.
    pub median: f64,
    /// The third quartile.
    pub q3: f64,
    /// The 95th percentile.
    pub p95: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Of no values there is none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let rank = |share: f64| sorted[((share * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len()) - 1];
        Some(Self {
            count: sorted.len(),
            min,
            q1: rank(0.25),
            median: rank(0.5),
            q3: rank(0.75),
            p95: rank(0.95),
            p99: rank(0.99),
            max,
        })
    }

    /// The interquartile range.
    pub fn spread(&self) -> f64 {
        self.q3 - self.q1
    }

    /// Whether the values lie too far apart for small differences to mean anything.
    pub fn is_noisy(&self) -> bool {
        self.spread() > QUIET_SPREAD * self.median
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let summary = Summary::of((1..=100).rev().map(f64::from)).unwrap();
        assert_eq!((summary.count, summary.min, summary.max), (100, 1.0, 100.0));
        assert_eq!((summary.q1, summary.median, summary.q3), (25.0, 50.0, 75.0));
        assert_eq!((summary.p95, summary.p99), (95.0, 99.0));
        assert!((summary.spread() - 50.0).abs() < 1e-9);
    }

    #[test]
    fn few_values_are_summed_up_as_well() {
        assert_eq!(Summary::of([]), None);
        let one = Summary::of([3.0]).unwrap();
        assert_eq!((one.min, one.q1, one.median, one.p99), (3.0, 3.0, 3.0, 3.0));
        let two = Summary::of([4.0, 2.0]).unwrap();
        assert_eq!((two.median, two.q3, two.p99), (2.0, 4.0, 4.0));
    }

    #[test]
    fn noise_is_a_matter_of_the_middle_half() {
        let quiet = Summary::of([10.0, 10.1, 10.2, 10.3, 900.0]).unwrap();
        assert!(!quiet.is_noisy());
        assert!(Summary::of([10.0, 10.0, 12.0, 14.0, 15.0]).unwrap().is_noisy());
    }
}
