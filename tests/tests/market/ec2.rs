//! What EC2 in the box sells to tests.

use anyhow::{Context, Result};
use jiff::Timestamp;
use petaflop_agent_api::clock::Clock;
use petaflop_cloud_box::ec2::catalog::{self, Catalog};
use petaflop_cloud_box::ec2::{Ec2, Setup};
use petaflop_cloud_box::engine::Pace;
use petaflop_cloud_box::engine::product::Product;
use petaflop_cloud_box::engine::series::{Series, Source};
use petaflop_cloud_box::machines::Image;
use petaflop_operator::fleet::AGENT_PORT;
use serde_json::{Value, json};

use crate::market::Market;

/// Ids of images are the same whenever they are made.
const SEED: u64 = 1;

/// Whole machines under every id that an instance may be started from.
pub(crate) fn hosts(host: &Image) -> Vec<(String, Image)> {
    let (catalog, _) = catalog::made(SEED, Timestamp::UNIX_EPOCH, &[AGENT_PORT]);
    let images = catalog.regions.into_iter().flat_map(|region| region.images);
    images.map(|image| (image.id, host.clone())).collect()
}

/// What is sold where nobody says otherwise, at spot prices of two fifths that stand still until they
/// are moved: made ones.
pub(crate) fn steady(now: Timestamp) -> (Catalog, Vec<Product>) {
    let (catalog, mut products) = catalog::made(SEED, now, &[AGENT_PORT]);
    for product in &mut products {
        let price = product.on_demand * 2 / 5;
        product.spot = product.spot.take().map(|_| Series::constant(Source::Made(SEED), price));
    }
    (catalog, products)
}

const REGION: &str = "us-east-2";

/// EC2 on real machines, for an account of this key and secret, and `aws:` of whoever buys there.
pub(crate) fn open(
    market: &Market,
    clock: &Clock,
    key: (&str, &str),
    pace: Pace,
) -> Result<(Ec2, Value)> {
    let mut setup = Setup::new(clock.clone(), key.0, key.1, Box::new(market.machines.clone()));
    setup.listen = (market.machines.provider(), 0).into();
    setup.pace = pace;
    setup.market = Some(steady(clock.now()));
    let cloud = Ec2::start(setup)?;
    let group = cloud.catalog(|catalog| {
        let groups = &catalog.region(REGION)?.groups;
        groups.iter().find(|group| group.name == "petaflop").map(|group| group.id.clone())
    });
    let aws = json!({
        "apiBaseUrl": cloud.url(),
        "regions": [{ "name": REGION, "securityGroups": [group.context("a group")?] }],
        "instanceTypes": ["c7i.large"],
        // Nothing to round: 0.008 $ an hour.
        "diskGb": 73,
        // The store is here, and the box bills no traffic.
        "egressPricePerGb": "0",
        "address": "Private",
    });
    Ok((cloud, aws))
}
