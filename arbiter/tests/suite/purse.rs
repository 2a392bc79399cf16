//! A job with a deadline and little money: what is tried on spot leaves enough for on-demand, to the end.

use std::sync::Arc;

use petaflop_arbiter::claim::{Claim, Phase};
use petaflop_arbiter::decide::decide;
use petaflop_arbiter::decision::{Advised, Outcome};
use petaflop_arbiter::market::Market;
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::{Capacity, Offer};
use petaflop_arbiter::workload::Work;
use petaflop_arbiter::world::{Budget, MonthlyLimit, World};
use proptest::prelude::*;

use crate::deadlines::{STEP, TICK, job, known, on_demand, refused, runs, says, spot, ticks};
use crate::worlds::{after, now, only, rate, usd, written};

/// Seconds from asking for a machine until it works.
const LAUNCH: i64 = 45;
/// Seconds of work between two checkpoints: three ticks, so that short runs of spot come to nothing.
const INTERVAL: i64 = 900;
/// Seconds of a step at the rate that is expected, a little less than at the lowest likely one.
const EXPECTED: f64 = STEP as f64 / 1.085_73;

/// Whose limit it is.
#[derive(Clone, Copy, Debug)]
enum Whose {
    Job,
    Namespace,
    Provider,
}

/// A world in which so many dollars are left for a job of so many steps.
fn poor(whose: Whose, steps: u64, within: i64, limit: Usd) -> World {
    let mut job = job(steps, within);
    if let Work::Training(work) = &mut job.work {
        work.checkpoint_interval_seconds = Some(INTERVAL as u32);
    }
    let mut world = known(vec![on_demand(), spot("r1-a", "0.30")], job);
    let ends_at = after(1_000_000);
    match whose {
        Whose::Job => world.workloads[0].max_total_cost = Some(limit),
        Whose::Namespace => {
            world.budgets = vec![Budget {
                namespace: "default".into(),
                name: "b".into(),
                limit,
                spent: Usd::ZERO,
                period_ends_at: ends_at,
                workloads: None,
            }];
        }
        Whose::Provider => {
            let month = MonthlyLimit { limit, spent: Usd::ZERO, ends_at };
            world.providers[0].monthly = Some(month);
        }
    }
    world
}

/// Writes down what was spent until now.
fn books(world: &mut World, spent: Usd) {
    world.workloads[0].progress.spent = spent;
    for budget in &mut world.budgets {
        budget.spent = spent;
    }
    if let Some(month) = &mut world.providers[0].monthly {
        month.spent = spent;
    }
}

#[test]
fn spot_is_not_begun_with_where_on_demand_could_not_be_paid_after_it() {
    // An hour of work at 1 $: on-demand takes 0.94 $. A try on spot: a launch, a tick of work and a tick until the next look.
    for whose in [Whose::Job, Whose::Namespace, Whose::Provider] {
        let first = |limit: &str| {
            let plan = decide(&poor(whose, 360, 36_000, usd(limit)), now());
            let claim = written(&plan).pop();
            let advice = only(&plan).advice.clone();
            (claim.map(|claim| claim.spec.offer.capacity), advice.map(|one| one.short_of_money))
        };
        assert_eq!(first("2"), (Some(Capacity::Spot), Some(false)), "{whose:?}");
        assert_eq!(first("0.97"), (Some(Capacity::OnDemand), Some(true)), "{whose:?}");
        // On-demand cannot be paid at all: nothing is lost by trying, and nobody was asked.
        assert_eq!(first("0.5"), (Some(Capacity::Spot), None), "{whose:?}");
        assert_eq!(first("0.1"), (None, None), "{whose:?}");
    }
}

#[test]
fn on_demand_is_not_left_for_spot_where_the_way_back_cannot_be_paid() {
    let mut world = poor(Whose::Job, 3_600, 360_000, usd("100"));
    let offer = on_demand();
    let spec = written(&decide(&world, now())).pop().expect("a claim").spec;
    let spec = petaflop_arbiter::claim::ClaimSpec { offer, ..spec };
    let phase = Phase::Launched { instance: "i".into(), at: after(-3_600) };
    world.claims = vec![Claim { phase, ..crate::worlds::claim(spec) }];
    world.workloads[0].progress.placements = 1;
    assert!(matches!(only(&decide(&world, now())).outcome, Outcome::Moves { .. }));
    books(&mut world, usd("95"));
    let decided = decide(&world, now());
    assert_eq!(only(&decided).outcome, Outcome::Settled { machines: 1 }, "{:#?}", only(&decided));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Whatever spot does: the limit holds, and where on-demand could be paid at first the deadline is met.
    #[test]
    fn no_limit_is_passed_and_no_deadline_missed_for_want_of_money(
        recorded in runs(),
        work in 6..40_i64,
        spare in 10..100_i64,
        more_percent in 4..60_i64,
        whose in prop_oneof![Just(Whose::Job), Just(Whose::Namespace), Just(Whose::Provider)],
    ) {
        let there = ticks(recorded);
        let steps = (work * TICK / STEP) as u64;
        let deadline = (work + spare) * TICK;
        // What on-demand takes, and some percent.
        let alone = rate("1.00").for_millis(((steps as f64 * EXPECTED + LAUNCH as f64) * 1_000.0) as i64);
        let limit = Usd::from_micros(alone.micros() * (100 + more_percent) / 100);
        let mut world = poor(whose, steps, deadline, limit);
        let spot = spot("r1-a", "0.30");
        let mut claim: Option<Claim> = None;
        let (mut spent, mut durable, mut done) = (Usd::ZERO, 0.0_f64, 0.0_f64);
        let all = steps as f64 * EXPECTED;
        let mut seconds = 0;
        while done < all {
            prop_assert!(seconds < deadline, "{done} of {all} done at the deadline, {spent} of {limit} spent");
            let has = there.get((seconds / TICK) as usize).copied().unwrap_or(false);
            if !has && claim.as_ref().is_some_and(|claim| claim.spec.offer.capacity == Capacity::Spot) {
                claim = None;
                done = durable;
                world.workloads[0].progress.interruptions += 1;
            }
            let quoted = |offer: Offer| Offer { quoted_at: after(seconds), ..offer };
            world.market = Arc::new(Market::new([on_demand(), spot.clone()].map(quoted).to_vec()));
            world.unavailable = if has { Vec::new() } else { vec![refused(&spot)] };
            world.workloads[0].progress.steps_done = (durable / EXPECTED) as u64;
            books(&mut world, spent);
            // A move ends the machine, with a checkpoint, and the next look finds another.
            for _ in 0..2 {
                world.claims = claim.iter().cloned().collect();
                let plan = decide(&world, after(seconds));
                world.watched.clone_from(&plan.watched);
                match &only(&plan).outcome {
                    Outcome::Moves { .. } => {
                        claim = None;
                        durable = done;
                        world.workloads[0].progress.steps_done = (durable / EXPECTED) as u64;
                    }
                    Outcome::Placed { .. } => {
                        let phase = Phase::Launched { instance: "i".into(), at: after(seconds) };
                        claim = written(&plan).pop().map(|claim| Claim { phase, ..claim });
                        world.workloads[0].progress.placements += 1;
                    }
                    Outcome::Waiting { .. } => {
                        prop_assert_eq!(says(only(&plan)), Advised::Wait, "{:?}", only(&plan));
                    }
                    Outcome::Settled { .. } => {}
                }
            }
            if let Some(Claim { phase: Phase::Launched { at, .. }, spec, .. }) = &claim {
                let age = after(seconds).duration_since(*at).as_secs();
                let pending = (LAUNCH - age).clamp(0, TICK);
                let worked = ((TICK - pending) as f64).min(all - done);
                done += worked;
                let paid = pending as f64 + worked;
                spent = spent.saturating_add(spec.offer.price.for_millis((paid * 1_000.0) as i64));
                // Checkpoints come at the same times of a machine's life; the end is one, too.
                let old = age + TICK - LAUNCH;
                let since = (old % INTERVAL) as f64;
                if done >= all || old >= INTERVAL {
                    durable = durable.max(if done >= all { done } else { done - since });
                }
            }
            seconds += TICK;
            prop_assert!(spent <= limit, "{spent} of {limit} at {seconds}");
        }
    }
}
