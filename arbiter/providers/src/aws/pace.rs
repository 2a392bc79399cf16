//! How often a region may be asked. AWS tells no numbers in its answers: it has a bucket of calls
//! an account, region and kind of call, and says when one is empty. This keeps well below what it
//! documents, and stays away longer after each call that was too many. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Looks at prices and what there is; can wait.
    Price,
    /// Looks at machines.
    Look,
    /// Makes or ends something.
    Change,
}

/// Calls at once, and a second: half of what AWS documents for each.
const LOOKS: (f64, f64) = (50.0, 10.0);
const CHANGES: (f64, f64) = (20.0, 2.0);
/// Looks that prices leave to machines.
const RESERVE: f64 = 10.0;
/// First and longest time to stay away after a call that was too many.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// What is left to us in one region.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    looks: Bucket,
    changes: Bucket,
    /// Calls in a row that were too many.
    strikes: u32,
    not_before: Option<Timestamp>,
}

#[derive(Clone, Debug)]
struct Bucket {
    most: f64,
    a_second: f64,
    left: f64,
    at: Option<Timestamp>,
}

impl Bucket {
    fn new((most, a_second): (f64, f64)) -> Self {
        Self { most, a_second, left: most, at: None }
    }

    fn take(&mut self, reserve: f64, now: Timestamp) -> Option<Duration> {
        // A clock that went back fills nothing.
        let passed = self.at.map_or(SignedDuration::ZERO, |at| now.duration_since(at));
        let passed = passed.max(SignedDuration::ZERO).as_secs_f64();
        self.left = (self.left + passed * self.a_second).min(self.most);
        self.at = Some(now);
        let missing = reserve + 1.0 - self.left;
        if missing > 0.0 {
            return Some(Duration::from_secs_f64((missing / self.a_second).max(0.01)));
        }
        self.left -= 1.0;
        None
    }
}

impl Default for Pace {
    fn default() -> Self {
        let (looks, changes) = (Bucket::new(LOOKS), Bucket::new(CHANGES));
        Self { looks, changes, strikes: 0, not_before: None }
    }
}

impl Pace {
    /// How long to wait before a call; `None`: not at all, and the call is counted.
    pub(super) fn call(&mut self, purpose: Purpose, now: Timestamp) -> Option<Duration> {
        let wait =
            self.not_before.and_then(|until| Duration::try_from(until.duration_since(now)).ok());
        // Longer than was ever said: the clock went back.
        if let Some(wait) = wait.filter(|wait| !wait.is_zero() && *wait <= LONGEST) {
            return Some(wait);
        }
        match purpose {
            Purpose::Price => self.looks.take(RESERVE, now),
            Purpose::Look => self.looks.take(0.0, now),
            Purpose::Change => self.changes.take(0.0, now),
        }
    }

    /// A call was too many: how long everything stays away now.
    pub(super) fn too_many(&mut self, now: Timestamp) -> Duration {
        let wait = PAUSE.saturating_mul(1 << self.strikes.min(6)).min(LONGEST);
        self.strikes = self.strikes.saturating_add(1);
        let long = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
        self.not_before = Some(now.saturating_add(long).unwrap_or(Timestamp::MAX));
        wait
    }

    /// A call was answered.
    pub(super) fn answered(&mut self) {
        self.strikes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(1_790_000_000_000 + millis).expect("a time")
    }

    #[test]
    fn nothing_is_asked_once_the_bucket_is_empty() {
        let mut pace = Pace::default();
        let free = (0..100).filter(|_| pace.call(Purpose::Look, at(0)).is_none()).count();
        assert_eq!(free, 50);
        assert_eq!(pace.call(Purpose::Look, at(0)), Some(Duration::from_millis(100)));
        assert_eq!(pace.call(Purpose::Look, at(100)), None);
        // Changes have their own.
        let free = (0..100).filter(|_| pace.call(Purpose::Change, at(0)).is_none()).count();
        assert_eq!(free, 20);
    }

    #[test]
    fn prices_leave_calls_for_machines() {
        let mut pace = Pace::default();
        let free = (0..100).filter(|_| pace.call(Purpose::Price, at(0)).is_none()).count();
        assert_eq!(free, 40);
        assert_eq!(pace.call(Purpose::Look, at(0)), None);
    }

    #[test]
    fn each_call_that_was_too_many_keeps_everything_away_longer() {
        let mut pace = Pace::default();
        let waits: Vec<u64> = (0..8).map(|_| pace.too_many(at(0)).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pace.call(Purpose::Change, at(0)), Some(LONGEST));
        assert_eq!(pace.call(Purpose::Change, at(60_000)), None);
        pace.answered();
        assert_eq!(pace.too_many(at(60_000)), PAUSE);
    }

    #[test]
    fn a_clock_that_steps_neither_fills_nor_blocks() {
        let mut pace = Pace::default();
        while pace.call(Purpose::Look, at(0)).is_none() {}
        assert!(pace.call(Purpose::Look, at(-3_600_000)).is_some());
        assert_eq!(pace.call(Purpose::Look, at(-3_599_000)), None);
        pace.too_many(at(0));
        assert_eq!(pace.call(Purpose::Change, at(-3_600_000)), None);
    }
}
