//! Buy or rent: what the same work costs on a machine of one's own at its full price, beside the cheapest that is rented.
//!
//! For placement a machine of one's own has its marginal price: what it cost is spent whether or not it works. Whoever asks whether to buy
//! one must count that. Full price of an hour = purchase ÷ hours that it works in its years + marginal price. Each run saves rent − marginal
//! price, so buying pays after purchase ÷ (rent − marginal price) runs, which take so many hours of the machine.

use serde::{Deserialize, Serialize};

use crate::decide::{Explained, Explanation};
use crate::money::{MILLIS_PER_HOUR, Usd};
use crate::obstacle::Obstacle;
use crate::offer::{Capacity, OfferId};

/// Hours of a year, leap years included: 365.25 days.
const HOURS_A_YEAR: u64 = 8_766;

/// What a machine of one's own cost, and for how long it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purchase {
    /// All of it.
    pub usd: Usd,
    /// Years until it is worth nothing; at least 1.
    pub years: u32,
}

/// The same work on a machine of one's own and on a rented one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnOrRent {
    /// The cheapest of one's own that would do.
    pub own: OfferId,
    /// The cheapest rented one that would do, for sale or with a dated price only.
    pub rented: OfferId,
    /// Milliseconds that the work takes on the own one.
    pub own_millis: i64,
    /// Dollars of the work there, at its marginal price.
    pub marginal: Usd,
    /// The same with its share of the purchase, were the machine at work in all its hours: the least that it can be.
    pub full: Usd,
    /// Dollars of the work on the rented one.
    pub rent: Usd,
    /// Hours of such work, rounded up, after which the machine has saved what it cost; `None`: never, for rent is no dearer than
    /// the marginal price.
    pub pays_after_hours: Option<u64>,
    /// Hours of its years.
    pub lifetime_hours: u64,
}

impl OwnOrRent {
    /// Compares the cheapest of each; `None` where one of them is missing. A service is compared by an hour of a replica.
    pub fn of(explanation: &Explanation, purchase: Purchase) -> Option<OwnOrRent> {
        let cheapest = |own: bool| {
            let of_its_kind = explanation
                .offers
                .iter()
                .filter(|one| (one.offer.capacity == Capacity::Owned) == own && would_do(one));
            let priced =
                of_its_kind.filter_map(|one| Some((one.offer.id.clone(), one.cost.as_ref()?)));
            priced.min_by_key(|(id, cost)| (cost.total, id.clone()))
        };
        let ((own, here), (rented, there)) = (cheapest(true)?, cheapest(false)?);
        let lifetime_hours = HOURS_A_YEAR * u64::from(purchase.years.max(1));
        let micros = |usd: Usd| i128::from(usd.micros());
        let (bought, millis) = (micros(purchase.usd.max(Usd::ZERO)), i128::from(here.millis));
        let lifetime = i128::from(lifetime_hours) * i128::from(MILLIS_PER_HOUR);
        let share = i64::try_from((bought * millis + lifetime - 1) / lifetime).unwrap_or(i64::MAX);
        let saved = micros(there.total) - micros(here.total);
        let pays_after_hours = (saved > 0).then(|| {
            let saved = saved * i128::from(MILLIS_PER_HOUR);
            u64::try_from((bought * millis + saved - 1) / saved).unwrap_or(u64::MAX)
        });
        Some(OwnOrRent {
            own,
            rented,
            own_millis: here.millis,
            marginal: here.total,
            full: here.total.saturating_add(Usd::from_micros(share)),
            rent: there.total,
            pays_after_hours,
            lifetime_hours,
        })
    }
}

/// Whether nothing but dollars, preference or a dated price stands in an offer's way.
fn would_do(one: &Explained) -> bool {
    one.obstacles.iter().all(|obstacle| {
        matches!(
            obstacle,
            Obstacle::Dearer { .. } | Obstacle::NotPreferred { .. } | Obstacle::NotForSale { .. }
        )
    })
}
