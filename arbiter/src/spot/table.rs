//! What is cheapest under a known renewal law: backward induction over ticks left × slack × machine × age.
//!
//! A table depends on the law, the tick, the restart and the ratio of prices, and not on the job: ticks left and slack say
//! all of it. It is made off the decision path, and a decision is one look-up. Numbers are in ticks of on-demand.

use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use super::law::{self, BUCKETS, Shape};
use super::model::Terms;
use super::replay::Recorded;

/// Factors of the laws, both directions.
const FACTORS: [f64; 7] = [0.25, 0.4, 0.63, 1.0, 1.6, 2.5, 4.0];

/// Chances that another zone has spot when this one loses it.
const OTHERS: [f64; 5] = [0.0, 0.4, 0.7, 0.88, 0.97];

/// The age bucket of the zone that is left to go to.
const OTHERS_AGE: usize = 7;

/// Seconds of a minute.
const MINUTE: u64 = 60;

/// How many ticks left apart decisions are kept.
const KEPT: usize = 4;

/// Stands for "may not be".
const NEVER: f32 = 1e9;

/// One lane an age and availability: gone, then there.
const LANES: usize = 2 * BUCKETS;

type Lanes = [f32; LANES];

/// A law of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LawIndex {
    down: u8,
    up: u8,
    others: u8,
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

    fn place(self) -> usize {
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
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    tick: i64,
    restart: i64,
    /// Spot's price by on-demand's, in 64ths.
    ratio: i64,
    /// Most ticks left; a multiple of [`KEPT`], so that tables for more have the same decisions for these.
    ticks: i64,
    /// Most slack, in seconds.
    slack: i64,
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
    fn units(&self) -> (usize, usize) {
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

/// What to do, where a machine may be had or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Be on spot.
    Spot,
    /// Be on on-demand.
    OnDemand,
    /// Have no machine.
    Nothing,
}

/// The tables of a [`Spec`], each made when it is first needed, or beforehand.
#[derive(Debug)]
pub struct Tables {
    spec: Spec,
    shape: Shape,
    laws: Vec<OnceLock<Arc<Table>>>,
    /// Whether a decision may wait for a table.
    waits: bool,
    /// The law of which a table was asked for and was not there.
    missed: OnceLock<LawIndex>,
}

impl Tables {
    /// Tables that are made on the decision path: for replays.
    pub fn made_when_needed(spec: Spec, shape: Shape) -> Tables {
        Tables { waits: true, ..Tables::made_beforehand(spec, shape) }
    }

    /// Tables that are not there until [`Tables::make`] was called.
    pub fn made_beforehand(spec: Spec, shape: Shape) -> Tables {
        let count = FACTORS.len() * FACTORS.len() * OTHERS.len();
        let laws = (0..count).map(|_| OnceLock::new()).collect();
        Tables { spec, shape, laws, waits: false, missed: OnceLock::new() }
    }

    /// Takes in a table that was made elsewhere.
    pub fn put(&mut self, law: LawIndex, table: Arc<Table>) {
        self.laws[law.place()] = OnceLock::from(table);
    }

    /// What was asked for and not there, the first of it.
    pub fn missed(&self) -> Option<LawIndex> {
        self.missed.get().copied()
    }

    /// What the tables depend on beside the law.
    pub const fn spec(&self) -> Spec {
        self.spec
    }

    /// The shape of the law.
    pub const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Makes a law's table, unless it is there.
    pub fn make(&self, law: LawIndex) -> &Table {
        let made = || Arc::new(Table::made(&self.spec, &self.shape, law));
        self.laws[law.place()].get_or_init(made)
    }

    /// A law's table, if it is there or may be made now.
    pub fn table(&self, law: LawIndex) -> Option<&Table> {
        match self.waits {
            true => Some(self.make(law)),
            false => {
                let table = self.laws[law.place()].get();
                if table.is_none() {
                    let _ = self.missed.set(law);
                }
                table.map(|table| &**table)
            }
        }
    }
}

/// Decisions of one state of slack: a bit an age bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bits {
    /// From nothing, spot there: take it.
    take: u16,
    /// From nothing, spot there and not taken: on-demand.
    instead: u16,
    /// From nothing, spot gone: on-demand.
    on_demand: u16,
}

/// Decisions on on-demand of one pending level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct OnDemandBits {
    /// Spot there: leave for it.
    leave: u16,
    /// Spot gone: drop to nothing.
    drop: u16,
}

/// What is cheapest under one law.
#[derive(Debug)]
pub struct Table {
    per_tick: usize,
    tick: i64,
    width: usize,
    /// Pending at a tick's start, in units, by level.
    pending: Vec<usize>,
    idle: Vec<Bits>,
    on_demand: Vec<OnDemandBits>,
}

/// A layer's values, by slack.
struct Layer {
    none: Vec<Lanes>,
    /// By level, then slack.
    on_demand: Vec<Vec<Lanes>>,
    /// Only where spot is there; the lanes of the other half are those of `none`.
    spot: Vec<Vec<Lanes>>,
}

impl Layer {
    fn new(levels: usize, width: usize) -> Layer {
        let zero = || vec![[0.0; LANES]; width];
        Layer {
            none: zero(),
            on_demand: (0..levels).map(|_| zero()).collect(),
            spot: (0..levels).map(|_| zero()).collect(),
        }
    }
}

/// What becomes of ages in a tick.
struct Chances {
    flip: Lanes,
    /// Stays in its bucket.
    stay: Lanes,
    /// Goes to the next.
    older: Lanes,
    others: f32,
}

impl Chances {
    fn of(shape: &Shape, law: LawIndex, tick: i64) -> Chances {
        let mut chances =
            Chances { flip: [0.0; LANES], stay: [0.0; LANES], older: [0.0; LANES], others: 0.0 };
        chances.others = OTHERS[usize::from(law.others)] as f32;
        for lane in 0..LANES {
            let (bucket, there) = (lane % BUCKETS, lane >= BUCKETS);
            let (base, factor) = match there {
                true => (shape.down[bucket], law.down),
                false => (shape.up[bucket], law.up),
            };
            let flip = law::hazard(base, FACTORS[usize::from(factor)], tick);
            let leaves = law::leaves(bucket, tick);
            chances.flip[lane] = flip as f32;
            chances.stay[lane] = ((1.0 - flip) * (1.0 - leaves)) as f32;
            chances.older[lane] = ((1.0 - flip) * leaves) as f32;
        }
        chances
    }

    /// The expected value a tick later. `lost`: the values where the machine on spot was lost.
    fn expected(&self, of: &Lanes, lost: &Lanes) -> Lanes {
        let gone = lost[0];
        let back = of[BUCKETS];
        let elsewhere = lost[BUCKETS + OTHERS_AGE];
        let fell = self.others * elsewhere + (1.0 - self.others) * gone;
        let mut expected = [0.0; LANES];
        for lane in 0..LANES {
            let next = if lane % BUCKETS == BUCKETS - 1 { of[lane] } else { of[lane + 1] };
            let flipped = if lane < BUCKETS { back } else { fell };
            expected[lane] =
                self.stay[lane] * of[lane] + self.older[lane] * next + self.flip[lane] * flipped;
        }
        expected
    }
}

impl Table {
    /// Backward induction. The same for the same arguments, on every machine.
    pub(super) fn made(spec: &Spec, shape: &Shape, law: LawIndex) -> Table {
        let (per_tick, restart) = spec.units();
        let slack = (spec.slack * per_tick as i64 / spec.tick) as usize;
        let width = slack + 1;
        let mut pending = Vec::new();
        let mut left = restart;
        while left > 0 {
            left = left.saturating_sub(per_tick);
            pending.push(left);
        }
        if pending.is_empty() {
            pending.push(0);
        }
        let levels = pending.len();
        let ratio = spec.ratio as f32 / 64.0;
        let chances = Chances::of(shape, law, spec.tick);
        let ticks = spec.ticks as usize;
        let rows = ticks / KEPT + 2;
        let mut table = Table {
            per_tick,
            tick: spec.tick,
            width,
            idle: vec![Bits::default(); rows * width],
            on_demand: vec![OnDemandBits::default(); rows * width * levels],
            pending,
        };
        let (mut next, mut this) = (Layer::new(levels, width), Layer::new(levels, width));
        // Nobody has time left: what is not done by now may not be.
        let first = restart.min(per_tick);
        for left in 1..=ticks {
            let kept = (left % KEPT == 0).then_some(left / KEPT);
            // Expectations replace the later layer's values.
            for s in 0..width {
                let none = next.none[s];
                let expected = chances.expected(&none, &none);
                for level in 0..levels {
                    let values = next.on_demand[level][s];
                    next.on_demand[level][s] = chances.expected(&values, &values);
                    let values = next.spot[level][s];
                    next.spot[level][s] = chances.expected(&values, &none);
                }
                next.none[s] = expected;
            }
            for s in 0..width {
                if s >= left * per_tick {
                    this.none[s] = [0.0; LANES];
                    for level in 0..levels {
                        this.on_demand[level][s] = [0.0; LANES];
                        this.spot[level][s] = [0.0; LANES];
                    }
                    continue;
                }
                let work = left * per_tick - s;
                let ends = |spent: usize| work + spent <= per_tick;
                let safe = |spent: usize| s >= spent + restart || ends(spent) && s >= spent;
                let wait = match s >= per_tick + restart {
                    true => next.none[s - per_tick],
                    false => [NEVER; LANES],
                };
                let launch = match s >= restart {
                    true => plus(&next.on_demand[0][s - first], 1.0),
                    false => [NEVER; LANES],
                };
                let take = match safe(first) {
                    true => plus(&next.spot[0][s - first], ratio),
                    false => [NEVER; LANES],
                };
                let mut bits = Bits::default();
                let mut none = [0.0; LANES];
                for lane in 0..LANES {
                    let (bucket, there) = (lane % BUCKETS, lane >= BUCKETS);
                    let instead = launch[lane].min(wait[lane]);
                    let bit = |yes: bool| u16::from(yes) << bucket;
                    if there {
                        bits.take |= bit(take[lane] <= instead);
                        bits.instead |= bit(launch[lane] <= wait[lane]);
                        none[lane] = take[lane].min(instead);
                    } else {
                        bits.on_demand |= bit(launch[lane] <= wait[lane]);
                        none[lane] = instead;
                    }
                }
                this.none[s] = none;
                if let Some(row) = kept {
                    table.idle[row * width + s] = bits;
                }
                for level in 0..levels {
                    let left = table.pending[level];
                    let spent = left.min(per_tick);
                    let after = (level + 1).min(levels - 1);
                    let stay = match s >= left {
                        true => plus(&next.on_demand[after][s - spent], 1.0),
                        false => [NEVER; LANES],
                    };
                    let mut bits = OnDemandBits::default();
                    let values = &mut this.on_demand[level][s];
                    for lane in 0..LANES {
                        let (bucket, there) = (lane % BUCKETS, lane >= BUCKETS);
                        let other = if there { take[lane] } else { wait[lane] };
                        let yes = u16::from(other < stay[lane]) << bucket;
                        if there {
                            bits.leave |= yes;
                        } else {
                            bits.drop |= yes;
                        }
                        values[lane] = stay[lane].min(other);
                    }
                    if let Some(row) = kept {
                        table.on_demand[(row * levels + level) * width + s] = bits;
                    }
                    let stay = match safe(spent) {
                        true => plus(&next.spot[after][s - spent], ratio),
                        false => [NEVER; LANES],
                    };
                    let values = &mut this.spot[level][s];
                    for lane in 0..LANES {
                        values[lane] = match lane < BUCKETS {
                            true => none[lane],
                            false => stay[lane].min(none[lane]),
                        };
                    }
                }
            }
            std::mem::swap(&mut this, &mut next);
        }
        table
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.idle) + size_of_val(&*self.on_demand)
    }

    fn row(&self, left: i64) -> usize {
        let rows = self.idle.len() / self.width;
        (left.max(0) as usize).div_ceil(KEPT).min(rows - 1)
    }

    fn slack(&self, slack: i64) -> usize {
        let units = (slack.max(0) * self.per_tick as i64 / self.tick) as usize;
        units.min(self.width - 1)
    }

    /// From nothing: with whole ticks left, seconds of slack, and the age bucket of the spot that is there or gone.
    pub fn idle(&self, left: i64, slack: i64, there: bool, bucket: usize) -> Advice {
        let bits = self.idle[self.row(left) * self.width + self.slack(slack)];
        let says = |word: u16| word >> bucket & 1 == 1;
        match there {
            true if says(bits.take) => Advice::Spot,
            true if says(bits.instead) => Advice::OnDemand,
            false if says(bits.on_demand) => Advice::OnDemand,
            _ => Advice::Nothing,
        }
    }

    /// From on-demand with so many seconds pending.
    pub fn on_demand(
        &self,
        left: i64,
        slack: i64,
        pending: i64,
        there: bool,
        bucket: usize,
    ) -> Advice {
        let units = ((pending * self.per_tick as i64 + self.tick - 1) / self.tick) as usize;
        let level = self.pending.iter().position(|at| *at <= units).unwrap_or(0);
        let place = (self.row(left) * self.pending.len() + level) * self.width + self.slack(slack);
        let bits = self.on_demand[place];
        match there {
            true if bits.leave >> bucket & 1 == 1 => Advice::Spot,
            false if bits.drop >> bucket & 1 == 1 => Advice::Nothing,
            _ => Advice::OnDemand,
        }
    }
}

fn plus(values: &Lanes, cost: f32) -> Lanes {
    values.map(|value| value + cost)
}
