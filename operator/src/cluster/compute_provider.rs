//! The ComputeProvider's controller: quotes, and what its status says. Its object stays as long as
//! something there may bill: `parting`.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::Offer;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::ComputeProvider;
use petaflop_crds::compute_provider::{OfferSummary, OffersStatus};
use petaflop_crds::scalar::Money;
use petaflop_crds::spend_budget::Period;
use petaflop_providers::{ProviderError, Retry};

use crate::cluster::error::{Error, is_not_found};
use crate::cluster::parting::{self, Stays};
use crate::cluster::providers::Registry;
use crate::cluster::queue::Again;
use crate::cluster::status::{Conditions, Is, time};
use crate::cluster::{Operator, events, finalizer, sweep};

/// Offers that its status shows.
const SHOWN: usize = 10;

/// Between two quotes.
const QUOTE: Duration = Duration::from_secs(30);

/// What is said of offers that are all too old.
const STALE: &str = "all that it offered is older than its time to live; nothing is bought from it";

/// How old what a provider offered last is. It stays known while the provider does not answer, and can
/// be bought from until it is too old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    /// There is nothing.
    Nothing,
    /// Some of it can be bought.
    Fresh,
    /// All of it is older than its time to live.
    Stale,
}

impl Age {
    fn of(offers: &[Offer], now: Timestamp) -> Self {
        let is_fresh = |offer: &Offer| offer.expires_at() > now;
        match offers {
            [] => Self::Nothing,
            offers if offers.iter().any(is_fresh) => Self::Fresh,
            _ => Self::Stale,
        }
    }
}

/// One pass over one provider.
pub async fn reconcile(operator: &Operator, name: &str) -> Result<Again, Error> {
    let api: Api<ComputeProvider> = Api::all(operator.client.clone());
    let in_use = operator.table.needs_provider(name);
    let Some(object) = operator.provider_object(name).map(Arc::new) else {
        // A claim that was written while it went needs it to the end.
        if in_use {
            return Ok(Again::After(Duration::from_secs(5)));
        }
        operator.providers.remove(name);
        return Ok(Again::OnChange);
    };
    operator.providers.put(name, object.clone());
    let deleting = object.metadata.deletion_timestamp.is_some();
    let stays = parting::stays(operator, &object).await?;
    // Not for longer than it must: whoever uninstalls us deletes us before our objects. What is being
    // removed takes no finalizer any more. The watch brings what is written.
    let held = finalizer::is_held(&*object);
    if held != stays.is_some() && (held || !deleting) {
        let written = finalizer::hold(&api, &object, !held).await;
        written.map_err(Error::api("writing a provider's finalizer"))?;
        return Ok(Again::After(QUOTE));
    }
    if deleting {
        write(operator, &api, &object, stays).await?;
        return Ok(Again::After(sweep::QUICK));
    }
    let now = operator.clock.now();
    if operator.providers.refresh(name, now).await {
        operator.placement.ask();
        operator.handle().offers_changed();
    }
    write(operator, &api, &object, None).await?;
    let trouble = operator.providers.get(name).and_then(|known| known.trouble);
    Ok(Again::After(match trouble.map(|error| error.retry()) {
        Some(Retry::After(wait)) => wait.min(QUOTE),
        Some(Retry::AfterChange | Retry::ElsewhereFor(_)) | None => QUOTE,
    }))
}

/// `leaving`: why its object is not gone yet, where it is being removed.
async fn write(
    operator: &Operator,
    api: &Api<ComputeProvider>,
    object: &Arc<ComputeProvider>,
    leaving: Option<Stays>,
) -> Result<(), Error> {
    let name = object.name_any();
    let Some(known) = operator.providers.get(&name) else { return Ok(()) };
    let mut status = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation;
    status.observed_generation = generation;
    status.type_ = object.spec.type_();
    let mut claims = operator.table.of_provider(&name);
    if object.spec.aws.is_some() {
        claimed_in(&mut status.regions, claims.iter().map(|c| &c.claim.spec.offer.region));
    }
    claims.retain(|stored| stored.claim.is_unfinished());
    status.machines = claims.len() as u32;
    let hourly = claims.iter().map(|c| c.claim.spec.offer.price.micros()).sum();
    status.hourly_price =
        petaflop_arbiter::money::UsdPerHour::from_micros(hourly).ok().map(Money::from);
    let now = operator.clock.now();
    status.broken = operator.providers.broken(&name, now);
    status.rates = operator.providers.rates(&name);
    let mut conditions = Conditions::of(&mut status.conditions, generation, now);
    let age = Age::of(&known.offers, now);
    match &known.trouble {
        None => {
            match age {
                Age::Fresh | Age::Nothing => conditions.ready(Reason::Ok, ""),
                Age::Stale => conditions.progressing(Reason::Stale, STALE),
            }
            conditions.set("CredentialsValid", Is::True, Reason::Ok, "");
        }
        Some(error) => {
            let reason = error.reason();
            let message = error.to_string();
            let refused = matches!(
                error,
                ProviderError::Unauthorized { .. } | ProviderError::NoCredentials { .. }
            );
            if refused {
                conditions.set("CredentialsValid", Is::False, reason, &message);
            }
            match error.retry() {
                Retry::AfterChange => conditions.stalled(reason, &message),
                Retry::After(_) | Retry::ElsewhereFor(_) => {
                    conditions.progressing(reason, &message);
                }
            }
        }
    }
    // It is left out of every decision.
    if let Err(errors) = object.state(&Registry::facts(&known, Usd::ZERO), now)
        && let Some(error) = errors.first()
    {
        conditions.stalled(Reason::InvalidSpec, &error.to_string());
    }
    if let Some(stays) = leaving {
        let (reason, message) = stays.said();
        conditions.progressing(reason, &message);
    }
    match (age, &known.trouble) {
        (Age::Fresh, _) | (Age::Nothing, None) => {
            conditions.set("OffersFresh", Is::True, Reason::Ok, "");
        }
        (Age::Stale, _) => conditions.set("OffersFresh", Is::False, Reason::Stale, STALE),
        (Age::Nothing, Some(error)) => {
            conditions.set("OffersFresh", Is::False, error.reason(), &error.to_string());
        }
    }
    let news = object.status.as_ref() != Some(&status);
    // Prices and sums move all the time: written with the rest, or every five minutes.
    if news || operator.providers.figures_are_due(&name, now) {
        let month = Period::Monthly.around(now);
        let booked = operator.book.of_provider(&name, &month);
        let running = operator.book.running(&claims, month.start, now);
        let spent = booked.saturating_add(running).max(Usd::ZERO);
        status.spent_this_month = Some(Money::from(spent));
        status.offers = Some(offered(&known.offers, status.offers.take(), now));
    }
    if object.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let told = events::of_provider(object.status.as_ref(), &status);
    let mut new = ComputeProvider::clone(object);
    new.status = Some(status);
    match api.replace_status(&name, &PostParams::default(), &new).await {
        Ok(_) => {
            operator.providers.figures_written(&name, now);
            operator.events.tell(&new, told);
            Ok(())
        }
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(Error::api("writing a provider's status")(error)),
    }
}

/// Adds regions of claims to those that are known. A claim stands from before its machine is asked for
/// until the last of it is gone, so that none is missed.
fn claimed_in<'a>(known: &mut Vec<String>, claimed: impl Iterator<Item = &'a String>) {
    for region in claimed {
        if !region.is_empty() && !known.contains(region) {
            known.push(region.clone());
        }
    }
}

/// The offers in short. When they changed last is kept while they are the same.
fn offered(offers: &[Offer], old: Option<OffersStatus>, now: Timestamp) -> OffersStatus {
    let mut cheapest: Vec<&Offer> = offers.iter().collect();
    cheapest.sort_by(|a, b| (a.price, &a.id).cmp(&(b.price, &b.id)));
    let summary = |offer: &Offer| {
        let place = if offer.zone.is_empty() { &offer.region } else { &offer.zone };
        OfferSummary {
            instance_type: offer.instance_type.clone(),
            zone: (!place.is_empty()).then(|| place.clone()),
            accelerator: offer.accelerators.as_ref().map(|a| format!("{}x {}", a.count, a.model)),
            hourly_price: Money::from(offer.price),
        }
    };
    let new = OffersStatus {
        count: u32::try_from(offers.len()).unwrap_or(u32::MAX),
        cheapest: cheapest.into_iter().take(SHOWN).map(summary).collect(),
        changed_at: Some(time(now)),
    };
    match old {
        Some(old) if (old.count, &old.cheapest) == (new.count, &new.cheapest) => old,
        _ => new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::offer;

    #[test]
    fn regions_of_claims_stay_known_when_the_spec_names_them_no_more() {
        let mut known = vec!["us-east-1".to_owned()];
        let claimed = ["us-east-2", "us-east-1", "", "us-east-2"].map(str::to_owned);
        claimed_in(&mut known, claimed.iter());
        assert_eq!(known, ["us-east-1", "us-east-2"]);
        let object: ComputeProvider = serde_json::from_value(serde_json::json!({
            "apiVersion": "petaflop.dev/v1alpha1", "kind": "ComputeProvider",
            "metadata": { "name": "aws" },
            "spec": { "aws": { "regions": [{ "name": "us-east-2" }, { "name": "eu-west-1" }] } },
            "status": { "regions": known },
        }))
        .expect("a provider");
        assert_eq!(object.former_regions(), ["us-east-1"]);
    }

    #[test]
    fn offers_are_fresh_as_long_as_one_of_them_lives() {
        let at = |second| Timestamp::from_second(second).expect("a small time");
        let quoted = |second| Offer { quoted_at: at(second), ttl_seconds: 60, ..offer("o", "1") };
        for (offers, now, age) in [
            (vec![], 0, Age::Nothing),
            (vec![quoted(0)], 59, Age::Fresh),
            (vec![quoted(0)], 60, Age::Stale),
            (vec![quoted(0), quoted(30)], 60, Age::Fresh),
            (vec![quoted(0), quoted(30)], 90, Age::Stale),
        ] {
            assert_eq!(Age::of(&offers, at(now)), age, "{} at {now}", offers.len());
        }
    }

    #[test]
    fn the_cheapest_are_shown_and_keep_their_date_while_they_are_the_same() {
        let at = |second| Timestamp::from_second(second).expect("a small time");
        let mut offers: Vec<Offer> =
            (0..12).map(|n| offer(&format!("o{n}"), &format!("0.{}", 50 - n))).collect();
        let one = offered(&offers, None, at(10));
        assert_eq!((one.count, one.cheapest.len()), (12, SHOWN));
        assert_eq!(one.cheapest[0].hourly_price, Money("0.39".into()));
        let same = offered(&offers, Some(one.clone()), at(20));
        assert_eq!(same, one);
        offers.pop();
        let fewer = offered(&offers, Some(one), at(30));
        assert_eq!((fewer.count, fewer.changed_at), (11, Some(time(at(30)))));
    }
}
