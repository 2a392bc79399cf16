//! AWS among the clouds of a sandbox: small machines without accelerators in the three zones of a region, at
//! spot prices that were made.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use petaflop_agent_api::clock::Clock;
use petaflop_cloud_box::ec2::{self, Ec2, catalog};
use petaflop_cloud_box::engine::product::ProductId;
use petaflop_cloud_box::engine::{Engine, Pace};
use petaflop_cloud_box::machines::{Image, Machines};
use serde_json::{Value, json};

use super::clouds::{Cloud, SandboxError};

const REGION: &str = "us-east-2";
const KEY: &str = "AKIASANDBOX";
const SEED: u64 = 1;
/// Where the agent is dialled.
const PORTS: [u16; 1] = [7443];

struct OfAws(Ec2);

impl Cloud for OfAws {
    fn name(&self) -> &'static str {
        "aws"
    }

    fn notice(&self) -> Option<SignedDuration> {
        SignedDuration::try_from(ec2::PACE.notice).ok()
    }

    /// Whoever takes one machine away wants all of them: none is left, on demand neither.
    fn dries_up(&self) {
        self.0.engine(|engine| {
            let all: Vec<ProductId> = engine.products().map(|(id, _)| id).collect();
            all.into_iter().for_each(|id| engine.product_mut(id).capacity = 0);
        });
    }

    fn engine(&self, look: &mut dyn FnMut(&mut Engine)) {
        self.0.engine(|engine| look(engine));
    }
}

/// Its hosts have the same files as everything.
pub(super) fn images(image: &Image) -> BTreeMap<String, Image> {
    let (catalog, _) = catalog::made(SEED, Timestamp::now(), &PORTS);
    let images = catalog.regions.iter().flat_map(|region| &region.images);
    images.map(|host| (host.id.clone(), image.clone())).collect()
}

/// Starts it; what `config.yaml` and the environment say of it.
pub(super) fn start(
    machines: &Machines,
    config: &mut Value,
    environment: &mut BTreeMap<String, String>,
) -> Result<Box<dyn Cloud + Send>, SandboxError> {
    let random = crate::uid::random();
    let secret = random.map_err(SandboxError::Listen)?;
    let mut setup = ec2::Setup::new(Clock::system(), KEY, &secret, Box::new(machines.clone()));
    setup.listen = (machines.provider(), 0).into();
    setup.seed = SEED;
    setup.ports = PORTS.into();
    let second = Duration::from_secs(1);
    // Nobody waits here for what ends.
    let wind_down = Duration::ZERO;
    setup.pace =
        Pace { provision: second, start: 3 * second, appear: second, wind_down, ..ec2::PACE };
    let ec2 = Ec2::start(setup).map_err(SandboxError::Listen)?;
    let groups = ec2.catalog(|catalog| {
        let region = catalog.region(REGION);
        let opens = region.into_iter().flat_map(|region| &region.groups);
        let opens = opens.filter(|group| group.ports == PORTS);
        opens.map(|group| group.id.clone()).collect::<Vec<_>>()
    });
    config["aws"] = json!({
        "regions": [{ "name": REGION, "securityGroups": groups }],
        "instanceTypes": ["c7i.2xlarge"],
        "diskGb": 30,
        // The store is to them what a bucket in their region is.
        "egressPricePerGb": "0",
        // No machine here has an address of the internet's.
        "address": "Private",
        "apiBaseUrl": ec2.url(),
    });
    let own = [("AWS_ACCESS_KEY_ID", KEY.to_owned()), ("AWS_SECRET_ACCESS_KEY", secret)];
    environment.extend(own.map(|(name, value)| (name.to_owned(), value)));
    Ok(Box::new(OfAws(ec2)))
}
