//! What EC2 in the box sells to tests.

use jiff::Timestamp;
use petaflop_cloud_box::ec2::catalog::{self, Catalog};
use petaflop_cloud_box::engine::product::Product;
use petaflop_cloud_box::engine::series::{Series, Source};
use petaflop_cloud_box::machines::Image;
use petaflop_operator::fleet::AGENT_PORT;

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
