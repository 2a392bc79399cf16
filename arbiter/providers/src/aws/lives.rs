//! When instances began to run. Their bill begins then, and AWS tells nobody when it was, only
//! whether it is so: what is known is what was seen. Pure.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::provider::{InstanceId, InstanceState};

/// Two looks at an instance that comes up are this far apart at most, unless one fails.
const LOOKS: SignedDuration = SignedDuration::from_secs(2);
/// So many instances are remembered.
const KEPT: usize = 10_000;

/// What was seen of instances that came up.
#[derive(Debug, Default)]
pub(super) struct Lives {
    /// When they were launched, by our clock: it may be off, and AWS bills by its own.
    launched: BTreeMap<InstanceId, Timestamp>,
    seen: BTreeMap<InstanceId, Seen>,
}

#[derive(Clone, Copy, Debug)]
enum Seen {
    /// It was still coming up.
    Pending(Timestamp),
    /// It runs, or did, since then.
    Running(Timestamp),
}

impl Lives {
    /// An instance was launched just now.
    pub(super) fn launched(&mut self, id: &InstanceId, now: Timestamp) {
        if self.launched.len() >= KEPT {
            self.launched.pop_first();
        }
        self.launched.insert(id.clone(), now);
    }

    /// An instance, launched then by AWS's word, was seen in a state, as it was asked for at a time.
    pub(super) fn saw(
        &mut self,
        id: &InstanceId,
        launched: Option<Timestamp>,
        state: InstanceState,
        asked: Timestamp,
    ) {
        let asked = match (self.launched.get(id), launched) {
            (Some(ours), Some(theirs)) => theirs.saturating_add(asked.duration_since(*ours)),
            _ => Ok(asked),
        };
        let asked = asked.unwrap_or(Timestamp::MAX);
        // AWS tells and bills whole seconds.
        let asked = Timestamp::from_second(asked.as_second()).unwrap_or(asked);
        let now = match (self.seen.get(id), state) {
            (Some(Seen::Running(_)), _) => return,
            (_, InstanceState::Pending) => Seen::Pending(asked),
            // It was coming up a moment ago.
            (Some(Seen::Pending(last)), _) if asked.duration_since(*last) <= LOOKS => {
                Seen::Running(asked)
            }
            // Nobody looked for a while: not less is booked than may have been billed.
            (Some(Seen::Pending(last)), _) => Seen::Running(*last),
            (None, _) => Seen::Running(launched.unwrap_or(asked)),
        };
        if self.seen.len() >= KEPT {
            self.seen.pop_first();
        }
        self.seen.insert(id.clone(), now);
    }

    /// Since when one runs, as it was seen; `None`: it does not yet, or nobody has looked.
    pub(super) fn since(&self, id: &InstanceId) -> Option<Timestamp> {
        match self.seen.get(id)? {
            Seen::Pending(_) => None,
            Seen::Running(since) => Some(*since),
        }
    }

    /// When one that was bought then began to run; `None`: it does not yet.
    pub(super) fn running(&self, id: &InstanceId, bought: Timestamp) -> Option<Timestamp> {
        match self.seen.get(id) {
            Some(Seen::Pending(_)) => None,
            Some(Seen::Running(since)) => Some((*since).max(bought)),
            // Somebody else saw it come up, before a restart: not less than may have been billed.
            None => Some(bought),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).expect("a time")
    }

    fn began(looks: &[(i64, InstanceState)]) -> Option<i64> {
        let (mut lives, id) = (Lives::default(), InstanceId("us-east-1/i-1".into()));
        for (second, state) in looks {
            lives.saw(&id, Some(at(0)), *state, at(*second));
        }
        lives.running(&id, at(0)).map(|since| since.as_second() - 1_790_000_000)
    }

    #[test]
    fn an_instance_runs_since_it_was_first_seen_so_and_since_it_was_last_seen_otherwise_after_a_gap()
     {
        use InstanceState::{Pending, Running, Terminated};
        for (looks, since) in [
            (&[][..], Some(0)),
            (&[(1, Pending)], None),
            (&[(8, Pending), (9, Pending), (10, Running), (500, Terminated)], Some(10)),
            (&[(8, Pending), (10, Running)], Some(10)),
            (&[(3, Pending), (300, Running)], Some(3)),
            (&[(300, Running), (301, Pending)], Some(0)),
            (&[(3, Pending), (90, Terminated)], Some(3)),
        ] {
            assert_eq!(began(looks), since, "{looks:?}");
        }
    }

    #[test]
    fn our_clock_may_be_off() {
        use InstanceState::{Pending, Running};
        let (mut lives, id) = (Lives::default(), InstanceId("us-east-1/i-1".into()));
        lives.launched(&id, at(5400));
        lives.saw(&id, Some(at(0)), Pending, at(5409));
        lives.saw(&id, Some(at(0)), Running, at(5410));
        assert_eq!(lives.running(&id, at(0)), Some(at(10)));
    }
}
