//! One serial pass over all workloads: which machines to claim, which claims to end, and why.
//!
//! Workloads are taken in the order they were created (then by name), each sees what the ones
//! before it took. Running the pass again on a world that holds its claims plans nothing more.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::candidates::{Candidate, Found, Promise, claim_of};
use crate::claim::{Claim, Device, Phase};
use crate::deadline::Guided;
use crate::decision::{Action, CostBreakdown, Decision, Outcome, Plan};
use crate::money::{Usd, UsdPerHour};
use crate::objective::Course;
use crate::obstacle::Obstacle;
use crate::offer::Offer;
use crate::pass::Pass;
use crate::place::Verdict;
use crate::reason::Reason;
use crate::spread::Spread;
use crate::workload::{InterruptionPolicy, Work, Workload, WorkloadId};
use crate::world::{Switch, World};

/// A workload that waits is looked at again after this long at the latest.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(30);

/// New claims of one workload in one pass; what it lacks beyond them comes with the next.
const MOST_CLAIMS: u32 = 64;

/// Decides for all workloads of a world.
pub fn decide(world: &World, now: Timestamp) -> Plan {
    let mut pass = Pass::new(world, now, None);
    let mut actions = Vec::new();
    let mut decisions = Vec::new();
    for workload in in_order(world) {
        decisions.push(decide_one(&mut pass, workload, &mut actions));
    }
    let waits = decisions.iter().any(|decision| match &decision.outcome {
        Outcome::Waiting { .. } => true,
        Outcome::Placed { lacking, .. } => *lacking > 0,
        Outcome::Settled { .. } => false,
        Outcome::Moves { .. } => true,
    });
    let requeue_at = waits.then(|| look_again(world, now));
    Plan { actions, requeue_at, decisions, watched: pass.watched, tables: pass.tables }
}

/// Workloads in the order they are decided.
fn in_order(world: &World) -> Vec<&Workload> {
    let mut order: Vec<&Workload> = world.workloads.iter().collect();
    order.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    order
}

/// When something that stands in the way may have passed by itself.
fn look_again(world: &World, now: Timestamp) -> Timestamp {
    let latest = now.saturating_add(LOOK_AGAIN).unwrap_or(Timestamp::MAX);
    world
        .unavailable
        .iter()
        .map(|entry| entry.until)
        .filter(|until| *until > now)
        .fold(latest, Timestamp::min)
}

fn decide_one<'a>(
    pass: &mut Pass<'a>,
    workload: &'a Workload,
    actions: &mut Vec<Action>,
) -> Decision {
    let world = pass.world;
    let own = pass.claims_of(&workload.id.uid).to_vec();
    let working: Vec<&Claim> = own.iter().copied().filter(|claim| claim.is_working()).collect();
    let wanted = workload.machines_wanted();
    let have = working.len() as u32;
    if have >= wanted {
        let settled = Outcome::Settled { machines: wanted };
        let unfinished = own.iter().filter(|claim| claim.is_unfinished()).count();
        let (outcome, advice) = match working.as_slice() {
            &[claim] if have == wanted && unfinished == 1 => pass.better_place(workload, claim),
            _ => (None, None),
        };
        if let (Some(Outcome::Moves { reason, .. }), [claim]) = (&outcome, working.as_slice()) {
            actions.push(Action::EndClaim { uid: claim.uid.clone(), reason: *reason });
        }
        end_surplus(workload, working, wanted, actions);
        let decision = without_search(workload, outcome.unwrap_or(settled));
        return Decision { advice, ..decision };
    }
    if let Some(outcome) = must_wait(workload, &own) {
        return without_search(workload, outcome);
    }
    let placement = own
        .iter()
        .map(|claim| claim.spec.placement)
        .fold(workload.progress.placements, u32::max)
        .saturating_add(1);
    let mut shown = None;
    let mut claims = Vec::new();
    let mut warning = None;
    let mut spread = Spread::of(workload, wanted, &working);
    for index in 0..(wanted - have).min(MOST_CLAIMS) {
        let found = search_spread(pass, workload, &spread);
        pass.remember(found.guided.as_ref());
        let [chosen, others @ ..] = found.takeable.as_slice() else {
            shown.get_or_insert(found);
            break;
        };
        let spec = claim_of(workload, chosen, others, placement, index, pass.now);
        claims.push(spec.name.clone());
        actions.push(Action::CreateClaim(spec));
        let at_risk = match &found.guided {
            Some(guided) => guided.at_risk(chosen, pass.now),
            None => chosen.promise != Promise::Kept,
        };
        if at_risk {
            warning = Some(Reason::DeadlineAtRisk);
        }
        pass.reserve(chosen.offer, &workload.id.namespace, &workload.id.uid, chosen.total);
        spread.add(chosen.offer);
        shown.get_or_insert(found);
    }
    let lacking = wanted - have - claims.len() as u32;
    let (ranked, stopped, saving) = match &shown {
        Some(found) => (found.ranked(), found.stopped(), found.saving()),
        None => (Vec::new(), Vec::new(), None),
    };
    let guided = shown.as_ref().and_then(|found| found.guided.as_ref());
    let advice = guided.map(|guided| guided.advice.clone());
    let patient = guided.and_then(Guided::waiting).filter(|_| claims.is_empty());
    let misses = match claims.is_empty() && patient.is_none() {
        true => pass.misses(workload),
        false => Vec::new(),
    };
    let outcome = match patient {
        Some(patient) => patient,
        None if claims.is_empty() => waiting(world, workload, &misses),
        None => Outcome::Placed { claims, lacking },
    };
    Decision {
        workload: workload.id.clone(),
        world: None,
        outcome,
        warning,
        advice,
        considered: u32::try_from(world.market.len()).unwrap_or(u32::MAX),
        stopped,
        ranked,
        misses,
        saving,
    }
}

/// The best offers for one more replica: beside those places that have their share of them, if any will do.
fn search_spread<'a>(
    pass: &mut Pass<'a>,
    workload: &'a Workload,
    spread: &Spread<'a>,
) -> Found<'a> {
    pass.crowded = spread.crowded();
    let found = pass.search(workload, None);
    let is_crowded = !std::mem::take(&mut pass.crowded).is_empty();
    match found.takeable.is_empty() && is_crowded {
        true => pass.search(workload, None),
        false => found,
    }
}

/// Ends the claims beyond what is wanted: those not yet launched first, then the dearest.
fn end_surplus(
    workload: &Workload,
    mut working: Vec<&Claim>,
    wanted: u32,
    actions: &mut Vec<Action>,
) {
    let reason = if workload.suspended {
        Reason::Suspended
    } else if wanted == 0 {
        Reason::ScaledToZero
    } else {
        Reason::ScaledDown
    };
    working.sort_by_key(|claim| {
        let launched = matches!(claim.phase, Phase::Launched { .. });
        (!launched, claim.spec.offer.price, claim.uid.as_str())
    });
    actions.extend(
        working
            .into_iter()
            .skip(wanted as usize)
            .map(|claim| Action::EndClaim { uid: claim.uid.clone(), reason }),
    );
}

/// What keeps a workload from being placed, whatever the offers.
fn must_wait(workload: &Workload, own: &[&Claim]) -> Option<Outcome> {
    let progress = &workload.progress;
    let allowed = match workload.interruption.policy {
        InterruptionPolicy::Fail => 0,
        InterruptionPolicy::Restart => workload.interruption.max_interruptions,
    };
    if progress.interruptions > allowed {
        return Some(Outcome::Waiting {
            reason: Reason::SpotInterrupted,
            message: format!(
                "lost {} machines; at most {allowed} losses are allowed",
                progress.interruptions
            ),
        });
    }
    // Two machines must never write one job's checkpoints: the old one goes first.
    if let Work::Training(_) = workload.work
        && let Some(ending) = own.iter().find(|claim| claim.is_unfinished())
    {
        let reason = match &ending.phase {
            Phase::Ending { reason, .. } => *reason,
            _ => Reason::Launching,
        };
        return Some(Outcome::Waiting {
            reason,
            message: format!("waits until {} is gone", ending.spec.name),
        });
    }
    None
}

fn without_search(workload: &Workload, outcome: Outcome) -> Decision {
    Decision {
        workload: workload.id.clone(),
        world: None,
        outcome,
        warning: None,
        advice: None,
        considered: 0,
        stopped: Vec::new(),
        ranked: Vec::new(),
        misses: Vec::new(),
        saving: None,
    }
}

/// Why nothing was found, from the nearest miss.
fn waiting(world: &World, workload: &Workload, misses: &[crate::decision::Miss]) -> Outcome {
    if let Some(message) = no_such_provider(world, workload) {
        return Outcome::Waiting { reason: Reason::ProviderNotFound, message };
    }
    let Some(nearest) = misses.first() else {
        return no_offers(world, workload);
    };
    let offers = world.market.len();
    let reason = match nearest.obstacles.as_slice() {
        [only] => only.reason(),
        _ => Reason::NoMatchingOffer,
    };
    let obstacles: Vec<String> = nearest.obstacles.iter().map(Obstacle::to_string).collect();
    Outcome::Waiting {
        reason,
        message: format!(
            "none of {offers} offers will do; nearest is {}: {}{}",
            nearest.offer.id,
            obstacles.join("; "),
            mend(&nearest.obstacles)
        ),
    }
}

/// What somebody would have to change to have an offer, as the end of a sentence.
fn mend(obstacles: &[Obstacle]) -> String {
    let gives: Option<Vec<String>> = obstacles.iter().map(Obstacle::would_have_to_give).collect();
    gives.map(|gives| format!("; would do with {}", gives.join(", "))).unwrap_or_default()
}

/// Where `placement.providers` names some, and none of them is there.
fn no_such_provider(world: &World, workload: &Workload) -> Option<String> {
    let listed = &workload.placement.providers;
    let known = |name: &String| world.providers.iter().any(|state| state.name == *name);
    if listed.is_empty() || listed.iter().any(known) {
        return None;
    }
    let mut names: Vec<&str> = world.providers.iter().map(|state| state.name.as_str()).collect();
    names.sort_unstable();
    let there = match names.as_slice() {
        [] => "there is none at all".to_owned(),
        names => format!("there are {}", names.join(", ")),
    };
    let listed = listed.join(", ");
    Some(format!("placement.providers names {listed}, which no ComputeProvider is; {there}"))
}

/// Why there is nothing to choose from: providers that are silent come back by themselves. Of those that
/// it may have anything from.
fn no_offers(world: &World, workload: &Workload) -> Outcome {
    let (namespace, listed) = (&workload.id.namespace, &workload.placement.providers);
    let silent = world.providers.iter().filter(|state| {
        let serves =
            state.allowed_namespaces.as_ref().is_none_or(|allowed| allowed.contains(namespace));
        let is_meant = listed.is_empty() || listed.contains(&state.name);
        state.state == Switch::Disabled && serves && is_meant
    });
    let silent: Vec<&str> = silent.map(|state| state.name.as_str()).collect();
    match silent.as_slice() {
        [] => Outcome::Waiting {
            reason: Reason::NoMatchingOffer,
            message: "there are no offers".to_owned(),
        },
        silent => Outcome::Waiting {
            reason: Reason::ProviderUnavailable,
            message: format!(
                "there are no offers; nothing can be asked now of {}, which says why itself",
                silent.join(", ")
            ),
        },
    }
}

/// A decision with every offer and everything that stands in its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// What was, or would be, decided.
    pub decision: Decision,
    /// Every offer: the chosen one first, then those that only cost more, then by obstacles.
    pub offers: Vec<Explained>,
}

/// One offer and everything that stands in its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// The offer.
    pub offer: Offer,
    /// Which part of it would compute.
    pub device: Device,
    /// What it would cost, where that can be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<CostBreakdown>,
    /// Everything in its way, in the order of the checks; empty for the chosen one.
    pub obstacles: Vec<Obstacle>,
    /// The highest price at which it would be taken instead of the chosen one, were nothing else in
    /// its way. `None`: it is the chosen one, or at no price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wins_at: Option<UsdPerHour>,
}

/// Answers "why not that one?" for every offer, as if the workload had no machine yet. `None` where the world
/// does not hold the workload. The same checks as [`decide`], run to the end for every offer.
pub fn explain(world: &World, now: Timestamp, workload: &WorkloadId) -> Option<Explanation> {
    let target = world.workloads.iter().find(|known| known.id == *workload)?;
    let mut pass = Pass::new(world, now, Some(target.id.uid.as_str()));
    let mut ignored = Vec::new();
    for earlier in in_order(world) {
        if earlier.id == target.id {
            break;
        }
        decide_one(&mut pass, earlier, &mut ignored);
    }
    let found = pass.search(target, None);
    let chosen = found.takeable.first().copied();
    let vetoed = |verdict: &Verdict<'_>| {
        let guided = found.guided.as_ref()?;
        let mut vetoed = guided.vetoed.iter();
        vetoed.any(|one| one.offer.id == verdict.offer.id).then(|| guided.obstacle())
    };
    let mut offers: Vec<(usize, Option<Usd>, Explained)> = pass
        .verdicts(target)
        .into_iter()
        .map(|mut verdict| {
            verdict.obstacles.extend(vetoed(&verdict));
            explained(verdict, chosen.as_ref())
        })
        .collect();
    offers.sort_by(|a, b| {
        let key = |(count, total, one): &(usize, Option<Usd>, Explained)| {
            (*count, total.unwrap_or(Usd::MAX), one.offer.id.clone())
        };
        key(a).cmp(&key(b))
    });
    let decision = decide_one(&mut pass, target, &mut ignored);
    Some(Explanation { decision, offers: offers.into_iter().map(|(_, _, one)| one).collect() })
}

fn explained(
    verdict: Verdict<'_>,
    chosen: Option<&Candidate<'_>>,
) -> (usize, Option<Usd>, Explained) {
    let Verdict { offer, device, course, mut obstacles } = verdict;
    let is_chosen = chosen.is_some_and(|chosen| chosen.offer.id == offer.id);
    let mut rank = if is_chosen { 0 } else { 1 + obstacles.len() };
    let total = course.as_ref().map(|(course, _)| course.dollars(offer.price));
    if let (Some((course, promise)), Some(chosen), Some(total), true, false) =
        (course, chosen, total, obstacles.is_empty(), is_chosen)
    {
        let candidate = Candidate { offer, device, course, total, promise };
        obstacles.push(candidate.against(chosen));
        rank = 1;
    }
    let wins_at = match (&course, chosen) {
        (Some((course, promise)), Some(chosen)) if !is_chosen => {
            wins_at(offer, course, *promise, chosen)
        }
        _ => None,
    };
    let explained = Explained {
        offer: offer.clone(),
        device,
        cost: course.map(|(course, _)| course.breakdown(offer.price)),
        obstacles,
        wins_at,
    };
    (rank, total, explained)
}

/// The highest price at which an offer comes before the chosen one. Dollars rise with price.
fn wins_at(
    offer: &Offer,
    course: &Course,
    promise: Promise,
    chosen: &Candidate<'_>,
) -> Option<UsdPerHour> {
    let to_beat = (chosen.promise.tier(), chosen.total, chosen.offer.price, &chosen.offer.id);
    let at = |micros: u64| UsdPerHour::from_micros(micros as i64).ok();
    let wins = |micros: u64| {
        at(micros).is_some_and(|price| {
            (promise.tier(), course.dollars(price), price, &offer.id) < to_beat
        })
    };
    // Between a price that wins and one that does not.
    let (mut wins_yet, mut no_more) = (0, i64::MAX as u64 + 1);
    if !wins(wins_yet) {
        return None;
    }
    while no_more - wins_yet > 1 {
        let middle = wins_yet.midpoint(no_more);
        match wins(middle) {
            true => wins_yet = middle,
            false => no_more = middle,
        }
    }
    at(wins_yet)
}
