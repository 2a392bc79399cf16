//! What a service's status says: conditions, phase, cost, where it is.

use kube::ResourceExt;
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::InferenceServiceStatus;
use petaflop_crds::inference_service::InferenceServicePhase as Phase;
use petaflop_crds::scalar::Money;
use petaflop_crds::shared::{CostStatus, PlacementStatus};

use super::{Model, Next, Seen, look_again};
use crate::cluster::status::{Conditions, Is, is_true, time};
use crate::cluster::training_job::{REFRESH, Waits, needs_a_change, placement_of};

/// Replicas of a service, counted.
pub(super) struct Counts<'a> {
    pub(super) want: u32,
    /// Those that go included.
    pub(super) all: usize,
    pub(super) available: usize,
    pub(super) updated: usize,
    pub(super) new_and_ready: usize,
    /// More machines are needed.
    pub(super) lacks: bool,
    pub(super) asleep: bool,
    /// Why this very model cannot be served.
    pub(super) blocked: Option<&'a str>,
}

impl Counts<'_> {
    fn is_complete(&self) -> bool {
        let want = self.want as usize;
        self.new_and_ready == want && self.all == want
    }
}

pub(super) fn suspended(seen: &Seen, next: &mut Next) {
    let (reason, why) = match seen.stopped_by_budget {
        Some(budget) if !seen.service.spec.suspend => {
            let goes_on = "goes on when its period ends or its limit is raised";
            let why = format!("the limit of SpendBudget {budget} is reached; {goes_on}");
            (Reason::BudgetExceeded, why)
        }
        _ => (Reason::Suspended, String::new()),
    };
    let gone = seen.replicas.is_empty();
    let status = &mut next.status;
    status.replicas = u32::try_from(seen.replicas.len()).unwrap_or(u32::MAX);
    (status.available_replicas, status.updated_replicas) = (0, 0);
    let generation = seen.service.metadata.generation;
    let mut conditions = Conditions::of(&mut status.conditions, generation, seen.now);
    for type_ in ["Available", "Progressing", "ModelLoaded", "RouteReady"] {
        conditions.set(type_, Is::False, reason, "");
    }
    if !gone {
        conditions.progressing(reason, "ending its machines");
        return;
    }
    conditions.set("Suspended", Is::True, reason, &why);
    match reason {
        // It goes on by itself.
        Reason::BudgetExceeded => conditions.progressing(reason, &why),
        // kstatus: what was asked for has been done.
        _ => conditions.ready(reason, &why),
    }
    status.phase = Some(Phase::Suspended);
    cost(seen, status);
}

pub(super) fn resumed(seen: &Seen, next: &mut Next) {
    let status = &mut next.status;
    if is_true(&status.conditions, "Suspended") {
        let generation = seen.service.metadata.generation;
        let mut conditions = Conditions::of(&mut status.conditions, generation, seen.now);
        conditions.set("Suspended", Is::False, Reason::Resumed, "");
        status.phase = Some(Phase::Pending);
    }
}

/// Writes down how it is.
pub(super) fn say(seen: &Seen, counts: &Counts<'_>, next: &mut Next) {
    let service = seen.service;
    let status = &mut next.status;
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    status.replicas = number(counts.all);
    status.available_replicas = number(counts.available);
    status.updated_replicas = number(counts.updated);

    let none_wanted = counts.want == 0;
    let least = counts.want.saturating_sub(service.spec.rollout.max_unavailable).max(1) as usize;
    let linked = seen.route.linked > 0;
    let why_none = match none_wanted {
        true => Reason::ScaledToZero,
        false => Reason::MinimumReplicasUnavailable,
    };
    let generation = service.metadata.generation;
    let mut conditions = Conditions::of(&mut status.conditions, generation, seen.now);
    let mut so = |type_: &str, is: bool, otherwise: Reason, why_not: &str| match is {
        true => conditions.set(type_, Is::True, Reason::Ok, ""),
        false => conditions.set(type_, Is::False, otherwise, why_not),
    };
    so("Available", counts.available >= least, why_none, "");
    let loading = match (none_wanted, counts.blocked) {
        (true, _) => Reason::ScaledToZero,
        (false, Some(_)) => Reason::BlockedByFailedLoad,
        (false, None) => Reason::NewReplicaLaunching,
    };
    so("ModelLoaded", counts.new_and_ready > 0, loading, counts.blocked.unwrap_or_default());
    so("RouteReady", linked && counts.available > 0, why_none, "");
    let progressing = !counts.is_complete() && !none_wanted;
    match progressing {
        true => conditions.set("Progressing", Is::True, Reason::NewReplicaLaunching, ""),
        false => conditions.set("Progressing", Is::False, Reason::Ok, ""),
    }
    let mut stuck = true;
    match (counts.blocked, seen.model, seen.waits.filter(|_| counts.lacks)) {
        _ if none_wanted && counts.all == 0 => {
            let message = match counts.asleep {
                true => "nobody asked for a while; the next request wakes it",
                false => "spec.replicas is 0",
            };
            conditions.ready(Reason::ScaledToZero, message);
            stuck = false;
        }
        _ if none_wanted => {
            conditions.progressing(Reason::ScaledToZero, "ending its machines");
            stuck = false;
        }
        (Some(message), ..) => conditions.stalled(Reason::BlockedByFailedLoad, message),
        (None, Model::Wrong(Waits { reason, message }), _) => conditions.stalled(*reason, message),
        (None, Model::Known(_), Some(Waits { reason, message })) if needs_a_change(*reason) => {
            conditions.stalled(*reason, message);
        }
        (None, Model::Waits(Waits { reason, message }), _)
        | (None, Model::Known(_), Some(Waits { reason, message })) => {
            conditions.progressing(*reason, message);
            stuck = false;
        }
        (None, Model::Known(_), None) if !counts.is_complete() => {
            let message = format!("{} of {} replicas answer", counts.available, counts.want);
            conditions.progressing(Reason::NewReplicaLaunching, &message);
            stuck = false;
        }
        (None, Model::Known(_), None) if !linked => {
            let message = format!(
                "no gateway answers yet; `kubectl describe deployment {}-gateway` says why",
                service.name_any()
            );
            conditions.progressing(Reason::MinimumReplicasUnavailable, &message);
            stuck = false;
        }
        (None, Model::Known(_), None) => {
            conditions.ready(Reason::Ok, "");
            stuck = false;
            (status.failures, status.last_failure_time) = (0, None);
        }
    }
    let before = status.phase;
    status.phase = Some(match () {
        () if none_wanted => Phase::Idle,
        () if counts.available >= least => Phase::Available,
        () if stuck => Phase::Failed,
        () if counts.all > 0 => Phase::Launching,
        () => Phase::Pending,
    });
    let known = status.cost.as_ref().and_then(|cost| cost.as_of.as_ref()).map(|at| at.0);
    let stale = known.is_none_or(|at| seen.now.duration_since(at) >= REFRESH);
    if stale || before != status.phase || seen.replicas.is_empty() {
        cost(seen, status);
    }
    if !seen.replicas.is_empty() {
        look_again(&mut next.again, REFRESH);
    }
}

fn cost(seen: &Seen, status: &mut InferenceServiceStatus) {
    let total = Some(Money::from(seen.spent));
    // A sum that did not change needs no newer date.
    if status.cost.as_ref().is_none_or(|known| known.total != total) {
        status.cost = Some(CostStatus { total, as_of: Some(time(seen.now)) });
    }
}

/// Where the replicas are: the newest one's place, and what all of them cost an hour. Its number
/// stays when they are gone, so that no claim has the name of an earlier one.
pub(super) fn placement(seen: &Seen, status: &mut InferenceServiceStatus) {
    let known = status.placement.as_ref().and_then(|placement| placement.number);
    let working = seen.replicas.iter().map(|r| &r.stored).filter(|s| s.claim.is_working());
    let newest = working.clone().max_by_key(|s| (s.claim.spec.placement, s.claim.spec.index));
    let number = seen.replicas.iter().map(|r| r.stored.claim.spec.placement).max().max(known);
    let hourly: Usd = working.map(|s| Usd::from_micros(s.claim.spec.offer.price.micros())).sum();
    status.placement = match newest {
        Some(newest) => Some(PlacementStatus {
            number,
            hourly_price: Some(Money::from(hourly)),
            ..placement_of(newest)
        }),
        None => number
            .map(|number| PlacementStatus { number: Some(number), ..PlacementStatus::default() }),
    };
}
