//! The market for tests: clouds in a box whose machines are real, and what those need of their user:
//! a runtime in an image, an agent to fetch, a store that both sides reach.
//!
//! | module | holds |
//! |---|---|
//! | `ec2` | what EC2 in the box sells |
//! | `log` | what this process logs |
//! | `time` | a clock for clouds and operators |
//! | `s3` | a real S3 server |

#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod ec2;
pub(crate) mod log;
#[path = "../../../runtime-image/store/tests/common/s3.rs"]
pub(crate) mod s3;
pub(crate) mod time;

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use petaflop_agent_api::clock::Clock;
use petaflop_cloud_box::engine::Pace;
use petaflop_cloud_box::machines::{Image, Machines};
use petaflop_cloud_box::runpod::keys::Scope;
use petaflop_cloud_box::runpod::limits::Limits;
use petaflop_cloud_box::runpod::{RunPod, Setup};
use petaflop_harness::{roots, tools};
use petaflop_providers::machine::AgentDownload;
use petaflop_tests::{binary, static_binary};

/// The image of our runtime.
pub(crate) const IMAGE: &str = "localhost/petaflop-runtime:test";
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
        let mut images = BTreeMap::from([(IMAGE.to_owned(), runtime)]);
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
}
