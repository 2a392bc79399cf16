//! What was refused lately, so that it is not asked for again before there is hope. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::offer::{Capacity, Offer};

use super::class;

/// No capacity in a pool: as long as Karpenter leaves one alone.
pub(super) const POOL: Duration = Duration::from_secs(180);
/// A quota, or a role for spot: raised or made by people, or freed by what ends.
pub(super) const QUOTA: Duration = Duration::from_secs(900);
/// A type that a zone does not have, or not with these options.
pub(super) const UNSUPPORTED: Duration = Duration::from_secs(6 * 3600);
/// A subnet without free addresses.
pub(super) const SUBNET: Duration = Duration::from_secs(600);

/// What is left alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// A type in a zone.
    Pool { region: String, zone: String, instance_type: String, capacity: Capacity },
    /// All types of a class in a region.
    Class { region: String, class: &'static str, capacity: Capacity },
    /// All spot: the account has no role for it.
    Spot,
    /// A subnet, by its id.
    Subnet(String),
}

impl What {
    pub(super) fn pool(region: &str, zone: &str, instance_type: &str, capacity: Capacity) -> Self {
        let (region, zone) = (region.to_owned(), zone.to_owned());
        Self::Pool { region, zone, instance_type: instance_type.to_owned(), capacity }
    }

    pub(super) fn class(region: &str, instance_type: &str, capacity: Capacity) -> Self {
        let class = class::of(instance_type, capacity);
        Self::Class { region: region.to_owned(), class, capacity }
    }
}

/// What was refused, and until when it is left alone.
#[derive(Clone, Debug, Default)]
pub(super) struct Refused(BTreeMap<What, Timestamp>);

impl Refused {
    /// Something was refused.
    pub(super) fn note(&mut self, what: What, now: Timestamp, long: Duration) {
        self.0.retain(|_, until| *until > now);
        let long = SignedDuration::try_from(long).unwrap_or(SignedDuration::MAX);
        let until = now.saturating_add(long).unwrap_or(Timestamp::MAX);
        let known = self.0.entry(what).or_insert(until);
        *known = (*known).max(until);
    }

    /// Whether it is left alone now.
    pub(super) fn holds(&self, what: &What, now: Timestamp) -> bool {
        self.0.get(what).is_some_and(|until| *until > now)
    }

    /// Whether an offer is left alone now: its pool, its class, or all spot.
    pub(super) fn covers(&self, offer: &Offer, now: Timestamp) -> bool {
        let Offer { region, zone, instance_type, capacity, .. } = offer;
        self.holds(&What::pool(region, zone, instance_type, *capacity), now)
            || self.holds(&What::class(region, instance_type, *capacity), now)
            || (*capacity == Capacity::Spot && self.holds(&What::Spot, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).expect("a time")
    }

    #[test]
    fn what_was_refused_is_left_alone_for_its_time_and_nothing_else_is() {
        let mut refused = Refused::default();
        let pool = |zone: &str, capacity| What::pool("r", zone, "g6.xlarge", capacity);
        refused.note(pool("a", Capacity::Spot), at(0), POOL);
        assert!(refused.holds(&pool("a", Capacity::Spot), at(179)));
        assert!(!refused.holds(&pool("a", Capacity::Spot), at(180)));
        assert!(!refused.holds(&pool("b", Capacity::Spot), at(0)));
        assert!(!refused.holds(&pool("a", Capacity::OnDemand), at(0)));
        // A shorter time does not take from a longer one.
        refused.note(pool("a", Capacity::Spot), at(0), UNSUPPORTED);
        refused.note(pool("a", Capacity::Spot), at(10), POOL);
        assert!(refused.holds(&pool("a", Capacity::Spot), at(6 * 3600 - 1)));
    }

    #[test]
    fn a_quota_is_of_a_whole_class_in_its_region_and_market() {
        let mut refused = Refused::default();
        refused.note(What::class("r", "g6.xlarge", Capacity::Spot), at(0), QUOTA);
        let holds =
            |region, name, capacity| refused.holds(&What::class(region, name, capacity), at(1));
        assert!(holds("r", "g5.48xlarge", Capacity::Spot));
        assert!(!holds("r", "g6.xlarge", Capacity::OnDemand));
        assert!(!holds("r", "p5.48xlarge", Capacity::Spot));
        assert!(!holds("elsewhere", "g6.xlarge", Capacity::Spot));
    }
}
