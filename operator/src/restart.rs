//! When what failed is started again, in a cluster and without.

use jiff::{SignedDuration, Timestamp};

/// Nobody waits longer.
const LONGEST_SECONDS: i64 = 300;

/// After so many failures in a row, the last of them at `failed`: 1, 2, 4, … seconds later, at most
/// five minutes.
pub fn not_before(failed: Timestamp, failures: u32) -> Timestamp {
    let doubled = 1_i64 << failures.saturating_sub(1).min(20);
    let wait = SignedDuration::from_secs(doubled.min(LONGEST_SECONDS));
    failed.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wait_is_twice_the_last_up_to_five_minutes_however_many_there_were() {
        let waits =
            [(1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (64, 300), (65, 300), (u32::MAX, 300)];
        for (failures, seconds) in waits {
            let waited = not_before(Timestamp::UNIX_EPOCH, failures);
            assert_eq!(waited.as_second(), seconds, "after {failures} failures");
        }
        assert_eq!(not_before(Timestamp::MAX, 1), Timestamp::MAX);
    }
}
