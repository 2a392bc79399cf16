//! The markets that are asked: one that is planted here, and those that peers planted.

use std::path::Path;

use jiff::Timestamp;
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::{Accelerators, Arch, Capacity, HostOwner, Offer, OfferId, Sale};
use petaflop_arbiter::workload::{
    Alternative, DeviceRequest, Engine, Interruption, OpaqueWork, OwnerKind, Placement, Precision,
    Progress, Resources, TrainingWork, Work, Workload, WorkloadId,
};
use petaflop_arbiter::world::{ProviderState, Switch};
use serde::Deserialize;

pub(crate) const MODELS: [&str; 10] = [
    "V100-SXM2-16",
    "A100-SXM-80",
    "H100-SXM",
    "H200-SXM",
    "L4",
    "L40S",
    "A10G",
    "T4",
    "B200",
    "RTX4090",
];
pub(crate) const COUNTS: [u32; 4] = [1, 2, 4, 8];
const ZONES: u64 = 27;

/// Numbers that look random and are the same everywhere (splitmix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

/// Types with zones, a third with accelerators, on-demand and spot. Processors and memory of a type
/// are its own, as on real clouds, so that there are many classes.
pub(crate) fn offers(count: u64, now: Timestamp) -> Vec<Offer> {
    let mut dice = Dice(7);
    let mut offers = Vec::with_capacity(count as usize);
    let mut kind = 0;
    while (offers.len() as u64) < count {
        let has = dice.roll(100) < 35;
        let devices = COUNTS[dice.roll(4) as usize];
        let model = MODELS[dice.roll(10) as usize];
        let base = (100_000 + dice.roll(4_900_000)) as i64 * i64::from(devices);
        let provider = ["aws", "runpod"][dice.roll(2) as usize];
        let vcpus = (2 + dice.roll(30) as u32) * devices;
        for zone in 0..ZONES {
            for capacity in [Capacity::OnDemand, Capacity::Spot] {
                if offers.len() as u64 == count {
                    break;
                }
                let percent = match capacity {
                    Capacity::Spot => 25 + dice.roll(45),
                    Capacity::OnDemand | Capacity::Owned => 95 + dice.roll(35),
                };
                let place = (format!("r{}", zone / 3), format!("z{zone}"));
                let accelerators = has.then(|| devices_of(model, devices));
                let price = UsdPerHour::from_micros(base * percent as i64 / 100);
                offers.push(offer(
                    provider,
                    place,
                    &format!("t{kind}"),
                    accelerators,
                    (vcpus * 1_000, u64::from(vcpus) << 33),
                    capacity,
                    price.expect("not negative"),
                    now,
                ));
            }
        }
        kind += 1;
    }
    offers
}

fn devices_of(model: &str, count: u32) -> Accelerators {
    Accelerators { model: model.into(), count, memory: None }
}

fn offer(
    provider: &str,
    (region, zone): (String, String),
    kind: &str,
    accelerators: Option<Accelerators>,
    (vcpu_milli, memory): (u32, u64),
    capacity: Capacity,
    price: UsdPerHour,
    now: Timestamp,
) -> Offer {
    Offer {
        id: Offer::id_of(provider, &region, &zone, kind, capacity),
        provider: provider.into(),
        region,
        zone,
        instance_type: kind.into(),
        accelerators,
        arch: Arch::X86_64,
        vcpu_milli: Some(vcpu_milli),
        memory: Some(memory),
        capacity,
        price,
        quoted_at: now,
        ttl_seconds: 300,
        owner: HostOwner::Known,
        sale: Sale::Buyable,
        measured: None,
        slots: None,
        shares: Vec::new(),
        interruptions_per_hour: None,
    }
}

pub(crate) fn provider(name: &str) -> ProviderState {
    ProviderState {
        name: name.into(),
        state: Switch::Enabled,
        allowed_namespaces: None,
        accelerators: Default::default(),
        max_hourly: None,
        monthly: None,
        max_machines: None,
        startup_millis: 60_000,
        fetch_bytes_per_second: Some(100_000_000),
        egress_usd_per_gb: Usd::from_micros(90_000),
        remote: false,
        disk: None,
        quotes_stock: false,
    }
}

pub(crate) fn workload(name: &str, now: Timestamp, work: Work, engine: Engine) -> Workload {
    Workload {
        id: WorkloadId {
            kind: OwnerKind::TrainingJob,
            namespace: "default".into(),
            name: name.into(),
            uid: format!("0b5e55ed-0000-4000-8000-{name:0>12}"),
        },
        created_at: now,
        engine,
        work,
        resources: Resources::default(),
        accelerators: Vec::new(),
        placement: Placement::default(),
        finish_by: None,
        max_total_cost: None,
        interruption: Interruption::default(),
        progress: Progress::default(),
        suspended: false,
        tied: Vec::new(),
        measured: None,
    }
}

/// The peers' question: devices and a capacity type, for an hour.
pub(crate) fn by_the_hour(
    name: &str,
    now: Timestamp,
    model: &str,
    counts: (u32, Option<u32>),
    capacity: Capacity,
) -> Workload {
    let work = OpaqueWork { replicas: 1, fetch_bytes: 0 };
    let mut one = workload(name, now, Work::Opaque(work), Engine::Container);
    one.accelerators = vec![Alternative::Devices(DeviceRequest {
        models: vec![model.into()],
        count: counts.0,
        max_count: counts.1,
        ..DeviceRequest::default()
    })];
    one.placement.capacity = Some(capacity);
    one
}

/// A training job of our runtime: every term of the objective counts, every offer comes into question.
pub(crate) fn training(now: Timestamp, dollars: &str) -> Workload {
    let work = TrainingWork {
        steps: 10_000,
        tokens_per_step: 2_048,
        flops_per_step: 14_000_000_000,
        traffic_bytes_per_step: 600_000_000,
        arena_bytes: 200 << 20,
        host_bytes: 128 << 20,
        checkpoint_bytes: 10 << 20,
        artifact_bytes: 4 << 20,
        input_bytes: 2 << 20,
        checkpoint_interval_seconds: Some(30),
        precision: Precision::F32,
    };
    let mut one = workload("training", now, Work::Training(work), Engine::Runtime);
    one.finish_by = now.checked_add(jiff::SignedDuration::from_hours(48)).ok();
    one.max_total_cost = dollars.parse().ok();
    one
}

/// What a peer planted, was asked and answered.
#[derive(Deserialize)]
pub(crate) struct Peer {
    /// Name and version.
    pub(crate) peer: String,
    offers: Vec<Planted>,
    pub(crate) answers: Vec<Answer>,
}

#[derive(Deserialize)]
struct Planted {
    provider: String,
    region: String,
    zone: String,
    kind: String,
    model: Option<String>,
    count: u32,
    vcpus: f64,
    memory_gib: f64,
    spot: bool,
    price: f64,
}

#[derive(Deserialize)]
pub(crate) struct Answer {
    pub(crate) model: String,
    pub(crate) count: u32,
    pub(crate) spot: bool,
    /// How long it took.
    pub(crate) micros: f64,
    /// Dollars an hour of what it found.
    pub(crate) price: Option<f64>,
}

impl Peer {
    pub(crate) fn read(path: &Path) -> Result<Peer, Box<dyn std::error::Error>> {
        Ok(serde_json::from_reader(std::io::BufReader::new(std::fs::File::open(path)?))?)
    }

    pub(crate) fn offers(&self, now: Timestamp) -> Vec<Offer> {
        self.offers.iter().map(|planted| planted.offer(now)).collect()
    }

    pub(crate) fn providers(&self) -> Vec<ProviderState> {
        let names: std::collections::BTreeSet<&str> =
            self.offers.iter().map(|planted| planted.provider.as_str()).collect();
        names.into_iter().map(provider).collect()
    }
}

impl Planted {
    fn offer(&self, now: Timestamp) -> Offer {
        let capacity = if self.spot { Capacity::Spot } else { Capacity::OnDemand };
        offer(
            &self.provider,
            (self.region.clone(), self.zone.clone()),
            &self.kind,
            self.model.as_deref().map(|model| devices_of(model, self.count)),
            ((self.vcpus * 1e3) as u32, (self.memory_gib * f64::from(1 << 30)) as u64),
            capacity,
            micro_dollars(self.price),
            now,
        )
    }
}

pub(crate) fn micro_dollars(price: f64) -> UsdPerHour {
    UsdPerHour::from_micros((price * 1e6).round() as i64).expect("not negative")
}

/// What a scan of every offer takes: the same constraints, no index.
pub(crate) fn scan<'a>(
    offers: &'a [Offer],
    model: &str,
    count: u32,
    capacity: Capacity,
) -> Option<&'a OfferId> {
    offers
        .iter()
        .filter(|offer| {
            offer.capacity == capacity
                && offer
                    .accelerators
                    .as_ref()
                    .is_some_and(|devices| devices.model == model && devices.count >= count)
        })
        .min_by(|a, b| (a.price, &a.id).cmp(&(b.price, &b.id)))
        .map(|offer| &offer.id)
}
