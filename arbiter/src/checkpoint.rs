//! How often a job saves its state, where its owner leaves that to us.
//!
//! A loss throws away what was done since the last checkpoint, and every checkpoint costs something too.
//! What both cost together is least where they come every √(2 · C · M) seconds: C is what one costs, M the
//! mean time between two losses (J. W. Young, "A first order approximation to the optimum checkpoint
//! interval", CACM 17(9), 1974). C is how long the job's last one took to be durable, M what is expected of
//! the place; so the interval is another wherever the job goes, and its claim holds it.

use crate::claim::ClaimSpec;
use crate::money::MILLIS_PER_HOUR;

/// Seconds between two checkpoints at least: what is lost in less is less than what a restart takes.
pub const SHORTEST_SECONDS: u32 = 10;

/// Seconds between two checkpoints at most, also where no loss is expected: somebody may trip over the cable.
pub const LONGEST_SECONDS: u32 = 3_600;

/// Seconds between two checkpoints by Young's formula, within [`SHORTEST_SECONDS`] and
/// [`LONGEST_SECONDS`]. `cost_millis` are the milliseconds until one is durable.
pub fn interval_seconds(cost_millis: i64, losses_per_hour: f64) -> u32 {
    // No number of losses is no reason to save often.
    if losses_per_hour.is_nan() || losses_per_hour <= 0.0 {
        return LONGEST_SECONDS;
    }
    let cost_hours = cost_millis.max(0) as f64 / MILLIS_PER_HOUR as f64;
    let best_seconds = (2.0 * cost_hours / losses_per_hour).sqrt() * 3_600.0;
    best_seconds.round().clamp(SHORTEST_SECONDS.into(), LONGEST_SECONDS.into()) as u32
}

/// Seconds between two checkpoints on the machine of a claim: what its owner asks for, else what
/// was decided for the place. (A claim of before there was such a decision has none.)
pub fn on(claim: &ClaimSpec, asked_seconds: Option<u32>) -> u64 {
    asked_seconds.or(claim.checkpoint_interval_seconds).unwrap_or(LONGEST_SECONDS).into()
}
