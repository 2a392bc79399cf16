//! Leaving a rented machine for a better place, as jobs of a cluster do: the arbiter says whether and
//! why ([`Outcome::Moves`], with its hysteresis). Here the claim is no longer wanted, so that its command
//! saves what it has, and the next pass places the job anew.

use jiff::SignedDuration;
use petaflop_arbiter::decision::Outcome;

use super::Operator;
use crate::claims::StoredClaim;
use crate::embedded::job::{Leaving, Phase, Task};
use crate::embedded::place::better_place;
use crate::learned::Lesson;

/// How often a better place is looked for: all providers are asked what they offer.
const EVERY: SignedDuration = SignedDuration::from_secs(60);

impl Operator<'_> {
    /// Looks for a better place, if it is time and the job runs. That it leaves is in the status before
    /// anything is asked to end.
    pub(super) async fn consider_leaving(&mut self, stored: &StoredClaim) {
        let spec = &stored.claim.spec;
        let settled = self.status.end.is_some()
            || self.status.counted.as_ref() == Some(&spec.name)
            || self.status.leaves(&spec.name).is_some();
        let now = self.clock.now();
        let soon = now.duration_since(self.looked_around) < EVERY;
        if settled || soon || self.status.phase != Phase::Running {
            return;
        }
        self.looked_around = now;
        if let (Task::Training(task), Some(rate)) =
            (&self.admission.task, self.status.tokens_per_second)
            && let Some(lesson) = Lesson::of(spec, &task.work, rate)
        {
            self.status.measured = lesson.of_the_job();
        }
        let Operator { home, providers, folder, admission, status, .. } = self;
        let found = better_place(home, providers, folder, admission, status).await;
        match found {
            Ok(Some(Outcome::Moves { claim, to, reason, stays, goes, moves }))
                if claim == spec.name =>
            {
                let from = &spec.offer.id;
                self.status.message =
                    format!("moves from {from} to {to}: {goes} $ to the end there, {stays} $ here");
                self.status.reason = Some(reason);
                self.status.moves = moves;
                self.status.leaving = Some(Leaving { claim, reason });
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "looking for a better place"),
        }
    }
}
