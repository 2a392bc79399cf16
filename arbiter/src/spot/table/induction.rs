//! How a table is made.

use super::spec::{FACTORS, LawIndex, OTHERS, Spec};
use super::{Bits, KEPT, OnDemandBits, Table};
use crate::spot::law::{self, BUCKETS, Shape};

/// The age bucket of the zone that is left to go to.
const OTHERS_AGE: usize = 7;

/// Stands for "may not be".
const NEVER: f32 = 1e9;

/// One lane an age and availability: gone, then there.
const LANES: usize = 2 * BUCKETS;

type Lanes = [f32; LANES];

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
    pub(in crate::spot) fn made(spec: &Spec, shape: &Shape, law: LawIndex) -> Table {
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
}

fn plus(values: &Lanes, cost: f32) -> Lanes {
    values.map(|value| value + cost)
}
