//! What a module may use up: a budget for all its linear memories and tables together.

use wasmtime::{ResourceLimiter, Result};

/// Bytes of one element of a table.
const ELEMENT: usize = size_of::<usize>();

/// The bytes that are left. What does not fit is refused to the module, which goes on without it.
#[derive(Debug)]
pub struct Budget {
    left: usize,
}

impl Budget {
    /// A budget of `limit` bytes; without one, of all there are.
    pub fn new(limit: Option<u64>) -> Self {
        Self { left: limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)) }
    }

    fn take(&mut self, current: usize, desired: usize) -> bool {
        let left = self.left.checked_sub(desired.saturating_sub(current));
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }
}

impl ResourceLimiter for Budget {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> Result<bool> {
        // wasmtime refuses what is beyond the memory's own maximum, but only after it has asked.
        Ok(maximum.is_none_or(|maximum| desired <= maximum) && self.take(current, desired))
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> Result<bool> {
        let fits = maximum.is_none_or(|maximum| desired <= maximum);
        Ok(fits && self.take(current.saturating_mul(ELEMENT), desired.saturating_mul(ELEMENT)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_and_tables_share_one_budget() {
        let mut budget = Budget::new(Some(100 + 10 * ELEMENT as u64));
        assert!(budget.memory_growing(0, 100, None).unwrap());
        assert!(!budget.table_growing(0, 11, None).unwrap());
        assert!(budget.table_growing(0, 10, None).unwrap());
        assert!(!budget.memory_growing(100, 101, None).unwrap());
    }

    #[test]
    fn what_is_refused_costs_nothing() {
        let mut budget = Budget::new(Some(100));
        assert!(!budget.memory_growing(0, 50, Some(49)).unwrap());
        assert!(!budget.table_growing(0, usize::MAX, None).unwrap());
        assert!(budget.memory_growing(0, 100, None).unwrap());
    }

    #[test]
    fn without_a_limit_everything_fits() {
        assert!(Budget::new(None).memory_growing(0, 1 << 40, None).unwrap());
    }
}
