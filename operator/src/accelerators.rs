//! Accelerators that were paid for: what the agent is told to look for, and which offers are left
//! alone after a machine did not have it.

use jiff::{SignedDuration, Timestamp};
use petaflop_agent_api::task;
use petaflop_arbiter::catalogue::{Catalogue, Vendor};
use petaflop_arbiter::claim::{ClaimSpec, Device};
use petaflop_arbiter::offer::{Capacity, Offer};
use petaflop_arbiter::reason::Reason;
use petaflop_arbiter::world::Unavailable;
use petaflop_crds::compute_provider::BrokenOffers;
use petaflop_crds::scalar::Moment;
use serde::{Deserialize, Serialize};

/// How long a class of offers is left alone after one of its machines lacked its accelerators: nobody
/// mends a host in minutes, and every try costs money.
pub const NOT_AGAIN: SignedDuration = SignedDuration::from_hours(1);

/// What a claim's machine must have; nothing, where its owner would have taken its processor too.
pub fn promised(claim: &ClaimSpec, asked_for: bool) -> Option<task::Accelerators> {
    let devices = claim.offer.accelerators.as_ref()?;
    if !asked_for || claim.device != Device::Accelerators {
        return None;
    }
    let row = Catalogue::embedded().get(&devices.model);
    // A model that the catalogue lacks has the provider's own name, which begins with its maker's.
    let named = || Vendor::from_name(devices.model.split(['-', '_', ' ']).next()?);
    let vendor = row.map(|row| row.vendor).or_else(named);
    Some(task::Accelerators {
        vendor: vendor.map(|vendor| vendor.as_str().to_owned()),
        model: devices.model.clone(),
        count: devices.count,
        memory: devices.memory,
    })
}

/// Offers that are one thing as far as broken accelerators go. Rented: a type in a region, spot and
/// on demand and in all zones, for they are the same hosts with the same image, and the one that was
/// given back is the first to be sold again. Owned: everything with devices of that node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Class {
    provider: String,
    region: String,
    instance_type: String,
    /// What owned offers are shares of.
    shares: Vec<String>,
}

impl Class {
    fn of(offer: &Offer) -> Self {
        let owned = offer.capacity == Capacity::Owned;
        let shares = offer.shares.iter().filter(|_| owned).map(|share| share.of.clone());
        Self {
            provider: offer.provider.clone(),
            region: offer.region.clone(),
            instance_type: offer.instance_type.clone(),
            shares: shares.collect(),
        }
    }

    fn holds(&self, offer: &Offer) -> bool {
        let Self { provider, region, instance_type, shares } = self;
        let same = *instance_type == offer.instance_type;
        offer.accelerators.is_some()
            && (provider, region) == (&offer.provider, &offer.region)
            && (same || offer.shares.iter().any(|share| shares.contains(&share.of)))
    }
}

/// Claims whose machine lacked the accelerators that it was bought for, while that is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Broken(Vec<Entry>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    claim_uid: String,
    class: Class,
    until: Timestamp,
}

impl Broken {
    /// A claim's machine did. Returns whether that is new.
    pub fn add(&mut self, claim_uid: &str, offer: &Offer, now: Timestamp) -> bool {
        self.0.retain(|entry| entry.until > now);
        if self.0.iter().any(|entry| entry.claim_uid == claim_uid) {
            return false;
        }
        let until = now.saturating_add(NOT_AGAIN).unwrap_or(Timestamp::MAX);
        let (claim_uid, class) = (claim_uid.to_owned(), Class::of(offer));
        self.0.push(Entry { claim_uid, class, until });
        true
    }

    /// What a provider's status says of its own, while it is remembered.
    pub fn of_provider(&self, name: &str, now: Timestamp) -> Vec<BrokenOffers> {
        let own = self.0.iter().filter(|entry| entry.class.provider == name && entry.until > now);
        own.map(|Entry { claim_uid, class, until }| BrokenOffers {
            claim_uid: claim_uid.clone(),
            region: class.region.clone(),
            instance_type: class.instance_type.clone(),
            shares: class.shares.clone(),
            until: Moment(*until),
        })
        .collect()
    }

    /// Takes over what a provider's status says: of before a restart.
    pub fn remember(&mut self, provider: &str, said: &[BrokenOffers]) {
        for BrokenOffers { claim_uid, region, instance_type, shares, until } in said {
            if self.0.iter().any(|entry| entry.claim_uid == *claim_uid) {
                continue;
            }
            let class = Class {
                provider: provider.to_owned(),
                region: region.clone(),
                instance_type: instance_type.clone(),
                shares: shares.clone(),
            };
            self.0.push(Entry { claim_uid: claim_uid.clone(), class, until: until.0 });
        }
    }

    /// Which of these offers are left alone.
    pub fn among<'a>(
        &'a self,
        offers: impl Iterator<Item = &'a Offer> + 'a,
        now: Timestamp,
    ) -> impl Iterator<Item = Unavailable> + 'a {
        offers.filter_map(move |offer| {
            let of_it = self.0.iter().filter(|entry| entry.class.holds(offer));
            let until = of_it.map(|entry| entry.until).max().filter(|until| *until > now)?;
            let reason = Reason::AcceleratorProbeFailed;
            Some(Unavailable { offer: offer.id.clone(), until, reason })
        })
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use petaflop_arbiter::offer::{Accelerators, Share};

    use super::*;
    use crate::cluster::testing;

    fn offer(region: &str, zone: &str, instance_type: &str, capacity: Capacity) -> Offer {
        let model = "H100-SXM".to_owned();
        Offer {
            id: Offer::id_of("p", region, zone, instance_type, capacity),
            region: region.to_owned(),
            zone: zone.to_owned(),
            accelerators: Some(Accelerators { model, count: 1, memory: None }),
            capacity,
            instance_type: instance_type.to_owned(),
            ..testing::offer("", "0.5")
        }
    }

    fn on(node: &str, resource: &str, offer: Offer) -> Offer {
        let share = |what: &str| Share { of: format!("{node}/{what}"), amount: 1, all: 1 };
        let shares = vec![share("cpu"), share(resource)];
        let accelerators = offer.accelerators.clone().filter(|_| resource != "cpu");
        Offer { shares, accelerators, ..offer }
    }

    fn claim(offer: Offer, device: Device) -> ClaimSpec {
        ClaimSpec { offer, device, ..testing::claim_spec("c", "j", Timestamp::UNIX_EPOCH) }
    }

    #[test]
    fn only_who_asked_for_accelerators_and_was_placed_on_them_is_promised_any() {
        let there = offer("r", "z", "big", Capacity::Spot);
        let told = |device, asked| promised(&claim(there.clone(), device), asked);
        let found = told(Device::Accelerators, true).expect("a promise");
        assert_eq!((found.vendor.as_deref(), found.count), (Some("nvidia"), 1));
        assert_eq!(told(Device::Accelerators, false), None);
        assert_eq!(told(Device::Cpu, true), None);
        let mut foreign = there;
        foreign.accelerators.as_mut().expect("devices").model = "NVIDIA-X1-MIG-1g".to_owned();
        let found = promised(&claim(foreign, Device::Accelerators), true).expect("a promise");
        assert_eq!(found.vendor.as_deref(), Some("nvidia"));
    }

    #[test]
    fn a_class_is_a_type_in_a_region_or_a_node_and_is_left_alone_for_an_hour() {
        use Capacity::{OnDemand, Owned, Spot};
        let now = Timestamp::UNIX_EPOCH;
        let mut broken = Broken::default();
        assert!(broken.add("uid-1", &offer("r", "a", "big", Spot), now));
        assert!(!broken.add("uid-1", &offer("r", "a", "big", Spot), now), "counted once");
        let node = on("n1", "nvidia.com/gpu", offer("", "", "n1:nvidia.com/gpu=2", Owned));
        assert!(broken.add("uid-2", &node, now));
        let offers = [
            offer("r", "a", "big", Spot),
            offer("r", "b", "big", OnDemand),
            on("n1", "nvidia.com/gpu", offer("", "", "n1:nvidia.com/gpu=1", Owned)),
            // Other places, other types, another node, and this node's processors.
            offer("s", "a", "big", Spot),
            offer("r", "a", "bigger", Spot),
            on("n2", "nvidia.com/gpu", offer("", "", "n2:nvidia.com/gpu=2", Owned)),
            on("n1", "cpu", offer("", "", "n1:cpu=1", Owned)),
        ];
        let left: Vec<_> = broken.among(offers.iter(), now).collect();
        let ids: Vec<_> = left.iter().map(|entry| &entry.offer).collect();
        assert_eq!(ids, offers[..3].iter().map(|offer| &offer.id).collect::<Vec<_>>());
        assert!(left.iter().all(|entry| entry.reason == Reason::AcceleratorProbeFailed));
        let later = now + NOT_AGAIN;
        assert_eq!(broken.among(offers.iter(), later).count(), 0);
        let mut restarted = Broken::default();
        for _ in 0..2 {
            restarted.remember("fake", &broken.of_provider("fake", now));
        }
        assert_eq!(restarted, broken);
        assert!(broken.of_provider("another", now).is_empty());
        assert!(broken.of_provider("fake", later).is_empty());
        let text = serde_json::to_string(&broken).expect("JSON");
        assert_eq!(serde_json::from_str::<Broken>(&text).expect("the same"), broken);
    }
}
