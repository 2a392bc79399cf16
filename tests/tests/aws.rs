//! The operator that ships, a ComputeProvider of AWS and its Secret on a real API server; `petaflop
//! run` without a cluster; and EC2 in a box, whose instances are real machines: they start with
//! production's own user-data, fetch the real agent, and run the real runtime in a container.
//!
//! The operator has AWS with `--features petaflop-operator/aws`.

#[path = "aws/accelerators.rs"]
mod accelerators;
mod market;
mod operator;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use market::account::{self, Account};
use market::log::Log;
use market::time::Ticking;
use market::{IMAGE, Market, RUNTIME, ec2};
use operator::{Cluster, is, tiny};
use petaflop_agent_api::clock::Clock;
use petaflop_cloud_box::ec2::{Ec2, PACE};
use petaflop_cloud_box::engine::Pace;
use petaflop_cloud_box::engine::machine::Life;
use petaflop_crds::TrainingJob;
use petaflop_harness::eventually;
use petaflop_operator::cluster::operate::Running;
use petaflop_operator::cluster::settings::Settings;
use petaflop_tests::binary;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The account's key, and what nobody else may see.
const KEY: &str = "AKIABUYER";
const CANARY: &str = "aws-canary-of-the-account";

/// A cluster, and AWS beside it.
struct World {
    cluster: Cluster,
    cloud: Ec2,
    account: Account,
    ticking: Ticking,
    market: Market,
}

impl World {
    async fn start(name: &str) -> Result<Option<Self>> {
        Self::selling(name, |_| {}).await
    }

    /// With other settings of the account.
    async fn selling(name: &str, change: impl FnOnce(&mut Value)) -> Result<Option<Self>> {
        let Some(market) = Market::open().await? else { return Ok(None) };
        // Whole seconds, as AWS tells them.
        let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second())?;
        let clock = Clock::manual(now);
        let cluster = Cluster::start_with(name, clock.clone(), None).await?;
        // Its disk, which AWS bills while an instance shuts down and the ledger does not, goes at once.
        let pace = Pace { wind_down: Duration::ZERO, ..PACE };
        let (cloud, mut aws) = ec2::open(&market, &clock, (KEY, CANARY), pace)?;
        change(&mut aws);
        let account = Account::open(&cluster, "aws", &aws).await?;
        let ticking = Ticking::start(clock);
        // A host has twenty minutes to come up, and is started by a busy machine.
        ticking.every(100);
        Ok(Some(Self { cluster, cloud, account, ticking, market }))
    }

    async fn operator(&self) -> Result<Running> {
        let name = self.account.name.as_str();
        let make = self.ticking.make(&self.cluster, &[name], &self.market.agent).await?;
        let with_bucket = account::with_bucket(&self.market, "s3://bucket/store");
        let change = |settings: &mut Settings| {
            settings.public_metrics = true;
            settings.runtime = RUNTIME.to_owned();
            with_bucket(settings);
        };
        self.cluster.operator_making(make, change).await
    }

    /// What the instances wrote to their consoles.
    fn consoles(&self) -> String {
        let made = self.cloud.engine(|engine| engine.machines().to_vec());
        let console = |id: &str| format!("{id}: {}", self.market.machines.log(id));
        made.iter().map(|instance| console(&instance.id)).collect::<Vec<_>>().join("\n")
    }
}

/// `tiny`, of the text that is in the runtime, on AWS alone. It asks for no accelerator.
fn job(world: &World, name: &str) -> Result<TrainingJob> {
    let mut job = tiny(name)?;
    let recipe = job.spec.recipe.as_mut().context("a recipe")?;
    recipe.datasets[0].path = "builtin:petaflop".to_owned();
    job.spec.placement.providers = vec![world.account.name.clone()];
    (job.spec.deadline, job.spec.max_total_cost) = (None, None);
    Ok(job)
}

/// The result of `petaflop run` in this home, with these variables, on this provider.
async fn run(home: &Path, provider: &str, variables: &[(&str, String)]) -> Result<Value> {
    std::fs::create_dir_all(home)?;
    let text = include_str!("../../examples/tiny.yaml");
    let text = text.replace("../LICENSE", "builtin:petaflop");
    let manifest = home.join("job.yaml");
    std::fs::write(&manifest, format!("{text}  placement:\n    providers: [{provider}]\n"))?;
    let manifest = manifest.display().to_string();
    petaflop(home, &["run", "--json", "-f", &manifest], variables).await
}

async fn petaflop(home: &Path, words: &[&str], variables: &[(&str, String)]) -> Result<Value> {
    let output = tokio::process::Command::new(binary("petaflop")?)
        .args(words)
        .env("PETAFLOP_HOME", home)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}:\n{said}", output.status);
    ensure!(!said.contains("canary"), "a secret is told: {said}");
    serde_json::from_slice(&output.stdout).context("one JSON object")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_trained_on_one_instance_that_is_ended_and_booked_as_it_is_billed() -> Result<()> {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone());
    let filter = "petaflop_operator=debug,petaflop_providers=debug,info";
    let _ = tracing::subscriber::set_global_default(subscriber.with_env_filter(filter).finish());
    let Some(world) = World::start("aws").await? else { return Ok(()) };
    let keys = json!({ "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": format!("{CANARY}\n") });
    world.account.keys(keys).await?;
    let running = world.operator().await?;
    world.account.until("Ready", "True", "Ok").await?;
    let cluster = &world.cluster;
    cluster.create(&job(&world, "away")?).await?;
    let job = cluster
        .until("away", "Complete", Duration::from_secs(240), |job| {
            job.status.as_ref().is_some_and(|status| is(&status.conditions, "Complete"))
        })
        .await
        .with_context(|| world.consoles())?;
    let artifact = job.status.clone().and_then(|status| status.artifact).context("an artifact")?;
    let alone = TempDir::new()?;
    let here = run(alone.path(), "host", &[]).await?;
    ensure!(here["jobs"][0]["artifact"] == artifact, "{artifact}, and here {here}");
    let claims = cluster.claims().await?;
    cluster.until_no_claims().await?;

    // One instance, of this claim: the cheapest, spot, of no accelerator. It bills nothing any more.
    let made = world.cloud.engine(|engine| engine.machines().to_vec());
    let [instance] = &made[..] else { anyhow::bail!("{made:#?}") };
    let metadata = instance.order.boot.metadata.as_ref().context("an instance has metadata")?;
    ensure!(metadata.spot && metadata.instance_type == "c7i.large", "{metadata:?}");
    let script = String::from_utf8_lossy(&metadata.user_data).into_owned();
    ensure!(script.contains(&format!("/{}/trj-away-", cluster.namespace)), "{script}");
    let bills = world.cloud.engine(|engine| engine.invoice().open().len());
    ensure!(bills == 0, "{made:#?}");
    let booked = cluster.booked().await?;
    let invoiced = world.cloud.engine(|engine| engine.invoice().total());
    eprintln!("booked {booked}, invoiced {invoiced} micro-dollars");
    ensure!(booked > 0 && booked == invoiced, "booked {booked}, invoiced {invoiced}");

    let client = reqwest::Client::builder().no_proxy().build()?;
    let metrics = client.get(format!("http://{}/metrics", running.http)).send().await?;
    let metrics = metrics.text().await?;
    let provider = world.account.object().await?;
    let events =
        [cluster.events("away").await?, cluster.events(&world.account.name).await?].concat();
    let rows = cluster.rows().await?;
    let objects = serde_json::to_string(&json!([claims, job, provider, events, rows]))?;
    let log = String::from_utf8_lossy(&log.0.lock().expect("a log")).into_owned();
    let console = world.market.machines.log(&instance.id);
    ensure!(metrics.contains(&world.account.name) && !log.is_empty(), "looked at nothing");
    ensure!(console.contains("petaflop"), "{console}");
    for text in [&metrics, &objects, &log, &script, &console] {
        ensure!(!text.contains(CANARY), "the account's secret is told: {text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_runs_over_a_restart_of_the_operator_is_booked_as_it_is_billed() -> Result<()>
{
    let Some(world) = World::start("aws-restart").await? else { return Ok(()) };
    let keys = json!({ "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": CANARY });
    world.account.keys(keys).await?;
    let first = world.operator().await?;
    let cluster = &world.cluster;
    let mut long = job(&world, "long")?;
    long.spec.recipe.as_mut().context("a recipe")?.max_steps = Some(150);
    cluster.create(&long).await?;
    let says = |condition: &'static str| {
        move |job: &TrainingJob| {
            job.status.as_ref().is_some_and(|status| is(&status.conditions, condition))
        }
    };
    let soon = Duration::from_secs(240);
    cluster
        .until("long", "Running", soon, says("Running"))
        .await
        .with_context(|| world.consoles())?;
    let status = cluster.claims().await?.pop().and_then(|claim| claim.status).context("a claim")?;
    let (bought, running) = (status.billed_from, status.running_from);
    ensure!(bought.is_some() && bought < running, "{bought:?} {running:?}");

    // The next one cannot see any more when it came up.
    drop(first);
    let _second = world.operator().await?;
    cluster.until("long", "Complete", soon, says("Complete")).await?;
    cluster.until_no_claims().await?;
    ensure!(world.cloud.engine(|engine| engine.machines().len()) == 1, "another was bought");
    let booked = cluster.booked().await?;
    let invoiced = world.cloud.engine(|engine| engine.invoice().total());
    ensure!(booked > 0 && booked == invoiced, "booked {booked}, invoiced {invoiced}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_count_as_soon_as_their_secret_has_them_and_what_is_missing_is_said() -> Result<()> {
    let Some(world) = World::start("aws-keys").await? else { return Ok(()) };
    let _running = world.operator().await?;
    let missing = world.account.until("Stalled", "True", "SecretNotFound").await?;
    let wanted = "create it with the key AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
    ensure!(missing.message.contains(wanted), "{missing:?}");
    world.account.keys(json!({ "AWS_ACCESS_KEY_ID": KEY })).await?;
    eventually("the secret is missed", Duration::from_secs(60), || async {
        let found = world.account.until("Stalled", "True", "SecretNotFound").await;
        let message = found.map_err(|error| error.to_string())?.message;
        match message.contains("no text under the key AWS_SECRET_ACCESS_KEY") {
            true => Ok(()),
            false => Err(message),
        }
    })
    .await?;
    world
        .account
        .keys(json!({ "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": "another" }))
        .await?;
    world.account.until("CredentialsValid", "False", "Unauthorized").await?;
    world
        .account
        .keys(json!({ "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": CANARY }))
        .await?;
    world.account.until("Ready", "True", "Ok").await?;
    let status = world.account.object().await?.status.unwrap_or_default();
    // A type in the three zones of its region, spot and on demand.
    let offers = status.offers.context("offers")?;
    ensure!(offers.count == 6, "{offers:?}");
    ensure!(world.cloud.engine(|engine| engine.machines().is_empty()), "an instance was bought");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn petaflop_run_rents_an_instance_by_a_profile_while_the_environment_is_the_stores()
-> Result<()> {
    let Some(market) = Market::open().await? else { return Ok(()) };
    let folder = TempDir::new()?;
    let quick = Duration::from_millis(300);
    let pace = Pace { provision: quick, start: quick, appear: quick, wind_down: quick, ..PACE };
    let (cloud, mut aws) = ec2::open(&market, &Clock::system(), (KEY, CANARY), pace)?;
    aws["profile"] = json!("buyer");
    let home = folder.path().join("home");
    std::fs::create_dir_all(&home)?;
    let config = json!({
        "rented": {
            "store": "s3://bucket/store", "runtimeImage": IMAGE, "runtime": RUNTIME,
            "agent": market.agent,
        },
        "aws": aws,
    });
    std::fs::write(home.join("config.yaml"), config.to_string())?;
    let credentials = folder.path().join("credentials");
    let buyer = format!("[buyer]\naws_access_key_id={KEY}\naws_secret_access_key={CANARY}\n");
    std::fs::write(&credentials, buyer)?;
    let mut variables: Vec<(&str, String)> = market.store.credentials().into_iter().collect();
    variables.push(("AWS_SHARED_CREDENTIALS_FILE", credentials.display().to_string()));

    let offers = petaflop(&home, &["offers", "--live", "--json"], &variables).await?;
    let offers = offers["offers"].as_array().context("offers")?.len();
    ensure!(offers == 6, "{offers} offers");
    let away = run(&home, "aws", &variables).await?;
    let here = run(&folder.path().join("alone"), "host", &[]).await?;
    ensure!(away["jobs"][0]["artifact"].is_string(), "{away}");
    ensure!(away["jobs"][0]["artifact"] == here["jobs"][0]["artifact"], "{away} {here}");
    let made = cloud.engine(|engine| engine.machines().to_vec());
    ensure!(made.len() == 1 && made[0].life == Life::Terminated, "{made:#?}");
    let costs = petaflop(&home, &["costs", "--json", "--by", "provider"], &variables).await?;
    let booked: f64 = costs["groups"]["aws"].as_str().context("a sum")?.parse()?;
    let invoiced = cloud.engine(|engine| engine.invoice().total());
    eprintln!("booked {booked} dollars, invoiced {invoiced} micro-dollars");
    ensure!(booked > 0.0 && invoiced > 0, "{costs:#}");
    // With an hour's time the spot policy had a say. It says the same again of what was recorded.
    let folder = home.join("jobs/default/tiny");
    let decided: Value = serde_json::from_slice(&std::fs::read(folder.join("decision.json"))?)?;
    ensure!(decided["advice"]["says"] == "spot", "{decided:#}");
    let recorded = folder.join("world.json").display().to_string();
    let again = petaflop(&home, &["explain", "--world", &recorded, "--json"], &[]).await?;
    ensure!(again["decision"] == decided, "{again:#}\n{decided:#}");
    Ok(())
}
