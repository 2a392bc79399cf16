//! The TrainingJob's controller, the part that needs no client: from what is seen to what its
//! status shall say, whether it wants a machine, and which claims it no longer wants.
//!
//! Whatever ends a machine is counted exactly once: the count and the number of the placement
//! that was counted (`status.placement.settled`) are one write, and the claim goes only after it.
//!
//! | module | holds |
//! |---|---|
//! | `ends` | how placements and jobs end |
//! | `words` | what the status of one says that goes on |

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use petaflop_arbiter::claim::Phase as ClaimPhase;
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::training_job::TrainingJobPhase as Phase;
use petaflop_crds::{MANAGED_BY, TrainingJob, TrainingJobStatus};

use crate::claims::StoredClaim;
use crate::cluster::budgets::Stop;
use crate::cluster::finalizer;
use crate::cluster::status::{is_true, time};
use crate::run::Run;

mod ends;
mod words;

use ends::{finish, limits, over, settle};
pub use words::placement_of;
use words::{resumed, suspended, waits, works};

/// Cost and progress are written at most this often while something runs.
pub const REFRESH: SignedDuration = SignedDuration::from_secs(300);

/// What is seen of a job.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The object.
    pub job: &'a TrainingJob,
    /// Its claims, by name.
    pub claims: &'a [StoredClaim],
    /// What the agent of its newest claim said.
    pub run: Option<&'a Run>,
    /// Everything that its claims have cost, by the ledger and the running rate.
    pub spent: Usd,
    /// That is so by the ledger alone: nothing runs, and no row is to come.
    pub settled: bool,
    /// Why the last placement pass found no machine for it.
    pub waits: Option<&'a Waits>,
    /// Wherever it can be placed, its deadline may be missed.
    pub at_risk: bool,
    /// Under what key its end is kept, where it says that it may be used again.
    pub key: Option<&'a str>,
    /// It ran to its end before under that key.
    pub repeats: bool,
    /// A budget whose limit is reached asks that what runs be stopped.
    pub stop: Option<&'a Stop>,
    /// Now.
    pub now: Timestamp,
}

/// Why there is no machine yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waits {
    /// In the API's words.
    pub reason: Reason,
    /// For people, with numbers.
    pub message: String,
}

/// What is to be done for a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Next {
    /// What its status shall say.
    pub status: TrainingJobStatus,
    /// Whether its finalizer shall be there.
    pub finalizer: bool,
    /// Names of claims that it no longer wants.
    pub unwanted: Vec<String>,
    /// Whether it waits for a machine.
    pub place: bool,
    /// Whether the object itself shall go.
    pub delete: bool,
    /// When to look again though nothing changes.
    pub again: Option<Duration>,
}

/// Whether it is ours to reconcile.
pub fn is_ours(job: &TrainingJob) -> bool {
    job.spec.managed_by == MANAGED_BY
}

/// Whether it has ended, well or badly.
pub fn is_over(status: &TrainingJobStatus) -> bool {
    is_true(&status.conditions, "Complete") || is_true(&status.conditions, "Failed")
}

/// Whether a machine of it went, nobody knows how its command ended, and it is not counted yet.
pub fn is_unexplained(
    stored: &StoredClaim,
    status: Option<&TrainingJobStatus>,
    run: Option<&Run>,
) -> bool {
    let (ClaimPhase::Ending { reason, .. } | ClaimPhase::Ended { reason }) = stored.claim.phase
    else {
        return false;
    };
    matches!(reason, Reason::SpotInterrupted | Reason::HeartbeatLost)
        && run.is_none_or(|run| run.end.is_none())
        && stored.claim.spec.placement > status.map_or(0, settled)
}

/// Number of the last placement whose end was counted.
fn settled(status: &TrainingJobStatus) -> u32 {
    status.placement.as_ref().and_then(|p| p.settled).unwrap_or(0)
}

/// Decides for one job.
pub fn next(seen: &Seen) -> Next {
    let old = seen.job.status.clone().unwrap_or_default();
    // It is held for its machines' sake: from before the first is bought until the last is gone.
    let held = finalizer::is_held(seen.job);
    let mut next = Next {
        status: old.clone(),
        finalizer: held || !seen.claims.is_empty(),
        unwanted: Vec::new(),
        place: false,
        delete: false,
        again: None,
    };
    if seen.job.metadata.deletion_timestamp.is_some() {
        next.unwanted = names(seen.claims);
        next.finalizer = held && !seen.claims.is_empty();
        return next;
    }
    next.status.observed_generation = seen.job.metadata.generation;
    next.status.admitted_time.get_or_insert_with(|| time(seen.now));
    if is_over(&old) {
        over(seen, &mut next);
        return next;
    }
    settle(seen, &mut next);
    if !is_over(&next.status) {
        limits(seen, &mut next);
    }
    if is_over(&next.status) {
        over(seen, &mut next);
        return next;
    }
    let settled = settled(&next.status);
    let (done, live): (Vec<&StoredClaim>, Vec<&StoredClaim>) =
        seen.claims.iter().partition(|c| c.claim.spec.placement <= settled);
    next.unwanted = done.iter().map(|c| c.claim.spec.name.clone()).collect();
    if seen.job.spec.suspend || budget_stops(seen, &old) {
        next.unwanted = names(seen.claims);
        suspended(seen, &mut next);
        return next;
    }
    resumed(seen, &mut next);
    match live.first() {
        Some(claim) => works(seen, claim, &mut next),
        None if seen.repeats => {
            next.status.key = seen.key.map(str::to_owned);
            next.status.cached = Some(true);
            let why = "the same ran to its end before, and its cache is Always";
            finish(seen, &mut next, Phase::Complete, Reason::Succeeded, why);
            over(seen, &mut next);
        }
        None => waits(seen, &mut next),
    }
    next
}

/// Whether a reached limit suspends it: if it has a machine, or had one until the limit. What only
/// waits is not stopped; nothing is bought for it anyway.
fn budget_stops(seen: &Seen, old: &TrainingJobStatus) -> bool {
    let stopped = |c: &Condition| {
        c.type_ == "Running" && c.status == "False" && c.reason == Reason::BudgetExceeded.as_str()
    };
    seen.stop.is_some() && (!seen.claims.is_empty() || old.conditions.iter().any(stopped))
}

/// Whether waiting will not help: somebody has to change the job, a provider or a budget.
pub fn needs_a_change(reason: Reason) -> bool {
    match reason {
        Reason::NoMatchingOffer
        | Reason::PriceAboveLimit
        | Reason::BudgetExceeded
        | Reason::CostLimitExceeded
        | Reason::InvalidSpec
        | Reason::CredentialsMissing
        | Reason::SecretNotFound
        | Reason::ProviderNotFound
        | Reason::NamespaceNotAllowed
        | Reason::ImageNotEnterable
        | Reason::Unauthorized
        | Reason::BalanceTooLow
        | Reason::ApiRetired => true,
        // Capacity, quotas, prices and providers come and go by themselves.
        _ => false,
    }
}

fn names(claims: &[StoredClaim]) -> Vec<String> {
    claims.iter().map(|stored| stored.claim.spec.name.clone()).collect()
}

fn look_again(next: &mut Next, wait: SignedDuration) {
    let wait = Duration::try_from(wait).unwrap_or_default().max(Duration::from_millis(1));
    next.again = Some(next.again.map_or(wait, |known| known.min(wait)));
}

/// Whether a job still wants a claim of its.
pub fn wants(job: &TrainingJob, stored: &StoredClaim) -> bool {
    let status = job.status.as_ref();
    job.metadata.deletion_timestamp.is_none()
        && !job.spec.suspend
        && !status.is_some_and(is_over)
        && stored.claim.spec.placement > status.map_or(0, settled)
}

/// Why a claim of this job is no longer wanted.
pub fn unwanted_because(job: Option<&TrainingJob>, claim: &StoredClaim) -> Reason {
    let Some(job) =
        job.filter(|job| job.uid().as_deref() == Some(claim.claim.spec.owner.uid.as_str()))
    else {
        return Reason::OwnerGone;
    };
    let conditions = job.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let said = |type_: &str| conditions.iter().find(|c| c.type_ == type_ && c.status == "True");
    let known = said("Complete").or_else(|| said("Failed")).or_else(|| said("Interrupted"));
    known
        .and_then(|c| Reason::ALL.iter().find(|reason| reason.as_str() == c.reason))
        .copied()
        .unwrap_or(Reason::Suspended)
}

#[cfg(test)]
mod tests;
