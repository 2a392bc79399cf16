//! What is said of a run's dollars and end, beside runs that are played: nine in ten lie within the range.

use petaflop_arbiter::decide::decide;
use petaflop_arbiter::decision::{CostBreakdown, Term};
use petaflop_arbiter::offer::{Capacity, Offer};
use petaflop_arbiter::workload::Work;

use crate::worlds::{now, only, placed, rate, training, usd, world};

/// Runs that are played of each case.
const RUNS: usize = 4_000;
/// Standard deviations between which nine in ten of a normal distribution lie.
const NINE_IN_TEN: f64 = 1.645;

/// Numbers by chance, the same ones each time (SplitMix64; Steele, Lea, Flood 2014).
struct Chance(u64);

impl Chance {
    /// Above 0 and at most 1.
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64 + f64::MIN_POSITIVE
    }

    fn normal(&mut self) -> f64 {
        let (radius, angle) = (self.uniform(), self.uniform());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -self.uniform().ln() * mean
    }
}

/// A long job on spot, and what is said of it there, where so many runs of others were as fast as estimated.
fn said(losses_per_hour: f64, interval: u32, steps: u64, known: u32) -> CostBreakdown {
    let spot = Offer {
        interruptions_per_hour: Some(losses_per_hour),
        ..placed("cloud", "r1", "r1-a", "m", Capacity::Spot, rate("1.00"))
    };
    let mut job = training("job");
    let Work::Training(work) = &mut job.work else { unreachable!("a job") };
    (work.steps, work.checkpoint_interval_seconds) = (steps, Some(interval));
    let mut world = world(vec![spot], vec![job]);
    for _ in 0..known {
        world.corrections.record("cpu-x86_64/train", 1.0, 1.0);
    }
    world.providers.iter_mut().for_each(|one| one.egress_usd_per_gb = usd("0.09"));
    only(&decide(&world, now())).ranked[0].cost.clone()
}

fn seconds(cost: &CostBreakdown, what: Term) -> f64 {
    let term = cost.terms.iter().find(|term| term.what == what);
    term.map_or(0.0, |term| term.millis as f64 / 1e3)
}

/// Seconds of one run: work until it is lost or done, at a rate that is as far off as is said.
fn played(cost: &CostBreakdown, losses_per_hour: f64, interval: f64, chance: &mut Chance) -> f64 {
    let tokens = cost.tokens_per_second.expect("it is known");
    let spread = (tokens.high / tokens.expected).ln() / NINE_IN_TEN;
    let work = seconds(cost, Term::Work) * (-spread * chance.normal()).exp();
    let checkpoint = (10 << 20) as f64 / 100e6;
    let start = [Term::StartUp, Term::Image, Term::Inputs].map(|what| seconds(cost, what));
    let start: f64 = start.iter().sum();
    let (mut total, mut done) = (start + seconds(cost, Term::Upload), 0.0);
    loop {
        let until_loss = match losses_per_hour > 0.0 {
            true => chance.exponential(3_600.0 / losses_per_hour),
            false => f64::INFINITY,
        };
        if done + until_loss >= work {
            return total + work - done;
        }
        // What was durable when it was lost: whole intervals, each on its way for as long as a checkpoint takes.
        total += until_loss + start + checkpoint;
        let reached = done + until_loss;
        done = (((reached - checkpoint) / interval).floor() * interval).max(done);
    }
}

#[test]
fn nine_runs_in_ten_end_within_the_dollars_and_the_time_that_are_said() {
    for (losses_per_hour, interval, steps, known) in [
        (0.0, 600, 100_000, 0),
        (0.05, 1_800, 400_000, 0),
        (2.0, 300, 100_000, 0),
        // The rate is known well, so that what losses do is much of it.
        (0.5, 600, 400_000, 1_000),
        (1.0, 600, 100_000, 1_000),
    ] {
        let cost = said(losses_per_hour, interval, steps, known);
        let (least, most) = cost.usd_range.expect("it ends");
        let (early, late) = cost.millis_range;
        let egress = cost.terms.iter().find(|term| term.what == Term::Egress).expect("it is").usd;
        let mut chance = Chance(7);
        let mut within = (0, 0);
        for _ in 0..RUNS {
            let seconds = played(&cost, losses_per_hour, interval.into(), &mut chance);
            let dollars = seconds / 3_600.0 + egress.as_f64();
            within.0 += usize::from((least.as_f64()..=most.as_f64()).contains(&dollars));
            within.1 += usize::from((early as f64..=late as f64).contains(&(seconds * 1e3)));
        }
        let share = |count: usize| count as f64 / RUNS as f64;
        let said = format!(
            "{known} known, {losses_per_hour} losses an hour: {} of the dollars, {} of the ends within; {least} to {most} $",
            share(within.0),
            share(within.1)
        );
        assert!((0.86..=0.97).contains(&share(within.0)), "{said}");
        assert!((0.86..=0.97).contains(&share(within.1)), "{said}");
    }
}
