//! Small worlds to decide in.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::claim::{Claim, ClaimSpec, Phase};
use petaflop_arbiter::decide::{Explanation, explain};
use petaflop_arbiter::decision::{Action, Decision, Outcome, Plan};
use petaflop_arbiter::market::Market;
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::{
    Accelerators, Arch, Capacity, HostOwner, MeasuredRates, Offer, Sale,
};
use petaflop_arbiter::workload::{
    Engine, Interruption, OpaqueWork, OwnerKind, Placement, Precision, Progress, Resources,
    ServingWork, TrainingWork, Work, Workload, WorkloadId,
};
use petaflop_arbiter::world::{Assumptions, ProviderState, Switch, World};

pub(crate) const GIB: u64 = 1 << 30;

pub(crate) fn now() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().expect("a time")
}

pub(crate) fn after(seconds: i64) -> Timestamp {
    now() + SignedDuration::from_secs(seconds)
}

pub(crate) fn usd(text: &str) -> Usd {
    text.parse().expect("an amount")
}

pub(crate) fn rate(text: &str) -> UsdPerHour {
    text.parse().expect("a price")
}

/// An on-demand machine of `cloud` with 16 processors and 64 GiB, quoted a minute ago for five.
pub(crate) fn machine(kind: &str, price: &str) -> Offer {
    placed("cloud", "r1", "r1-a", kind, Capacity::OnDemand, rate(price))
}

pub(crate) fn placed(
    provider: &str,
    region: &str,
    zone: &str,
    kind: &str,
    capacity: Capacity,
    price: UsdPerHour,
) -> Offer {
    Offer {
        id: Offer::id_of(provider, region, zone, kind, capacity),
        provider: provider.into(),
        region: region.into(),
        zone: zone.into(),
        instance_type: kind.into(),
        accelerators: None,
        arch: Arch::X86_64,
        vcpu_milli: Some(16_000),
        memory: Some(64 * GIB),
        capacity,
        price,
        quoted_at: after(-60),
        ttl_seconds: 300,
        owner: HostOwner::Known,
        sale: Sale::Buyable,
        measured: None,
        slots: None,
        shares: Vec::new(),
        interruptions_per_hour: None,
    }
}

/// This host: two measured processors, 8 GiB, one slot.
pub(crate) fn host(price: &str) -> Offer {
    Offer {
        vcpu_milli: Some(2_000),
        memory: Some(8 * GIB),
        slots: Some(1),
        measured: Some(MeasuredRates { gemm_gflops: 120.0, read_gb_s: 12.0 }),
        ..placed("host", "", "", "this", Capacity::Owned, rate(price))
    }
}

pub(crate) fn with_devices(offer: Offer, model: &str, count: u32) -> Offer {
    Offer { accelerators: Some(Accelerators { model: model.into(), count, memory: None }), ..offer }
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
        startup_millis: if name == "host" { 0 } else { 60_000 },
        fetch_bytes_per_second: (name != "host").then_some(100_000_000),
        egress_usd_per_gb: if name == "host" { Usd::ZERO } else { usd("0.09") },
        remote: false,
        disk: None,
        quotes_stock: false,
    }
}

fn workload(name: &str, kind: OwnerKind, work: Work) -> Workload {
    Workload {
        id: WorkloadId {
            kind,
            namespace: "default".into(),
            name: name.into(),
            uid: format!("{:0>8}-0000-4000-8000-000000000000", hex(name)),
        },
        created_at: after(-3600),
        engine: Engine::Runtime,
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

fn hex(name: &str) -> String {
    name.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// Some minutes of training on a small machine.
pub(crate) fn training(name: &str) -> Workload {
    let work = TrainingWork {
        steps: 1_000,
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
    workload(name, OwnerKind::TrainingJob, Work::Training(work))
}

pub(crate) fn serving(name: &str, replicas: u32) -> Workload {
    let work = ServingWork {
        replicas,
        arena_bytes: 100 << 20,
        host_bytes: 128 << 20,
        flops_per_token: 2_000_000,
        weight_bytes_per_step: 4 << 20,
        cache_bytes_per_sequence: 1 << 20,
        max_sequences: 16,
        max_millis_per_token: None,
        precision: Precision::F32,
    };
    workload(name, OwnerKind::InferenceService, Work::Serving(work))
}

/// A container of which nothing is known: its dollars are its price for an hour.
pub(crate) fn container(name: &str) -> Workload {
    let work = OpaqueWork { replicas: 1, fetch_bytes: 0 };
    Workload {
        engine: Engine::Container,
        ..workload(name, OwnerKind::TrainingJob, Work::Opaque(work))
    }
}

pub(crate) fn world(offers: Vec<Offer>, workloads: Vec<Workload>) -> World {
    World {
        installation: "5f0e8d2a-0000-4000-8000-000000000000".into(),
        market: Arc::new(Market::new(offers)),
        providers: vec![provider("host"), provider("cloud"), provider("other")],
        unavailable: Vec::new(),
        workloads,
        claims: Vec::new(),
        budgets: Vec::new(),
        corrections: Default::default(),
        support: Default::default(),
        assumptions: Assumptions::default(),
        watched: Vec::new(),
        tables: Default::default(),
    }
}

/// The claims of a plan, as they stand after they were written.
pub(crate) fn written(plan: &Plan) -> Vec<Claim> {
    plan.actions
        .iter()
        .filter_map(|action| match action {
            Action::CreateClaim(spec) => Some(claim(spec.clone())),
            Action::EndClaim { .. } => None,
        })
        .collect()
}

pub(crate) fn claim(spec: ClaimSpec) -> Claim {
    Claim {
        uid: format!("uid-of-{}", spec.name),
        spec,
        phase: Phase::Planned,
        attempt: 1,
        spent: Usd::ZERO,
    }
}

/// Ids of the offers that a plan takes.
pub(crate) fn taken(plan: &Plan) -> Vec<String> {
    written(plan).into_iter().map(|claim| claim.spec.offer.id.0).collect()
}

/// The decision of the only workload.
pub(crate) fn only(plan: &Plan) -> &Decision {
    assert_eq!(plan.decisions.len(), 1);
    &plan.decisions[0]
}

/// Reason and message of a workload that waits.
pub(crate) fn waits(decision: &Decision) -> (&'static str, &str) {
    match &decision.outcome {
        Outcome::Waiting { reason, message } => (reason.as_str(), message),
        other => panic!("expected to wait, found {other:?}"),
    }
}

pub(crate) fn explained(world: &World) -> Explanation {
    explain(world, now(), &world.workloads[0].id).expect("the workload is there")
}

/// The same offer as a dated price only.
pub(crate) fn dated(offer: Offer) -> Offer {
    Offer {
        sale: Sale::Snapshot { observed_on: Some("2026-07-20".parse().expect("a day")) },
        ..offer
    }
}
