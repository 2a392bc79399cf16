//! Looking at a region: what it is made of, and what it costs now.

use std::collections::BTreeMap;

use aws_sdk_ec2::operation::describe_subnets::builders::DescribeSubnetsFluentBuilder;
use aws_sdk_ec2::primitives::DateTime;
use aws_sdk_ec2::types::{LocationType, SpotPrice};
use aws_sdk_pricing::types::{Filter as PriceFilter, FilterType};
use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::bill::Step;
use petaflop_arbiter::money::UsdPerHour;

use super::answer::Failure;
use super::api::pages;
use super::offers::{self, Seen, Zone};
use super::pace::Purpose;
use super::prices::{self, Prices};
use super::{Aws, filter, hardware, instance, is_young};
use crate::error::ProviderError;
use crate::provider::{Instance, InstanceState, Used};

/// What a region is made of is looked at again after this long: zones, subnets, types.
const STILL: SignedDuration = SignedDuration::from_hours(1);
/// List prices are asked for again after this long, and so are those that could not be had.
const PRICES: SignedDuration = SignedDuration::from_hours(24);
/// Whose pace calls for prices go by.
const PRICING: &str = "pricing";

impl Aws {
    /// What a region is made of, all but its spot prices.
    pub(super) async fn still(&self, region: &str) -> Result<Seen, Failure> {
        let now = self.api.now();
        if let Some((at, seen)) = self.memory().still.get(region)
            && is_young(*at, now, STILL)
        {
            return Ok(seen.clone());
        }
        let (api, price) = (&self.api, Purpose::Price);
        let ec2 = api.ec2(region).await;
        let zones = api.call(region, price, "", ec2.describe_availability_zones().send()).await?;
        let zones = offers::zones(&self.config, zones.availability_zones());
        let subnets = pages!(api, region, price, self.subnets(&ec2, region), subnets).await?;
        let subnets = offers::subnets(&subnets, &zones);
        let wanted = filter("instance-type", self.config.patterns());
        let types = ec2.describe_instance_types().filters(wanted.clone()).max_results(100);
        let types = pages!(api, region, price, types, instance_types).await?;
        let types = types.iter().filter_map(hardware::read);
        let offered = ec2
            .describe_instance_type_offerings()
            .location_type(LocationType::AvailabilityZoneId)
            .filters(wanted)
            .max_results(1000);
        let offered = pages!(api, region, price, offered, instance_type_offerings).await?;
        let offered = offered.iter().filter_map(|one| {
            Some((one.instance_type()?.as_str().to_owned(), one.location()?.to_owned()))
        });
        let seen = Seen {
            region: region.to_owned(),
            zones,
            subnets,
            types: types.map(|hardware| (hardware.name.clone(), hardware)).collect(),
            offered: offered.collect(),
            spot: BTreeMap::new(),
        };
        self.memory().still.insert(region.to_owned(), (now, seen.clone()));
        Ok(seen)
    }

    /// Asks for the subnets of a region that are ours to use.
    fn subnets(&self, ec2: &aws_sdk_ec2::Client, region: &str) -> DescribeSubnetsFluentBuilder {
        let named = self.config.region(region).map(|it| it.subnets.clone()).unwrap_or_default();
        let call = ec2.describe_subnets();
        match named.is_empty() {
            true => call.filters(filter("default-for-az", ["true".to_owned()])),
            false => call.filters(filter("subnet-id", named)),
        }
    }

    /// A region with the prices of now.
    pub(super) async fn look(&self, region: &str) -> Result<Seen, Failure> {
        let mut seen = self.still(region).await?;
        if self.config.spot {
            let ec2 = self.api.ec2(region).await;
            let now = DateTime::from_secs(self.api.now().as_second());
            // From now until now: the last change of each pool.
            let history = ec2
                .describe_spot_price_history()
                .start_time(now)
                .end_time(now)
                .set_product_descriptions(Some(offers::LINUX.map(str::to_owned).to_vec()))
                .filters(filter("instance-type", self.config.patterns()))
                .max_results(1000);
            let api = &self.api;
            let history = pages!(api, region, Purpose::Price, history, spot_price_history).await?;
            seen.spot = offers::spot(&history, &seen.zones);
        }
        Ok(seen)
    }

    /// How the price of a spot instance's pool went since it runs. Of one that is not over it may be
    /// unknown: it costs then what was decided on.
    pub(super) async fn market(
        &self,
        used: &Used<'_>,
        since: Timestamp,
    ) -> Result<Vec<Step>, ProviderError> {
        let (region, zone) = (used.offer.region.as_str(), used.offer.zone.as_str());
        match self.history(region, &used.offer.instance_type, since, used.until).await {
            Ok((history, zones)) => Ok(offers::steps(&history, &zones, zone)),
            Err(failure) if used.over => Err(self.failed("spot prices of the past", failure)),
            Err(failure) => {
                tracing::debug!(?failure, region, "spot prices of the past");
                Ok(Vec::new())
            }
        }
    }

    async fn history(
        &self,
        region: &str,
        kind: &str,
        since: Timestamp,
        until: Timestamp,
    ) -> Result<(Vec<SpotPrice>, Vec<Zone>), Failure> {
        let zones = self.still(region).await?.zones;
        let ec2 = self.api.ec2(region).await;
        let history = ec2
            .describe_spot_price_history()
            .start_time(DateTime::from_secs(since.as_second()))
            .end_time(DateTime::from_secs(until.max(since).as_second()))
            .set_product_descriptions(Some(offers::LINUX.map(str::to_owned).to_vec()))
            .filters(filter("instance-type", [kind.to_owned()]))
            .max_results(1000);
        let api = &self.api;
        let history = pages!(api, region, Purpose::Look, history, spot_price_history).await?;
        Ok((history, zones))
    }

    /// An instance that ended and does not say when, with the time that its spot request tells.
    pub(super) async fn dated(&self, region: &str, one: Instance, request: &str) -> Instance {
        if one.state != InstanceState::Terminated || one.ended.is_some() {
            return one;
        }
        let ec2 = self.api.ec2(region).await;
        let call = ec2.describe_spot_instance_requests().spot_instance_request_ids(request);
        let ended = match self.api.call(region, Purpose::Look, "", call.send()).await {
            Ok(told) => told.spot_instance_requests().first().and_then(instance::request_ended),
            Err(failure) => {
                tracing::debug!(?failure, request, "when a spot instance ended");
                None
            }
        };
        Instance { ended, ..one }
    }

    /// List prices: as shipped and, where the keys may ask, as they are.
    pub(super) async fn list_prices(&self) -> Result<Prices, ProviderError> {
        let now = self.api.now();
        if let Some((at, list)) = &self.memory().list
            && is_young(*at, now, PRICES)
        {
            return Ok(list.clone());
        }
        let mut list = prices::shipped()?;
        for region in self.config.regions.iter().filter(|_| self.config.on_demand) {
            match self.list_of(&region.name).await {
                Ok(prices) => {
                    let fresh = prices.into_iter();
                    list.extend(fresh.map(|(name, price)| ((region.name.clone(), name), price)));
                }
                Err(failure) => {
                    let error = self.failed("list prices", failure);
                    tracing::warn!(%error, region = %region.name, "on-demand prices as shipped");
                }
            }
        }
        self.memory().list = Some((now, list.clone()));
        Ok(list)
    }

    async fn list_of(&self, region: &str) -> Result<Vec<(String, UsdPerHour)>, Failure> {
        let mut call = self
            .api
            .pricing()
            .await
            .get_products()
            .service_code("AmazonEC2")
            .format_version("aws_v1")
            .max_results(100);
        for (field, value) in prices::filters(region) {
            let filter = PriceFilter::builder().r#type(FilterType::TermMatch).field(field);
            let filter = filter.value(value).build();
            call = call.filters(filter.map_err(|error| Failure::NotSent(error.to_string()))?);
        }
        let api = &self.api;
        let products = pages!(api, PRICING, Purpose::Look, call, price_list).await?;
        Ok(products.iter().filter_map(|text| prices::product(text)).collect())
    }
}
