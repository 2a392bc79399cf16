//! Prices of RunPod and AWS as they were seen on a day: for comparison and
//! "what would it cost", never to buy from. Each row names its source; a row
//! whose source carries no date is *undated*, and says so wherever it is shown.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use petaflop_arbiter::bill::Billing;
use petaflop_arbiter::claim::{FrozenRequest, Identity, LaunchSafety, Refusal};
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::{Accelerators, Arch, Capacity, HostOwner, Offer, Sale};
use serde::Deserialize;

use crate::error::{LaunchError, ProviderError};
use crate::machine::EnrolmentToken;
use crate::provider::{Capabilities, Instance, InstanceId, Listing, Order, Provider, Used};

/// The provider's name in messages. Its offers carry the seller's: `aws`, `runpod`.
pub const NAME: &str = "snapshot";

/// The table that is shipped with the program.
const TABLE: &str = include_str!("../data/price_points.csv");

/// One row of the table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    provider: String,
    region: String,
    zone: String,
    instance_type: String,
    gpu: String,
    gpu_count: f64,
    vcpus: Option<u32>,
    memory_gib: Option<f64>,
    on_demand_usd_per_hour: Option<UsdPerHour>,
    spot_usd_per_hour: Option<UsdPerHour>,
    observed_on: Option<Date>,
    #[serde(rename = "source")]
    _source: String,
}

/// Provider, region, zone and type of machine.
type Thing = (String, String, String, String);

impl Row {
    /// What must be equal for two rows to be two sightings of one thing. RunPod
    /// has one price for all its data centres.
    fn thing(&self) -> Thing {
        let place = |text: &String| {
            if self.provider == "runpod" { String::new() } else { text.clone() }
        };
        (self.provider.clone(), place(&self.region), place(&self.zone), self.instance_type.clone())
    }

    fn price(&self, capacity: Capacity) -> Option<UsdPerHour> {
        match capacity {
            Capacity::OnDemand => self.on_demand_usd_per_hour,
            // A spot price that saves nothing is no offer, and RunPod's discount, which the
            // undated rows still carry, is gone from its own feed.
            Capacity::Spot => self.spot_usd_per_hour.filter(|spot| {
                self.on_demand_usd_per_hour.is_none_or(|full| *spot < full)
                    && (self.provider != "runpod" || self.observed_on.is_some())
            }),
            Capacity::Owned => None,
        }
    }

    /// A share of a device (g6f: an eighth of an L4) is none that the catalogue's rates are
    /// true of: it goes by a name of its own, so that nothing is planned on it.
    fn accelerators(&self) -> Option<Accelerators> {
        if self.gpu.is_empty() || self.gpu_count <= 0.0 {
            return None;
        }
        let (model, count) = if self.gpu_count < 1.0 {
            (format!("{} (share of {})", self.gpu, self.gpu_count), 1)
        } else {
            // A whole number of devices, far below 2³².
            (self.gpu.clone(), self.gpu_count as u32)
        };
        Some(Accelerators { model, count, memory: None })
    }

    fn offer(&self, capacity: Capacity, price: UsdPerHour) -> Offer {
        let seen = self.observed_on.and_then(|day| day.to_zoned(TimeZone::UTC).ok());
        Offer {
            id: Offer::id_of(
                &self.provider,
                &self.region,
                &self.zone,
                &self.instance_type,
                capacity,
            ),
            provider: self.provider.clone(),
            region: self.region.clone(),
            zone: self.zone.clone(),
            instance_type: self.instance_type.clone(),
            accelerators: self.accelerators(),
            // Of the types in the table only AWS's g5g has Arm processors.
            arch: if self.instance_type.starts_with("g5g.") { Arch::Aarch64 } else { Arch::X86_64 },
            vcpu_milli: self.vcpus.map(|n| n.saturating_mul(1000)),
            // Exact for every size below 2⁵³ bytes.
            memory: self.memory_gib.map(|gib| (gib * (1_u64 << 30) as f64) as u64),
            capacity,
            price,
            quoted_at: seen.map_or(Timestamp::UNIX_EPOCH, |day| day.timestamp()),
            ttl_seconds: 0,
            owner: if self.instance_type.ends_with("_COMMUNITY") {
                HostOwner::Unknown
            } else {
                HostOwner::Known
            },
            sale: Sale::Snapshot { observed_on: self.observed_on },
            measured: None,
            slots: None,
            shares: Vec::new(),
            interruptions_per_hour: None,
        }
    }
}

/// The shipped prices as offers: for each thing and capacity type the newest
/// sighting, dated ones before undated ones, of those the first in the table.
///
/// # Errors
/// When the table is damaged: the line and what was expected.
pub fn offers() -> Result<Vec<Offer>, ProviderError> {
    parse(TABLE)
}

/// The same of another table with the columns of `data/price_points.csv`.
///
/// # Errors
/// As [`offers`].
pub fn parse(table: &str) -> Result<Vec<Offer>, ProviderError> {
    let mut newest: BTreeMap<(Thing, Capacity), Row> = BTreeMap::new();
    for row in csv::Reader::from_reader(table.as_bytes()).deserialize::<Row>() {
        let row = row.map_err(|error| ProviderError::Misconfigured {
            provider: NAME.into(),
            detail: format!("price table: {error}"),
        })?;
        for (capacity, present) in [
            (Capacity::OnDemand, row.on_demand_usd_per_hour.is_some()),
            (Capacity::Spot, row.spot_usd_per_hour.is_some()),
        ] {
            if !present {
                continue;
            }
            newest
                .entry((row.thing(), capacity))
                .and_modify(|kept| {
                    // `None < Some(_)`: an undated sighting gives way to any dated one.
                    if row.observed_on > kept.observed_on {
                        kept.clone_from(&row);
                    }
                })
                .or_insert_with(|| row.clone());
        }
    }
    let mut offers = Vec::new();
    for ((thing, capacity), row) in &newest {
        // A discount seen before the newest full price is history.
        let outdated = *capacity == Capacity::Spot
            && newest
                .get(&(thing.clone(), Capacity::OnDemand))
                .is_some_and(|full| full.observed_on > row.observed_on);
        if let Some(price) = row.price(*capacity).filter(|_| !outdated) {
            offers.push(row.offer(*capacity, price));
        }
    }
    Ok(offers)
}

/// The shipped prices behind the trait.
#[derive(Clone, Copy, Debug, Default)]
pub struct Snapshot;

impl Snapshot {
    fn not_for_sale(what: &str) -> LaunchError {
        LaunchError::Refused {
            kind: Refusal::Invalid,
            detail: format!(
                "{what} is a price that was seen, not an offer that can be taken; only live quotes are bought from"
            ),
        }
    }
}

#[async_trait]
impl Provider for Snapshot {
    fn name(&self) -> &str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            launch_safety: LaunchSafety { idempotent: true, settle_seconds: 0 },
            launch_timeout: Duration::ZERO,
            termination_timeout: Duration::ZERO,
            billing: Billing::new(Duration::from_secs(1), Duration::ZERO),
            sells: false,
            own_address: false,
            rented: false,
        }
    }

    async fn quote(&self) -> Result<Vec<Offer>, ProviderError> {
        offers()
    }

    async fn prepare(&self, order: Order<'_>) -> Result<FrozenRequest, LaunchError> {
        Err(Self::not_for_sale(&order.offer.id.to_string()))
    }

    async fn launch(
        &self,
        request: &FrozenRequest,
        _: &EnrolmentToken,
    ) -> Result<InstanceId, LaunchError> {
        Err(Self::not_for_sale(&request.body))
    }

    async fn find(&self, _: &Identity) -> Result<Listing, ProviderError> {
        Ok(Listing { instances: Vec::new(), complete: true })
    }

    async fn list(&self, _: &str) -> Result<Listing, ProviderError> {
        Ok(Listing { instances: Vec::new(), complete: true })
    }

    async fn get(&self, _: &InstanceId) -> Result<Option<Instance>, ProviderError> {
        Ok(None)
    }

    async fn terminate(&self, _: &InstanceId) -> Result<(), ProviderError> {
        Ok(())
    }

    async fn billed(&self, used: Used<'_>) -> Result<Usd, ProviderError> {
        Ok(used.at_its_price(self.capabilities().billing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(offers: &'a [Offer], id: &str) -> Option<&'a Offer> {
        offers.iter().find(|offer| offer.id.0 == id)
    }

    #[test]
    fn the_shipped_table_reads_and_ids_are_unique() {
        let offers = offers().expect("the shipped table is well-formed");
        assert!(offers.len() > 150, "{} offers", offers.len());
        let ids: std::collections::BTreeSet<_> = offers.iter().map(|o| &o.id).collect();
        assert_eq!(ids.len(), offers.len());
        assert!(offers.iter().all(|o| !o.sale.is_buyable()));
    }

    #[test]
    fn the_newest_sighting_wins_and_dates_are_kept() {
        let offers = offers().expect("the shipped table is well-formed");
        let h100 = find(&offers, "runpod/-/-/1x_H100-SXM_SECURE/on-demand").expect("listed");
        assert_eq!(h100.price.to_string(), "3.29");
        assert_eq!(h100.sale, Sale::Snapshot { observed_on: Some(jiff::civil::date(2026, 8, 25)) });
        assert_eq!(h100.owner, HostOwner::Known);
        let community =
            find(&offers, "runpod/-/-/1x_H100-SXM_COMMUNITY/on-demand").expect("listed");
        assert_eq!(community.owner, HostOwner::Unknown);
    }

    #[test]
    fn a_spot_price_that_saves_nothing_is_no_offer() {
        let offers = offers().expect("the shipped table is well-formed");
        assert!(find(&offers, "runpod/-/-/1x_H100-SXM_SECURE/spot").is_none());
        assert!(offers.iter().any(|o| o.provider == "aws" && o.capacity == Capacity::Spot));
    }

    #[test]
    fn an_undated_price_never_displaces_a_dated_one() {
        let table = "provider,region,zone,instance_type,gpu,gpu_count,vcpus,memory_gib,on_demand_usd_per_hour,spot_usd_per_hour,observed_on,source\n\
                     runpod,US,US-TX-3,1x_L4_SECURE,L4,1,,,9,1,,old\n\
                     runpod,,,1x_L4_SECURE,L4,1,,,2,2,2026-01-02,new\n";
        let offers = parse(table).expect("well-formed");
        assert_eq!(offers.len(), 1, "{offers:?}");
        assert_eq!(offers[0].price.to_string(), "2");
    }

    #[tokio::test]
    async fn nothing_is_ever_bought_from_a_snapshot() {
        let provider = Snapshot;
        let offers = provider.quote().await.expect("quotes");
        let request = FrozenRequest { body: offers[0].id.to_string() };
        let refused =
            provider.launch(&request, &EnrolmentToken::unused()).await.expect_err("refused");
        assert!(matches!(refused, LaunchError::Refused { kind: Refusal::Invalid, .. }));
        assert!(!provider.capabilities().sells);
    }
}
