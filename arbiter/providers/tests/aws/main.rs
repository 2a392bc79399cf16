//! The client for AWS against a server on loopback that speaks as EC2, SSM and Pricing were
//! described to speak. docs/providers/aws.md names, for each of AWS's ways, the test that shows it.
#![cfg(feature = "aws")]

mod account;
mod buying;
mod cloud_box;
mod documented;
#[path = "../runpod/drive.rs"]
mod drive;
mod host;
mod looking;
mod moto;
#[path = "../common/page.rs"]
mod page;
mod protocol;
mod quotes;
#[allow(dead_code, reason = "shared with the tests of RunPod's client")]
#[path = "../runpod/server.rs"]
mod server;

use std::time::Duration;

use jiff::Timestamp;
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::claim::Identity;
use petaflop_arbiter::offer::{Capacity, Offer};
use petaflop_providers::aws::{Access, Aws, AwsConfig, AwsKeys};
use petaflop_providers::machine::{AgentDownload, AgentSource, Bootstrap};
use petaflop_providers::{Machine, Provider};

/// What must never be told.
pub(crate) const SECRET: &str = "canary-secret-key";
pub(crate) const SESSION: &str = "canary-session";
pub(crate) const TOKEN: &str = "canaryToken0";

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

/// One region, one family of accelerators, no disk to pay.
pub(crate) fn config(base: &str) -> AwsConfig {
    let agent =
        AgentDownload { url: "https://example.org/agent".to_owned(), sha256: "ab".repeat(32) };
    let keys = AwsKeys::new("AKIDEXAMPLE", SECRET, Some(SESSION));
    AwsConfig {
        endpoint: Some(base.to_owned()),
        types: vec!["g6".to_owned()],
        disk_micros_per_gb_month: 0,
        address_micros_per_hour: 0,
        agent: Some(agent),
        ..AwsConfig::new("aws", Access::Keys(keys), &["us-east-1"])
    }
}

pub(crate) fn client(config: AwsConfig) -> (Aws, Hands) {
    let hands = Hands(Clock::manual("2026-11-20T10:00:00Z".parse().expect("a time")));
    let by = hands.clone();
    (Aws::new(config).expect("settings").by_clock(move || by.now()), hands)
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

/// The one offer of a kind.
pub(crate) async fn offer(provider: &dyn Provider, capacity: Capacity) -> Offer {
    let offers = provider.quote().await.expect("offers");
    offers.into_iter().find(|offer| offer.capacity == capacity).expect("the offer")
}
