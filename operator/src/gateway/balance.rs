//! Who gets the next request, and how long a failed replica is left alone. Pure.
//!
//! By work in flight, not in turn: one generation may take a hundred times as long as the
//! next, so turns say nothing about who is free.

use std::num::NonZeroU32;
use std::time::Duration;

/// What one replica has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    /// Requests sent to it whose answers are not complete.
    pub(super) in_flight: usize,
    /// How much it can do beside the others.
    pub(super) weight: NonZeroU32,
}

impl Load {
    /// Whether one more request weighs less here than on `other`.
    fn lighter_than(self, other: Self) -> bool {
        let with_one_more = |load: Self| load.in_flight as u128 + 1;
        with_one_more(self) * u128::from(other.weight.get())
            < with_one_more(other) * u128::from(self.weight.get())
    }
}

/// The least loaded of `count` replicas of those for which `load` is not `None`. Among equals
/// the first from `turn` on, so that a caller who moves `turn` behind each choice spreads them.
pub(super) fn choose(
    count: usize,
    turn: usize,
    load: impl Fn(usize) -> Option<Load>,
) -> Option<usize> {
    let mut best: Option<(usize, Load)> = None;
    for step in 0..count {
        let index = (turn % count + step) % count;
        let Some(load) = load(index) else { continue };
        if best.is_none_or(|(_, lightest)| load.lighter_than(lightest)) {
            best = Some((index, load));
        }
    }
    best.map(|(index, _)| index)
}

/// The pause after the `failures`-th failure in a row: `first`, doubled each time, at most `longest`.
pub(super) fn backoff(failures: u32, first: Duration, longest: Duration) -> Duration {
    let doublings = failures.saturating_sub(1).min(31);
    first.saturating_mul(1 << doublings).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(turn: usize, loads: &[Option<(usize, u32)>]) -> Option<usize> {
        choose(loads.len(), turn, |index| {
            let (in_flight, weight) = loads[index]?;
            Some(Load { in_flight, weight: NonZeroU32::new(weight).unwrap() })
        })
    }

    #[test]
    fn the_least_loaded_one_is_chosen() {
        let one = |in_flight| Some((in_flight, 1));
        for (turn, loads, chosen) in [
            (0, vec![], None),
            (7, vec![], None),
            (0, vec![None, None], None),
            (0, vec![one(0)], Some(0)),
            (0, vec![one(3), one(1), one(2)], Some(1)),
            (0, vec![one(3), None, one(2)], Some(2)),
            // Equals take turns, whoever is busier is passed over.
            (0, vec![one(1), one(1), one(1)], Some(0)),
            (1, vec![one(1), one(1), one(1)], Some(1)),
            (2, vec![one(1), one(1), one(1)], Some(2)),
            (5, vec![one(1), one(1), one(1)], Some(2)),
            (1, vec![one(1), one(2), one(1)], Some(2)),
            (usize::MAX, vec![one(1), one(1)], Some(1)),
            // Twice the weight bears twice the work.
            (0, vec![Some((1, 1)), Some((2, 2))], Some(1)),
            (0, vec![Some((0, 1)), Some((2, 2))], Some(0)),
            (0, vec![Some((1, 1)), Some((3, 2))], Some(0)),
            (0, vec![Some((usize::MAX, u32::MAX)), Some((usize::MAX, 1))], Some(0)),
        ] {
            assert_eq!(pick(turn, &loads), chosen, "turn {turn}, {loads:?}");
        }
    }

    #[test]
    fn the_pause_doubles_up_to_its_bound() {
        let (first, longest) = (Duration::from_millis(250), Duration::from_secs(15));
        let millis: Vec<_> = [0, 1, 2, 3, 6, 7, 8, u32::MAX]
            .map(|failures| backoff(failures, first, longest).as_millis())
            .into();
        assert_eq!(millis, [250, 250, 500, 1000, 8000, 15_000, 15_000, 15_000]);
    }
}
