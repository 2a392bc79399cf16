//! How placements and jobs end: what ended a machine is counted once, limits are hard, and what is over
//! goes when nothing is paid for any more.

use jiff::SignedDuration;
use petaflop_arbiter::claim::Phase as ClaimPhase;
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::shared::InterruptionPolicy;
use petaflop_crds::training_job::TrainingJobPhase as Phase;

use super::words::{cost, placement_of, take_progress};
use super::{Next, Seen, look_again, names, settled};
use crate::claims::StoredClaim;
use crate::cluster::budgets::{Stop, Stopped};
use crate::cluster::status::{Conditions, Is, time};
use crate::run::End;
use crate::unmet;

/// Counts how placements ended that were not counted yet.
pub(super) fn settle(seen: &Seen, next: &mut Next) {
    for stored in seen.claims {
        let spec = &stored.claim.spec;
        if spec.placement <= settled(&next.status) {
            continue;
        }
        let said = seen.run.and_then(|run| run.end.as_ref());
        let end = match (&stored.claim.phase, said) {
            (_, Some(end)) => Ended::Said(end),
            (ClaimPhase::Ending { reason, .. } | ClaimPhase::Ended { reason }, None) => {
                Ended::Lost(*reason)
            }
            _ => continue,
        };
        take_progress(seen.run, &mut next.status);
        next.status.placement.get_or_insert_with(|| placement_of(stored)).settled =
            Some(spec.placement);
        count(seen, stored, &end, next);
    }
}

/// How a placement ended.
enum Ended<'a> {
    /// The command did.
    Said(&'a End),
    /// The machine did.
    Lost(Reason),
}

fn count(seen: &Seen, stored: &StoredClaim, end: &Ended, next: &mut Next) {
    let unwanted = seen.job.spec.suspend || seen.stop.is_some() || stored.deleting;
    // The job goes on, and its machine was given up: for a better one.
    let left = stored.deleting && !seen.job.spec.suspend && seen.stop.is_none();
    let status = &mut next.status;
    match end {
        Ended::Said(End::Finished { artifact, cached, caveat }) => {
            status.artifact = Some(artifact.clone());
            status.cached = Some(*cached);
            let there = seen.job.spec.output.uri.as_ref();
            let there = there.map(|uri| format!("the result is in {uri} too"));
            let said: Vec<String> = there.into_iter().chain(caveat.clone()).collect();
            finish(seen, next, Phase::Complete, Reason::Succeeded, &said.join("; "));
        }
        Ended::Said(End::Done) if seen.job.spec.container.is_some() => {
            status.key = seen.key.map(str::to_owned);
            status.cached = seen.key.map(|_| false);
            finish(seen, next, Phase::Complete, Reason::Succeeded, "");
        }
        Ended::Said(End::Done) => {
            failed(seen, next, Reason::HeartbeatLost, "the runtime ended and named no result");
        }
        Ended::Said(End::Refused { message }) => {
            // What it said its key was counts no more than the rest.
            status.key = None;
            failed(seen, next, Reason::ResultRefused, message);
        }
        Ended::Said(End::Failed { message, retry: false }) => {
            finish(seen, next, Phase::Failed, Reason::InvalidSpec, message);
        }
        Ended::Said(End::Failed { message, retry: true }) => {
            failed(seen, next, Reason::HeartbeatLost, message);
        }
        Ended::Said(End::Unfit { message }) => unfit(seen, next, stored, message),
        // Drained because we no longer wanted it there: the job goes on, nothing failed.
        Ended::Said(End::Stopped) if unwanted => status.moves += u32::from(left),
        Ended::Said(End::Stopped) => interrupted(seen, next, Reason::SpotInterrupted),
        Ended::Lost(reason) => match reason {
            Reason::SpotInterrupted | Reason::HeartbeatLost => interrupted(seen, next, *reason),
            Reason::InvalidSpec => {
                let message = "the provider refuses the request as invalid";
                finish(seen, next, Phase::Failed, *reason, message);
            }
            Reason::ImagePullFailed => {
                failed(seen, next, Reason::HeartbeatLost, "the image could not be fetched");
            }
            Reason::AcceleratorProbeFailed => unfit(seen, next, stored, "it said so"),
            // Paid for and of no use, which an own mistake may make of every one of them: it counts, so
            // that no more than `backoffLimit` allows are tried.
            Reason::LaunchTimedOut => {
                let called_at = seen.run.and_then(|run| run.called_at.as_deref());
                failed(seen, next, *reason, &unmet::message(stored, called_at));
            }
            Reason::CheaperOfferMigration | Reason::DeadlineAtRisk => status.moves += 1,
            // An operator that started meanwhile does not know why it was left.
            Reason::Suspended => status.moves += u32::from(left),
            // Nothing was lost: it is placed anew, elsewhere or later.
            _ => {}
        },
    }
}

fn failed(seen: &Seen, next: &mut Next, reason: Reason, message: &str) {
    let status = &mut next.status;
    status.failures += 1;
    if status.failures > seen.job.spec.backoff_limit {
        let times = status.failures;
        let message = format!("failed {times} times; the last time: {message}");
        finish(seen, next, Phase::Failed, Reason::BackoffLimitExceeded, &message);
        return;
    }
    next.status.restarts += 1;
    let generation = seen.job.metadata.generation;
    let mut conditions = Conditions::of(&mut next.status.conditions, generation, seen.now);
    conditions.set("Interrupted", Is::True, reason, message);
    next.status.phase = Some(Phase::Interrupted);
}

/// Its machine lacks what it was bought for. Nothing was begun, so nothing was lost and nothing
/// failed: it is placed anew, on another class of machine.
fn unfit(seen: &Seen, next: &mut Next, stored: &StoredClaim, message: &str) {
    let message = format!("{}: {message}", stored.claim.spec.offer.id);
    next.status.phase = Some(Phase::Interrupted);
    let generation = seen.job.metadata.generation;
    let mut conditions = Conditions::of(&mut next.status.conditions, generation, seen.now);
    conditions.set("Interrupted", Is::True, Reason::AcceleratorProbeFailed, &message);
}

fn interrupted(seen: &Seen, next: &mut Next, reason: Reason) {
    let interruption = &seen.job.spec.placement.interruption;
    let status = &mut next.status;
    status.interruptions += 1;
    let times = status.interruptions;
    let fails = interruption.policy == InterruptionPolicy::Fail;
    if fails || times > interruption.max_interruptions {
        let message = match fails {
            true => "the machine was lost, and placement.interruption.policy is Fail".to_owned(),
            false => format!(
                "{times} machines were lost; placement.interruption.maxInterruptions is {}",
                interruption.max_interruptions
            ),
        };
        finish(seen, next, Phase::Failed, reason, &message);
        return;
    }
    next.status.restarts += 1;
    let generation = seen.job.metadata.generation;
    let mut conditions = Conditions::of(&mut next.status.conditions, generation, seen.now);
    conditions.set("Interrupted", Is::True, reason, "");
    next.status.phase = Some(Phase::Interrupted);
}

pub(super) fn finish(seen: &Seen, next: &mut Next, phase: Phase, reason: Reason, message: &str) {
    let status = &mut next.status;
    status.phase = Some(phase);
    status.completion_time = Some(time(seen.now));
    let generation = seen.job.metadata.generation;
    let mut conditions = Conditions::of(&mut status.conditions, generation, seen.now);
    conditions.set("Running", Is::False, reason, "");
    conditions.clear("Interrupted");
    match phase {
        Phase::Complete => {
            conditions.set("Complete", Is::True, reason, message);
            conditions.ready(reason, message);
        }
        _ => {
            conditions.set("Failed", Is::True, reason, message);
            conditions.stalled(reason, message);
        }
    }
    cost(seen, status);
}

/// Hard stops: money and time.
pub(super) fn limits(seen: &Seen, next: &mut Next) {
    let spec = &seen.job.spec;
    if let (Some(Stop { budget, how: Stopped::Terminated }), false) =
        (seen.stop, seen.claims.is_empty())
    {
        let message = format!(
            "the limit of SpendBudget {budget} is reached, and its onExceeded is Terminate"
        );
        finish(seen, next, Phase::Failed, Reason::BudgetExceeded, &message);
        return;
    }
    let limit = spec.max_total_cost.as_ref().and_then(|m| m.micro_dollars().ok());
    if let Some(limit) = limit.map(Usd::from_micros).filter(|limit| seen.spent >= *limit) {
        let message = format!("has cost {} $; maxTotalCost is {limit} $", seen.spent);
        finish(seen, next, Phase::Failed, Reason::CostLimitExceeded, &message);
        return;
    }
    let started = next.status.start_time.as_ref().map(|at| at.0);
    // What is suspended is on its way out: its clock begins anew when it is resumed.
    let counts = spec.active_deadline_seconds.filter(|_| !spec.suspend);
    if let (Some(seconds), Some(started)) = (counts, started) {
        let left = SignedDuration::from_secs(i64::from(seconds)) - seen.now.duration_since(started);
        if left <= SignedDuration::ZERO {
            let message = format!("activeDeadlineSeconds ({seconds}) is over");
            finish(seen, next, Phase::Failed, Reason::DeadlineExceeded, &message);
        } else {
            look_again(next, left);
        }
    }
}

/// Ended: nothing is paid for any more, the last sum is written, and then the object may go.
pub(super) fn over(seen: &Seen, next: &mut Next) {
    next.unwanted = names(seen.claims);
    if !seen.claims.is_empty() {
        return;
    }
    cost(seen, &mut next.status);
    let ended = next.status.completion_time.as_ref().map_or(seen.now, |at| at.0);
    if let Some(ttl) = seen.job.spec.ttl_seconds_after_finished {
        let left = SignedDuration::from_secs(i64::from(ttl)) - seen.now.duration_since(ended);
        match left <= SignedDuration::ZERO {
            true => next.delete = true,
            false => look_again(next, left),
        }
    }
}
