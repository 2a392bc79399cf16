//! What a job learned of its zones while it ran: P1's memory, which outlives a decision.

use serde::{Deserialize, Serialize};

use super::law::{self, Seen, Shape};
use super::model::{Quote, Sight, ZoneIndex};

/// Flips counted for free for the chance that another zone has spot.
const PRIOR: f64 = 2.0;

/// Losses of a zone, and those in which another had spot then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Losses {
    #[serde(with = "super::bits")]
    all: f64,
    #[serde(with = "super::bits")]
    another: f64,
}

/// What was seen of some zones until now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Learned {
    /// Of each.
    pub(super) zones: Vec<Seen>,
    /// Of all together: there is spot where any has some.
    pub(super) union: Seen,
    /// Where another had spot before the loss, and where none had.
    losses: [Losses; 2],
    /// As they were when they were last looked at; none before the first look.
    before: Vec<Sight>,
}

impl Learned {
    /// Nothing, of so many zones.
    pub fn of(zones: usize) -> Learned {
        Learned { zones: vec![Seen::default(); zones], ..Learned::default() }
    }

    /// Takes in a tick: a sight a zone.
    pub fn observe(&mut self, shape: &Shape, tick: i64, sights: impl Iterator<Item = Sight>) {
        let now: Vec<Sight> = sights.collect();
        for (zone, was) in self.before.iter().enumerate() {
            if *was == Sight::There && now.get(zone) == Some(&Sight::Gone) {
                let another = |sights: &[Sight]| {
                    let mut sights = sights.iter().enumerate();
                    sights.any(|(other, sight)| other != zone && *sight == Sight::There)
                };
                let losses = &mut self.losses[usize::from(!another(&self.before))];
                losses.all += 1.0;
                losses.another += f64::from(another(&now));
            }
        }
        for (seen, sight) in self.zones.iter_mut().zip(&now) {
            let there = match sight {
                Sight::There => Some(true),
                Sight::Gone => Some(false),
                Sight::Unknown => None,
            };
            seen.observe(shape, there, tick);
        }
        self.union.observe(shape, law::anywhere(now.iter().copied()), tick);
        self.before = now;
    }

    /// The chance that another zone has spot when this one loses it, as things stand.
    pub(super) fn others(&self, zones: &[Quote], zone: ZoneIndex) -> f64 {
        if zones.len() < 2 {
            return 0.0;
        }
        let mut all = zones.iter().enumerate();
        let another = all.any(|(other, quote)| other != zone && quote.spot == Sight::There);
        let losses = self.losses[usize::from(!another)];
        let expected = if another { 0.9 } else { 0.2 };
        (losses.another + PRIOR * expected) / (losses.all + PRIOR)
    }

    /// The same of other zones: `from[i]` says which of these the new zone *i* was, if it was any.
    #[must_use]
    pub fn of_zones(&self, from: &[Option<ZoneIndex>]) -> Learned {
        let seen = |zone: &Option<ZoneIndex>| zone.and_then(|zone| self.zones.get(zone).copied());
        let sight = |zone: &Option<ZoneIndex>| zone.and_then(|zone| self.before.get(zone).copied());
        let before = match self.before.is_empty() {
            true => Vec::new(),
            false => from.iter().map(|zone| sight(zone).unwrap_or(Sight::Unknown)).collect(),
        };
        let zones = from.iter().map(|zone| seen(zone).unwrap_or_default()).collect();
        Learned { zones, before, ..self.clone() }
    }

    /// Keeps what was learned and forgets how things stood: nobody has looked for long.
    pub fn forget_ages(&mut self) {
        self.zones.iter_mut().for_each(Seen::forget_age);
        self.union.forget_age();
        self.before.clear();
    }
}
