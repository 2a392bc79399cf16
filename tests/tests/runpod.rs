//! The operator that ships, a ComputeProvider of RunPod and its Secret on a real API server, and
//! RunPod in a box, whose pods are real machines: what the start command fetches there is the real
//! agent, which runs the real runtime.

#[path = "runpod/accelerators.rs"]
mod accelerators;
#[path = "runpod/calling.rs"]
mod calling;
#[path = "runpod/keys.rs"]
mod keys;
mod market;
mod operator;
#[path = "runpod/unmet.rs"]
mod unmet;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use market::account::{self, Account};
use market::log::Log;
use market::time::Ticking;
use market::{Market, RUNTIME};
use operator::{Cluster, is, tiny};
use petaflop_agent_api::clock::Clock;
use petaflop_cloud_box::faults::{Fault, Operation, When};
use petaflop_cloud_box::runpod::{PACE, RunPod};
use petaflop_crds::TrainingJob;
use petaflop_harness::eventually;
use petaflop_operator::cluster::operate::Running;
use petaflop_operator::cluster::settings::Settings;
use serde_json::json;

/// The key of the account, which nobody else may see.
const CANARY: &str = "rpa_canary_4b1d_of_the_account";

/// A cluster, and RunPod beside it.
struct World {
    cluster: Cluster,
    runpod: RunPod,
    account: Account,
    ticking: Ticking,
    market: Market,
}

impl World {
    async fn start(name: &str) -> Result<Option<Self>> {
        let Some(market) = Market::open().await? else { return Ok(None) };
        let clock = Clock::manual(jiff::Timestamp::now());
        let cluster = Cluster::start_with(name, clock.clone(), None).await?;
        let runpod = market.runpod(clock.clone(), CANARY, PACE)?;
        let account = Account::open(&cluster, "runpod", &account::runpod(&runpod.url())).await?;
        Ok(Some(Self { ticking: Ticking::start(clock), cluster, runpod, account, market }))
    }

    /// The Secret holds this key.
    async fn key(&self, key: &str) -> Result<()> {
        self.account.keys(json!({ "RUNPOD_API_KEY": key })).await
    }

    /// The operator, with a bucket as its store; or with a folder.
    async fn operator(&self, bucket: bool) -> Result<Running> {
        let name = self.account.name.as_str();
        let make = self.ticking.make(&self.cluster, &[name], &self.market.agent).await?;
        let with_bucket = bucket.then(|| account::with_bucket(&self.market, "s3://bucket/store"));
        let change = |settings: &mut Settings| {
            settings.public_metrics = true;
            settings.runtime = RUNTIME.to_owned();
            if let Some(with_bucket) = with_bucket {
                with_bucket(settings);
            }
        };
        self.cluster.operator_making(make, change).await
    }

    /// Micro-dollars of RunPod's invoice.
    fn invoiced(&self) -> i64 {
        self.runpod.engine(|engine| engine.invoice().total())
    }

    fn billing(&self) -> usize {
        self.runpod.engine(|engine| engine.invoice().open().len())
    }
}

/// `tiny`, of the text that is in the runtime, on RunPod alone.
fn job(world: &World, name: &str) -> Result<TrainingJob> {
    let mut job = tiny(name)?;
    let recipe = job.spec.recipe.as_mut().context("a recipe")?;
    recipe.datasets[0].path = "builtin:petaflop".to_owned();
    job.spec.placement.providers = vec![world.account.name.clone()];
    (job.spec.deadline, job.spec.max_total_cost) = (None, None);
    Ok(job)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_trained_on_one_pod_that_is_ended_and_booked_to_the_micro_dollar() -> Result<()> {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone());
    let filter = "petaflop_operator=debug,petaflop_providers=debug,info";
    let _ = tracing::subscriber::set_global_default(subscriber.with_env_filter(filter).finish());
    let Some(world) = World::start("runpod").await? else { return Ok(()) };
    world.key(&format!("{CANARY}\n")).await?;
    // Asked to slow down twice: it is asked again in its time, and no attempt is lost to haste.
    world.runpod.faults(|faults| {
        for call in 1..=2 {
            let limited = Fault::RateLimited(40);
            faults.on(limited, Some(Operation::Create), When::Call(call));
        }
    });
    let running = world.operator(true).await?;
    world.account.until("Ready", "True", "Ok").await?;
    let cluster = &world.cluster;
    cluster.create(&job(&world, "away")?).await?;
    let job = cluster
        .until("away", "Complete", Duration::from_secs(240), |job| {
            job.status.as_ref().is_some_and(|status| is(&status.conditions, "Complete"))
        })
        .await?;
    let status = job.status.clone().context("a status")?;
    let artifact = status.artifact.context("an artifact")?;
    let kept = format!("bucket/store/artifacts/{artifact}.json");
    ensure!(world.market.store.root.path().join(kept).exists(), "{artifact} is not in the bucket");
    let claims = cluster.claims().await?;
    cluster.until_no_claims().await?;

    // One pod, of this claim; it bills nothing any more, and what it cost is booked.
    let pods = world.runpod.engine(|engine| engine.machines().to_vec());
    ensure!(pods.len() == 1, "{pods:#?}");
    let identity = pods[0].order.boot.environment.get("PETAFLOP_IDENTITY").context("whose")?;
    ensure!(identity.contains(&format!("/{}/trj-away-", cluster.namespace)), "{identity}");
    ensure!(world.billing() == 0, "{pods:#?}");
    let creates = world.runpod.faults(|faults| faults.calls(Operation::Create));
    ensure!(creates == 3, "{creates} creates");
    let (booked, invoiced) = (cluster.booked().await?, world.invoiced());
    eprintln!("booked {booked}, invoiced {invoiced} micro-dollars");
    // Each line of the invoice is rounded by itself, and a pod has two.
    ensure!(booked > 0 && (booked - invoiced).abs() <= 1, "booked {booked}, invoiced {invoiced}");

    let client = reqwest::Client::builder().no_proxy().build()?;
    let metrics = client.get(format!("http://{}/metrics", running.http)).send().await?;
    let metrics = metrics.text().await?;
    let provider = world.account.object().await?;
    let events =
        [cluster.events("away").await?, cluster.events(&world.account.name).await?].concat();
    let rows = cluster.rows().await?;
    let objects = serde_json::to_string(&json!([claims, job, provider, events, rows]))?;
    let log = String::from_utf8_lossy(&log.0.lock().expect("a log")).into_owned();
    let environment = format!("{:?}", pods[0].order.boot);
    ensure!(metrics.contains(&world.account.name) && log.contains("launch"), "looked at nothing");
    for text in [&metrics, &objects, &log, &environment] {
        ensure!(!text.contains("rpa_canary"), "the account's key is told: {text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dearer_than_quoted_or_taken_away_is_booked_and_the_job_goes_on() -> Result<()> {
    let Some(world) = World::start("runpod-taken").await? else { return Ok(()) };
    let cluster = &world.cluster;
    world.key(CANARY).await?;
    world.runpod.faults(|faults| faults.next(Fault::PriceChanged(1500), Operation::Create));
    let running = world.operator(true).await?;
    world.account.until("Ready", "True", "Ok").await?;
    cluster.create(&job(&world, "unlucky")?).await?;
    let runs = |job: &TrainingJob| {
        job.status.as_ref().is_some_and(|status| is(&status.conditions, "Running"))
    };
    cluster.until("unlucky", "Running", Duration::from_secs(120), runs).await?;
    let pods = world.runpod.engine(|engine| engine.machines().to_vec());
    let [dearer, taken] = &pods[..] else { anyhow::bail!("{pods:#?}") };
    ensure!(dearer.ended.is_some() && taken.ended.is_none(), "{pods:#?}");
    // EXITED without a word: found by looking, ended, and the job is placed anew.
    world.runpod.engine(|engine| engine.evict(&taken.id, None))?;
    let job = cluster
        .until("unlucky", "Complete", Duration::from_secs(240), |job| {
            job.status.as_ref().is_some_and(|status| is(&status.conditions, "Complete"))
        })
        .await?;
    let status = job.status.context("a status")?;
    ensure!(status.interruptions == 1, "{status:#?}");
    cluster.until_no_claims().await?;
    cluster.quiet(&running).await?;
    ensure!(world.billing() == 0, "{:?}", world.runpod.engine(|engine| engine.invoice()));
    let pods = world.runpod.engine(|engine| engine.machines().len());
    ensure!(pods == 3, "{pods} pods: the dearer one, the one taken away, and the last");

    let cost = cluster.job("unlucky").await?.status.and_then(|s| s.cost).and_then(|c| c.total);
    ensure!(cost.context("a cost")?.micro_dollars()? == cluster.booked().await?, "its cost");

    // What was given back has a row of its own, at its own price.
    let rows = cluster.rows().await?;
    let back = rows.iter().find(|row| row.claim_uid.ends_with(&format!(".{}", dearer.id)));
    let back = back.context("no row for the pod that was given back")?;
    ensure!(back.rate.micros() == dearer.rate + 10_000, "{back:?} {dearer:?}");
    let (booked, invoiced) = (cluster.booked().await?, world.invoiced());
    eprintln!("booked {booked}, invoiced {invoiced} micro-dollars");
    // Each of its six lines is rounded by itself.
    ensure!(booked > 0 && (booked - invoiced).abs() <= 3, "booked {booked}, invoiced {invoiced}");

    // A pod with our name and nobody's identity, that no claim knows, is ended too.
    let identity = petaflop_arbiter::claim::Identity {
        installation: running.operator.installation.uid.clone(),
        namespace: cluster.namespace.clone(),
        claim: "trj-lost-1-0".to_owned(),
        claim_uid: "lost".to_owned(),
        attempt: 1,
    };
    let wish = json!({
        "name": identity.unique_name(), "image": "somebodys:1", "cloud": "SECURE", "disk": 10,
        "cpu": { "id": "cpu5g", "vcpuCount": 2 },
    });
    let client = reqwest::Client::builder().no_proxy().build()?;
    let create = client.post(format!("{}/v2/pods", world.runpod.url())).bearer_auth(CANARY);
    let create = create.header("content-type", "application/json").body(wish.to_string());
    ensure!(create.send().await?.status().as_u16() == 201, "no pod");
    ensure!(world.billing() == 1, "it does not bill");
    eventually("it is ended", Duration::from_secs(60), || async {
        match world.billing() {
            0 => Ok(()),
            bills => Err(format!("{bills} bill")),
        }
    })
    .await?;
    Ok(())
}
