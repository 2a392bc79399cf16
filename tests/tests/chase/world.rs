//! A cluster with both clouds, and the job that is chased in it.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use petaflop_agent_api::clock::Clock;
use petaflop_crds::TrainingJob;
use petaflop_operator::cluster::operate::Running;
use petaflop_operator::cluster::settings::Settings;
use petaflop_providers::host::process;
use petaflop_tests::binary;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::clouds::{Clouds, KEY, KIND, LONG, REGION};
use crate::market::account::{self, Account};
use crate::market::time::Ticking;
use crate::market::{Market, RUNTIME};
use crate::operator::{Cluster, is, tiny};

/// The name of the job.
pub(crate) const JOB: &str = "chased";

/// What is trained: `tiny` of the text that is in the runtime, longer or smaller.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) steps: u32,
    /// A sixteenth of the arithmetic.
    pub(crate) small: bool,
}

impl Size {
    fn of(self, job: &mut TrainingJob) -> Result<()> {
        let recipe = job.spec.recipe.as_mut().context("a recipe")?;
        let mut value = serde_json::to_value(&*recipe)?;
        value["datasets"][0]["path"] = json!("builtin:petaflop");
        value["max_steps"] = json!(self.steps);
        if self.small {
            value["model"] = json!({ "dim": 64, "layers": 2, "heads": 2, "vocab": 512 });
            value["sequence_len"] = json!(64);
            value["micro_batch_size"] = json!(4);
        }
        *recipe = serde_json::from_value(value)?;
        Ok(())
    }

    /// What the same job gives on this machine, undisturbed.
    pub(crate) async fn undisturbed(self) -> Result<String> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("job.yaml");
        let mut job = tiny(JOB)?;
        self.of(&mut job)?;
        job.spec.placement.providers = vec!["host".to_owned()];
        fs::write(&file, serde_json::to_vec(&job)?)?;
        let output = petaflop(&folder.path().join("home"))?
            .args(["run", "--json", "-f"])
            .arg(&file)
            .output()
            .await?;
        let value = result(&output)?;
        Ok(value["artifact"].as_str().context("an artifact")?.to_owned())
    }
}

fn petaflop(home: &Path) -> Result<Command> {
    let mut command = Command::new(binary("petaflop")?);
    command.env("PETAFLOP_HOME", home).stdin(Stdio::null()).kill_on_drop(true);
    Ok(command)
}

fn result(output: &Output) -> Result<Value> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}:\n{said}", output.status);
    serde_json::from_slice(&output.stdout).context("one JSON object")
}

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) clouds: Clouds,
    pub(crate) ticking: Ticking,
    pub(crate) accounts: [Account; 2],
    /// How long agents may keep their machines unheard.
    pub(crate) lease: Duration,
}

impl World {
    /// `seed` and `listed_after` as in [`Clouds::open`].
    pub(crate) async fn start(
        market: Arc<Market>,
        name: &str,
        seed: u64,
        listed_after: u32,
    ) -> Result<Self> {
        // A whole second: clouds tell no less.
        let clock = Clock::manual(Timestamp::from_second(Timestamp::now().as_second())?);
        let clouds = Clouds::open(market, &clock, seed, listed_after)?;
        let cluster = Cluster::start_with(name, clock.clone(), None).await?;
        let lease = petaflop_operator::agents::LEASE;
        let aws = json!({
            "regions": [{ "name": REGION }], "instanceTypes": [KIND], "diskGb": 73, "egressPricePerGb": "0",
            "onDemand": false, "address": "Private", "apiBaseUrl": clouds.ec2.url(),
        });
        let aws = Account::open(&cluster, "aws", &aws).await?;
        aws.keys(json!({ "AWS_ACCESS_KEY_ID": KEY.0, "AWS_SECRET_ACCESS_KEY": KEY.1 })).await?;
        let runpod = account::runpod(&clouds.runpod.url());
        let runpod = Account::open(&cluster, "runpod", &runpod).await?;
        runpod.keys(json!({ "RUNPOD_API_KEY": KEY.1 })).await?;
        let ticking = Ticking::start(clock);
        Ok(Self { ticking, cluster, clouds, accounts: [aws, runpod], lease })
    }

    /// The operator of both clouds. Dropping it is a crash.
    pub(crate) async fn operator(&self) -> Result<Running> {
        let names = self.accounts.each_ref().map(|account| account.name.as_str());
        let market = &self.clouds.market;
        let make = self.ticking.make(&self.cluster, &names, &market.agent).await?;
        // A result that is there already is not trained again.
        let uri = format!("s3://bucket/{}", self.cluster.namespace);
        let with_bucket = account::with_bucket(market, &uri);
        let change = |settings: &mut Settings| {
            settings.runtime = RUNTIME.to_owned();
            with_bucket(settings);
            settings.lease = self.lease;
        };
        self.cluster.operator_making(make, change).await
    }

    pub(crate) fn job(&self, size: Size) -> Result<TrainingJob> {
        let mut job = tiny(JOB)?;
        size.of(&mut job)?;
        job.spec.placement.providers =
            self.accounts.each_ref().map(|account| account.name.clone()).to_vec();
        job.spec.placement.allow_untrusted_hosts = true;
        // It goes when it must, and not before.
        job.spec.placement.interruption.min_hold_seconds = 86_400;
        (job.spec.deadline, job.spec.max_total_cost) = (None, None);
        if size.small {
            job.spec.checkpoint.interval_seconds = Some(1);
        }
        Ok(job)
    }

    /// Sends a signal to whatever trains on this job's machines; how many took it.
    pub(crate) fn signal(&self, signal: Signal) -> Result<usize> {
        let ours = format!("/{}/", self.cluster.namespace);
        let mut taken = 0;
        for member in process::members()?.iter().filter(|one| one.identity.contains(&ours)) {
            let argv = fs::read(format!("/proc/{}/cmdline", member.pid)).unwrap_or_default();
            if argv.split(|byte| *byte == 0).nth(1) == Some(b"train") {
                taken += usize::from(process::signal(member, signal)?);
            }
        }
        Ok(taken)
    }

    /// Waits until the job runs for the so-manieth time.
    pub(crate) async fn runs(&self, placement: u32) -> Result<TrainingJob> {
        let what = format!("running in its place {placement}");
        self.cluster
            .until(JOB, &what, LONG, |job| {
                job.status.as_ref().is_some_and(|status| {
                    let number = status.placement.as_ref().and_then(|place| place.number);
                    is(&status.conditions, "Running") && number == Some(placement)
                })
            })
            .await
    }
}
