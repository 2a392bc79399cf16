//! The protocol that buys a machine without ever leaking it.
//!
//! [`next_step`] is a pure function from what is durable (the claim) and what was just seen (the
//! [`Observation`]) to the one thing to do next. The operator and the embedded mode run the same
//! loop around it: do the step, write down what it says to write down, ask again. A crash between
//! any two steps is repaired by asking again.

use jiff::Timestamp;

pub use crate::claim::LaunchAnswer;
use crate::claim::{Claim, FrozenRequest, LaunchSafety, Phase};
use crate::reason::Reason;

/// Attempts after which a claim gives up, however repeatable the refusals.
pub const MAX_ATTEMPTS: u32 = 5;

/// Milliseconds between two looks while something is awaited.
const LOOK_MILLIS: i64 = 2_000;

/// Looks in a row that must find a machine gone before it is believed.
const GONE_LOOKS: u8 = 2;

const LOOK_NOW: Step = Step::Look { after_millis: 0 };

/// What was seen in this pass. A pass ends with each [`Step::Record`] and [`Step::WriteAttempt`];
/// the next begins with [`Observation::new`].
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// Now.
    pub now: Timestamp,
    /// Whether the claim is still wanted, and why not.
    pub wanted: Wanted,
    /// What the quorum read of the claim gave.
    pub read: ReadBack,
    /// What looking for machines with this claim's identity gave.
    pub listing: Listing,
    /// Looks in a row, the last one included, that found no machine: see [`Observation::looked`].
    pub gone_looks: u8,
    /// The compare-and-swap that wrote the phase `Attempted` succeeded just now, in this very
    /// process, and nothing was called since. Never true after a restart.
    pub fresh_attempt: bool,
    /// The answer to the launch call of this pass.
    pub answer: Option<LaunchAnswer>,
    /// The call that ends the machine was sent in this pass.
    pub terminate_sent: bool,
    /// The last ledger row is written.
    pub ledger_closed: bool,
}

impl Observation {
    /// Nothing seen yet.
    pub const fn new(now: Timestamp, wanted: Wanted) -> Observation {
        Observation {
            now,
            wanted,
            read: ReadBack::NotRead,
            listing: Listing::NotLooked,
            gone_looks: 0,
            fresh_attempt: false,
            answer: None,
            terminate_sent: false,
            ledger_closed: false,
        }
    }

    /// Takes over what a look gave.
    pub fn looked(&mut self, listing: Listing) {
        self.gone_looks = match &listing {
            Listing::Complete(found) if found.is_empty() => self.gone_looks.saturating_add(1),
            Listing::Complete(_) | Listing::Failed | Listing::NotLooked => 0,
        };
        self.listing = listing;
    }
}

/// Whether a claim is still wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Yes.
    Yes,
    /// No, and why.
    No(Reason),
}

/// What the quorum read of the claim gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadBack {
    /// Not read yet in this pass.
    NotRead,
    /// It is there, its uid is the one we know, it is not being deleted, and we still lead.
    Ours,
    /// It is being deleted.
    Deleting,
    /// It is not there, its uid is another, or we no longer lead.
    NotOurs,
}

/// What looking for machines with this claim's identity gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listing {
    /// Not looked yet in this pass.
    NotLooked,
    /// The provider did not answer, or not in full: nothing may be concluded.
    Failed,
    /// The complete answer: ids of machines that carry the claim's uid, of any attempt, and may
    /// still bill (those that are ending included), oldest first.
    Complete(Vec<String>),
}

/// The one thing to do next for a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read the claim by quorum; note the answer in [`Observation::read`].
    ReadBack,
    /// Look for machines that carry the claim's uid, after waiting this long; note the answer by
    /// [`Observation::looked`].
    Look {
        /// Milliseconds.
        after_millis: i64,
    },
    /// Write the phase [`Phase::Attempted`] by compare-and-swap on the version just read. If it
    /// succeeds, begin a new pass with [`Observation::fresh_attempt`]; if not, another process is at
    /// work: begin anew without it.
    WriteAttempt {
        /// Repeat these bytes; `None`: build the request now.
        request: Option<FrozenRequest>,
    },
    /// Send exactly these bytes, once, with automatic retries off; note the answer in
    /// [`Observation::answer`]. The only step that may buy.
    Launch {
        /// The bytes.
        request: FrozenRequest,
    },
    /// Write phase and attempt by compare-and-swap, then begin a new pass.
    Record {
        /// The new phase.
        phase: Phase,
        /// The new number of the attempt.
        attempt: u32,
        /// What to say about it, where there is something to say.
        note: Option<Reason>,
    },
    /// End this machine (safe to repeat); note it in [`Observation::terminate_sent`].
    Terminate {
        /// The provider's id.
        instance: String,
    },
    /// Write the last ledger row, if anything was ever billed; note it in [`Observation::ledger_closed`].
    CloseLedger,
    /// Nothing until then; then begin a new pass.
    WaitUntil {
        /// When.
        at: Timestamp,
        /// What is being waited for.
        reason: Reason,
    },
    /// The claim is not ours to act on (gone, replaced, or we no longer lead): forget it.
    Leave,
    /// All is as it should be.
    Nothing,
    /// The claim is over, and its ledger closed: take its finalizer off.
    Release,
}

/// The next step of a claim.
///
/// The order that keeps money safe: nothing is launched before the frozen request is durable;
/// nothing is launched twice unless the provider promises that it makes no second machine, or the
/// first call has settled without one; nothing is forgotten before it was seen gone twice and its
/// ledger is closed.
pub fn next_step(claim: &Claim, safety: LaunchSafety, seen: &Observation) -> Step {
    // Accident: another leader, or a claim deleted and made again under the same name.
    let unwanted = match (seen.read, seen.wanted) {
        (ReadBack::NotRead, _) if !seen.fresh_attempt => return Step::ReadBack,
        (ReadBack::NotOurs, _) => return Step::Leave,
        (_, Wanted::No(reason)) => Some(reason),
        (ReadBack::Deleting, Wanted::Yes) => Some(Reason::Suspended),
        (ReadBack::NotRead | ReadBack::Ours, Wanted::Yes) => None,
    };
    let pass = Pass { attempt: claim.attempt, safety, seen, unwanted };
    match &claim.phase {
        Phase::Planned => pass.planned(),
        Phase::Attempted { request, at: _ } => pass.attempted(request),
        Phase::Ambiguous { request, since } => pass.ambiguous(request, *since),
        Phase::Launched { instance, at } => pass.launched(instance, *at),
        Phase::Ending { instance, reason } => pass.ending(instance.as_ref(), *reason),
        Phase::Ended { reason: _ } => Step::Release,
    }
}

/// A claim's pass: what all phases look at.
struct Pass<'a> {
    attempt: u32,
    safety: LaunchSafety,
    seen: &'a Observation,
    unwanted: Option<Reason>,
}

impl Pass<'_> {
    fn planned(&self) -> Step {
        let found = match &self.seen.listing {
            Listing::NotLooked => return LOOK_NOW,
            Listing::Failed => return self.wait(Reason::ProviderUnavailable),
            Listing::Complete(found) => found,
        };
        match (found.first(), self.unwanted) {
            // Accident: the record of a launch was lost (a restored backup). The machine is ours.
            (Some(instance), _) => self.adopt(instance),
            (None, None) => Step::WriteAttempt { request: None },
            (None, Some(reason)) => self.end(None, reason),
        }
    }

    fn attempted(&self, request: &FrozenRequest) -> Step {
        match (&self.seen.answer, self.seen.fresh_attempt, self.unwanted) {
            (Some(LaunchAnswer::Accepted { instance }), _, _) => {
                self.record(Phase::Launched { instance: instance.clone(), at: self.seen.now }, None)
            }
            // Accident: the repeated call is refused while the first one, of which nothing is known, was not.
            (Some(LaunchAnswer::Refused(_)), false, _) => self.doubt(request),
            (Some(LaunchAnswer::Refused(refusal)), true, None)
                if refusal.is_worth_repeating() && self.attempt < MAX_ATTEMPTS =>
            {
                Step::Record {
                    phase: Phase::Planned,
                    attempt: self.attempt + 1,
                    note: Some(refusal.reason()),
                }
            }
            (Some(LaunchAnswer::Refused(refusal)), true, _) => self.end(None, refusal.reason()),
            (Some(LaunchAnswer::Unclear), _, _) => self.doubt(request),
            (None, true, None) => Step::Launch { request: request.clone() },
            (None, true, Some(reason)) => self.end(None, reason),
            (None, false, _) => self.after_a_crash(request),
        }
    }

    /// Accident: we died between writing the attempt and writing its answer. The call may have
    /// gone out or not.
    fn after_a_crash(&self, request: &FrozenRequest) -> Step {
        let found = match &self.seen.listing {
            Listing::NotLooked => return LOOK_NOW,
            Listing::Failed => return self.wait(Reason::ProviderUnavailable),
            Listing::Complete(found) => found,
        };
        match found.first() {
            Some(instance) => self.adopt(instance),
            None if self.safety.idempotent && self.unwanted.is_none() => {
                Step::Launch { request: request.clone() }
            }
            None => self.doubt(request),
        }
    }

    fn ambiguous(&self, request: &FrozenRequest, since: Timestamp) -> Step {
        let found = match &self.seen.listing {
            Listing::NotLooked => return LOOK_NOW,
            Listing::Failed => return self.wait(Reason::LaunchAmbiguous),
            Listing::Complete(found) => found,
        };
        let settled = self.settled(since);
        match (found.first(), self.unwanted) {
            (Some(instance), _) => self.adopt(instance),
            (None, _) if self.seen.now < settled => Step::WaitUntil {
                at: settled.min(later(self.seen.now, LOOK_MILLIS)),
                reason: Reason::LaunchAmbiguous,
            },
            // It never happened: the same attempt, the same bytes, under a new fence.
            (None, None) => Step::WriteAttempt { request: Some(request.clone()) },
            (None, Some(reason)) => self.end(None, reason),
        }
    }

    fn launched(&self, instance: &str, at: Timestamp) -> Step {
        if let Some(reason) = self.unwanted {
            return self.end(Some(instance.to_owned()), reason);
        }
        let Listing::Complete(found) = &self.seen.listing else {
            return Step::Nothing;
        };
        // Accident: a launch that was given up for lost appeared after all.
        if let Some(surplus) = found.iter().find(|id| *id != instance) {
            return self.terminate(surplus);
        }
        if found.is_empty() && self.seen.now >= self.settled(at) {
            self.end(Some(instance.to_owned()), Reason::SpotInterrupted)
        } else {
            Step::Nothing
        }
    }

    /// Even a claim that never knew a machine looks twice: the last call may have made one.
    fn ending(&self, instance: Option<&String>, reason: Reason) -> Step {
        let found = match &self.seen.listing {
            Listing::NotLooked => return LOOK_NOW,
            Listing::Failed => return self.wait(Reason::TerminateRetrying),
            Listing::Complete(found) => found,
        };
        match (found.first(), instance) {
            (Some(there), _) => self.terminate(there),
            // Accident: a machine too young to be listed. Its id is known, so it is ended by its id.
            (None, Some(known)) if !self.seen.terminate_sent => self.terminate(known),
            (None, _) if self.seen.gone_looks < GONE_LOOKS => Step::Look {
                // A list that is never behind need not be given time to catch up.
                after_millis: if self.safety.settle_seconds == 0 { 0 } else { LOOK_MILLIS },
            },
            (None, _) if !self.seen.ledger_closed => Step::CloseLedger,
            // Its removal was asked for: nobody will ever read how it ended.
            (None, _) if self.seen.read == ReadBack::Deleting => Step::Release,
            (None, _) => self.record(Phase::Ended { reason }, Some(reason)),
        }
    }

    fn record(&self, phase: Phase, note: Option<Reason>) -> Step {
        Step::Record { phase, attempt: self.attempt, note }
    }

    fn adopt(&self, instance: &str) -> Step {
        self.record(
            Phase::Launched { instance: instance.to_owned(), at: self.seen.now },
            Some(Reason::AdoptedExisting),
        )
    }

    fn doubt(&self, request: &FrozenRequest) -> Step {
        self.record(
            Phase::Ambiguous { request: request.clone(), since: self.seen.now },
            Some(Reason::LaunchAmbiguous),
        )
    }

    fn end(&self, instance: Option<String>, reason: Reason) -> Step {
        self.record(Phase::Ending { instance, reason }, Some(reason))
    }

    fn terminate(&self, instance: &str) -> Step {
        if self.seen.terminate_sent {
            return self.wait(Reason::TerminateRetrying);
        }
        Step::Terminate { instance: instance.to_owned() }
    }

    fn wait(&self, reason: Reason) -> Step {
        Step::WaitUntil { at: later(self.seen.now, LOOK_MILLIS), reason }
    }

    /// When whatever was asked for at a time must show in a list if it happened.
    fn settled(&self, since: Timestamp) -> Timestamp {
        later(since, i64::from(self.safety.settle_seconds) * 1000)
    }
}

fn later(from: Timestamp, millis: i64) -> Timestamp {
    Timestamp::from_millisecond(
        from.as_millisecond().saturating_add(millis).min(Timestamp::MAX.as_millisecond()),
    )
    .unwrap_or(Timestamp::MAX)
}
