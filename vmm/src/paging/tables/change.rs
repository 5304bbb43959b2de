//! What an edit did.

use super::super::entry::Entry;

/// The entry of a page before and after an edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "an edit that takes something away has to be made visible to vCPUs that run"]
pub struct Change {
    /// Before.
    pub before: Entry,
    /// After.
    pub after: Entry,
}

impl Change {
    /// Whether the edit took a page, a right or the page's identity away, so that a vCPU that has used the old
    /// entry would go on using it.
    pub fn takes_away(&self) -> bool {
        let Self { before, after } = *self;
        let lost = |bit| before.has(bit) && !after.has(bit);
        before.has(Entry::PRESENT)
            && (lost(Entry::PRESENT)
                || lost(Entry::WRITABLE)
                || lost(Entry::USER)
                || (!before.has(Entry::NO_EXECUTE) && after.has(Entry::NO_EXECUTE))
                || before.table() != after.table())
    }
}
