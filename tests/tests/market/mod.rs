//! The market for tests: clouds in a box whose machines are real, and what those need of their user:
//! a runtime in an image, an agent to fetch, a store that both sides reach.
//!
//! | module | holds |
//! |---|---|
//! | `account` | an account at a cloud as a cluster has it |
//! | `ec2` | what EC2 in the box sells |
//! | `log` | what this process logs |
//! | `time` | a clock for clouds and operators |
//! | `s3` | a real S3 server |

#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod account;
pub(crate) mod ec2;
pub(crate) mod log;
#[path = "../../../runtime-image/store/tests/common/s3.rs"]
pub(crate) mod s3;
pub(crate) mod time;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use petaflop_agent_api::clock::Clock;
use petaflop_agent_api::task::Secret;
use petaflop_cloud_box::engine::Pace;
use petaflop_cloud_box::machines::{Image, Machines};
use petaflop_cloud_box::runpod::keys::Scope;
use petaflop_cloud_box::runpod::limits::Limits;
use petaflop_cloud_box::runpod::{RunPod, Setup};
use petaflop_cloud_box::s3::Gate;
use petaflop_harness::{roots, tools};
use petaflop_operator::narrow::{Narrow, Sts};
use petaflop_operator::store_at::StoreAt;
use petaflop_providers::machine::AgentDownload;
use petaflop_tests::{binary, static_binary};

/// The image of our runtime.
pub(crate) const IMAGE: &str = "localhost/petaflop-runtime:test";
/// An image of a user's: nothing of ours is in it.
pub(crate) const PLAIN: &str = "localhost/plain:test";
/// The runtime's program in it.
pub(crate) const RUNTIME: &str = "petaflop-runtime";

/// Machines, and what they need of their user.
pub(crate) struct Market {
    pub(crate) machines: Machines,
    pub(crate) agent: AgentDownload,
    pub(crate) store: s3::Server,
}

impl Market {
    /// `None` where there can be none: said, and under CI a failure.
    pub(crate) async fn open() -> Result<Option<Self>> {
        if !tools::is_root() {
            ensure!(std::env::var_os("CI").is_none(), "not tested: machines of the box need root");
            eprintln!("NOT TESTED HERE: machines of the box need root");
            return Ok(None);
        }
        // It starts processes, and may have to make the image's root.
        Ok(Some(tokio::task::spawn_blocking(Self::start).await??))
    }

    fn start() -> Result<Self> {
        let agent = static_binary("petaflop-agent")?;
        let debian = Image::new(roots::debian()?);
        // There, and where it lies here: some tests have machines of both kinds.
        let program = binary("petaflop-runtime")?;
        let runtime = debian.clone().with(&program, "/usr/local/bin/petaflop-runtime");
        let runtime = runtime.with(&program, &program);
        let mut images =
            BTreeMap::from([(IMAGE.to_owned(), runtime), (PLAIN.to_owned(), debian.clone())]);
        images.extend(ec2::hosts(&debian.starting(&["/bin/bash"])));
        let machines = Machines::start(&static_binary("petaflop-box-machine")?, images)?;
        let bytes = std::fs::read(agent)?;
        let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
        let sha256 = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let url = format!("http://{}/petaflop-agent", machines.serve(machines.operator(), bytes)?);
        let store = s3::Server::start_at(machines.operator());
        Ok(Self { machines, agent: AgentDownload { url, sha256 }, store })
    }

    /// RunPod, with an account that this key opens.
    pub(crate) fn runpod(&self, clock: Clock, key: &str, pace: Pace) -> Result<RunPod> {
        self.runpod_of(clock, key, pace, 1)
    }

    /// The same, with ids of this seed: several beside each other share the machines.
    pub(crate) fn runpod_of(
        &self,
        clock: Clock,
        key: &str,
        pace: Pace,
        seed: u64,
    ) -> Result<RunPod> {
        Ok(RunPod::start(Setup {
            clock,
            seed,
            keys: [(key.to_owned(), Scope::All)].into(),
            pace,
            deposit: 1_000_000_000,
            limits: Limits::new(1000, 10_000, 100_000),
            page: None,
            host: Box::new(self.machines.clone()),
        })?)
    }
    /// S3's access control and STS before the store, which machines reach too.
    pub(crate) fn gate(&self) -> Result<Gate> {
        gate(&self.store, self.machines.operator())
    }
}

/// S3's access control and STS before a server.
pub(crate) fn gate(server: &s3::Server, at: Ipv4Addr) -> Result<Gate> {
    let credentials = server.credentials();
    let text = |name: &str| credentials.get(name).cloned().unwrap_or_default();
    Ok(Gate::start(petaflop_cloud_box::s3::Setup {
        listen: (at, 0).into(),
        server: text("AWS_ENDPOINT_URL").trim_start_matches("http://").parse()?,
        key: (text("AWS_ACCESS_KEY_ID"), text("AWS_SECRET_ACCESS_KEY")),
        has_sts: true,
        shortest: 1,
    })?)
}

/// The store behind the gate, with the keys of its owner.
pub(crate) fn store(server: &s3::Server, gate: &Gate) -> StoreAt {
    let mut credentials = server.credentials();
    credentials.insert("AWS_ENDPOINT_URL", gate.url());
    let credentials =
        credentials.into_iter().map(|(name, value)| (name.to_owned(), Secret::new(value)));
    let uri = "s3://bucket/store".to_owned();
    StoreAt { uri, credentials: credentials.collect(), narrow: None }
}

/// The same, of which machines get passes for so long.
pub(crate) fn narrow(market: &Market, gate: &Gate, life: Duration) -> Result<StoreAt> {
    let mut store = store(&market.store, gate);
    let sts = Sts { url: Some(gate.url()), role: None, life: Some(life) };
    store.narrow = Some(Narrow::of(&store, &sts)?.context("no passes")?);
    Ok(store)
}
