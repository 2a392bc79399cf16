//! Claims first, then words. Of many workloads at once all claims are written before words are said of
//! them, for what is reserved stands sooner, and the first word of each before machines are bought for
//! any: it is two writes, where a purchase is some twenty-five requests. Whoever can wait stands back;
//! nobody for longer than [`LONGEST`], so that a steady stream of jobs starves no machine.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::cluster::Handle;
use crate::cluster::table::Name;

/// How long a claim, and the word on its job, are held back at most.
pub const LONGEST: SignedDuration = SignedDuration::from_secs(5);

/// How long a claim that was decided then may be held back still.
pub fn left(decided_at: Timestamp, now: Timestamp) -> Option<Duration> {
    let left = LONGEST.saturating_sub(now.duration_since(decided_at)).min(LONGEST);
    (left > SignedDuration::ZERO).then(|| left.unsigned_abs())
}

/// Who stands back.
#[derive(Clone, Debug)]
pub enum Who {
    /// A job, with its finalizer and its first status.
    Job(Name),
    /// A claim that is not bought for yet.
    Claim(Name),
}

/// Who goes first, and who stands back meanwhile.
#[derive(Debug, Default)]
pub struct Lane(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Somebody waits whom no pass has looked at yet.
    asked: bool,
    passing: bool,
    /// Who stood back.
    jobs: HashSet<Name>,
    claims: HashSet<Name>,
    /// Claims whose job has neither a finalizer of ours nor a word yet.
    unheld: HashSet<Name>,
}

impl State {
    fn words_are_due(&self) -> bool {
        !(self.asked || self.passing)
    }

    fn purchases_are_due(&self) -> bool {
        self.words_are_due() && self.unheld.is_empty()
    }
}

/// While it lives, a pass is deciding or writes what it decided.
pub struct Passing<'a>(&'a Lane);

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        self.0.lock().passing = false;
    }
}

impl Lane {
    /// A pass is asked for.
    pub fn ask(&self) {
        self.lock().asked = true;
    }

    /// A pass begins.
    pub fn begin(&self) -> Passing<'_> {
        let mut state = self.lock();
        (state.asked, state.passing) = (false, true);
        Passing(self)
    }

    /// Whether claims are written now or soon.
    pub fn is_busy(&self) -> bool {
        let state = self.lock();
        state.asked || state.passing
    }

    /// How long somebody has to stand back whose claim was decided then; sooner, once it is their turn.
    pub fn stand_back(&self, who: Who, decided_at: Timestamp, now: Timestamp) -> Option<Duration> {
        let left = left(decided_at, now)?;
        let mut state = self.lock();
        let is_due = match who {
            Who::Job(_) => state.words_are_due(),
            Who::Claim(_) => state.purchases_are_due(),
        };
        if is_due {
            return None;
        }
        match who {
            Who::Job(name) => state.jobs.insert(name),
            Who::Claim(name) => state.claims.insert(name),
        };
        Some(left)
    }

    /// Wakes whoever stood back and need not any more.
    pub fn free(&self, handle: &Handle) {
        let mut state = self.lock();
        let jobs = state.words_are_due().then(|| std::mem::take(&mut state.jobs));
        let claims = state.purchases_are_due().then(|| std::mem::take(&mut state.claims));
        drop(state);
        jobs.into_iter().flatten().for_each(|name| handle.jobs.add(name));
        claims.into_iter().flatten().for_each(|name| handle.claim_changed(&name));
    }

    /// Nothing is bought for this claim before its job is held.
    pub fn await_hold(&self, claim: &Name) {
        self.lock().unheld.insert(claim.clone());
    }

    /// It waits for that no more. Returns whether it did.
    pub fn held(&self, claim: &Name) -> bool {
        self.lock().unheld.remove(claim)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(1_800_000_000_000 + millis).expect("a plain time")
    }

    fn claim(name: &str) -> Who {
        Who::Claim(("ns".to_owned(), name.to_owned()))
    }

    #[test]
    fn who_can_wait_stands_back_from_the_moment_somebody_asks_but_not_for_ever() {
        let lane = Lane::default();
        let back = |millis| lane.stand_back(claim("a"), at(0), at(millis));
        assert_eq!(back(0), None, "nobody is to be let go first");
        lane.ask();
        assert_eq!(back(500), Some(Duration::from_millis(4500)));
        let passing = lane.begin();
        assert_eq!(back(600), Some(Duration::from_millis(4400)));
        lane.ask();
        drop(passing);
        assert!(back(700).is_some(), "another pass comes at once");
        assert_eq!(back(5000), None, "a steady stream starves nobody");
        drop(lane.begin());
        assert_eq!(back(800), None);
        assert!(!lane.is_busy());
    }

    #[test]
    fn nothing_is_bought_while_a_word_is_due_on_another_job_but_words_go_on() {
        let lane = Lane::default();
        let name = |name: &str| ("ns".to_owned(), name.to_owned());
        lane.await_hold(&name("b"));
        assert!(lane.stand_back(claim("a"), at(0), at(100)).is_some());
        assert_eq!(lane.stand_back(Who::Job(name("b")), at(0), at(100)), None);
        assert!(lane.held(&name("b")) && !lane.held(&name("b")));
        assert_eq!(lane.stand_back(claim("a"), at(0), at(100)), None);
    }

    #[test]
    fn a_clock_that_was_stepped_back_holds_nobody_longer() {
        let lane = Lane::default();
        lane.ask();
        assert_eq!(lane.stand_back(claim("a"), at(60_000), at(0)), Some(LONGEST.unsigned_abs()));
    }
}
