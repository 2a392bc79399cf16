//! What EC2 sells here, and where: regions, zones, subnets, images. All of it was made, but for the
//! instance types and for the bounds of those spot prices that were seen in 2026.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::kinds::{Kind, kinds};
use crate::engine::chance::Chance;
use crate::engine::product::Product;
use crate::engine::series::{Series, Source, Walk};

/// The pool of a product that can be taken away.
pub const SPOT: &str = "spot";
/// The pool of a product that cannot.
pub const ON_DEMAND: &str = "on-demand";

/// How far back prices are told.
pub(crate) const HISTORY: SignedDuration = SignedDuration::from_hours(90 * 24);

/// Everything that does not change by being bought.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// Instance types.
    pub kinds: Vec<Kind>,
    /// Regions.
    pub regions: Vec<Region>,
}

/// A region, as this account sees it.
#[derive(Clone, Debug)]
pub struct Region {
    /// `us-east-1`.
    pub name: String,
    /// Its zones.
    pub zones: Vec<Zone>,
    /// Its only network.
    pub vpc: String,
    /// Subnets.
    pub subnets: Vec<Subnet>,
    /// Security groups.
    pub groups: Vec<Group>,
    /// Machine images.
    pub images: Vec<Image>,
    /// Parameters of SSM: name and value.
    pub parameters: BTreeMap<String, String>,
}

/// A zone. Its name is the account's own, its id everybody's.
#[derive(Clone, Debug)]
pub struct Zone {
    /// `us-east-1a`.
    pub name: String,
    /// `use1-az4`.
    pub id: String,
    /// A Local Zone: a pool with prices, which no subnet is in until somebody makes one.
    pub local: bool,
}

/// A subnet.
#[derive(Clone, Debug)]
pub struct Subnet {
    /// Its id.
    pub id: String,
    /// Name of its zone.
    pub zone: String,
    /// Its addresses are `172.31.{net}.…`.
    pub net: u8,
    /// Addresses that instances can have.
    pub addresses: u32,
    /// Instances there get a public address unless they say otherwise.
    pub public: bool,
}

/// A security group.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// TCP ports that it opens to everybody.
    pub ports: Vec<u16>,
}

/// A machine image.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its id in this region.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `x86_64` or `arm64`.
    pub architecture: &'static str,
    /// GB of its snapshot.
    pub size: u32,
    /// Device of its root volume; a mapping of another device is another volume.
    pub root: &'static str,
}

impl Catalog {
    /// An instance type.
    pub fn kind(&self, name: &str) -> Option<&Kind> {
        self.kinds.iter().find(|kind| kind.name == name)
    }

    /// A region.
    pub fn region(&self, name: &str) -> Option<&Region> {
        self.regions.iter().find(|region| region.name == name)
    }
}

impl Region {
    /// A zone by its name.
    pub fn zone(&self, name: &str) -> Option<&Zone> {
        self.zones.iter().find(|zone| zone.name == name)
    }
}

/// Zones of a region: name and id. Names are shuffled, as they are for every account.
type Zones = &'static [(&'static str, &'static str)];
const REGIONS: &[(&str, Zones)] = &[
    (
        "us-east-1",
        &[
            ("us-east-1a", "use1-az4"),
            ("us-east-1b", "use1-az6"),
            ("us-east-1c", "use1-az1"),
            ("us-east-1d", "use1-az2"),
            ("us-east-1-atl-2a", "use1-atl2-az1"),
        ],
    ),
    (
        "us-east-2",
        &[("us-east-2a", "use2-az1"), ("us-east-2b", "use2-az2"), ("us-east-2c", "use2-az3")],
    ),
    (
        "eu-west-2",
        &[("eu-west-2a", "euw2-az2"), ("eu-west-2b", "euw2-az3"), ("eu-west-2c", "euw2-az1")],
    ),
];

/// Lowest and highest spot price that was seen in 2026: beginning of the zone's id, type, thousandths
/// of a dollar. The first that fits counts; equal ones are a price that does not move.
const SEEN: &[(&str, &str, i64, i64)] = &[
    ("use1-az1", "p5.48xlarge", 55_040, 55_040),
    ("use1-az4", "p5.48xlarge", 55_040, 55_040),
    ("use1-atl2-az1", "p5.48xlarge", 10_240, 10_240),
    ("use1", "p5.48xlarge", 17_600, 25_800),
    ("use2", "p5.48xlarge", 11_250, 11_990),
    ("euw2", "p5.48xlarge", 15_500, 16_300),
    ("use1", "p4de.24xlarge", 8_650, 9_970),
    ("use1", "g7e.8xlarge", 2_280, 2_510),
    ("use2", "g7e.8xlarge", 2_230, 2_250),
    ("use1", "g6e.xlarge", 915, 1_049),
    ("use2", "g6e.xlarge", 526, 546),
    ("use1", "g6.4xlarge", 664, 693),
    ("use2", "g6.4xlarge", 528, 528),
    ("use2", "g6f.2xlarge", 121, 144),
    ("use1", "g5.2xlarge", 470, 590),
    ("use2", "g5.2xlarge", 360, 370),
];

/// What the box sells where nobody says otherwise; spot prices are walks that began 90 days before
/// `now`.
pub fn made(seed: u64, now: Timestamp, ports: &[u16]) -> (Catalog, Vec<Product>) {
    let kinds = kinds();
    let regions: Vec<Region> =
        REGIONS.iter().map(|(name, zones)| region(name, zones, ports)).collect();
    let mut products = Vec::new();
    let began = now.saturating_sub(HISTORY).unwrap_or(now);
    for (place, region) in regions.iter().enumerate() {
        for zone in &region.zones {
            for kind in kinds.iter().filter(|kind| kind.price > 0) {
                products.extend(sold(seed, began, place, region, zone, kind));
            }
        }
    }
    (Catalog { kinds, regions }, products)
}

/// What is sold of a type in a zone: on demand, and spot.
fn sold(
    seed: u64,
    began: Timestamp,
    place: usize,
    region: &Region,
    zone: &Zone,
    kind: &Kind,
) -> Vec<Product> {
    let own = format!("{}{}", zone.id, kind.name);
    let own = own.bytes().fold(seed, |sum, byte| Chance::new(sum ^ u64::from(byte)).draw());
    let mut chance = Chance::new(own);
    let is =
        |(id, name, _, _): &&(&str, &str, i64, i64)| zone.id.starts_with(id) && kind.name == *name;
    let seen = SEEN.iter().find(is);
    // Not every type is in every zone.
    let missing = kind.accelerator.is_some() && chance.below(4) == 0;
    if seen.is_none() && (zone.local || missing) {
        return Vec::new();
    }
    // us-east-2 costs as us-east-1 does, others cost more.
    let on_demand = kind.price + kind.price * i64::from(place > 1) / 10;
    let (low, high) = match seen {
        Some((_, _, low, high)) => (low * 1000, high * 1000),
        None => (on_demand * 3 / 10, on_demand * 9 / 20),
    };
    let (low, high) = (low.min(on_demand), high.min(on_demand));
    let step = Duration::from_secs(8 * 3600);
    let walk = Walk {
        seed: own,
        start: low + (high - low) / 2,
        low,
        high,
        step_permille: 20,
        every: step,
    };
    let offset = SignedDuration::from_secs(chance.below(step.as_secs()).cast_signed());
    let series = if low == high {
        Series::constant(Source::Made(own), low)
    } else {
        Series::made(walk, began.saturating_add(offset).unwrap_or(began), 1000)
    };
    let capacity = match kind.vcpus {
        0..=8 => 16,
        9..=64 => 8,
        _ => 2,
    };
    let product = |pool: &str, spot| Product {
        kind: kind.name.to_owned(),
        pool: pool.to_owned(),
        region: region.name.clone(),
        zone: Some(zone.id.clone()),
        capacity,
        largest: 1,
        on_demand,
        spot,
    };
    let mut sold = vec![product(ON_DEMAND, None)];
    // A single H100 is not to be had that way.
    if kind.name != "p5.4xlarge" {
        sold.push(product(SPOT, Some(series)));
    }
    sold
}

fn region(name: &str, zones: Zones, ports: &[u16]) -> Region {
    let mut chance = Chance::new(name.bytes().fold(7, |sum, byte| sum * 31 + u64::from(byte)));
    let zones: Vec<Zone> = zones
        .iter()
        .map(|(zone, id)| Zone {
            name: (*zone).to_owned(),
            id: (*id).to_owned(),
            local: zone.matches('-').count() > 2,
        })
        .collect();
    let home = zones.iter().filter(|zone| !zone.local);
    let subnets = (0u8..).step_by(16).zip(home).map(|(net, zone)| Subnet {
        id: long("subnet", &mut chance),
        zone: zone.name.clone(),
        net,
        addresses: 4091,
        public: true,
    });
    let subnets = subnets.collect();
    let group = |name: &str, ports: &[u16], chance: &mut Chance| Group {
        id: long("sg", chance),
        name: name.to_owned(),
        ports: ports.to_vec(),
    };
    let groups = vec![group("default", &[], &mut chance), group("petaflop", ports, &mut chance)];
    let mut images = Vec::new();
    let mut parameters = BTreeMap::new();
    for (path, name, architecture, size) in IMAGES {
        let id = long("ami", &mut chance);
        parameters.insert((*path).to_owned(), id.clone());
        let root = if path.contains("ubuntu") { "/dev/sda1" } else { "/dev/xvda" };
        images.push(Image { id, name: (*name).to_owned(), architecture, size: *size, root });
    }
    if let Some(id) = parameters.get(&format!("{ECS}/image_id")).cloned() {
        let value = serde_json::json!({ "image_id": id, "schema_version": 1 });
        parameters.insert(ECS.to_owned(), value.to_string());
    }
    Region {
        name: name.to_owned(),
        zones,
        vpc: long("vpc", &mut chance),
        subnets,
        groups,
        images,
        parameters,
    }
}

const ECS: &str = "/aws/service/ecs/optimized-ami/amazon-linux-2023/gpu/recommended";

/// Public parameter, name of the image, architecture, GB.
const IMAGES: &[(&str, &str, &str, u32)] = &[
    (
        "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64",
        "al2023-ami-x86_64",
        "x86_64",
        8,
    ),
    (
        "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-arm64",
        "al2023-ami-arm64",
        "arm64",
        8,
    ),
    (
        "/aws/service/ecs/optimized-ami/amazon-linux-2023/gpu/recommended/image_id",
        "al2023-ami-ecs-gpu-hvm-x86_64-ebs",
        "x86_64",
        30,
    ),
    (
        "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-amazon-linux-2023/latest/ami-id",
        "Deep Learning Base OSS Nvidia Driver GPU AMI (Amazon Linux 2023)",
        "x86_64",
        75,
    ),
    (
        "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id",
        "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04)",
        "x86_64",
        75,
    ),
    (
        "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id",
        "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04)",
        "x86_64",
        75,
    ),
    (
        "/aws/service/deeplearning/ami/arm64/base-oss-nvidia-driver-gpu-amazon-linux-2023/latest/ami-id",
        "Deep Learning Base OSS Nvidia Driver ARM64 GPU AMI (Amazon Linux 2023)",
        "arm64",
        75,
    ),
    (
        "/aws/service/ecs/optimized-ami/amazon-linux-2023/recommended/image_id",
        "al2023-ami-ecs-hvm-x86_64-ebs",
        "x86_64",
        30,
    ),
    (
        "/aws/service/ecs/optimized-ami/amazon-linux-2023/arm64/recommended/image_id",
        "al2023-ami-ecs-hvm-arm64-ebs",
        "arm64",
        30,
    ),
];

/// An id as EC2 makes them: a prefix and seventeen hexadecimal digits, the first of them 0.
pub(crate) fn long(prefix: &str, chance: &mut Chance) -> String {
    format!("{prefix}-0{:016x}", chance.draw())
}
