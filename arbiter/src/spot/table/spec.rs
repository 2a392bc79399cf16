//! What a table is of: a law of the grid, and everything else that it depends on.

use serde::{Deserialize, Serialize};

use super::KEPT;
use crate::spot::model::Terms;
use crate::spot::replay::Recorded;

/// Factors of the laws, both directions.
pub(super) const FACTORS: [f64; 7] = [0.25, 0.4, 0.63, 1.0, 1.6, 2.5, 4.0];

/// Chances that another zone has spot when this one loses it.
pub(super) const OTHERS: [f64; 5] = [0.0, 0.4, 0.7, 0.88, 0.97];

/// Seconds of a minute.
const MINUTE: u64 = 60;

/// A law of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LawIndex {
    pub(super) down: u8,
    pub(super) up: u8,
    pub(super) others: u8,
}

impl LawIndex {
    /// The nearest to learned factors and chance, by logarithm, and by the chance to have nothing.
    pub fn nearest(down: f64, up: f64, others: f64) -> LawIndex {
        let factor = |learned: f64| {
            let distance = |at: &f64| libm::fabs(libm::log(learned / at));
            closest(&FACTORS, distance)
        };
        let chance = closest(&OTHERS, |at| libm::fabs(at - others));
        LawIndex { down: factor(down), up: factor(up), others: chance }
    }

    pub(super) fn place(self) -> usize {
        (usize::from(self.down) * FACTORS.len() + usize::from(self.up)) * OTHERS.len()
            + usize::from(self.others)
    }

    /// Whether it is one of the grid: what was written down may be anything.
    pub fn is_of_the_grid(self) -> bool {
        let within = |index: u8, grid: &[f64]| usize::from(index) < grid.len();
        within(self.down, &FACTORS) && within(self.up, &FACTORS) && within(self.others, &OTHERS)
    }

    /// The factor of being gone.
    pub fn down(self) -> f64 {
        FACTORS[usize::from(self.down)]
    }
}

fn closest(grid: &[f64], distance: impl Fn(&f64) -> f64) -> u8 {
    let mut best = (0, f64::INFINITY);
    for (index, at) in grid.iter().enumerate() {
        if distance(at) < best.1 {
            best = (index as u8, distance(at));
        }
    }
    best.0
}

/// What tables depend on beside the law.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    pub(super) tick: i64,
    restart: i64,
    /// Spot's price by on-demand's, in 64ths.
    pub(super) ratio: i64,
    /// Most ticks left; a multiple of [`KEPT`], so that tables for more have the same decisions for these.
    pub(super) ticks: i64,
    /// Most slack, in seconds.
    pub(super) slack: i64,
}

impl Spec {
    /// For a job in a market from a tick on: the first zone's restart, the mean of the prices at that moment.
    pub fn of(terms: &Terms, market: &[Recorded], start: usize) -> Spec {
        let spot: i64 = market.iter().map(|zone| zone.spot.at(start).micros() / 64).sum();
        let on_demand: i64 = market.iter().map(|zone| zone.on_demand.micros() / 64).sum();
        let ratio = (spot.saturating_mul(64) + on_demand / 2) / on_demand.max(1);
        let restarts: i64 = terms.zones.iter().map(|zone| zone.restart).sum();
        Spec {
            tick: terms.tick,
            restart: restarts / terms.zones.len().max(1) as i64,
            ratio: ratio.clamp(0, 256),
            ticks: (terms.ticks().max(0) as usize).next_multiple_of(KEPT) as i64,
            slack: (terms.ticks() * terms.tick - terms.work).max(0),
        }
    }

    /// For whoever has so much time and slack left, and for others that are about as far: ticks, slack and restart are rounded up,
    /// so that one table serves a job for long, and several jobs. `ratio` is spot's price by on-demand's.
    pub fn shared(terms: &Terms, ratio: f64) -> Spec {
        let (tick, ticks) = (terms.tick, terms.ticks().max(1));
        let up = |count: i64| (count.max(32) as u64).next_power_of_two() as i64;
        let slack = (ticks * tick - terms.work).max(0);
        Spec {
            tick,
            restart: (terms.shortest_restart().max(0) as u64).next_multiple_of(MINUTE) as i64,
            ratio: (libm::round(ratio * 64.0) as i64).clamp(0, 256),
            ticks: up(ticks),
            slack: up(slack / tick + 1) * tick,
        }
    }

    /// Whether a table of it can be made, and takes no more memory than it is worth: what was written down may be anything.
    pub fn is_makeable(&self) -> bool {
        let Spec { tick, restart, ratio, ticks, slack } = *self;
        let within = |value: i64, most: i64| (0..=most).contains(&value);
        within(tick - 1, 86_400)
            && within(restart, 16 * tick)
            && within(ratio, 256)
            && within(ticks - 1, 2_048)
            && ticks % KEPT as i64 == 0
            && within(slack, 2_048 * tick)
    }

    /// Of two jobs that differ in nothing but how long they are, what serves both.
    pub fn joined(self, other: Spec) -> Option<Spec> {
        let (ticks, slack) = (self.ticks.max(other.ticks), self.slack.max(other.slack));
        let alike = Spec { ticks, slack, ..self } == Spec { ticks, slack, ..other };
        alike.then_some(Spec { ticks, slack, ..self })
    }

    /// Seconds of a tick.
    pub const fn tick(&self) -> i64 {
        self.tick
    }

    /// Units of slack a tick, and of a restart: the fewest a tick, up to five, that hold the restart exactly, else best.
    pub(super) fn units(&self) -> (usize, usize) {
        let error = |per_tick: i64| {
            let restart = (self.restart * per_tick + self.tick - 1) / self.tick;
            restart * self.tick - self.restart * per_tick
        };
        let per_tick = (1..=5).min_by_key(|per_tick| (error(*per_tick) * 60 / per_tick, *per_tick));
        let per_tick = per_tick.unwrap_or(1);
        let restart = (self.restart * per_tick + self.tick - 1) / self.tick;
        (per_tick as usize, restart as usize)
    }
}
