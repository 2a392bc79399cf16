//! Time of one placement decision over 2.5, 12 and 50 thousand offers, beside a naive scan of all
//! offers in the same run; both must take the same offer.
//!
//! The market is planted like the baselines' (reference: SkyPilot's and gpuhunt's): types with zones,
//! a third with accelerators, on-demand and spot. One request each asks for a model, a count and a
//! capacity type; the objective is the price of an hour.
#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use petaflop_arbiter::decide::decide;
use petaflop_arbiter::decision::Action;
use petaflop_arbiter::market::Market;
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::{Accelerators, Arch, Capacity, HostOwner, Offer, OfferId, Sale};
use petaflop_arbiter::workload::{
    Alternative, DeviceRequest, Engine, Interruption, OpaqueWork, OwnerKind, Placement, Precision,
    Progress, Resources, TrainingWork, Work, Workload, WorkloadId,
};
use petaflop_arbiter::world::{Assumptions, ProviderState, Switch, World};

const MODELS: [&str; 10] = [
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
const COUNTS: [u32; 4] = [1, 2, 4, 8];
const ZONES: u64 = 27;
const ROUNDS: usize = 300;

/// Numbers that look random and are the same everywhere (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

fn offers(count: u64, now: Timestamp) -> Vec<Offer> {
    let mut dice = Dice(7);
    let mut offers = Vec::with_capacity(count as usize);
    let mut kind = 0;
    while (offers.len() as u64) < count {
        let has = dice.roll(100) < 35;
        let devices = COUNTS[dice.roll(4) as usize];
        let model = MODELS[dice.roll(10) as usize];
        let base = (100_000 + dice.roll(4_900_000)) as i64 * i64::from(devices);
        let provider = ["aws", "runpod"][dice.roll(2) as usize];
        for zone in 0..ZONES {
            for capacity in [Capacity::OnDemand, Capacity::Spot] {
                if offers.len() as u64 == count {
                    break;
                }
                let percent = match capacity {
                    Capacity::Spot => 25 + dice.roll(45),
                    Capacity::OnDemand | Capacity::Owned => 95 + dice.roll(35),
                };
                let (region, zone) = (format!("r{}", zone / 3), format!("z{zone}"));
                let instance_type = format!("t{kind}");
                offers.push(Offer {
                    id: Offer::id_of(provider, &region, &zone, &instance_type, capacity),
                    provider: provider.into(),
                    region,
                    zone,
                    instance_type,
                    accelerators: has.then(|| Accelerators {
                        model: model.into(),
                        count: devices,
                        memory: None,
                    }),
                    arch: Arch::X86_64,
                    vcpu_milli: Some(8_000 * devices),
                    memory: Some((61 << 30) * u64::from(devices)),
                    capacity,
                    price: UsdPerHour::from_micros(base * percent as i64 / 100)
                        .expect("not negative"),
                    quoted_at: now,
                    ttl_seconds: 300,
                    owner: HostOwner::Known,
                    sale: Sale::Buyable,
                    measured: None,
                    slots: None,
                    shares: Vec::new(),
                    interruptions_per_hour: None,
                });
            }
        }
        kind += 1;
    }
    offers
}

fn provider(name: &str) -> ProviderState {
    ProviderState {
        name: name.into(),
        state: Switch::Enabled,
        allowed_namespaces: None,
        max_hourly: None,
        monthly: None,
        max_machines: None,
        startup_millis: 60_000,
        fetch_bytes_per_second: Some(100_000_000),
        egress_usd_per_gb: Usd::from_micros(90_000),
        remote: false,
    }
}

fn workload(now: Timestamp, work: Work, engine: Engine) -> Workload {
    Workload {
        id: WorkloadId {
            kind: OwnerKind::TrainingJob,
            namespace: "default".into(),
            name: "bench".into(),
            uid: "0b5e55ed-0000-4000-8000-000000000000".into(),
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
    }
}

/// What a scan of every offer takes: the same constraints, no index.
fn scan<'a>(
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

struct Spread {
    median: Duration,
    p99: Duration,
}

fn spread(mut times: Vec<Duration>) -> Spread {
    times.sort_unstable();
    Spread { median: times[times.len() / 2], p99: times[times.len() * 99 / 100] }
}

fn micros(time: Duration) -> String {
    format!("{:.1}", time.as_nanos() as f64 / 1000.0)
}

fn main() {
    let now: Timestamp = "2026-11-21T12:00:00Z".parse().expect("a time");
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown processor", |rest| rest.trim_start_matches([' ', '\t', ':']));
    println!(
        "placement decisions, {ROUNDS} requests, one thread, {cpu}, petaflop-arbiter {}; microseconds",
        env!("CARGO_PKG_VERSION")
    );
    println!(
        "{:>7} {:>9} {:>8} {:>22} {:>10} {:>10} {:>12} {:>12}",
        "offers", "build ms", "quote", "request", "median", "p99", "scan median", "scan p99"
    );
    for count in [2_500, 12_000, 50_000] {
        let list = offers(count, now);
        let begin = Instant::now();
        let market = Market::new(list.clone());
        let build = begin.elapsed();
        let quote = quotes(&market, &list);
        let mut world = World {
            installation: "bench".into(),
            market: Arc::new(market),
            providers: vec![provider("aws"), provider("runpod")],
            unavailable: Vec::new(),
            workloads: Vec::new(),
            claims: Vec::new(),
            budgets: Vec::new(),
            corrections: Default::default(),
            support: Default::default(),
            assumptions: Assumptions::default(),
        };
        let (ours, naive) = by_the_hour(&mut world, &list, now);
        let row = |what: &str, ours: &Spread, naive: Option<&Spread>| {
            let naive =
                naive.map_or(("-".into(), "-".into()), |n| (micros(n.median), micros(n.p99)));
            println!(
                "{count:>7} {:>9.1} {:>8} {what:>22} {:>10} {:>10} {:>12} {:>12}",
                build.as_secs_f64() * 1e3,
                micros(quote),
                micros(ours.median),
                micros(ours.p99),
                naive.0,
                naive.1
            );
        };
        row("model, count, 1 h", &ours, Some(&naive));
        row("training, all terms", &training(&mut world, now, "50"), None);
        row("nothing fits, misses", &training(&mut world, now, "0.000001"), None);
    }
}

/// Time of one new quote.
fn quotes(market: &Market, list: &[Offer]) -> Duration {
    let mut market = market.clone();
    let mut dice = Dice(11);
    let news: Vec<Offer> = (0..1_000)
        .map(|_| {
            let offer = &list[dice.roll(list.len() as u64) as usize];
            let price = offer.price.micros() * (90 + dice.roll(20) as i64) / 100;
            Offer { price: UsdPerHour::from_micros(price).expect("not negative"), ..offer.clone() }
        })
        .collect();
    let count = news.len() as u32;
    let begin = Instant::now();
    for offer in news {
        market.quote(offer);
    }
    begin.elapsed() / count
}

/// The baselines' request: a model, a count and a capacity type, for an hour.
fn by_the_hour(world: &mut World, list: &[Offer], now: Timestamp) -> (Spread, Spread) {
    let mut dice = Dice(13);
    let (mut ours, mut naive) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let model = MODELS[dice.roll(6) as usize];
        let count = COUNTS[dice.roll(4) as usize];
        let capacity = [Capacity::OnDemand, Capacity::Spot][dice.roll(2) as usize];
        let work = OpaqueWork { replicas: 1, fetch_bytes: 0 };
        let mut one = workload(now, Work::Opaque(work), Engine::Container);
        one.accelerators = vec![Alternative::Devices(DeviceRequest {
            vendor: None,
            models: vec![model.into()],
            count,
            min_memory: None,
            min_compute_capability: None,
        })];
        one.placement.capacity = Some(capacity);
        world.workloads = vec![one];
        let begin = Instant::now();
        let plan = decide(world, now);
        ours.push(begin.elapsed());
        let begin = Instant::now();
        let scanned = scan(list, model, count, capacity);
        naive.push(begin.elapsed());
        let chosen = plan.actions.iter().find_map(|action| match action {
            Action::CreateClaim(spec) => Some(&spec.offer.id),
            Action::EndClaim { .. } => None,
        });
        assert_eq!(chosen, scanned, "both take the same offer");
    }
    (spread(ours), spread(naive))
}

/// A training job of our runtime without a device requirement: every offer counts, every term too.
/// With too little money nothing is found, and the nearest misses are.
fn training(world: &mut World, now: Timestamp, dollars: &str) -> Spread {
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
        checkpoint_interval_seconds: 30,
        precision: Precision::F32,
    };
    let mut one = workload(now, Work::Training(work), Engine::Runtime);
    one.finish_by = now.checked_add(jiff::SignedDuration::from_hours(48)).ok();
    one.max_total_cost = dollars.parse().ok();
    world.workloads = vec![one];
    let rounds = if dollars == "50" { ROUNDS } else { ROUNDS / 10 };
    let times = (0..rounds)
        .map(|_| {
            let begin = Instant::now();
            let plan = decide(world, now);
            let time = begin.elapsed();
            let decision = &plan.decisions[0];
            assert_ne!(plan.actions.is_empty(), decision.misses.is_empty());
            time
        })
        .collect();
    spread(times)
}
