//! What is counted since the start, for metrics.

use std::sync::atomic::AtomicU64;

/// Counts that only rise.
#[derive(Debug, Default)]
pub struct Counters {
    /// Machines that were given up by hand.
    pub abandoned: AtomicU64,
    /// Machines that no claim knew, ended.
    pub orphans: AtomicU64,
}
