//! What a job with a deadline has seen of the places where it could be on spot: the policies' memory between decisions.
//!
//! It begins with the job's first decision and goes in ticks of [`BASE`] seconds, as a replay does. A pass reads it from the
//! world and hands the next one on in its plan; whoever loses it begins anew.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::offer::{Offer, OfferId};
use crate::spot::law::{BASE, Shape};
use crate::spot::learned::Learned;
use crate::spot::model::Sight;

/// Places that are remembered.
const MOST: usize = 16;

/// Ticks over which a sight is held to be as it was; who looked before that does not know how old things are.
const HELD: i64 = 12;

/// What a job saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Watch {
    /// Uid of the workload.
    pub workload: String,
    /// When the tick began in which the job looked last.
    at: Timestamp,
    /// The places and how they are in that tick, as far as was seen.
    places: Vec<Watched>,
    /// Of the same places, in the same order: what was learned before that tick.
    learned: Learned,
}

/// A place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Watched {
    /// As it was quoted last.
    offer: Offer,
    sight: Sight,
}

impl Watch {
    /// The places.
    pub fn offers(&self) -> impl Iterator<Item = &Offer> {
        self.places.iter().map(|place| &place.offer)
    }

    /// Whole ticks since the one in which the job looked last began.
    fn ticks(&self, now: Timestamp) -> i64 {
        now.duration_since(self.at).as_secs().max(0) / BASE
    }

    /// What was learned of these places before the tick of now. Until then all was as the job saw it last; what that
    /// was is forgotten where it was long ago.
    pub fn learned(&self, of: &[&OfferId], now: Timestamp) -> Learned {
        let mut learned = self.learned.clone();
        match self.ticks(now) {
            ticks if ticks > HELD => learned.forget_ages(),
            ticks => (0..ticks).for_each(|_| {
                let sights = self.places.iter().map(|place| place.sight);
                learned.observe(&Shape::default(), BASE, sights);
            }),
        }
        let known = |id: &&OfferId| self.offers().position(|offer| offer.id == **id);
        learned.of_zones(&of.iter().map(known).collect::<Vec<_>>())
    }

    /// The memory after a look at these places, the best first.
    pub(crate) fn after<'a>(
        before: Option<&Watch>,
        workload: &str,
        seen: impl Iterator<Item = (&'a Offer, Sight)>,
        now: Timestamp,
    ) -> Watch {
        let mut places: Vec<Watched> =
            seen.map(|(offer, sight)| Watched { offer: offer.clone(), sight }).collect();
        let known = before.into_iter().flat_map(Watch::offers);
        for offer in known {
            if !places.iter().any(|place| place.offer.id == offer.id) {
                places.push(Watched { offer: offer.clone(), sight: Sight::Unknown });
            }
        }
        places.truncate(MOST);
        let ids: Vec<&OfferId> = places.iter().map(|place| &place.offer.id).collect();
        let (at, learned) = match before {
            Some(watch) => {
                let since = SignedDuration::from_secs(watch.ticks(now).saturating_mul(BASE));
                (watch.at.saturating_add(since).unwrap_or(now), watch.learned(&ids, now))
            }
            None => (now, Learned::of(places.len())),
        };
        Watch { workload: workload.to_owned(), at, places, learned }
    }
}
