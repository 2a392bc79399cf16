//! How long spot lasts, and how long it stays away: a renewal law whose hazard falls with age, and what a job learns of it.
//!
//! A run that just began mostly flaps; one that has lasted goes on lasting: the hazard of an end falls thirtyfold over
//! a day. The shape over age is fixed ([`DOWN`], [`UP`]); a job learns one factor a direction while it runs.

use serde::{Deserialize, Serialize};

use super::model::Sight;

/// Number of age buckets.
pub const BUCKETS: usize = 16;

/// Seconds of the tick in which the shape is given.
pub const BASE: i64 = 300;

/// First age of each bucket, in base ticks; 1 is the tick in which the run was first seen.
const EDGES: [i64; BUCKETS] = [1, 2, 3, 4, 5, 7, 9, 13, 19, 27, 37, 55, 81, 121, 181, 289];

/// Chance that spot is gone a base tick later, by age of its being there.
pub const DOWN: [f64; BUCKETS] = [
    0.0095, 0.2469, 0.0673, 0.1868, 0.0856, 0.0623, 0.0494, 0.0378, 0.0310, 0.0274, 0.0266, 0.0199,
    0.0156, 0.0130, 0.0115, 0.0028,
];

/// Chance that spot is back a base tick later, by age of its being gone.
pub const UP: [f64; BUCKETS] = [
    0.0079, 0.2426, 0.0597, 0.1382, 0.0813, 0.0686, 0.0497, 0.0312, 0.0297, 0.0180, 0.0155, 0.0135,
    0.0082, 0.0082, 0.0066, 0.0022,
];

/// The two hazards by age, a base tick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Of being gone.
    pub down: [f64; BUCKETS],
    /// Of being back.
    pub up: [f64; BUCKETS],
}

impl Default for Shape {
    fn default() -> Self {
        Shape { down: DOWN, up: UP }
    }
}

impl Shape {
    /// From recordings with a point every [`BASE`] seconds, the same for the same recordings in any order: flips by ticks at an age, and one flip more
    /// at the rate over all ages, so that an age that was hardly seen has a hazard too. Nothing where nothing flipped.
    pub fn fitted(recordings: &[Vec<bool>]) -> Option<Shape> {
        let (mut flips, mut ticks) = ([[0_u32; BUCKETS]; 2], [[0_u32; BUCKETS]; 2]);
        for recording in recordings {
            let mut age = BASE;
            for pair in recording.windows(2) {
                let (way, at) = (usize::from(pair[0]), bucket(age));
                let flipped = pair[0] != pair[1];
                ticks[way][at] += 1;
                flips[way][at] += u32::from(flipped);
                age = if flipped { BASE } else { age + BASE };
            }
        }
        let hazards = |way: usize| {
            let total = |counts: &[u32; BUCKETS]| f64::from(counts.iter().sum::<u32>());
            let mean = total(&flips[way]) / total(&ticks[way]);
            let at = |at: usize| {
                let (flips, ticks) = (f64::from(flips[way][at]), f64::from(ticks[way][at]));
                ((flips + 1.0) / (ticks + 1.0 / mean)).min(0.95)
            };
            (mean > 0.0).then(|| std::array::from_fn(at))
        };
        Some(Shape { down: hazards(1)?, up: hazards(0)? })
    }
}

/// What is counted for free before anything was seen, in flips: a job starts from the shape as it is.
const PRIOR: f64 = 5.0;

/// Seconds after which what was seen counts half.
const HALF_LIFE: f64 = 172_800.0;

/// The bucket of an age in seconds.
pub fn bucket(age: i64) -> usize {
    let ticks = (age.max(1) + BASE - 1) / BASE;
    EDGES.iter().rposition(|edge| ticks >= *edge).unwrap_or(0)
}

/// Chance, a tick, that an age leaves its bucket for the next one.
pub fn leaves(bucket: usize, tick: i64) -> f64 {
    match EDGES.get(bucket + 1) {
        Some(next) => (tick as f64 / ((next - EDGES[bucket]) * BASE) as f64).min(1.0),
        None => 0.0,
    }
}

/// −ln(1 − h) of a base tick, for a tick.
fn rate(hazard: f64, tick: i64) -> f64 {
    -libm::log1p(-hazard) * tick as f64 / BASE as f64
}

/// The chance of a flip in a tick, with the learned factor.
pub fn hazard(base: f64, factor: f64, tick: i64) -> f64 {
    -libm::expm1(-rate(base, tick) * factor)
}

/// Expected ticks until spot is gone, by age.
pub fn lives(shape: &Shape, factor: f64, tick: i64) -> [f64; BUCKETS] {
    let mut lives = [0.0; BUCKETS];
    let mut older = 0.0;
    for bucket in (0..BUCKETS).rev() {
        let stays = 1.0 - hazard(shape.down[bucket], factor, tick);
        let leaves = leaves(bucket, tick);
        older = (1.0 + stays * leaves * older) / (1.0 - stays * (1.0 - leaves));
        lives[bucket] = older;
    }
    lives
}

/// One direction's flips and what the shape would have expected. Written down by their bits: whoever
/// reads them back decides the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Count {
    #[serde(with = "super::bits")]
    flips: f64,
    #[serde(with = "super::bits")]
    expected: f64,
}

impl Count {
    fn factor(self) -> f64 {
        (self.flips + PRIOR) / (self.expected + PRIOR)
    }
}

/// What was seen of one zone, or of the union of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Whether there was spot, and for how many seconds that has been so.
    last: Option<(bool, i64)>,
    down: Count,
    up: Count,
}

/// The age given to what is met at the start, in seconds: a run met at a random moment is rarely young.
const MET: i64 = 1;

impl Seen {
    /// Takes in a tick; one in which nobody looked ages what is known.
    pub fn observe(&mut self, shape: &Shape, there: Option<bool>, tick: i64) {
        let decay = libm::exp2(-(tick as f64) / HALF_LIFE);
        let Seen { last, down, up } = self;
        for count in [&mut *down, &mut *up] {
            count.flips *= decay;
            count.expected *= decay;
        }
        *last = match (*last, there) {
            (Some((was, age)), Some(is)) => {
                let (count, hazards) = if was { (down, &shape.down) } else { (up, &shape.up) };
                count.expected += rate(hazards[bucket(age)], tick);
                count.flips += f64::from(was != is);
                Some((is, if was == is { age + tick } else { tick }))
            }
            (None, Some(is)) => Some((is, MET.max(tick))),
            (Some((was, age)), None) => Some((was, age + tick)),
            (None, None) => None,
        };
    }

    /// The age, in seconds, of what is seen in a tick not yet over.
    pub fn age(&self, there: bool, tick: i64) -> i64 {
        match self.last {
            Some((was, age)) if was == there => age + tick,
            Some(_) => tick,
            None => MET.max(tick),
        }
    }

    /// Forgets all but what was learned: nobody has looked for long.
    pub const fn forget_age(&mut self) {
        self.last = None;
    }

    /// Whether there was spot when somebody last looked.
    pub fn was_there(&self) -> Option<bool> {
        self.last.map(|(there, _)| there)
    }

    /// How much faster than the shape spot goes.
    pub fn down(&self) -> f64 {
        self.down.factor()
    }

    /// How much faster than the shape it comes back.
    pub fn up(&self) -> f64 {
        self.up.factor()
    }
}

/// Whether there is spot anywhere, as far as anybody knows.
pub fn anywhere(sights: impl Iterator<Item = Sight>) -> Option<bool> {
    sights.fold(None, |known, sight| match (known, sight) {
        (Some(true), _) | (_, Sight::There) => Some(true),
        (_, Sight::Gone) => Some(false),
        (known, Sight::Unknown) => known,
    })
}
