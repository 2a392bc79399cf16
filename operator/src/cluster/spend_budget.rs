//! The SpendBudget's controller, the part that needs no client: from the sums of its period to what
//! its status shall say, and when to look again.
//!
//! Sums move all the time while something runs, so they are written at most every five minutes;
//! what changes by itself (a threshold, the limit, a period with money in it) is written at once.
//! A budget under which nothing is spent is never written.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::reason::Reason;
use petaflop_crds::scalar::Money;
use petaflop_crds::spend_budget::{OnExceeded, projected};
use petaflop_crds::{SpendBudget, SpendBudgetStatus};

use crate::cluster::status::{Conditions, Is, time};

/// Between two writings of sums.
pub const REFRESH: SignedDuration = SignedDuration::from_secs(300);

/// What a budget's workloads cost, in its running period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Booked, and run up since.
    pub spent: Usd,
    /// What their claims may still cost in the period.
    pub reserved: Usd,
    /// What their machines cost an hour.
    pub rate: UsdPerHour,
}

/// Something to buy: its name and what an hour of it costs.
pub type Price = (String, UsdPerHour);

/// What is seen of a budget.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The object.
    pub object: &'a SpendBudget,
    /// The sums of the period that `now` lies in.
    pub sums: Sums,
    /// The cheapest that its namespace could buy; `None` where nothing is offered.
    pub cheapest: Option<&'a Price>,
    /// Now.
    pub now: Timestamp,
}

/// What follows for a budget.
#[derive(Clone, Debug, PartialEq)]
pub struct Next {
    /// What its status shall say.
    pub status: SpendBudgetStatus,
    /// When to look again though nothing changes.
    pub again: Option<Duration>,
}

/// Whether an amount is all that there is.
pub fn is_exhausted(limit: Usd, spent: Usd) -> bool {
    spent >= limit
}

/// Decides for one budget.
pub fn next(seen: &Seen) -> Next {
    let Seen { object, sums, cheapest: _, now } = *seen;
    let old = object.status.clone().unwrap_or_default();
    let period = object.spec.period.around(now);
    let same_period = old.period_start.as_ref().is_some_and(|at| at.0 == period.start);
    let same_spec = old.observed_generation == object.metadata.generation;
    let mut fresh = SpendBudgetStatus {
        observed_generation: object.metadata.generation,
        period_start: Some(time(period.start)),
        period_end: Some(time(period.end)),
        spent: Some(Money::from(sums.spent.max(Usd::ZERO))),
        reserved: Some(Money::from(sums.reserved)),
        committed_hourly_rate: Some(Money::from(sums.rate)),
        projected: Some(Money::from(projected(sums.spent, sums.rate, now, period.end))),
        as_of: Some(time(now)),
        warned_at_percent: object.spec.warning(sums.spent.saturating_add(sums.reserved)),
        conditions: old.conditions.clone(),
    };
    // Each warns once a period; an edited limit begins anew.
    if same_period && same_spec {
        fresh.warned_at_percent = fresh.warned_at_percent.max(old.warned_at_percent);
    }
    say(seen, &mut fresh);
    keep_words(&mut fresh, &old);
    let news = fresh.conditions != old.conditions
        || fresh.warned_at_percent != old.warned_at_percent
        || !same_spec;
    let figures = |status: &SpendBudgetStatus| {
        let SpendBudgetStatus { spent, reserved, committed_hourly_rate, projected, .. } =
            status.clone();
        (spent, reserved, committed_hourly_rate, projected)
    };
    let moved = figures(&fresh) != figures(&old);
    let age = old.as_of.as_ref().map_or(SignedDuration::MAX, |at| now.duration_since(at.0));
    let again = look_again(seen, moved && !news && age < REFRESH, age);
    let due = moved && (age >= REFRESH || !same_period);
    Next { status: if news || due { fresh } else { old }, again }
}

/// Writes the conditions. Their words hold no sums: they would be written all the time.
fn say(seen: &Seen, status: &mut SpendBudgetStatus) {
    let spec = &seen.object.spec;
    let sums = seen.sums;
    let warned = spec.warning(sums.spent.saturating_add(sums.reserved));
    let generation = seen.object.metadata.generation;
    let mut conditions = Conditions::of(&mut status.conditions, generation, seen.now);
    let limit = match spec.limit.micro_dollars() {
        Ok(micros) => Usd::from_micros(micros),
        Err(error) => {
            conditions.stalled(Reason::InvalidSpec, &format!("spec.limit: {error}"));
            return;
        }
    };
    let (reason, message) = match (is_exhausted(limit, sums.spent), warned) {
        (true, _) => (Reason::LimitReached, reached(spec.on_exceeded)),
        (false, Some(percent)) => {
            let message = format!("{percent} % of {limit} $ are spent or reserved");
            (Reason::WarningThreshold, message)
        }
        (false, None) => (Reason::Ok, String::new()),
    };
    let exhausted = reason == Reason::LimitReached;
    conditions.set("Exhausted", Is::from(exhausted), reason, &message);
    conditions.set("WithinBudget", Is::from(reason == Reason::Ok), reason, &message);
    let minute = seen.cheapest.map(|(name, price)| (name, *price, price.for_millis(60_000)));
    match minute.filter(|(_, _, minute)| *minute > limit && limit > Usd::ZERO) {
        Some((name, price, minute)) => {
            let message = format!(
                "spec.limit of {limit} $ does not pay for one minute of the cheapest offer, {name} \
                 at {price} $/h: raise it to {minute} $ at least"
            );
            conditions.stalled(Reason::InvalidSpec, &message);
        }
        None => conditions.ready(reason, &message),
    }
}

/// Prices move: what stalls it is said once, not anew with every quote.
fn keep_words(fresh: &mut SpendBudgetStatus, old: &SpendBudgetStatus) {
    for condition in
        fresh.conditions.iter_mut().filter(|c| c.reason == Reason::InvalidSpec.as_str())
    {
        let same = |known: &&Condition| {
            let of = |c: &Condition| (c.type_.clone(), c.status.clone(), c.reason.clone());
            of(known) == of(condition) && known.observed_generation == condition.observed_generation
        };
        if let Some(known) = old.conditions.iter().find(same) {
            condition.message.clone_from(&known.message);
        }
    }
}

fn reached(on_exceeded: OnExceeded) -> String {
    let so = match on_exceeded {
        OnExceeded::BlockNew => "nothing new is bought",
        OnExceeded::Suspend => "nothing new is bought, and what runs is suspended",
        OnExceeded::Terminate => "nothing new is bought, and what runs is ended",
    };
    format!("the limit is reached: {so} until the period ends or spec.limit is raised")
}

/// When something of this may be otherwise though nobody does anything.
fn look_again(seen: &Seen, held_back: bool, age: SignedDuration) -> Option<Duration> {
    let Seen { object, sums, cheapest: _, now } = seen;
    let mut waits = Vec::new();
    if held_back {
        waits.push(REFRESH - age);
    }
    if sums.rate > UsdPerHour::ZERO {
        waits.push(REFRESH);
        let limit = object.spec.limit.micro_dollars().unwrap_or(0);
        let left = i128::from(limit) - i128::from(sums.spent.micros());
        if left > 0 {
            // Rounded up: not to find one micro-dollar missing.
            let millis = (left * 3_600_000).div_euclid(i128::from(sums.rate.micros())) + 1;
            waits.push(SignedDuration::from_millis(i64::try_from(millis).unwrap_or(i64::MAX)));
        }
    }
    if *sums != Sums::default() {
        waits.push(object.spec.period.around(*now).end.duration_since(*now));
    }
    let least = waits.into_iter().min()?;
    Some(Duration::try_from(least).unwrap_or_default().max(Duration::from_millis(1)))
}

#[cfg(test)]
mod tests;
