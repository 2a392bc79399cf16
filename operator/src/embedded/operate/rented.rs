//! A claim whose machine is elsewhere: its agent is listened to, the provider is asked now and then,
//! and what ends there is counted as what ends here.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::claim::Phase as ClaimPhase;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::compute_provider::ProviderType;

use super::{Doing, OperateError, Operator};
use crate::act;
use crate::claims::StoredClaim;
use crate::embedded::job::{Phase, Task};
use crate::embedded::observe;
use crate::learned::Lesson;
use crate::run::{self, Run};
use crate::status::LastWord;
use crate::unmet;

/// What was in trouble is left alone for so long.
const NOT_AGAIN: SignedDuration = SignedDuration::from_mins(10);

impl Operator<'_> {
    /// A machine elsewhere was launched: its agent is listened to; the provider is asked now and then.
    pub(super) async fn rented(
        &mut self,
        stored: StoredClaim,
        at: Timestamp,
        suspend: bool,
        doing: &Doing,
    ) -> Result<StoredClaim, OperateError> {
        let Some(elsewhere) = &mut self.elsewhere else { return Ok(stored) };
        let folder = self.folder.run(&stored.claim.spec.name);
        elsewhere.bring_log(&stored, &folder, false).await;
        let (run, lines) = elsewhere.heard(&stored);
        let begins = self.providers.seller(&stored.claim.spec.offer.provider).capabilities();
        let look = elsewhere.must_look(&stored, begins.billing.begins);
        self.take_over(&lines);
        if let Some(run) = &run {
            if run.started {
                if self.status.phase != Phase::Running {
                    self.learn_launch(&stored, at)?;
                }
                self.runs(&stored, at).await;
            }
            if let Some(end) = &run.end {
                self.heard_end(&stored, end, suspend);
                return Ok(stored);
            }
        }
        self.consider_leaving(&stored).await;
        if !look {
            return Ok(stored);
        }
        let actor = self.actor(&stored, doing);
        let instance = actor.instance(&stored).await?;
        let stored = actor.note_running(stored, instance.as_ref()).await?;
        if instance.as_ref().is_some_and(|seen| unmet::is_over(&stored, seen)) {
            self.unmet(&stored)?;
            return Ok(stored);
        }
        let there = instance.filter(|instance| instance.state.may_bill());
        let trouble = there.as_ref().and_then(|instance| instance.trouble.as_ref());
        let trouble = trouble.map(|trouble| trouble.reason);
        let Some(there) = there.filter(|_| trouble != Some(Reason::SpotInterrupted)) else {
            if stored.agent_key.is_none() {
                // Nobody was ever met there: the next of its kind would hardly do better.
                let until = self.clock.now() + NOT_AGAIN;
                observe::leave_alone(
                    self.home,
                    &stored.claim.spec.offer.id,
                    until,
                    Reason::SpotInterrupted,
                )?;
            }
            self.is_gone(&stored, run.unwrap_or_default(), suspend).await;
            return Ok(stored);
        };
        let provider = self.providers.seller(&stored.claim.spec.offer.provider);
        let waited = self.clock.now().duration_since(at);
        let patience = SignedDuration::try_from(provider.capabilities().launch_timeout);
        if stored.agent_key.is_none() && patience.is_ok_and(|patience| waited > patience) {
            self.unmet(&stored)?;
            return Ok(stored);
        }
        if let Some(reason) = trouble.filter(|reason| waited > act::patience(*reason)) {
            let until = self.clock.now() + NOT_AGAIN;
            observe::leave_alone(self.home, &stored.claim.spec.offer.id, until, reason)?;
            self.lost(&stored.claim.spec.name, reason);
            return Ok(stored);
        }
        if let (Some(endpoint), Some(elsewhere)) =
            (stored.endpoint.clone().or(there.endpoint), &self.elsewhere)
        {
            elsewhere.meet(&self.admission, &stored, endpoint);
        }
        self.charge(stored, doing).await
    }

    /// The job works on a machine for the first time: how long that took is known now.
    fn learn_launch(&self, stored: &StoredClaim, at: Timestamp) -> Result<(), OperateError> {
        let Task::Training(task) = &self.admission.task else { return Ok(()) };
        let spec = &stored.claim.spec;
        let type_ = match spec.offer.provider.as_str() {
            "aws" => ProviderType::AWS,
            "runpod" => ProviderType::RunPod,
            _ => return Ok(()),
        };
        let took = self.clock.now().duration_since(at);
        let lesson = Lesson::of_launch(spec, &task.work, type_, took);
        Ok(observe::learn(self.home, &lesson)?)
    }

    /// A machine elsewhere is gone, or was taken away: what its agent left in the store counts.
    async fn is_gone(&mut self, stored: &StoredClaim, mut run: Run, suspend: bool) {
        let Some(elsewhere) = &self.elsewhere else { return };
        match elsewhere.left_behind(stored).await {
            Ok(Some(exit)) => {
                run.exited(&exit);
                if let Some(line) = exit.report.and_then(|line| serde_json::from_value(line).ok()) {
                    self.take_over(&[line]);
                }
                if let Some(end) = &run.end {
                    self.heard_end(stored, end, suspend);
                }
            }
            Ok(None) => self.lost(&stored.claim.spec.name, Reason::SpotInterrupted),
            Err(error) => tracing::warn!(%error, "how the command ended"),
        }
    }

    /// A command elsewhere is over.
    fn heard_end(&mut self, stored: &StoredClaim, end: &run::End, suspend: bool) {
        let last = match end {
            run::End::Unfit { message } => {
                // Its class of offers must be left alone before another is placed.
                if let Err(error) = observe::leave_class_alone(self.home, stored, self.clock.now())
                {
                    tracing::warn!(%error, "it may be bought again");
                }
                self.status.message.clone_from(message);
                return self.lost(&stored.claim.spec.name, Reason::AcceleratorProbeFailed);
            }
            run::End::Finished { artifact, cached: _, caveat } => {
                LastWord::Finished { artifact: artifact.clone(), caveat: caveat.clone() }
            }
            run::End::Done => LastWord::Failed {
                message: "the runtime ended and named no result".to_owned(),
                retry: true,
            },
            run::End::Stopped => LastWord::Stopped,
            run::End::Refused { message } => {
                LastWord::Failed { message: message.clone(), retry: true }
            }
            run::End::Failed { message, retry } => {
                LastWord::Failed { message: message.clone(), retry: *retry }
            }
        };
        // Asked to stop by ourselves: nothing was lost.
        let leaves = self.status.leaves(&stored.claim.spec.name).is_some();
        let ours = last == LastWord::Stopped && (suspend || self.status.end.is_some() || leaves);
        if let Some((_, _, known)) = &mut self.reading {
            *known = last;
        }
        if !ours {
            self.count_end(&stored.claim.spec.name);
        }
    }

    /// Nobody was met on its machine, and nobody will be: what was bought is left alone, and it counts,
    /// for an own mistake may make that of every machine.
    fn unmet(&mut self, stored: &StoredClaim) -> Result<(), OperateError> {
        observe::leave_unmet_alone(self.home, stored, self.clock.now())?;
        let claim = &stored.claim.spec.name;
        if self.status.counted.as_ref() == Some(claim) {
            return Ok(());
        }
        self.status.counted = Some(claim.clone());
        let Task::Training(task) = &self.admission.task else { return Ok(()) };
        let limit = task.spec.backoff_limit;
        let called_at = self.elsewhere.as_ref().and_then(|there| there.heard(stored).0);
        let called_at = called_at.and_then(|run| run.called_at);
        self.failed(&unmet::message(stored, called_at.as_deref()), limit);
        self.status.reason = Some(Reason::LaunchTimedOut);
        Ok(())
    }

    /// A machine was lost, or never came up: the job goes on from its checkpoint. Counted once.
    fn lost(&mut self, claim: &str, reason: Reason) {
        if self.status.counted.as_deref() == Some(claim) {
            return;
        }
        self.status.counted = Some(claim.to_owned());
        self.status.interruptions += u32::from(reason == Reason::SpotInterrupted);
        self.status.phase = Phase::Interrupted;
        self.status.reason = Some(reason);
    }

    /// Whether a command elsewhere that is no longer wanted still has time to save what it has.
    pub(super) fn still_saves(&self, stored: &StoredClaim) -> bool {
        let (Some(elsewhere), Task::Training(task)) = (&self.elsewhere, &self.admission.task)
        else {
            return false;
        };
        // What was lost, or is over, saves nothing: its grace would only keep the next from starting.
        if self.status.counted.as_ref() == Some(&stored.claim.spec.name) {
            return false;
        }
        let grace = Duration::from_secs(u64::from(task.spec.checkpoint.grace_seconds));
        matches!(stored.claim.phase, ClaimPhase::Launched { .. }) && elsewhere.drains(stored, grace)
    }
}
