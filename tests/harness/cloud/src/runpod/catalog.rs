//! What RunPod sells here: GPU types, CPU flavours, data centres. Prices are those of a live
//! capture of 2026-08-25 (CPU: an undated catalogue that agrees with it); how many of each there are
//! was made.

use crate::engine::product::Product;
use crate::engine::series::{Series, Source};

/// A GPU type as the catalogue tells of it.
#[derive(Clone, Debug)]
pub struct GpuType {
    /// Exact, with its blanks.
    pub id: String,
    /// For people.
    pub name: String,
    /// `NVIDIA` or `AMD`.
    pub manufacturer: &'static str,
    /// GB of one.
    pub memory: u32,
    /// A price that GraphQL shows for Community though it is not offered there, micro-dollars.
    pub phantom: i64,
}

/// A CPU flavour; a unit is one vCPU.
#[derive(Clone, Debug)]
pub struct Flavour {
    /// `cpu5g`.
    pub id: String,
    /// GB of memory of one vCPU.
    pub ram: u32,
}

/// A data centre.
#[derive(Clone, Debug)]
pub struct DataCenter {
    /// `US-TX-3`.
    pub id: String,
    /// `NORTH_AMERICA`.
    pub region: &'static str,
    /// Those that are not are to be left alone.
    pub listed: bool,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// GPU types.
    pub gpus: Vec<GpuType>,
    /// CPU flavours.
    pub cpus: Vec<Flavour>,
    /// Data centres.
    pub places: Vec<DataCenter>,
}

/// The newest CUDA that the driver of any host here knows. Made; how hosts differ was not seen.
const CUDA: (u32, u32) = (12, 8);

/// Whether hosts' drivers know a CUDA as new as this.
pub(crate) fn has_cuda(least: Option<&str>) -> bool {
    let version = |text: &str| {
        let (major, minor) = text.split_once('.')?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    };
    least.is_none_or(|least| version(least).is_some_and(|least| least <= CUDA))
}

/// Type, name, maker, GB, Secure, Community, GPUs in each Secure data centre and in each country.
/// Dollars are thousandths; 0: not offered.
type Row = (&'static str, &'static str, &'static str, u32, i64, i64, u32, u32);
const CAPTURED: &[Row] = &[
    ("AMD Instinct MI300X OAM", "MI300X", "AMD", 192, 2390, 0, 0, 0),
    ("NVIDIA A100-SXM4-40GB", "A100 SXM 40GB", "NVIDIA", 40, 0, 1000, 0, 3),
    ("NVIDIA B200", "B200", "NVIDIA", 180, 6790, 5980, 3, 2),
    ("NVIDIA B300 SXM6 AC", "B300", "NVIDIA", 288, 7890, 6940, 2, 2),
    ("NVIDIA GeForce RTX 3070", "RTX 3070", "NVIDIA", 8, 0, 130, 0, 9),
    ("NVIDIA GeForce RTX 4090", "RTX 4090", "NVIDIA", 24, 740, 340, 6, 6),
    ("NVIDIA H100 80GB HBM3", "H100 SXM", "NVIDIA", 80, 3290, 2690, 8, 8),
    ("NVIDIA H200", "H200 SXM", "NVIDIA", 141, 4590, 3590, 16, 8),
    ("NVIDIA L40S", "L40S", "NVIDIA", 48, 990, 790, 3, 3),
];
const CPUS: &[(&str, u32, i64)] = &[("cpu5g", 4, 46), ("cpu5m", 8, 65)];
const PLACES: &[(&str, &str, bool)] = &[
    ("US-TX-3", "NORTH_AMERICA", true),
    ("EU-RO-1", "EUROPE", true),
    ("US-KS-1", "NORTH_AMERICA", false),
];
const COUNTRIES: &[&str] = &["US", "FR"];

/// The catalogue of the capture, and the products behind it. A spot price stands beside every
/// price and equals it.
pub fn captured() -> (Catalog, Vec<Product>) {
    let seen = "live capture of 2026-08-25: every spot price equals the on-demand one";
    let spot = |price: i64| Some(Series::constant(Source::Recorded(seen.to_owned()), price));
    let mut products = Vec::new();
    for &(id, _, _, _, secure, community, in_secure, in_community) in CAPTURED {
        let product =
            |pool: &str, region: &str, zone: Option<&str>, price: i64, capacity| Product {
                kind: id.to_owned(),
                pool: pool.to_owned(),
                region: region.to_owned(),
                zone: zone.map(str::to_owned),
                capacity,
                largest: 8,
                on_demand: price * 1000,
                spot: spot(price * 1000),
            };
        for (zone, _, listed) in PLACES.iter().filter(|_| secure > 0) {
            let country = zone.split('-').next().unwrap_or_default();
            let capacity = if *listed { in_secure } else { 0 };
            products.push(product("SECURE", country, Some(zone), secure, capacity));
        }
        for country in COUNTRIES.iter().filter(|_| community > 0) {
            products.push(product("COMMUNITY", country, None, community, in_community));
        }
    }
    for &(id, _, price) in CPUS {
        products.push(Product {
            kind: id.to_owned(),
            pool: "SECURE".to_owned(),
            region: "US".to_owned(),
            zone: Some("US-TX-3".to_owned()),
            capacity: 128,
            largest: 32,
            on_demand: price * 1000,
            spot: None,
        });
    }
    let gpus = CAPTURED.iter().map(|&(id, name, manufacturer, memory, ..)| GpuType {
        id: id.to_owned(),
        name: name.to_owned(),
        manufacturer,
        memory,
        phantom: if manufacturer == "AMD" { 500_000 } else { 0 },
    });
    let cpus = CPUS.iter().map(|&(id, ram, _)| Flavour { id: id.to_owned(), ram });
    let places = PLACES.iter();
    let places =
        places.map(|&(id, region, listed)| DataCenter { id: id.to_owned(), region, listed });
    let catalog = Catalog { gpus: gpus.collect(), cpus: cpus.collect(), places: places.collect() };
    (catalog, products)
}
