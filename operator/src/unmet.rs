//! Machines that were paid for and whose agent was never met: what was bought there is left alone for
//! a while, and for longer each time it happens again. The same with a cluster and without.
//!
//! One offer at first: a bad host, or a zone without a way in. Where two offers of one place fail so
//! at the same time, the place does: its firewall, its image, its hosts without an address. What is
//! never met costs its launch timeout each time, so that a place is not tried offer by offer.

use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::offer::{Capacity, HostOwner, Offer, OfferId};
use petaflop_arbiter::reason::Reason;
use petaflop_arbiter::world::Unavailable;
use petaflop_providers::{Instance, InstanceState};
use serde::{Deserialize, Serialize};

use crate::claims::StoredClaim;

/// How long an offer is left alone the first time: longer than any launch timeout, so that two of one
/// place are seen together.
pub const FIRST: SignedDuration = SignedDuration::from_mins(30);
/// However often it happened.
pub const LONGEST: SignedDuration = SignedDuration::from_hours(4);
/// What is older says nothing of today.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(24);

/// The claims of which nobody was met, while that is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Unmet(Vec<Entry>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    claim_uid: String,
    offer: OfferId,
    place: Place,
    at: Timestamp,
    until: Timestamp,
}

/// Offers that share what keeps an agent from being met: a region's network and images, the hosts of
/// one kind of owner, or a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Place {
    provider: String,
    region: String,
    owner: HostOwner,
    /// What owned offers are shares of.
    shares: Vec<String>,
}

impl Place {
    fn of(offer: &Offer) -> Self {
        let owned = offer.capacity == Capacity::Owned;
        let shares = offer.shares.iter().filter(|_| owned).map(|share| share.of.clone());
        Self {
            provider: offer.provider.clone(),
            region: offer.region.clone(),
            owner: offer.owner,
            shares: shares.collect(),
        }
    }
}

impl Unmet {
    /// Nobody was met on a claim's machine. Returns whether that is new.
    pub fn add(&mut self, claim_uid: &str, offer: &Offer, now: Timestamp) -> bool {
        self.0.retain(|entry| entry.until > now || now.duration_since(entry.at) < REMEMBERED);
        if self.0.iter().any(|entry| entry.claim_uid == claim_uid) {
            return false;
        }
        let before = self.0.iter().filter(|entry| entry.offer == offer.id).count();
        let doubled = FIRST.saturating_mul(1 << before.min(8));
        let until = now.saturating_add(doubled.min(LONGEST)).unwrap_or(Timestamp::MAX);
        let (claim_uid, place) = (claim_uid.to_owned(), Place::of(offer));
        self.0.push(Entry { claim_uid, offer: offer.id.clone(), place, at: now, until });
        true
    }

    /// Which of these offers are left alone.
    pub fn among<'a>(
        &'a self,
        offers: impl Iterator<Item = &'a Offer> + 'a,
        now: Timestamp,
    ) -> impl Iterator<Item = Unavailable> + 'a {
        let live: Vec<&Entry> = self.0.iter().filter(|entry| entry.until > now).collect();
        offers.filter_map(move |offer| {
            let place = Place::of(offer);
            let mut there = live.iter().filter(|entry| entry.place == place).peekable();
            let first = &there.peek()?.offer;
            let shared = there.clone().any(|entry| entry.offer != *first);
            let of_it = there.filter(|entry| shared || entry.offer == offer.id);
            let until = of_it.map(|entry| entry.until).max()?;
            Some(Unavailable { offer: offer.id.clone(), until, reason: Reason::LaunchTimedOut })
        })
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether a machine is over that was never of use: it ended from within before its agent was met, or
/// it went though nobody may take away what was bought on demand, or no way leads to it.
pub fn is_over(stored: &StoredClaim, seen: &Instance) -> bool {
    let Some(trouble) = &seen.trouble else { return false };
    let on_demand = stored.claim.spec.offer.capacity == Capacity::OnDemand;
    let itself = match trouble.reason {
        Reason::HeartbeatLost => seen.state != InstanceState::Running,
        // Its provider knows no way to it.
        Reason::LaunchTimedOut => true,
        Reason::SpotInterrupted => on_demand,
        _ => false,
    };
    stored.agent_key.is_none() && itself
}

/// Why nobody was met on a claim's machine, as far as that is known, and what to do about it.
/// `called_at`: where its agent was called.
pub fn message(stored: &StoredClaim, called_at: Option<&str>) -> String {
    let why = match called_at.or(stored.endpoint.as_deref()) {
        Some(address) => format!(
            "nobody answered at {address} (TCP): let the operator through to it (security group, \
             firewall, route), or see whether its image starts"
        ),
        None => {
            "it never had an address to be called at, nor called: see whether its image can be \
                 fetched and starts, and whether machines of that place have an address or, where \
                 agents call (--agent-endpoint), a way to that"
                .to_owned()
        }
    };
    format!("{}: its agent was not met; {why}", stored.claim.spec.offer.id)
}

#[cfg(test)]
mod tests {
    use petaflop_arbiter::claim::{Claim, ClaimSpec, Phase};
    use petaflop_arbiter::money::Usd;
    use petaflop_arbiter::offer::Share;
    use petaflop_providers::{InstanceId, Trouble};

    use super::*;
    use crate::cluster::testing;

    fn offer(region: &str, zone: &str, instance_type: &str, capacity: Capacity) -> Offer {
        Offer {
            id: Offer::id_of("p", region, zone, instance_type, capacity),
            region: region.to_owned(),
            zone: zone.to_owned(),
            instance_type: instance_type.to_owned(),
            capacity,
            ..testing::offer("", "0.5")
        }
    }

    fn left<'a>(unmet: &Unmet, offers: &'a [Offer], now: Timestamp) -> Vec<&'a str> {
        let ids: Vec<OfferId> = unmet.among(offers.iter(), now).map(|one| one.offer).collect();
        offers
            .iter()
            .map(|offer| &offer.id)
            .filter(|id| ids.contains(id))
            .map(|id| &*id.0)
            .collect()
    }

    #[test]
    fn one_offer_is_left_alone_and_with_the_second_of_its_place_all_of_it() {
        use Capacity::{OnDemand, Owned, Spot};
        let owned = |node: &str, amount: u64| {
            let share = Share { of: format!("{node}/cpu"), amount, all: 8 };
            let shares = vec![share];
            Offer { shares, ..offer("", "", &format!("{node}={amount}"), Owned) }
        };
        let community = Offer { owner: HostOwner::Unknown, ..offer("r", "c", "small", OnDemand) };
        let offers = [
            offer("r", "a", "small", Spot),
            offer("r", "b", "small", Spot),
            offer("r", "a", "big", OnDemand),
            // Other places.
            offer("s", "a", "small", Spot),
            community,
            owned("n1", 1),
            owned("n1", 2),
            owned("n2", 1),
        ];
        let ids: Vec<&str> = offers.iter().map(|offer| &*offer.id.0).collect();
        let now = Timestamp::UNIX_EPOCH;
        // Offers of which nobody was met, one after the other; and what is left alone then.
        for (failed, alone) in [
            (&[][..], &[][..]),
            (&[0], &[0]),
            (&[0, 0], &[0]),
            (&[0, 1], &[0, 1, 2]),
            (&[0, 3], &[0, 3]),
            (&[0, 4], &[0, 4]),
            (&[5], &[5]),
            (&[5, 6], &[5, 6]),
            (&[5, 7], &[5, 7]),
        ] {
            let mut unmet = Unmet::default();
            for (uid, place) in failed.iter().enumerate() {
                assert!(unmet.add(&uid.to_string(), &offers[*place], now), "{failed:?}");
                assert!(!unmet.add(&uid.to_string(), &offers[*place], now), "counted once");
            }
            let expected: Vec<&str> = alone.iter().map(|place: &usize| ids[*place]).collect();
            assert_eq!(left(&unmet, &offers, now), expected, "{failed:?}");
            let text = serde_json::to_string(&unmet).expect("JSON");
            assert_eq!(serde_json::from_str::<Unmet>(&text).expect("the same"), unmet);
        }
    }

    #[test]
    fn each_time_it_is_left_alone_for_longer_and_after_a_day_it_is_as_new() {
        let (mut unmet, mut now) = (Unmet::default(), Timestamp::UNIX_EPOCH);
        let offers = [offer("r", "a", "small", Capacity::Spot)];
        for (uid, minutes) in [30, 60, 120, 240, 240].into_iter().enumerate() {
            assert!(unmet.add(&uid.to_string(), &offers[0], now));
            let told: Vec<Unavailable> = unmet.among(offers.iter(), now).collect();
            assert_eq!(told[0].reason, Reason::LaunchTimedOut);
            assert_eq!(told[0].until, now + SignedDuration::from_mins(minutes), "time {uid}");
            now = told[0].until;
            assert!(left(&unmet, &offers, now).is_empty(), "it is tried again");
        }
        assert!(unmet.add("new", &offers[0], now + REMEMBERED));
        assert_eq!(unmet.0.len(), 1);
        assert_eq!(unmet.0[0].until, now + REMEMBERED + FIRST);
    }

    #[test]
    fn what_ended_before_it_was_met_is_over_and_what_spot_took_away_is_a_loss() {
        use InstanceState::{Running, Terminated};
        use Reason::{HeartbeatLost, ImagePullFailed, LaunchTimedOut, SpotInterrupted};
        for (capacity, met, state, trouble, expected) in [
            (Capacity::Spot, false, Terminated, Some(HeartbeatLost), true),
            (Capacity::Spot, true, Terminated, Some(HeartbeatLost), false),
            (Capacity::Spot, false, Terminated, Some(SpotInterrupted), false),
            (Capacity::OnDemand, false, Running, Some(SpotInterrupted), true),
            (Capacity::OnDemand, true, Running, Some(SpotInterrupted), false),
            (Capacity::Spot, false, Running, Some(LaunchTimedOut), true),
            (Capacity::Spot, true, Running, Some(LaunchTimedOut), false),
            (Capacity::OnDemand, false, Running, Some(ImagePullFailed), false),
            (Capacity::OnDemand, false, Terminated, None, false),
        ] {
            let spec = testing::claim_spec("c", "j", Timestamp::UNIX_EPOCH);
            let offer = Offer { capacity, ..testing::offer("m", "0.5") };
            let stored = StoredClaim {
                version: "1".to_owned(),
                deleting: false,
                billed_from: None,
                running_from: None,
                endpoint: None,
                agent_key: met.then(|| "key".to_owned()),
                claim: Claim {
                    spec: ClaimSpec { offer, ..spec },
                    uid: "uid".to_owned(),
                    phase: Phase::Planned,
                    attempt: 1,
                    spent: Usd::ZERO,
                },
            };
            let trouble = trouble.map(|reason| Trouble { reason, message: String::new() });
            let case = format!("{capacity:?} {met} {state:?} {trouble:?}");
            let seen = Instance {
                id: InstanceId("i".to_owned()),
                identity: None,
                state,
                started: None,
                ended: None,
                offer: None,
                hourly: None,
                running: None,
                endpoint: None,
                exit: None,
                trouble,
            };
            assert_eq!(is_over(&stored, &seen), expected, "{case}");
        }
    }
}
