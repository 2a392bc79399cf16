//! The TrainingJob's controller, the part that needs no client: from what is seen to what its
//! status shall say, whether it wants a machine, and which claims it no longer wants.
//!
//! Whatever ends a machine is counted exactly once: the count and the number of the placement
//! that was counted (`status.placement.settled`) are one write, and the claim goes only after it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use petaflop_arbiter::claim::Phase as ClaimPhase;
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::scalar::Money;
use petaflop_crds::shared::{CostStatus, InterruptionPolicy, PlacementStatus};
use petaflop_crds::training_job::TrainingJobPhase as Phase;
use petaflop_crds::{MANAGED_BY, TrainingJob, TrainingJobStatus};

use crate::claims::StoredClaim;
use crate::cluster::budgets::{Stop, Stopped};
use crate::cluster::finalizer;
use crate::cluster::status::{Conditions, Is, is_true, time};
use crate::restart;
use crate::run::{End, Run};

/// Cost and progress are written at most this often while something runs.
pub const REFRESH: SignedDuration = SignedDuration::from_secs(300);

/// A job's speed is believed after this long.
const ENOUGH_TO_TELL: SignedDuration = SignedDuration::from_secs(60);

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

/// Counts how placements ended that were not counted yet.
fn settle(seen: &Seen, next: &mut Next) {
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
        Ended::Said(End::Stopped) if unwanted => {}
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

fn finish(seen: &Seen, next: &mut Next, phase: Phase, reason: Reason, message: &str) {
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
fn limits(seen: &Seen, next: &mut Next) {
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
fn over(seen: &Seen, next: &mut Next) {
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

fn suspended(seen: &Seen, next: &mut Next) {
    let (reason, why) = match seen.stop {
        Some(Stop { budget, how: _ }) if !seen.job.spec.suspend => {
            let goes_on = "goes on when its period ends or its limit is raised";
            let why = format!("the limit of SpendBudget {budget} is reached; {goes_on}");
            (Reason::BudgetExceeded, why)
        }
        _ => (Reason::Suspended, String::new()),
    };
    let gone = seen.claims.is_empty();
    let status = &mut next.status;
    let generation = seen.job.metadata.generation;
    let mut conditions = Conditions::of(&mut status.conditions, generation, seen.now);
    conditions.set("Running", Is::False, reason, "");
    if !gone {
        conditions.progressing(reason, "ending its machine");
        return;
    }
    conditions.set("Suspended", Is::True, reason, &why);
    conditions.clear("Interrupted");
    match reason {
        // It goes on by itself.
        Reason::BudgetExceeded => conditions.progressing(reason, &why),
        // kstatus: what was asked for has been done.
        _ => conditions.ready(reason, &why),
    }
    status.phase = Some(Phase::Suspended);
    status.start_time = None;
    cost(seen, status);
}

/// No longer suspended: clocks that count from admission or start begin anew.
fn resumed(seen: &Seen, next: &mut Next) {
    let status = &mut next.status;
    if !is_true(&status.conditions, "Suspended") {
        return;
    }
    status.admitted_time = Some(time(seen.now));
    let generation = seen.job.metadata.generation;
    let mut conditions = Conditions::of(&mut status.conditions, generation, seen.now);
    conditions.set("Suspended", Is::False, Reason::Resumed, "");
}

/// It has a machine, or has asked for one.
fn works(seen: &Seen, stored: &StoredClaim, next: &mut Next) {
    let status = &mut next.status;
    let settled = settled(status);
    let placement = placement_of(stored);
    let moved =
        status.placement.as_ref().and_then(|p| p.claim.as_ref()) != placement.claim.as_ref();
    let settled = (settled > 0).then_some(settled);
    status.placement = Some(PlacementStatus { settled, ..placement });
    // An operator that has just begun has not asked the agent yet: what was written still holds.
    let ran = is_true(&status.conditions, "Running");
    let began = ran && !moved;
    // A recipe runs once the runtime has said what it is; a command of the user's says nothing.
    let is_container = seen.job.spec.container.is_some();
    let says = |run: &Run| run.started || (is_container && run.up);
    let running = stored.agent_key.is_some() && (began || seen.run.is_some_and(says));
    let generation = seen.job.metadata.generation;
    let mut conditions = Conditions::of(&mut status.conditions, generation, seen.now);
    let chosen = match seen.at_risk || (!moved && is_at_risk(conditions.get("OfferSelected"))) {
        true => Reason::DeadlineAtRisk,
        false => Reason::Ok,
    };
    conditions.set("OfferSelected", Is::True, chosen, &stored.claim.spec.offer.id.0);
    if !running {
        let reason = match stored.claim.phase {
            ClaimPhase::Ambiguous { .. } => Reason::LaunchAmbiguous,
            _ => Reason::Launching,
        };
        conditions.set("ComputeReady", Is::False, reason, "");
        if ran {
            conditions.set("Running", Is::False, reason, "");
        }
        conditions.progressing(reason, "");
        status.phase = Some(Phase::Launching);
        if moved {
            cost(seen, status);
        }
        return;
    }
    let known_risk = conditions.get("Running").filter(|c| is_at_risk(Some(c))).cloned();
    let fresh = status.phase != Some(Phase::Running);
    status.phase = Some(Phase::Running);
    status.start_time.get_or_insert_with(|| time(seen.now));
    let known = status.cost.as_ref().and_then(|cost| cost.as_of.as_ref()).map(|at| at.0);
    let stale = known.is_none_or(|at| seen.now.duration_since(at) >= REFRESH);
    if fresh || stale {
        take_progress(seen.run, status);
        cost(seen, status);
    }
    let (risk, passes) = deadline(seen, status);
    // What is expected moves with every step; it is thought over when progress is written.
    let risk = match (risk, known_risk) {
        (Late::Passed(message), _) => Some(message),
        (Late::Expected(message), _) if fresh || stale => Some(message),
        (Late::No, _) if fresh || stale => None,
        (_, known) => known.map(|condition| condition.message),
    };
    let (reason, message) = match &risk {
        Some(message) => (Reason::DeadlineAtRisk, message.as_str()),
        None => (Reason::Ok, ""),
    };
    let mut conditions = Conditions::of(&mut status.conditions, generation, seen.now);
    conditions.set("ComputeReady", Is::True, Reason::Ok, "");
    conditions.set("Running", Is::True, reason, message);
    conditions.clear("Interrupted");
    conditions.ready(reason, message);
    look_again(next, passes.map_or(REFRESH, |left| left.min(REFRESH)));
}

/// How a job that runs stands to its deadline.
enum Late {
    No,
    /// If it goes on as fast as it did so far.
    Expected(String),
    Passed(String),
}

/// And how long it is until the deadline passes.
fn deadline(seen: &Seen, status: &TrainingJobStatus) -> (Late, Option<SignedDuration>) {
    let admitted = status.admitted_time.as_ref().map_or(seen.now, |at| at.0);
    let Some(finish_by) = seen.job.spec.finish_by(admitted) else { return (Late::No, None) };
    let left = finish_by.duration_since(seen.now);
    if left <= SignedDuration::ZERO {
        return (Late::Passed(format!("its deadline, {finish_by}, has passed; it goes on")), None);
    }
    let started = status.start_time.as_ref().map_or(seen.now, |at| at.0);
    let ran = seen.now.duration_since(started);
    let late = status.progress.as_ref().is_some_and(|progress| {
        let (done, steps) = (i128::from(progress.step), i128::from(progress.steps));
        let to_do = (steps - done).max(0);
        done > 0 && ran >= ENOUGH_TO_TELL && ran.as_millis() * to_do > left.as_millis() * done
    });
    match late {
        true => (Late::Expected(format!("may end after its deadline, {finish_by}")), Some(left)),
        false => (Late::No, Some(left)),
    }
}

fn is_at_risk(condition: Option<&Condition>) -> bool {
    condition.is_some_and(|c| c.status == "True" && c.reason == Reason::DeadlineAtRisk.as_str())
}

/// It has none, and wants one.
fn waits(seen: &Seen, next: &mut Next) {
    let not_before = backoff_until(&next.status);
    let generation = seen.job.metadata.generation;
    let status = &mut next.status;
    let fresh = status.phase.is_none();
    let lost = status.phase == Some(Phase::Interrupted);
    if !lost {
        status.phase = Some(Phase::Pending);
    }
    let mut conditions = Conditions::of(&mut status.conditions, generation, seen.now);
    conditions.set("ComputeReady", Is::False, Reason::Launching, "");
    conditions.set("Running", Is::False, Reason::Launching, "");
    match seen.waits {
        Some(Waits { reason, message }) if needs_a_change(*reason) => {
            conditions.set("OfferSelected", Is::False, *reason, message);
            conditions.stalled(*reason, message);
        }
        Some(Waits { reason, message }) => {
            conditions.set("OfferSelected", Is::False, *reason, message);
            conditions.progressing(*reason, message);
        }
        None if fresh => {
            conditions.set("OfferSelected", Is::Unknown, Reason::Launching, "");
            conditions.progressing(Reason::Launching, "looking for a place");
        }
        None => conditions.progressing(Reason::Launching, "looking for a place"),
    }
    match not_before.filter(|at| *at > seen.now) {
        Some(at) => look_again(next, at.duration_since(seen.now)),
        None => next.place = true,
    }
}

/// When it may be started again after a failure.
fn backoff_until(status: &TrainingJobStatus) -> Option<Timestamp> {
    let failed =
        status.conditions.iter().find(|c| c.type_ == "Interrupted" && c.status == "True")?;
    if failed.reason != Reason::HeartbeatLost.as_str() || status.failures == 0 {
        return None;
    }
    Some(restart::not_before(failed.last_transition_time.0, status.failures))
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

fn take_progress(run: Option<&Run>, status: &mut TrainingJobStatus) {
    let Some(run) = run else { return };
    if run.progress.steps > 0 {
        // How long a checkpoint takes is known of the job: a machine that has saved none yet, or was
        // lost before it did, takes nothing back.
        let known = status.progress.take().and_then(|progress| progress.checkpoint_seconds);
        let mut progress = run.progress.clone();
        progress.checkpoint_seconds = progress.checkpoint_seconds.or(known);
        status.progress = Some(progress);
    }
    if let Some(key) = &run.key {
        status.key.get_or_insert_with(|| key.clone());
    }
}

fn cost(seen: &Seen, status: &mut TrainingJobStatus) {
    let total = Some(Money::from(seen.spent));
    let known = status.cost.as_ref().and_then(|cost| cost.total.as_ref()?.micro_dollars().ok());
    // Accident: another process closed the claim, and its last row is not in our book. Two that
    // corrected each other would go on for ever. But what runs is reckoned by its price alone, and may
    // turn out to have cost less.
    if !seen.settled && known.is_some_and(|known| seen.spent.micros() < known) {
        return;
    }
    // A sum that did not change needs no newer date.
    if status.cost.as_ref().is_none_or(|known| known.total != total) {
        status.cost = Some(CostStatus { total, as_of: Some(time(seen.now)) });
    }
}

/// Where a claim is, for people.
pub fn placement_of(stored: &StoredClaim) -> PlacementStatus {
    let spec = &stored.claim.spec;
    let offer = &spec.offer;
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    PlacementStatus {
        claim: Some(spec.name.clone()),
        number: Some(spec.placement),
        settled: None,
        provider: Some(offer.provider.clone()),
        region: text(&offer.region),
        zone: text(&offer.zone),
        instance_type: text(&offer.instance_type),
        accelerator: offer.accelerators.as_ref().map(|a| format!("{}x {}", a.count, a.model)),
        capacity_type: Some(offer.capacity.into()),
        hourly_price: Some(Money::from(offer.price)),
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
