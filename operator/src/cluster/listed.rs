//! What a provider's list says to claims whose machine runs: what it costs now, and whether another
//! machine carries the same identity. A condition says so when it becomes so, and when it no longer is;
//! in between nothing is written, however prices go.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use petaflop_arbiter::claim::Phase;
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::reason::Reason;
use petaflop_providers::{Instance, Listing};

use crate::claims::StoredClaim;
use crate::cluster::Operator;
use crate::cluster::error::Error;
use crate::cluster::status::{Is, is_true};

/// A price that is off by no more than one part in so many is the one that was decided on: spot prices
/// move by a little all day.
const DRIFT: i128 = 20;

/// Something that has become so, or is so no more.
#[derive(Debug, PartialEq, Eq)]
struct News {
    type_: &'static str,
    is: Is,
    reason: Reason,
    message: String,
}

/// Tells the claims on a provider's machines what its complete list says of them.
pub(super) async fn tell(
    operator: &Operator,
    provider: &str,
    listing: &Listing,
) -> Result<(), Error> {
    let Some(object) = operator.provider_object(provider) else { return Ok(()) };
    for stored in operator.table.of_provider(provider) {
        let Some(claim) = operator.table.object(&stored).filter(|_| !stored.deleting) else {
            continue;
        };
        let conditions = claim.status.map(|status| status.conditions).unwrap_or_default();
        for News { type_, is, reason, message } in
            news(&stored, &conditions, listing, |price| object.spec.adjusted(price))
        {
            operator.claims.say(&stored, type_, is, reason, &message).await?;
        }
    }
    Ok(())
}

/// What is other than its conditions say. `adjusted`: with what the owner adds to the provider's prices.
fn news(
    stored: &StoredClaim,
    conditions: &[Condition],
    listing: &Listing,
    adjusted: impl Fn(UsdPerHour) -> UsdPerHour,
) -> Vec<News> {
    let claim = &stored.claim;
    let Phase::Launched { instance: own, .. } = &claim.phase else { return Vec::new() };
    let carries = |seen: &&Instance| {
        let identity = seen.identity.as_ref();
        seen.state.may_bill() && identity.is_some_and(|it| it.claim_uid == claim.uid)
    };
    let (its, others): (Vec<&Instance>, Vec<&Instance>) =
        listing.instances.iter().filter(carries).partition(|seen| seen.id.0 == *own);
    let others: Vec<&str> = others.iter().map(|other| other.id.0.as_str()).collect();
    let orphaned = (!others.is_empty()).then(|| {
        let others = others.join(", ");
        (Reason::LaunchAmbiguous, format!("{others} was bought for it beside {own}, and is ended"))
    });
    let decided = claim.spec.offer.price;
    let costs = its.first().and_then(|its| its.hourly).map(adjusted);
    // Where the provider tells no price, nothing is concluded.
    let drifted = costs.map(|costs| {
        let message = || format!("costs {costs} $/h; {decided} $/h when it was bought");
        is_off(decided, costs).then(|| (Reason::PriceChanged, message()))
    });
    let turn = |type_: &'static str, now: Option<(Reason, String)>| {
        let (is, (reason, message)) = match (is_true(conditions, type_), now) {
            (false, Some(now)) => (Is::True, now),
            (true, None) => (Is::False, (Reason::Ok, String::new())),
            (true, Some(_)) | (false, None) => return None,
        };
        Some(News { type_, is, reason, message })
    };
    let drifted = drifted.and_then(|now| turn("Drifted", now));
    turn("Orphaned", orphaned).into_iter().chain(drifted).collect()
}

fn is_off(decided: UsdPerHour, costs: UsdPerHour) -> bool {
    let (decided, costs) = (i128::from(decided.micros()), i128::from(costs.micros()));
    (decided - costs).abs() * DRIFT > decided
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use petaflop_arbiter::claim::{Claim, Identity};
    use petaflop_arbiter::money::Usd;
    use petaflop_providers::{InstanceId, InstanceState};

    use super::*;
    use crate::cluster::status::Conditions;
    use crate::cluster::testing::claim_spec;

    /// A claim of `i-1`, at 3.6 $/h.
    fn stored() -> StoredClaim {
        StoredClaim {
            version: "1".into(),
            deleting: false,
            billed_from: None,
            running_from: None,
            endpoint: None,
            agent_key: None,
            claim: Claim {
                spec: claim_spec("c", "job", Timestamp::UNIX_EPOCH),
                uid: "u".into(),
                phase: Phase::Launched { instance: "i-1".into(), at: Timestamp::UNIX_EPOCH },
                attempt: 1,
                spent: Usd::ZERO,
            },
        }
    }

    fn seen(id: &str, claim_uid: &str, hourly: Option<&str>) -> Instance {
        Instance {
            id: InstanceId(id.into()),
            identity: Some(Identity {
                installation: "i".into(),
                namespace: "ns".into(),
                claim: "c".into(),
                claim_uid: claim_uid.into(),
                attempt: 1,
            }),
            state: InstanceState::Running,
            started: None,
            ended: None,
            offer: None,
            hourly: hourly.map(|price| price.parse().expect("a price")),
            running: None,
            endpoint: None,
            exit: None,
            trouble: None,
        }
    }

    /// What is said over a way of listings, each on top of the conditions before.
    fn said(way: Vec<Vec<Instance>>) -> Vec<(&'static str, Is, Reason)> {
        let (stored, mut conditions, mut said) = (stored(), Vec::new(), Vec::new());
        for instances in way {
            let listing = Listing { instances, complete: true };
            for News { type_, is, reason, message } in
                news(&stored, &conditions, &listing, |price| price)
            {
                let mut known = Conditions::of(&mut conditions, Some(1), Timestamp::UNIX_EPOCH);
                known.set(type_, is, reason, &message);
                said.push((type_, is, reason));
            }
        }
        said
    }

    #[test]
    fn a_price_is_said_to_be_another_once_and_taken_back_once() {
        let at = |price| vec![seen("i-1", "u", Some(price))];
        let unknown = vec![seen("i-1", "u", None)];
        let way = vec![
            at("3.6"),
            at("3.78"),
            at("3.79"),
            at("9"),
            unknown,
            Vec::new(),
            at("3.43"),
            at("3.41"),
        ];
        let drifted = |is, reason| ("Drifted", is, reason);
        assert_eq!(
            said(way),
            [
                drifted(Is::True, Reason::PriceChanged),
                drifted(Is::False, Reason::Ok),
                drifted(Is::True, Reason::PriceChanged),
            ]
        );
    }

    #[test]
    fn another_machine_of_the_same_identity_is_said_until_it_is_gone() {
        let own = || seen("i-1", "u", None);
        let gone = Instance { state: InstanceState::Terminated, ..seen("i-2", "u", None) };
        let way = vec![
            vec![own(), seen("i-3", "other", None)],
            vec![own(), seen("i-2", "u", None)],
            vec![own(), seen("i-2", "u", None)],
            vec![own(), gone],
        ];
        let orphaned = |is, reason| ("Orphaned", is, reason);
        assert_eq!(
            said(way),
            [orphaned(Is::True, Reason::LaunchAmbiguous), orphaned(Is::False, Reason::Ok)]
        );
    }
}
