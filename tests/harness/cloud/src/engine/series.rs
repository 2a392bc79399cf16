//! How a price went: a change log, recorded somewhere or made here, and labelled so.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::chance::Chance;

/// Where a series comes from; nobody shall take one that was made for one that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Seen in a market: where, when.
    Recorded(String),
    /// Made here, by a random walk of this seed.
    Made(u64),
}

/// The changes of one price, in micro-dollars an hour and unit. Clones share it.
#[derive(Clone, Debug)]
pub struct Series(Arc<Log>);

#[derive(Debug)]
struct Log {
    source: Source,
    first: i64,
    changes: Vec<(Timestamp, i64)>,
}

/// How a walk is made.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    /// The same seed, the same walk.
    pub seed: u64,
    /// Price at the start and lowest and highest of all, micro-dollars an hour and unit.
    pub start: i64,
    /// Lowest price.
    pub low: i64,
    /// Highest price.
    pub high: i64,
    /// Longest step, in thousandths of the price before it.
    pub step_permille: u32,
    /// From one change to the next.
    pub every: Duration,
}

impl Series {
    /// One that never changes.
    pub fn constant(source: Source, price: i64) -> Self {
        Self(Arc::new(Log { source, first: price, changes: Vec::new() }))
    }

    /// One that was seen. Changes are put in order; before the first the price is `first`.
    pub fn recorded(origin: &str, first: i64, mut changes: Vec<(Timestamp, i64)>) -> Self {
        changes.sort_by_key(|(at, _)| *at);
        Self(Arc::new(Log { source: Source::Recorded(origin.to_owned()), first, changes }))
    }

    /// A walk of so many changes that begins at `from`.
    pub fn made(walk: Walk, from: Timestamp, changes: u32) -> Self {
        let mut chance = Chance::new(walk.seed);
        let mut price = walk.start;
        let step = SignedDuration::try_from(walk.every).unwrap_or(SignedDuration::MAX);
        let changes = (1..=changes).map(|number| {
            let reach = price.saturating_mul(i64::from(walk.step_permille)) / 1000;
            let drawn = chance.below(2 * reach.unsigned_abs() + 1);
            price += i64::try_from(drawn).unwrap_or_default() - reach;
            price = price.clamp(walk.low, walk.high.max(walk.low));
            let passed = step.saturating_mul(i32::try_from(number).unwrap_or(i32::MAX));
            (from.saturating_add(passed).unwrap_or(from), price)
        });
        let changes = changes.collect();
        Self(Arc::new(Log { source: Source::Made(walk.seed), first: walk.start, changes }))
    }

    /// Where it comes from.
    pub fn source(&self) -> &Source {
        &self.0.source
    }

    /// The same until a time, and one price from then on.
    #[must_use]
    pub fn then(&self, from: Timestamp, price: i64) -> Self {
        let Log { source, first, changes } = &*self.0;
        let mut changes: Vec<_> =
            changes.iter().copied().take_while(|(at, _)| *at < from).collect();
        changes.push((from, price));
        Self(Arc::new(Log { source: source.clone(), first: *first, changes }))
    }

    /// When, at this time or later, the price is first above a limit.
    pub fn above(&self, limit: i64, from: Timestamp) -> Option<Timestamp> {
        if self.at(from) > limit {
            return Some(from);
        }
        let later = self.0.changes.iter().filter(|(at, _)| *at > from);
        later.filter(|(_, price)| *price > limit).map(|(at, _)| *at).next()
    }

    /// The price at a time, micro-dollars an hour and unit.
    pub fn at(&self, time: Timestamp) -> i64 {
        let past = self.0.changes.partition_point(|(at, _)| *at <= time);
        past.checked_sub(1).map_or(self.0.first, |last| self.0.changes[last].1)
    }

    /// The changes after `from` until `until`, before them the last one until `from`.
    pub fn history(&self, from: Timestamp, until: Timestamp) -> &[(Timestamp, i64)] {
        let changes = &self.0.changes;
        let begin = changes.partition_point(|(at, _)| *at <= from).saturating_sub(1);
        let end = changes.partition_point(|(at, _)| *at <= until);
        &changes[begin.min(end)..end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALK: Walk = Walk {
        seed: 7,
        start: 500_000,
        low: 400_000,
        high: 600_000,
        step_permille: 50,
        every: Duration::from_secs(3600),
    };

    #[test]
    fn a_walk_is_the_same_for_the_same_seed_and_stays_in_its_bounds() {
        let from: Timestamp = "2026-11-20T00:00:00Z".parse().unwrap();
        let until: Timestamp = "2026-12-20T00:00:00Z".parse().unwrap();
        let one = Series::made(WALK, from, 500);
        let other = Series::made(Walk { seed: 8, ..WALK }, from, 500);
        assert_eq!(one.history(from, until), Series::made(WALK, from, 500).history(from, until));
        assert_ne!(one.history(from, until), other.history(from, until));
        let prices = one.history(from, until).iter().map(|(_, price)| *price);
        assert!(prices.clone().all(|price| (400_000..=600_000).contains(&price)));
        assert!(prices.max() > Some(520_000), "it moves");
        assert_eq!(*one.source(), Source::Made(7));
    }

    #[test]
    fn a_history_begins_with_the_change_that_still_holds() {
        let hour = |hour: u8| format!("2026-11-20T{hour:02}:00:00Z").parse::<Timestamp>().unwrap();
        let series = Series::recorded("by hand", 5, vec![(hour(9), 2), (hour(1), 1)]);
        assert_eq!([series.at(hour(0)), series.at(hour(1)), series.at(hour(10))], [5, 1, 2]);
        assert_eq!(series.history(hour(10), hour(10)), [(hour(9), 2)]);
        assert_eq!(series.history(hour(2), hour(9)), [(hour(1), 1), (hour(9), 2)]);
    }
}
