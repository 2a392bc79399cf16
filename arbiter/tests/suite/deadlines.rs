//! A job that must end in time asks the spot policies, and they say in production what they say in a replay.

use std::sync::Arc;

use jiff::SignedDuration;
use petaflop_arbiter::claim::{Claim, Phase};
use petaflop_arbiter::decide::decide;
use petaflop_arbiter::decision::{Action, Advised, Decision, Outcome, Plan};
use petaflop_arbiter::estimate::{Correction, Corrections, launch_key};
use petaflop_arbiter::market::Market;
use petaflop_arbiter::offer::{Capacity, Offer};
use petaflop_arbiter::reason::Reason;
use petaflop_arbiter::spot::law::Shape;
use petaflop_arbiter::spot::model::{
    Choice, Kind, Machine, Place, Policy, Quote, Sight, Terms, View, Zone,
};
use petaflop_arbiter::spot::policies::P1;
use petaflop_arbiter::spot::safety;
use petaflop_arbiter::spot::table::{Spec, Tables};
use petaflop_arbiter::workload::{Work, Workload};
use petaflop_arbiter::world::{ProviderState, Recorded, Unavailable, World};
use proptest::prelude::*;

use crate::worlds::{after, now, only, placed, provider, rate, training, waits, world, written};

pub(crate) const TICK: i64 = 300;
/// Seconds of a step at the lowest likely rate.
pub(crate) const STEP: i64 = 10;
/// Two launches of 45 s, and half a minute of work between two checkpoints.
const RESTART: i64 = 120;

pub(crate) fn on_demand() -> Offer {
    placed("cloud", "r1", "r1-a", "m", Capacity::OnDemand, rate("1.00"))
}

pub(crate) fn spot(zone: &str, price: &str) -> Offer {
    placed("cloud", "r1", zone, "m", Capacity::Spot, rate(price))
}

/// A place without any transfer, where a launch takes 45 s and stock is quoted.
fn cloud() -> ProviderState {
    ProviderState {
        startup_millis: 45_000,
        fetch_bytes_per_second: None,
        egress_usd_per_gb: Default::default(),
        quotes_stock: true,
        ..provider("cloud")
    }
}

/// So many steps of [`STEP`] seconds on 16 processors (a little less, so that rounding up gives whole ones), to be done
/// within so many seconds.
pub(crate) fn job(steps: u64, within: i64) -> Workload {
    let mut job = training("a");
    job.finish_by = Some(after(within));
    job.interruption.switch_if_savings_percent = 0;
    job.interruption.min_hold_seconds = 0;
    job.interruption.max_interruptions = 1_000;
    if let Work::Training(work) = &mut job.work {
        work.steps = steps;
        work.traffic_bytes_per_step = 0;
        // 16 × 12 × 0.6 · 10⁹ operations a second, less 1.645 standard deviations of 0.05.
        work.flops_per_step = (115.2e9 * (STEP as f64 - 0.000_5) / (1.645_f64 * 0.05).exp()) as u64;
        work.tokens_per_step = 1_000;
    }
    job
}

/// A world in which rates are known as well as they ever are.
pub(crate) fn known(offers: Vec<Offer>, job: Workload) -> World {
    let mut world = world(offers, vec![job]);
    world.providers = vec![cloud()];
    let key = "cpu-x86_64/train".to_owned();
    world.corrections.entries = vec![Correction { key, sum_ln_ratio: 0.0, runs: 1_000_000 }];
    world
}

pub(crate) fn refused(offer: &Offer) -> Unavailable {
    Unavailable {
        offer: offer.id.clone(),
        until: after(1_000_000),
        reason: Reason::InsufficientCapacity,
    }
}

pub(crate) fn says(decision: &Decision) -> Advised {
    decision.advice.as_ref().unwrap_or_else(|| panic!("no advice: {decision:#?}")).says
}

fn capacity(plan: &Plan) -> Option<Capacity> {
    written(plan).first().map(|claim| claim.spec.offer.capacity)
}

#[test]
fn without_spot_a_job_waits_while_there_is_time_and_then_takes_on_demand() {
    let spot = spot("r1-a", "0.30");
    let mut world = known(vec![on_demand(), spot.clone()], job(360, 7_200));
    assert_eq!(capacity(&decide(&world, now())), Some(Capacity::Spot), "there is some");
    world.unavailable = vec![refused(&spot)];
    let plan = decide(&world, now());
    let decision = only(&plan);
    assert_eq!(says(decision), Advised::Wait);
    let (reason, message) = waits(decision);
    assert_eq!(reason, "InsufficientCapacity");
    assert!(message.contains("then takes cloud/r1/r1-a/m/on-demand"), "{message}");
    assert!(plan.requeue_at.is_some(), "it looks again");
    // An hour of work, two hours of time: on-demand well before an hour and two minutes are left.
    let advice = decision.advice.clone().expect("it was asked");
    assert_eq!(advice.line, after(7_200 - 3_600 - RESTART));
    let fresh = |seconds: i64| {
        let quote = |offer: Offer| Offer { quoted_at: after(seconds), ..offer };
        let market = Market::new([on_demand(), spot.clone()].map(quote).to_vec());
        World { market: Arc::new(market), ..world.clone() }
    };
    let first = (0..24)
        .map(|tick| tick * TICK)
        .find(|seconds| capacity(&decide(&fresh(*seconds), after(*seconds))).is_some());
    let first = first.expect("it does not wait for ever");
    assert!(first > 0 && after(first) <= advice.line, "{first}");
    let plan = decide(&fresh(first), after(first));
    assert_eq!((says(only(&plan)), capacity(&plan)), (Advised::OnDemand, Some(Capacity::OnDemand)));
    assert_eq!(only(&plan).warning, None, "the deadline is safe");
}

#[test]
fn each_refusal_of_on_demand_moves_the_line_one_launch_earlier_and_is_a_risk() {
    let dearer =
        |zone: &str, price: &str| placed("cloud", "r1", zone, "m", Capacity::OnDemand, rate(price));
    let (spot, second) = (spot("r1-a", "0.30"), dearer("r1-b", "1.10"));
    let offers = vec![spot.clone(), on_demand(), second.clone(), dearer("r1-c", "1.20")];
    let mut world = known(offers, job(360, 4_000));
    let line = |world: &World| {
        let plan = decide(world, now());
        let decision = only(&plan);
        let advice = decision.advice.clone().expect("it was asked");
        (advice.line, advice.refused, decision.warning, capacity(&plan))
    };
    let first = line(&world);
    assert_eq!((first.1, first.2, first.3), (0, None, Some(Capacity::Spot)));
    world.unavailable = vec![refused(&on_demand())];
    let (earlier, refusals, warning, _) = line(&world);
    assert_eq!((earlier, refusals), (first.0 - SignedDuration::from_secs(90), 1));
    assert_eq!(warning, Some(Reason::DeadlineAtRisk));
    world.unavailable.push(refused(&second));
    let (earliest, refusals, warning, chosen) = line(&world);
    assert_eq!((earliest, refusals), (earlier - SignedDuration::from_secs(90), 2));
    assert_eq!(warning, Some(Reason::DeadlineAtRisk));
    assert_eq!(chosen, Some(Capacity::OnDemand), "there is no time for a try on spot any more");
}

#[test]
fn a_rate_that_the_job_measured_itself_is_a_closer_bound() {
    let mut world = known(vec![on_demand(), spot("r1-a", "0.30")], job(360, 36_000));
    world.corrections = Corrections::default();
    let line = |world: &World| {
        let plan = decide(world, now());
        only(&plan).advice.as_ref().expect("it was asked").line
    };
    let guessed = line(&world);
    world.workloads[0].measured = Corrections::of_own_run("cpu-x86_64/train", 1.0, 1.0);
    let measured = line(&world);
    assert!(measured > guessed + SignedDuration::from_mins(30), "{measured} {guessed}");
    // Half as fast as was thought: on-demand is needed earlier than by what was measured, and W is twice as much at least.
    world.workloads[0].measured = Corrections::of_own_run("cpu-x86_64/train", 0.5, 1.0);
    let slow = line(&world);
    assert!(slow < measured - SignedDuration::from_mins(30), "{slow} {measured}");
}

#[test]
fn launches_that_took_longer_than_estimated_move_the_line_earlier() {
    let mut world = known(vec![on_demand(), spot("r1-a", "0.30")], job(360, 36_000));
    let line = |world: &World| {
        let plan = decide(world, now());
        only(&plan).advice.as_ref().expect("it was asked").line
    };
    let guessed = line(&world);
    for _ in 0..98 {
        world.corrections.record(&launch_key("cloud"), 450.0, 45.0);
    }
    // A hundred with the two of the estimate: 45 s · e^(0.98 ln 10), and twice that at most.
    let slow = 2.0 * 45.0 * 10.0_f64.powf(0.98) - 90.0;
    let moved = guessed.duration_since(line(&world)).as_secs();
    assert!((moved - slow as i64).abs() <= 2, "{moved} {slow}");
}

#[test]
fn a_job_that_may_not_be_lost_or_owns_a_machine_or_must_be_on_spot_is_not_asked_about() {
    let asked = |change: &dyn Fn(&mut Workload), offers: Vec<Offer>| {
        let mut job = job(360, 7_200);
        change(&mut job);
        let mut world = known(offers, job);
        world.providers.push(provider("host"));
        only(&decide(&world, now())).advice.is_some()
    };
    let offers = || vec![on_demand(), spot("r1-a", "0.30")];
    assert!(asked(&|_| {}, offers()));
    assert!(!asked(&|job| job.finish_by = None, offers()));
    assert!(!asked(&|job| job.placement.capacity = Some(Capacity::Spot), offers()));
    let fails = petaflop_arbiter::workload::InterruptionPolicy::Fail;
    assert!(!asked(&|job| job.interruption.policy = fails, offers()));
    assert!(!asked(&|_| {}, vec![spot("r1-a", "0.30")]), "nothing to fall back on");
    assert!(!asked(&|_| {}, vec![on_demand(), spot("r1-a", "2.00")]), "spot is dearer");
    let own = Offer { measured: None, vcpu_milli: Some(16_000), ..crate::worlds::host("0.01") };
    let own = Offer { memory: Some(64 << 30), ..own };
    assert!(!asked(&|_| {}, vec![on_demand(), spot("r1-a", "0.30"), own]), "it owns one");
}

#[test]
fn a_recorded_world_with_a_memory_and_tables_decides_the_same_when_it_is_read_back() {
    let spot = spot("r1-a", "0.30");
    let mut world = known(vec![on_demand(), spot], job(360, 7_200));
    let mut plans = 0;
    for tick in 0..4 {
        let quoted = |offer: &Offer| Offer { quoted_at: after(tick * TICK), ..offer.clone() };
        world.market = Arc::new(Market::new(world.market.offers().map(quoted).collect::<Vec<_>>()));
        let seen = Recorded { now: after(tick * TICK), world: world.clone() };
        let plan = decide(&seen.world, seen.now);
        let text = serde_json::to_string(&seen).expect("it is written");
        let read: Recorded = serde_json::from_str(&text).expect("it is read");
        assert_eq!((read.hash(), &decide(&read.world, read.now)), (seen.hash(), &plan));
        world.watched.clone_from(&plan.watched);
        for key in &plan.tables {
            world.tables.put(*key, key.make());
            plans += 1;
        }
    }
    assert_eq!(world.watched.len(), 1);
    assert!(plans > 0, "a table was asked for, and made");
    // A table of another version is not passed off as the same.
    let text = serde_json::to_string(&world).expect("it is written");
    let hash = text.split("\"hash\":\"").nth(1).and_then(|rest| rest.get(..32)).expect("a hash");
    let other = text.replace(hash, "00000000000000000000000000000000");
    let error = serde_json::from_str::<World>(&other).expect_err("it is refused").to_string();
    assert!(error.contains("another version"), "{error}");
}

/// Spot that comes and goes: runs of so many ticks, the first one there or not.
pub(crate) fn runs() -> impl Strategy<Value = (bool, Vec<usize>)> {
    let length = prop_oneof![3 => 1..4_usize, 2 => 4..30_usize];
    (any::<bool>(), prop::collection::vec(length, 1..24))
}

pub(crate) fn ticks((mut there, runs): (bool, Vec<usize>)) -> Vec<bool> {
    let mut ticks = Vec::new();
    for run in runs {
        ticks.extend(std::iter::repeat_n(there, run));
        there = !there;
    }
    ticks
}

/// A job that is decided about once a tick, beside the model's own policy.
struct Played {
    world: World,
    claim: Option<Claim>,
    /// Steps that are done.
    steps: i64,
    /// What the decisions cost, in ticks of on-demand.
    paid: f64,
    changes: u32,
}

impl Played {
    /// Decides until nothing changes any more at this moment; what the first decision was advised.
    fn decide(&mut self, seconds: i64) -> Option<Advised> {
        let mut advised = None;
        loop {
            self.world.claims = self.claim.iter().cloned().collect();
            let plan = decide(&self.world, after(seconds));
            if !plan.tables.is_empty() {
                for key in &plan.tables {
                    self.world.tables.put(*key, key.make());
                }
                continue;
            }
            self.world.watched.clone_from(&plan.watched);
            let decision = only(&plan);
            advised = advised.or(decision.advice.as_ref().map(|advice| advice.says));
            match &decision.outcome {
                Outcome::Moves { .. } => self.claim = None,
                Outcome::Placed { .. } => {
                    let mut claims = written(&plan);
                    let claim = claims.pop().expect("one");
                    assert!(matches!(plan.actions[..], [Action::CreateClaim(_)]));
                    let phase = Phase::Launched { instance: "i".into(), at: after(seconds) };
                    self.claim = Some(Claim { phase, ..claim });
                    self.world.workloads[0].progress.placements += 1;
                    self.changes += 1;
                    return advised;
                }
                Outcome::Settled { .. } | Outcome::Waiting { .. } => return advised,
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// The same choice as the model's policy, tick for tick, for whatever spot does; and what on-demand could have met is met.
    #[test]
    fn what_is_decided_tick_for_tick_is_what_the_policy_of_a_replay_says(
        recorded in runs(),
        work in 5..40_i64,
        spare in 1..30_i64,
    ) {
        let there = ticks(recorded);
        let (work, deadline) = (work * TICK, (work + spare) * TICK);
        let spot = spot("r1-a", "0.30");
        let world = known(vec![on_demand(), spot.clone()], job((work / STEP) as u64, deadline));
        let mut played = Played { world, claim: None, steps: 0, paid: 0.0, changes: 0 };
        let zones = vec![Zone { restart: RESTART, probe: Default::default() }];
        let terms = |left: i64, work: i64| Terms {
            tick: TICK, work, deadline: left, zones: zones.clone(), egress: Vec::new(),
        };
        let spec = Spec::shared(&terms(deadline, work), 0.3);
        let tables = Arc::new(Tables::made_when_needed(spec, Shape::default()));
        let mut policy = P1::new(&terms(deadline, work), tables);
        let mut tick = 0_i64;
        while played.steps * STEP < work {
            let seconds = tick * TICK;
            let has = there.get(tick as usize).copied().unwrap_or(false);
            let quoted = |offer: Offer| Offer { quoted_at: after(seconds), ..offer };
            played.world.market = Arc::new(Market::new([on_demand(), spot.clone()].map(quoted).to_vec()));
            played.world.unavailable = if has { Vec::new() } else { vec![refused(&spot)] };
            let held = |claim: &Claim| claim.spec.offer.capacity;
            if !has && played.claim.as_ref().map(held) == Some(Capacity::Spot) {
                played.claim = None;
                played.world.workloads[0].progress.interruptions += 1;
            }
            played.world.workloads[0].progress.steps_done = played.steps as u64;
            // What the model sees of the same moment.
            let terms = terms(deadline - seconds, work - played.steps * STEP);
            let pending = |claim: &Claim| match claim.phase {
                Phase::Launched { at, .. } => {
                    (RESTART - after(seconds).duration_since(at).as_secs()).max(0)
                }
                _ => RESTART,
            };
            let machine = played.claim.as_ref().map(|claim| Machine {
                place: Place {
                    zone: 0,
                    kind: if held(claim) == Capacity::Spot { Kind::Spot } else { Kind::OnDemand },
                },
                pending: pending(claim),
            });
            let quotes = [Quote {
                spot: if has { Sight::There } else { Sight::Gone },
                spot_price: rate("0.30"),
                on_demand_price: rate("1.00"),
            }];
            let view = View {
                terms: &terms, tick: 0, work_left: terms.work, machine, home: None, zones: &quotes,
            };
            let wish = safety::guarded(&view, policy.choose(&view));
            let advised = played.decide(seconds);
            let says = match wish {
                Choice::Nothing if machine.is_some() => Advised::Stay,
                Choice::Nothing => Advised::Wait,
                Choice::Run(place) if Some(place) == machine.map(|machine| machine.place) => Advised::Stay,
                Choice::Run(Place { kind: Kind::Spot, .. }) => Advised::Spot,
                Choice::Run(_) if machine.is_some() && view.slack() < RESTART => Advised::Stay,
                Choice::Run(_) => Advised::OnDemand,
            };
            // Too little is left for spot to be cheaper, its start included: then nobody asks.
            prop_assert!(advised.is_some() || work - played.steps * STEP < 4 * TICK, "{:?}", view);
            if let Some(advised) = advised {
                prop_assert_eq!(advised, says, "tick {} of {:?}, {:?}", tick, there, view);
            }
            policy.observe(&quotes);
            if let Some(claim) = &played.claim {
                let used = pending(claim).min(TICK);
                played.steps += (TICK - used) / STEP;
                played.paid += if held(claim) == Capacity::Spot { 0.3 } else { 1.0 };
            }
            tick += 1;
            prop_assert!(tick < 10_000, "it never ends");
        }
        prop_assert!(tick * TICK <= deadline, "done at {} of {}", tick * TICK, deadline);
        prop_assert!(played.changes <= 2 + 2 * there.len() as u32);
    }
}
