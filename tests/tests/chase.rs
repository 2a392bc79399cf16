//! The chase: a job that is driven from place to place. It starts in the cheapest zone of EC2, on a
//! spot instance, which is taken away with two minutes' notice; goes on at RunPod Community, which
//! has become cheaper meanwhile, on a host that dies without a word; and finishes where it is
//! cheapest then. The clouds are in a box, all else is real: control plane, operator, client
//! libraries, machines, what they boot with, agent, runtime, store.

mod market;
mod operator;

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use market::time::Ticking;
use market::{Market, RUNTIME};
use operator::{Cluster, is, tiny};
use petaflop_agent_api::clock::Clock;
use petaflop_agent_api::task;
use petaflop_arbiter::ledger::Row;
use petaflop_cloud_box::ec2::{self, Ec2};
use petaflop_cloud_box::engine::machine::{Life, Machine, Why};
use petaflop_cloud_box::engine::product::Product;
use petaflop_cloud_box::engine::series::{Series, Source};
use petaflop_cloud_box::engine::{Engine, Pace};
use petaflop_cloud_box::runpod::{self, RunPod};
use petaflop_crds::{ComputeProvider, TrainingJob};
use petaflop_harness::eventually;
use petaflop_operator::cluster::operate::Running;
use petaflop_providers::host::process;
use petaflop_tests::binary;
use serde_json::{Value, json};
use tokio::process::Command;

/// Of a step that somebody else's machine has to take.
const LONG: Duration = Duration::from_secs(240);
/// Long enough to be interrupted twice.
const STEPS: u32 = 120;
const REGION: &str = "us-east-2";
const KIND: &str = "c7i.large";
/// Key and secret of both accounts; the store's too, which one environment holds for all.
const KEY: (&str, &str) = ("access", "secret-canary");

/// The zones of EC2, the cheapest one first, and micro-dollars an hour there.
const ZONES: [(&str, i64); 3] = [("use2-az1", 36_000), ("use2-az2", 79_200), ("use2-az3", 86_400)];
/// What a host at RunPod Community costs, once there is one; all else there is dear.
const COMMUNITY: i64 = 7_200;
const DEAR: i64 = 7_200_000;
const COMMUNITY_KIND: &str = "NVIDIA GeForce RTX 4090";

/// The two clouds on the same machines.
struct Clouds {
    market: Market,
    ec2: Ec2,
    runpod: RunPod,
}

impl Clouds {
    async fn open(clock: &Clock) -> Result<Option<Self>> {
        let Some(market) = Market::open().await? else { return Ok(None) };
        let host = Box::new(market.machines.clone());
        let mut setup = ec2::Setup::new(clock.clone(), KEY.0, KEY.1, host);
        setup.listen = (market.machines.provider(), 0).into();
        setup.market = Some(market::ec2::steady(clock.now()));
        // The ledger begins with the launch, and ends with the shutdown; it knows of no minute that
        // is paid at least (docs/money.md).
        setup.rules.billed_once_it_runs = false;
        setup.rules.minimum_seconds = 0;
        setup.pace = Pace { wind_down: Duration::ZERO, ..ec2::PACE };
        let ec2 = Ec2::start(setup)?;
        let runpod = market.runpod(clock.clone(), KEY.1, runpod::PACE)?;
        let clouds = Self { market, ec2, runpod };
        clouds.price()?;
        Ok(Some(clouds))
    }

    /// What a machine costs is whole micro-dollars a second, so that no line of an invoice is rounded
    /// but the one of its disk.
    fn price(&self) -> Result<()> {
        for (zone, price) in ZONES {
            let product = self.ec2.product(KIND, zone, true).with_context(|| zone.to_owned())?;
            self.ec2.engine(|engine| engine.set_spot(product, price));
        }
        self.runpod.engine(|engine| {
            let all: Vec<_> =
                engine.products().map(|(id, product)| (id, is_cheap(product))).collect();
            for (id, cheap) in all {
                let price = if cheap { COMMUNITY } else { DEAR };
                let sold = engine.product_mut(id);
                sold.on_demand = price;
                // No discount, as it is these days.
                sold.spot = Some(Series::constant(Source::Made(0), price));
            }
        });
        self.community(0);
        Ok(())
    }

    /// From now on Community has so many hosts in each country.
    fn community(&self, hosts: u32) {
        self.runpod.engine(|engine| {
            let all = engine.products().filter(|(_, product)| is_cheap(product));
            for id in all.map(|(id, _)| id).collect::<Vec<_>>() {
                engine.product_mut(id).capacity = hosts;
            }
        });
    }

    fn instances(&self) -> Vec<Machine> {
        self.ec2.engine(|engine| engine.machines().to_vec())
    }

    fn pods(&self) -> Vec<Machine> {
        self.runpod.engine(|engine| engine.machines().to_vec())
    }

    /// EC2 wants it back in two minutes. Returns once the machine has saved what it had, and is given
    /// back before it is taken.
    async fn take_the_first(&self) -> Result<()> {
        let id = self.instances().first().context("an instance")?.id.clone();
        self.ec2.engine(|engine| engine.evict(&id, Some(ec2::PACE.notice)))?;
        eventually("the first machine is given back", LONG, || async {
            match self.instances().first() {
                Some(first) if matches!(first.life, Life::Ending | Life::Terminated) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await?;
        let instances = self.instances();
        let first = instances.first().context("an instance")?;
        let why = first.leaving.or(first.stopped).map(|(_, why)| why);
        ensure!(matches!(why, Some(Why::User | Why::Process)), "it was taken: {first:?}");
        Ok(())
    }

    /// The pod's host dies, and nobody has another of the kind.
    fn kill_the_second(&self) -> Result<()> {
        let pods = self.pods();
        let pod = pods.first().context("a pod")?;
        ensure!(pod.life == Life::Running, "{pod:?}");
        self.community(0);
        self.market.machines.kill(&pod.id);
        Ok(())
    }

    /// What was bought, what bills, and where: exactly what was planned.
    fn all_went_as_planned(&self) -> Result<()> {
        let (instances, pods) = (self.instances(), self.pods());
        ensure!(instances.len() == 2 && pods.len() == 1, "{instances:#?} {pods:#?}");
        let zones: Vec<_> = self.ec2.engine(|engine| {
            let zone = |machine: &Machine| engine.product(machine.order.product).zone.clone();
            instances.iter().filter_map(zone).collect()
        });
        ensure!(zones.first().is_some_and(|zone| zone == ZONES[0].0), "{zones:?}");
        let pool = self.runpod.engine(|engine| engine.product(pods[0].order.product).pool.clone());
        ensure!(pool == "COMMUNITY", "{pool}");
        for bills in [bills(&self.ec2), bills_of_pods(&self.runpod)] {
            ensure!(bills.is_empty(), "{bills:?} still bill");
        }
        Ok(())
    }

    /// Nothing runs on any machine: one that is given back has its grace to end in.
    async fn all_are_gone(&self) -> Result<()> {
        for machine in self.instances().iter().chain(&self.pods()) {
            eventually("nothing runs on a machine", LONG, || async {
                let log = || self.market.machines.log(&machine.id);
                self.market.machines.exit(&machine.id).ok_or_else(log)
            })
            .await?;
        }
        Ok(())
    }

    /// Each machine's rows against its lines. `seconds`: how far the two may look at a machine's life
    /// apart.
    fn is_booked(&self, rows: &[Row], seconds: i64) -> Result<()> {
        let (instances, pods) = (self.instances(), self.pods());
        let of_instances = self.ec2.engine(|engine| lines(engine, &instances));
        let of_pods = self.runpod.engine(|engine| lines(engine, &pods));
        for (provider, machines, invoiced) in
            [("aws", instances, of_instances), ("runpod", pods, of_pods)]
        {
            let claims = claims(rows, provider);
            ensure!(claims.len() == machines.len(), "{claims:#?} {machines:#?}");
            for ((machine, invoiced), claim) in machines.iter().zip(invoiced).zip(claims) {
                let booked: i64 = claim.iter().map(|row| row.amount.micros()).sum();
                let (first, last) = (claim[0], claim[claim.len() - 1]);
                // AWS tells when it was asked to end one, and not when one ended by itself: then it
                // is booked until that was noticed.
                let untold = machine.stopped.filter(|(_, why)| *why == Why::Process);
                let untold = untold.filter(|_| provider == "aws").map_or(0, |(at, _)| {
                    first.rate.for_millis(last.to.duration_since(at).as_millis() as i64).micros()
                });
                let within = first.rate.for_millis(seconds * 1000).micros();
                let within = if untold > 0 { within.max(1) } else { within };
                eprintln!(
                    "{provider} {}: booked {booked}, invoiced {invoiced}, untold {untold}",
                    machine.id
                );
                ensure!(
                    booked > 0 && (booked - untold - invoiced).abs() <= within,
                    "booked {booked}, invoiced {invoiced}, untold {untold}: {claim:#?} {machine:#?}"
                );
            }
        }
        Ok(())
    }
}

fn is_cheap(product: &Product) -> bool {
    product.kind == COMMUNITY_KIND && product.pool == "COMMUNITY"
}

/// Of each machine, what its lines and those of its disk come to. Machines are in order of purchase,
/// and so are disks, of which each has one.
fn lines(engine: &Engine, machines: &[Machine]) -> Vec<i64> {
    let sums = engine.invoice().by_machine();
    let sum = |id: &str| sums.get(id).copied().unwrap_or_default();
    let disks = engine.disks();
    let disk = |place: usize| disks.get(place).map_or(0, |disk| sum(&disk.id));
    machines.iter().enumerate().map(|(place, one)| sum(&one.id) + disk(place)).collect()
}

fn bills(ec2: &Ec2) -> Vec<String> {
    ec2.engine(|engine| engine.invoice().open().into_iter().map(str::to_owned).collect())
}

fn bills_of_pods(runpod: &RunPod) -> Vec<String> {
    runpod.engine(|engine| engine.invoice().open().into_iter().map(str::to_owned).collect())
}

/// The rows of each claim at a provider whose name begins so, in order of time.
fn claims<'a>(rows: &'a [Row], provider: &str) -> Vec<Vec<&'a Row>> {
    let mut claims: Vec<Vec<&Row>> = Vec::new();
    let mut rows: Vec<&Row> =
        rows.iter().filter(|row| row.provider.starts_with(provider)).collect();
    rows.sort_by(|a, b| (a.from, &a.key).cmp(&(b.from, &b.key)));
    for row in rows {
        match claims.iter_mut().find(|claim| claim[0].claim_uid == row.claim_uid) {
            Some(claim) => claim.push(row),
            None => claims.push(vec![row]),
        }
    }
    claims
}

/// What the same job gives on this machine, undisturbed.
async fn undisturbed() -> Result<String> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("job.yaml");
    fs::write(&file, manifest("[host]")?)?;
    let output = petaflop(&folder.path().join("home"))?
        .args(["run", "--json", "-f"])
        .arg(&file)
        .output()
        .await?;
    let value = result(&output)?;
    Ok(value["artifact"].as_str().context("an artifact")?.to_owned())
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

/// `tiny`, longer, of the text that is in the runtime.
fn manifest(providers: &str) -> Result<String> {
    let tiny = include_str!("../../examples/tiny.yaml");
    let job = tiny.replace("../LICENSE", "builtin:petaflop");
    let job = job.replace("max_steps: 20", &format!("max_steps: {STEPS}"));
    ensure!(job.contains("builtin:") && job.contains(&STEPS.to_string()), "another one: {job}");
    Ok(format!("{job}  placement:\n    providers: {providers}\n    allowUntrustedHosts: true\n"))
}

/// A cluster with both clouds.
struct World {
    cluster: Cluster,
    clouds: Clouds,
    ticking: Ticking,
    providers: [String; 2],
}

impl World {
    async fn start() -> Result<Option<Self>> {
        // A whole second: clouds tell no less.
        let clock = Clock::manual(Timestamp::from_second(Timestamp::now().as_second())?);
        let Some(clouds) = Clouds::open(&clock).await? else { return Ok(None) };
        let cluster = Cluster::start_with("chase", clock.clone(), None).await?;
        let providers = ["aws", "runpod"].map(|name| format!("{name}-{}", cluster.namespace));
        let world = Self { ticking: Ticking::start(clock), cluster, clouds, providers };
        world.provide().await?;
        Ok(Some(world))
    }

    async fn provide(&self) -> Result<()> {
        let (client, namespace) = (&self.cluster.client, &self.cluster.namespace);
        let aws = json!({ "aws": {
            "regions": [{ "name": REGION }], "instanceTypes": [KIND], "diskGb": 73,
            "onDemand": false, "address": "Private", "apiBaseUrl": self.clouds.ec2.url(),
        }});
        let runpod = json!({ "runpod": {
            "apiBaseUrl": self.clouds.runpod.url(), "acceleratorCounts": [1], "vcpuCounts": [2],
        }});
        let keys = [
            json!({ "AWS_ACCESS_KEY_ID": KEY.0, "AWS_SECRET_ACCESS_KEY": KEY.1 }),
            json!({ "RUNPOD_API_KEY": KEY.1 }),
        ];
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let objects: Api<ComputeProvider> = Api::all(client.clone());
        for ((name, mut spec), keys) in self.providers.iter().zip([aws, runpod]).zip(keys) {
            let secret = json!({ "metadata": { "name": name }, "stringData": keys });
            secrets.create(&PostParams::default(), &serde_json::from_value(secret)?).await?;
            spec["credentialsSecretRef"] = json!({ "name": name });
            spec["allowedNamespaces"] = json!([namespace]);
            let object = json!({
                "apiVersion": "petaflop.dev/v1alpha1", "kind": "ComputeProvider",
                "metadata": { "name": name, "labels": { "test": namespace } }, "spec": spec,
            });
            objects.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        }
        Ok(())
    }

    async fn operator(&self) -> Result<Running> {
        let names = [self.providers[0].as_str(), &self.providers[1]];
        let agent = &self.clouds.market.agent;
        let make = self.ticking.make(&self.cluster, &names, agent).await?;
        let credentials = self.clouds.market.store.credentials().into_iter();
        let credentials =
            credentials.map(|(name, value)| (name.to_owned(), task::Secret::new(value)));
        let change = |settings: &mut petaflop_operator::cluster::settings::Settings| {
            settings.runtime = RUNTIME.to_owned();
            settings.store.uri = "s3://bucket/store".to_owned();
            settings.store.credentials = credentials.collect();
        };
        self.cluster.operator_making(make, change).await
    }

    fn job(&self) -> Result<TrainingJob> {
        let mut job = tiny("chased")?;
        let recipe = job.spec.recipe.as_mut().context("a recipe")?;
        recipe.datasets[0].path = "builtin:petaflop".to_owned();
        recipe.max_steps = Some(STEPS.into());
        job.spec.placement.providers = self.providers.to_vec();
        job.spec.placement.allow_untrusted_hosts = true;
        // It goes when it must, and not before.
        job.spec.placement.interruption.min_hold_seconds = 86_400;
        (job.spec.deadline, job.spec.max_total_cost) = (None, None);
        Ok(job)
    }

    /// Waits until the job runs for the so-manieth time.
    async fn runs(&self, placement: u32) -> Result<TrainingJob> {
        let what = format!("running in its place {placement}");
        self.cluster
            .until("chased", &what, LONG, |job| {
                job.status.as_ref().is_some_and(|status| {
                    let number = status.placement.as_ref().and_then(|place| place.number);
                    is(&status.conditions, "Running") && number == Some(placement)
                })
            })
            .await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let (client, names) = (self.cluster.client.clone(), self.providers.clone());
        tokio::spawn(async move {
            let api: Api<ComputeProvider> = Api::all(client);
            for name in names {
                let _ = api.delete(&name, &DeleteParams::default()).await;
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_chased_over_three_places_and_ends_with_the_undisturbed_hash() -> Result<()> {
    let Some(world) = World::start().await? else { return Ok(()) };
    let undisturbed = undisturbed().await?;
    let (cluster, clouds) = (&world.cluster, &world.clouds);
    let running = world.operator().await?;
    cluster.create(&world.job()?).await?;

    world.runs(1).await?;
    ensure!(clouds.instances().len() == 1 && clouds.pods().is_empty(), "not the cheapest place");
    // A cheaper place appears, and is known after the next quote.
    clouds.community(9);
    let quoted = cluster.clock.now() + SignedDuration::from_mins(3);
    eventually("new prices", LONG, || async {
        let now = cluster.clock.now();
        (now >= quoted).then_some(()).ok_or_else(|| format!("{now}"))
    })
    .await?;
    // The machine hears of it in its own time: two minutes are two minutes.
    world.ticking.every(1000);
    clouds.take_the_first().await?;
    world.ticking.every(50);

    world.runs(2).await?;
    clouds.kill_the_second()?;

    let job = cluster
        .until("chased", "Complete", LONG, |job| {
            job.status.as_ref().is_some_and(|status| is(&status.conditions, "Complete"))
        })
        .await?;
    let status = job.status.context("a status")?;
    ensure!(status.artifact.as_ref() == Some(&undisturbed), "{status:#?} is not {undisturbed}");
    ensure!(status.interruptions == 2 && status.failures == 0, "{status:#?}");
    cluster.until_no_claims().await?;
    cluster.quiet(&running).await?;

    clouds.all_went_as_planned()?;
    clouds.all_are_gone().await?;
    clouds.is_booked(&cluster.rows().await?, 0)?;
    let cost = cluster.job("chased").await?.status.and_then(|s| s.cost).and_then(|c| c.total);
    ensure!(cost.context("a cost")?.micro_dollars()? == cluster.booked().await?, "its cost");
    let ours = format!("/{}/", cluster.namespace);
    let left = process::members()?.into_iter().filter(|one| one.identity.contains(&ours)).count();
    ensure!(left == 0, "{left} processes of machines are left");
    Ok(())
}
