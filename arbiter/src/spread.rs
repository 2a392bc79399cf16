//! Replicas of a service on spot, spread: the machines of one zone are taken away together.
//!
//! Of n ≥ 2 replicas at most n/2, rounded down, are on spot in one zone, so that at least half are left whichever zone loses its
//! spot. A replica more goes to the cheapest place that is none of those: spot of another zone, or on-demand where there is no
//! other, so only as many are on on-demand as that asks for. Where nothing else will do, a crowded zone is better than none.
//! Zones are those of a provider; one that names none is one zone. What is owned, or on-demand, is not taken away.

use std::collections::HashMap;

use crate::claim::Claim;
use crate::offer::{Capacity, Offer};
use crate::workload::{OwnerKind, Workload};

/// A zone of a provider.
pub(crate) type Place<'a> = (&'a str, &'a str, &'a str);

/// Where an offer is.
pub(crate) fn place(offer: &Offer) -> Place<'_> {
    (&offer.provider, &offer.region, &offer.zone)
}

/// The replicas of a service that are on spot, by place.
pub(crate) struct Spread<'a> {
    on_spot: HashMap<Place<'a>, u32>,
    /// Most of one place; `None`: nothing is to be spread.
    most: Option<u32>,
}

impl<'a> Spread<'a> {
    /// Of a workload that wants so many machines and has these.
    pub(crate) fn of(workload: &Workload, wanted: u32, working: &[&'a Claim]) -> Spread<'a> {
        let is_spread = workload.id.kind == OwnerKind::InferenceService && wanted > 1;
        let most = is_spread.then_some(wanted / 2);
        let mut spread = Spread { on_spot: HashMap::new(), most };
        working.iter().for_each(|claim| spread.add(&claim.spec.offer));
        spread
    }

    /// Counts one more.
    pub(crate) fn add(&mut self, offer: &'a Offer) {
        if offer.capacity == Capacity::Spot {
            *self.on_spot.entry(place(offer)).or_default() += 1;
        }
    }

    /// The places that have their share.
    pub(crate) fn crowded(&self) -> Vec<Place<'a>> {
        let Some(most) = self.most else { return Vec::new() };
        let full = self.on_spot.iter().filter(|(_, replicas)| **replicas >= most);
        full.map(|(place, _)| *place).collect()
    }
}
