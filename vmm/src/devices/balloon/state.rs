//! What a snapshot keeps, and what the guest tells of its memory.

use serde::{Deserialize, Serialize};

/// The balloon as its guest knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// Pages of 4 KiB the host wants in the balloon.
    pub target_pages: u32,
    /// Pages of 4 KiB the guest says are in it.
    pub actual_pages: u32,
    /// Whether a guest short of memory may take pages back.
    pub deflate_on_oom: bool,
    /// The chain the guest has handed over to be asked for statistics with.
    pub statistics_chain: Option<u16>,
    /// The last statistics.
    pub statistics: BalloonStatistics,
}

/// What the guest says of its memory (section 5.5.6.4); nothing vouches for it. Sizes are bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the standard's")]
pub struct BalloonStatistics {
    pub swapped_in: Option<u64>,
    pub swapped_out: Option<u64>,
    pub major_faults: Option<u64>,
    pub minor_faults: Option<u64>,
    pub free_memory: Option<u64>,
    pub total_memory: Option<u64>,
    pub available_memory: Option<u64>,
    pub disk_caches: Option<u64>,
    pub hugetlb_allocations: Option<u64>,
    pub hugetlb_failures: Option<u64>,
}
