//! What the status of a job says that goes on: suspended, on its machine, or waiting for one.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use petaflop_arbiter::claim::Phase as ClaimPhase;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::TrainingJobStatus;
use petaflop_crds::scalar::Money;
use petaflop_crds::shared::{CostStatus, PlacementStatus};
use petaflop_crds::training_job::TrainingJobPhase as Phase;

use super::{Next, REFRESH, Seen, Waits, look_again, needs_a_change, settled};
use crate::claims::StoredClaim;
use crate::cluster::budgets::Stop;
use crate::cluster::status::{Conditions, Is, is_true, time};
use crate::restart;
use crate::run::Run;

/// A job's speed is believed after this long.
const ENOUGH_TO_TELL: SignedDuration = SignedDuration::from_secs(60);

pub(super) fn suspended(seen: &Seen, next: &mut Next) {
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
pub(super) fn resumed(seen: &Seen, next: &mut Next) {
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
pub(super) fn works(seen: &Seen, stored: &StoredClaim, next: &mut Next) {
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
pub(super) fn waits(seen: &Seen, next: &mut Next) {
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

pub(super) fn take_progress(run: Option<&Run>, status: &mut TrainingJobStatus) {
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

pub(super) fn cost(seen: &Seen, status: &mut TrainingJobStatus) {
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
