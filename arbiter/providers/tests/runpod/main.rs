//! The client for RunPod against a server on loopback that answers as RunPod was seen to answer.
//! docs/providers/runpod.md names, for each of RunPod's ways, the test that shows it here.
#![cfg(feature = "runpod")]

mod buying;
mod cloud_box;
mod documented;
mod drive;
mod entry;
mod looking;
#[path = "../common/page.rs"]
mod page;
mod protocol;
mod quotes;
mod server;
mod shopping;

use std::time::Duration;

use jiff::Timestamp;
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::claim::Identity;
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::offer::{Capacity, HostOwner, Offer, Sale};
use petaflop_providers::Machine;
use petaflop_providers::machine::{AgentSource, Bootstrap};
use petaflop_providers::runpod::{AgentDownload, ApiKey, RunPod, RunPodConfig};
use serde_json::{Value, json};

/// What must never be told.
pub(crate) const KEY: &str = "rpa_canary_key";
pub(crate) const TOKEN: &str = "canary_token";

/// A clock that stands still until it is moved.
#[derive(Clone)]
pub(crate) struct Hands(pub(crate) Clock);

impl Hands {
    pub(crate) fn now(&self) -> Timestamp {
        self.0.now()
    }

    pub(crate) fn forward(&self, seconds: i64) {
        self.0.advance(Duration::from_secs(seconds.unsigned_abs()));
    }
}

/// The smallest settings: one size, nothing but accelerators on demand.
pub(crate) fn config(base: &str) -> RunPodConfig {
    let sha256 = "ab".repeat(32);
    let agent = AgentDownload { url: "https://example.org/agent".to_owned(), sha256 };
    RunPodConfig {
        base: base.to_owned(),
        counts: vec![1],
        vcpu_counts: Vec::new(),
        disk_gb: 40,
        spot: false,
        agent: Some(agent),
        ..RunPodConfig::new("rp", ApiKey::new(format!(" {KEY}\n")))
    }
}

pub(crate) fn client(config: RunPodConfig) -> (RunPod, Hands) {
    let hands = Hands(Clock::manual("2026-11-20T10:00:00Z".parse().expect("a time")));
    client_by(config, hands)
}

pub(crate) fn client_by(config: RunPodConfig, hands: Hands) -> (RunPod, Hands) {
    let by = hands.clone();
    let provider = RunPod::new(config).expect("settings").by_clock(move || by.now());
    (provider, hands)
}

pub(crate) fn identity() -> Identity {
    Identity {
        installation: "0a1b2c3d-0000-4000-8000-000000000000".into(),
        namespace: "default".into(),
        claim: "trj-a-12345678-1-0".into(),
        claim_uid: "11111111-0000-4000-8000-000000000000".into(),
        attempt: 1,
    }
}

pub(crate) fn machine() -> Machine {
    Machine {
        image: "ghcr.io/example/job:1".into(),
        agent: AgentSource::Image("example.org/agent:1".into()),
        bootstrap: Bootstrap { operator_key: "a2V5".into(), endpoint: None, port: 7443 },
        cpu_millis: 1000,
        memory: 1 << 30,
        ephemeral: None,
        ports: vec![8000],
        service_account: None,
        image_pull_secrets: Vec::new(),
        volumes: Vec::new(),
        grace_seconds: 30,
        labels: std::collections::BTreeMap::new(),
    }
}

/// An offer as this provider makes it.
pub(crate) fn offer(instance_type: &str, capacity: Capacity, price: &str) -> Offer {
    Offer {
        id: Offer::id_of("rp", "", "", instance_type, capacity),
        provider: "rp".into(),
        region: String::new(),
        zone: String::new(),
        instance_type: instance_type.into(),
        accelerators: None,
        arch: petaflop_arbiter::offer::Arch::X86_64,
        vcpu_milli: Some(2000),
        memory: Some(8_000_000_000),
        capacity,
        price: price.parse::<UsdPerHour>().expect("a price"),
        quoted_at: Timestamp::UNIX_EPOCH,
        ttl_seconds: 150,
        owner: HostOwner::Known,
        sale: Sale::Buyable,
        measured: None,
        slots: None,
        shares: Vec::new(),
        interruptions_per_hour: None,
    }
}

/// A pod as it is answered, made of the body that asked for it.
pub(crate) fn pod(id: &str, asked: &Value, cost: f64, status: &str) -> Value {
    json!({
        "id": id, "name": asked["name"], "status": status, "actions": ["stop", "terminate"],
        "image": asked["image"], "env": asked["env"], "cloud": asked["cloud"], "gpu": asked["gpu"],
        "cost": cost, "dataCenterId": null, "cudaVersion": null, "runtime": null,
        "createdAt": "2026-11-20T10:00:00Z", "startedAt": null,
    })
}
