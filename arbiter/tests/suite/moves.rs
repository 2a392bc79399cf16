//! Leaving a place that works, for a better one.

use jiff::SignedDuration;
use petaflop_arbiter::claim::{Claim, Phase};
use petaflop_arbiter::decide::decide;
use petaflop_arbiter::decision::{Action, Outcome, Plan};
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::offer::{Capacity, Offer};
use petaflop_arbiter::reason::Reason;
use petaflop_arbiter::workload::{InterruptionPolicy, Progress, Work, Workload};
use petaflop_arbiter::world::World;
use proptest::prelude::*;

use crate::worlds::{after, machine, now, only, placed, rate, taken, training, world, written};

/// Hours of training, so that a start is little beside it.
fn long(name: &str) -> Workload {
    let mut workload = training(name);
    if let Work::Training(work) = &mut workload.work {
        work.steps = 2_000_000;
    }
    workload
}

fn elsewhere(price: &str) -> Offer {
    placed("other", "r2", "r2-a", "m", Capacity::OnDemand, rate(price))
}

/// A job that has had the first offer for so long, and then sees these.
fn holding(workload: Workload, first: Offer, seconds: i64, then: Vec<Offer>) -> World {
    let before = world(vec![first], vec![workload]);
    let mut claims = written(&decide(&before, now()));
    for claim in &mut claims {
        claim.phase = Phase::Launched { instance: "i-1".into(), at: after(-seconds) };
    }
    World { claims, ..world(then, before.workloads) }
}

fn outcome(plan: &Plan) -> &Outcome {
    &only(plan).outcome
}

#[test]
fn a_job_moves_when_the_rest_costs_a_fifth_less_elsewhere_and_not_for_less() {
    let stays = |price: &str| {
        let offers = vec![machine("m", "1.00"), elsewhere(price)];
        let world = holding(long("a"), machine("m", "1.00"), 1_000, offers);
        let plan = decide(&world, now());
        (matches!(outcome(&plan), Outcome::Settled { machines: 1 }), plan)
    };
    assert!(stays("0.95").0 && stays("0.82").0, "too little is saved");
    let (stays, plan) = stays("0.70");
    assert!(!stays);
    let Outcome::Moves { to, reason, stays, goes, moves: 1, .. } = outcome(&plan) else {
        panic!("{plan:#?}");
    };
    assert_eq!(to.0, "other/r2/r2-a/m/on-demand");
    assert_eq!(*reason, Reason::CheaperOfferMigration);
    assert!(goes.micros() * 100 <= stays.micros() * 80, "{goes} of {stays}");
    let end = Action::EndClaim { uid: "uid-of-trj-a-00000061-1-0".into(), reason: *reason };
    assert_eq!(plan.actions, [end], "nothing is bought before the old one is gone");
    assert!(plan.requeue_at.is_some());
}

#[test]
fn a_place_is_kept_for_a_while_whatever_is_cheaper() {
    let offers = || vec![machine("m", "1.00"), elsewhere("0.10")];
    let moves = |seconds, workload| {
        let world = holding(workload, machine("m", "1.00"), seconds, offers());
        matches!(outcome(&decide(&world, now())), Outcome::Moves { .. })
    };
    assert!(!moves(899, long("a")));
    assert!(moves(900, long("a")));
    let mut impatient = long("a");
    impatient.interruption.min_hold_seconds = 60;
    assert!(moves(60, impatient));
    let mut fails = long("a");
    fails.interruption.policy = InterruptionPolicy::Fail;
    assert!(!moves(5_000, fails), "it may not be started twice");
}

#[test]
fn after_each_move_a_place_is_kept_twice_as_long_but_not_where_a_deadline_is_at_stake() {
    let offers = || vec![machine("m", "1.00"), elsewhere("0.10")];
    let moves = |seconds, moves| {
        let mut job = long("a");
        job.progress.moves = moves;
        let world = holding(job, machine("m", "1.00"), seconds, offers());
        matches!(outcome(&decide(&world, now())), Outcome::Moves { .. })
    };
    for (before, seconds) in [(0, 900), (1, 1_800), (2, 3_600), (10, 921_600)] {
        assert!(!moves(seconds - 1, before) && moves(seconds, before), "{before} moves");
    }
    assert!(!moves(1_000_000_000, u32::MAX), "and nothing overflows");
    let mut hurried = hurried();
    hurried.workloads[0].progress.moves = 10;
    let plan = decide(&hurried, now());
    let Outcome::Moves { reason, .. } = outcome(&plan) else { panic!("{plan:#?}") };
    assert_eq!(*reason, Reason::DeadlineAtRisk);
}

#[test]
fn the_cost_of_moving_counts_so_that_the_end_of_a_job_does_not_move() {
    let offers = vec![machine("m", "1.00"), elsewhere("0.50")];
    let mut nearly = long("a");
    nearly.progress.steps_done = 1_999_900;
    let world = holding(nearly, machine("m", "1.00"), 5_000, offers.clone());
    assert!(matches!(outcome(&decide(&world, now())), Outcome::Settled { .. }));
    let world = holding(long("a"), machine("m", "1.00"), 5_000, offers);
    assert!(matches!(outcome(&decide(&world, now())), Outcome::Moves { .. }));
}

#[test]
fn a_checkpoint_that_was_measured_to_be_slow_makes_a_move_dearer_and_losses_worse() {
    let offers = vec![machine("m", "1.00"), elsewhere("0.50")];
    let goes = |measured| {
        let mut job = long("a");
        job.progress.steps_done = 1;
        job.progress.checkpoint_millis = measured;
        let world = holding(job, machine("m", "1.00"), 5_000, offers.clone());
        match outcome(&decide(&world, now())) {
            Outcome::Moves { stays, goes, .. } => Some((*stays, *goes)),
            _ => None,
        }
    };
    let (stays, guessed) = goes(None).expect("it moves");
    // 10 MiB at 100 MB/s is what nobody has measured.
    let (same_stay, same) = goes(Some(105)).expect("it moves");
    for (guessed, measured) in [(stays, same_stay), (guessed, same)] {
        assert!((guessed.micros() - measured.micros()).abs() < 10, "{guessed} {measured}");
    }
    let (stays_slow, slow) = goes(Some(600_000)).expect("it moves all the same");
    // Ten minutes here at a dollar an hour before it can leave, and losses cost more at both.
    assert!(slow.micros() - guessed.micros() > 166_666, "{slow} {guessed}");
    assert!(stays_slow > stays, "{stays_slow} {stays}");
    // Where every checkpoint takes longer than all the rest of the work, it stays.
    let mut nearly = long("a");
    nearly.progress.steps_done = 1_900_000;
    nearly.interruption.switch_if_savings_percent = 1;
    let moves = |millis| {
        let mut job = nearly.clone();
        job.progress.checkpoint_millis = Some(millis);
        let world = holding(job, machine("m", "1.00"), 5_000, offers.clone());
        matches!(outcome(&decide(&world, now())), Outcome::Moves { .. })
    };
    assert!(moves(100));
    assert!(!moves(36_000_000));
}

#[test]
fn what_no_clock_measures_says_nothing() {
    let cases = [(0.0, Some(0)), (1.2345, Some(1_235)), (-1.0, None), (1e9, None)];
    for (said, measured) in cases.into_iter().chain([(f64::NAN, None), (f64::INFINITY, None)]) {
        assert_eq!(Progress::measured(said), measured, "{said}");
    }
}

#[test]
fn spot_stays_at_todays_price_and_all_else_at_the_price_it_was_bought_at() {
    let spot = |price: &str| placed("cloud", "r1", "r1-a", "s", Capacity::Spot, rate(price));
    // Cheap when it was bought, dear now.
    let world = holding(long("a"), spot("0.30"), 1_000, vec![spot("0.90"), elsewhere("0.45")]);
    assert!(matches!(outcome(&decide(&world, now())), Outcome::Moves { .. }));
    let bought = machine("m", "0.30");
    let dearer = vec![machine("m", "0.90"), elsewhere("0.45")];
    let world = holding(long("a"), bought, 1_000, dearer);
    assert!(matches!(outcome(&decide(&world, now())), Outcome::Settled { .. }));
}

/// A job on a slow machine, whose deadline only a dearer one meets.
fn hurried() -> World {
    let slow = Offer { vcpu_milli: Some(2_000), ..machine("slow", "0.10") };
    let fast = Offer { vcpu_milli: Some(64_000), ..elsewhere("50.00") };
    let mut hurried = long("a");
    let mut world = holding(hurried.clone(), slow.clone(), 1_000, vec![slow.clone(), fast.clone()]);
    let afresh = decide(&World { claims: Vec::new(), ..world.clone() }, now());
    let cost = |kind: &str| {
        let place = only(&afresh).ranked.iter().find(|place| place.offer.instance_type == kind);
        place.expect("it is shown").cost.clone()
    };
    let between = (cost("slow").millis + cost("m").millis_range.1) / 2;
    hurried.finish_by = Some(now() + SignedDuration::from_millis(between));
    world.workloads = vec![hurried];
    world
}

#[test]
fn a_deadline_that_would_be_missed_moves_a_job_to_a_dearer_place_that_meets_it() {
    let plan = decide(&hurried(), now());
    let Outcome::Moves { reason, stays, goes, .. } = outcome(&plan) else { panic!("{plan:#?}") };
    assert_eq!(*reason, Reason::DeadlineAtRisk);
    assert!(goes > stays, "it costs more: {goes}, {stays}");
}

#[test]
fn what_a_job_holds_counts_as_free_when_it_looks_for_a_better_place() {
    // The budget has room for one: its own reservation must not stand in its way.
    let offers = vec![machine("m", "1.00"), elsewhere("0.50")];
    let mut world = holding(long("a"), machine("m", "1.00"), 1_000, offers);
    world.workloads[0].max_total_cost = Some(world.claims[0].spec.reserved);
    assert!(matches!(outcome(&decide(&world, now())), Outcome::Moves { .. }));
}

#[test]
fn the_place_that_a_job_moves_to_is_not_given_to_the_next_in_line() {
    let slot = |offer: Offer| Offer { slots: Some(1), ..offer };
    let offers = vec![slot(machine("m", "1.00")), slot(elsewhere("0.50"))];
    let mut world = holding(long("a"), slot(machine("m", "1.00")), 1_000, offers);
    let mut second = long("b");
    second.created_at = after(-60);
    world.workloads.push(second);
    let plan = decide(&world, now());
    assert!(matches!(plan.decisions[0].outcome, Outcome::Moves { .. }), "{plan:#?}");
    assert_eq!(taken(&plan), [""; 0]);
    // Once the old machine is gone, the first takes the better place and the second the other.
    world.claims.clear();
    world.workloads[0].progress.placements = 1;
    let plan = decide(&world, now());
    assert_eq!(taken(&plan), ["other/r2/r2-a/m/on-demand", "cloud/r1/r1-a/m/on-demand"]);
}

proptest! {
    #[test]
    fn on_prices_that_stay_nobody_moves_twice(
        prices in proptest::collection::vec(1u32..5_000, 2..6),
        at in 0usize..6,
        percent in 0u32..60,
        done in 0u64..2_000_000,
    ) {
        let offers: Vec<Offer> = prices
            .iter()
            .enumerate()
            .map(|(place, price)| {
                let price = UsdPerHour::from_micros(i64::from(*price) * 1_000).expect("a price");
                Offer { price, ..machine(&format!("m{place}"), "1.00") }
            })
            .collect();
        let mut job = long("a");
        job.interruption.switch_if_savings_percent = percent;
        job.progress.steps_done = done;
        let first = offers[at % offers.len()].clone();
        let world = holding(job.clone(), first, 5_000, offers.clone());
        if let Outcome::Moves { to, stays, goes, .. } = outcome(&decide(&world, now())) {
            prop_assert!(goes < stays);
            let there = offers.iter().find(|offer| offer.id == *to).expect("it is one of them");
            let world = holding(job, there.clone(), 5_000, offers.clone());
            let stays = matches!(outcome(&decide(&world, now())), Outcome::Settled { .. });
            prop_assert!(stays);
        }
    }

    /// Whatever prices do and how often machines are lost, moves are bounded: m of them take `minHoldSeconds` · (2ᵐ − 1) at least,
    /// and each saves what was asked for.
    #[test]
    fn prices_that_swing_do_not_carry_a_job_to_and_fro(
        prices in proptest::collection::vec((1u32..5_000, 1u32..5_000, 1u32..5_000), 1..120),
        losses in proptest::collection::vec(0usize..120, 0..4),
        percent in 1u32..60,
        hold in 60u32..3_600,
    ) {
        const TICK: i64 = 300;
        let mut job = long("a");
        job.interruption.switch_if_savings_percent = percent;
        job.interruption.min_hold_seconds = hold;
        let (mut moves, mut claims, ticks) = (0_u32, Vec::new(), prices.len() as i64);
        for (tick, (a, b, c)) in prices.into_iter().enumerate() {
            let at = after(tick as i64 * TICK);
            let offers = [a, b, c].into_iter().enumerate().map(|(n, price)| Offer {
                quoted_at: at,
                ..placed(
                    "cloud",
                    "r1",
                    &format!("z{n}"),
                    "m",
                    Capacity::Spot,
                    UsdPerHour::from_micros(i64::from(price) * 1_000).expect("a price"),
                )
            });
            if losses.contains(&tick) {
                job.progress.interruptions += u32::from(!claims.is_empty());
                claims.clear();
            }
            let mut world = World { claims, ..world(offers.collect(), vec![job.clone()]) };
            let plan = decide(&world, at);
            if let Outcome::Moves { stays, goes, .. } = outcome(&plan) {
                prop_assert!(goes.micros() * 100 <= stays.micros() * i64::from(100 - percent), "{} {}", goes, stays);
                moves += 1;
                job.progress.placements += 1;
                job.progress.moves += 1;
                world.claims.clear();
                world.workloads[0].progress = job.progress;
            }
            let plan = decide(&world, at);
            world.claims.extend(written(&plan).into_iter().map(|claim| Claim {
                phase: Phase::Launched { instance: "i".into(), at },
                ..claim
            }));
            prop_assert_eq!(world.claims.len(), 1);
            claims = world.claims;
        }
        prop_assert!(((1 << moves) - 1) * i64::from(hold) <= ticks * TICK, "{} moves in {} ticks", moves, ticks);
    }
}
