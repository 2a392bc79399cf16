//! The operator that ships, a ComputeProvider of AWS and its Secret on a real API server; `petaflop
//! run` without a cluster; and EC2 in a box, whose instances are real machines: they start with
//! production's own user-data, fetch the real agent, and run the real runtime in a container.
//!
//! The operator has AWS with `--features petaflop-operator/aws`.

mod market;
mod operator;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use market::log::Log;
use market::time::Ticking;
use market::{IMAGE, Market, RUNTIME};
use operator::{Cluster, is, tiny};
use petaflop_agent_api::clock::Clock;
use petaflop_agent_api::task;
use petaflop_cloud_box::ec2::{Ec2, PACE, Setup};
use petaflop_cloud_box::engine::Pace;
use petaflop_cloud_box::engine::machine::Life;
use petaflop_crds::{ComputeProvider, TrainingJob};
use petaflop_harness::eventually;
use petaflop_operator::cluster::operate::Running;
use petaflop_tests::binary;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The account's key, and what nobody else may see.
const KEY: &str = "AKIABUYER";
const CANARY: &str = "aws-canary-of-the-account";
const REGION: &str = "us-east-2";

/// EC2 on real machines, and `aws:` of whoever buys there.
fn open(market: &Market, clock: &Clock, pace: Pace) -> Result<(Ec2, Value)> {
    let mut setup = Setup::new(clock.clone(), KEY, CANARY, Box::new(market.machines.clone()));
    setup.listen = (market.machines.provider(), 0).into();
    setup.pace = pace;
    setup.market = Some(market::ec2::steady(clock.now()));
    let cloud = Ec2::start(setup)?;
    let group = cloud.catalog(|catalog| {
        let groups = &catalog.region(REGION)?.groups;
        groups.iter().find(|group| group.name == "petaflop").map(|group| group.id.clone())
    });
    let aws = json!({
        "apiBaseUrl": cloud.url(),
        "regions": [{ "name": REGION, "securityGroups": [group.context("a group")?] }],
        "instanceTypes": ["c7i.large"],
        // Nothing to round: 0.008 $ an hour.
        "diskGb": 73,
        "address": "Private",
    });
    Ok((cloud, aws))
}

/// A cluster, and AWS beside it.
struct World {
    cluster: Cluster,
    cloud: Ec2,
    aws: Value,
    provider: String,
    ticking: Ticking,
    market: Market,
}

impl World {
    async fn start(name: &str) -> Result<Option<Self>> {
        let Some(market) = Market::open().await? else { return Ok(None) };
        // Whole seconds, as AWS tells them.
        let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second())?;
        let clock = Clock::manual(now);
        let cluster = Cluster::start_with(name, clock.clone(), None).await?;
        // Its disk, which AWS bills while an instance shuts down and the ledger does not, goes at once.
        let pace = Pace { wind_down: Duration::ZERO, ..PACE };
        let (cloud, aws) = open(&market, &clock, pace)?;
        let provider = format!("aws-{}", cluster.namespace);
        let ticking = Ticking::start(clock);
        // A host has twenty minutes to come up, and is started by a busy machine.
        ticking.every(100);
        let world = Self { cluster, cloud, aws, provider, ticking, market };
        world.provide().await?;
        Ok(Some(world))
    }

    fn providers(&self) -> Api<ComputeProvider> {
        Api::all(self.cluster.client.clone())
    }

    async fn provide(&self) -> Result<()> {
        let namespace = &self.cluster.namespace;
        let object = json!({
            "apiVersion": "petaflop.dev/v1alpha1", "kind": "ComputeProvider",
            "metadata": { "name": self.provider, "labels": { "test": namespace } },
            "spec": {
                "aws": self.aws,
                "credentialsSecretRef": { "name": "aws" },
                "allowedNamespaces": [namespace],
            },
        });
        let object = serde_json::from_value(object)?;
        self.providers().create(&PostParams::default(), &object).await?;
        Ok(())
    }

    /// The Secret holds this.
    async fn keys(&self, keys: Value) -> Result<()> {
        let secrets: Api<Secret> =
            Api::namespaced(self.cluster.client.clone(), &self.cluster.namespace);
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "aws" },
            "stringData": keys,
        });
        let by = PatchParams::apply("test");
        secrets.patch("aws", &by, &Patch::Apply(&secret)).await?;
        Ok(())
    }

    async fn operator(&self) -> Result<Running> {
        let make = self.ticking.make(&self.cluster, &[&self.provider], &self.market.agent).await?;
        let credentials = self.market.store.credentials().into_iter();
        let credentials =
            credentials.map(|(name, value)| (name.to_owned(), task::Secret::new(value)));
        let change = |settings: &mut petaflop_operator::cluster::settings::Settings| {
            settings.public_metrics = true;
            settings.runtime = RUNTIME.to_owned();
            settings.store.uri = "s3://bucket/store".to_owned();
            settings.store.credentials = credentials.collect();
        };
        self.cluster.operator_making(make, change).await
    }

    /// What the instances wrote to their consoles.
    fn consoles(&self) -> String {
        let made = self.cloud.engine(|engine| engine.machines().to_vec());
        let console = |id: &str| format!("{id}: {}", self.market.machines.log(id));
        made.iter().map(|instance| console(&instance.id)).collect::<Vec<_>>().join("\n")
    }

    /// Waits until the provider's condition is so.
    async fn until(&self, type_: &str, status: &str, reason: &str) -> Result<Condition> {
        let what = format!("{type_} is {status}, {reason}");
        let found = eventually(&what, Duration::from_secs(60), || async {
            let object = self.providers().get(&self.provider).await;
            let conditions = object.map_err(|error| error.to_string())?.status.unwrap_or_default();
            let mut conditions = conditions.conditions.into_iter();
            match conditions.find(|c| c.type_ == type_) {
                Some(found) if found.status == status && found.reason == reason => Ok(found),
                other => Err(format!("{other:?}")),
            }
        });
        Ok(found.await?)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let (api, name) = (self.providers(), self.provider.clone());
        tokio::spawn(async move {
            let _ = api.delete(&name, &DeleteParams::default()).await;
        });
    }
}

/// `tiny`, of the text that is in the runtime, on AWS alone. It asks for no accelerator.
fn job(world: &World, name: &str) -> Result<TrainingJob> {
    let mut job = tiny(name)?;
    let recipe = job.spec.recipe.as_mut().context("a recipe")?;
    recipe.datasets[0].path = "builtin:petaflop".to_owned();
    job.spec.placement.providers = vec![world.provider.clone()];
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
    world.keys(keys).await?;
    let running = world.operator().await?;
    world.until("Ready", "True", "Ok").await?;
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
    let provider = world.providers().get(&world.provider).await?;
    let events = [cluster.events("away").await?, cluster.events(&world.provider).await?].concat();
    let rows = cluster.rows().await?;
    let objects = serde_json::to_string(&json!([claims, job, provider, events, rows]))?;
    let log = String::from_utf8_lossy(&log.0.lock().expect("a log")).into_owned();
    let console = world.market.machines.log(&instance.id);
    ensure!(metrics.contains(&world.provider) && !log.is_empty(), "looked at nothing");
    ensure!(console.contains("petaflop"), "{console}");
    for text in [&metrics, &objects, &log, &script, &console] {
        ensure!(!text.contains(CANARY), "the account's secret is told: {text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_count_as_soon_as_their_secret_has_them_and_what_is_missing_is_said() -> Result<()> {
    let Some(world) = World::start("aws-keys").await? else { return Ok(()) };
    let _running = world.operator().await?;
    let missing = world.until("Stalled", "True", "SecretNotFound").await?;
    let wanted = "create it with the key AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
    ensure!(missing.message.contains(wanted), "{missing:?}");
    world.keys(json!({ "AWS_ACCESS_KEY_ID": KEY })).await?;
    eventually("the secret is missed", Duration::from_secs(60), || async {
        let found = world.until("Stalled", "True", "SecretNotFound").await;
        let message = found.map_err(|error| error.to_string())?.message;
        match message.contains("no text under the key AWS_SECRET_ACCESS_KEY") {
            true => Ok(()),
            false => Err(message),
        }
    })
    .await?;
    world.keys(json!({ "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": "another" })).await?;
    world.until("CredentialsValid", "False", "Unauthorized").await?;
    world.keys(json!({ "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": CANARY })).await?;
    world.until("Ready", "True", "Ok").await?;
    let status = world.providers().get(&world.provider).await?.status.unwrap_or_default();
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
    let (cloud, mut aws) = open(&market, &Clock::system(), pace)?;
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
    Ok(())
}
