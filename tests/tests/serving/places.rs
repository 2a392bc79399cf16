//! A service whose replicas are at three places: on machines of the cluster's own network, on a pod of
//! RunPod in a box, reached at the port that it maps, and on an instance of EC2 in a box. All machines are
//! real ones.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use kube::ResourceExt;
use petaflop_agent_api::clock::Clock;
use petaflop_cloud_box::engine::machine::Machine;
use petaflop_cloud_box::engine::{Engine, Pace};
use petaflop_cloud_box::{ec2, runpod};
use petaflop_crds::{ComputeProvider, InferenceServiceStatus, TrainingJob};
use petaflop_fake_provider::{FakeProvider, Manners};
use petaflop_operator::cluster::providers::MakeProvider;
use petaflop_providers::{Provider, ProviderError};
use serde_json::json;

use crate::market::account::{self, Account};
use crate::market::time::Ticking;
use crate::market::{Market, ec2 as instances};
use crate::operator::{Cluster, is, tiny};
use crate::serving::{Chat, Kubelet, Says};

/// Of the account at RunPod; key and secret of the one at AWS.
const POD_KEY: &str = "rpa_of_the_account";
const KEY: (&str, &str) = ("AKIABUYER", "of-the-account");
const SOON: Duration = Duration::from_secs(240);

/// The clouds that ship, and the cluster's own machines.
struct Everywhere {
    clouds: Arc<dyn MakeProvider>,
    own: Arc<dyn Provider>,
}

impl MakeProvider for Everywhere {
    fn make(&self, object: &ComputeProvider) -> Result<Arc<dyn Provider>, ProviderError> {
        match object.name_any() == self.own.name() {
            true => Ok(self.own.clone()),
            false => self.clouds.make(object),
        }
    }
}

/// What bills of a cloud now.
fn held(engine: &mut Engine) -> Vec<Machine> {
    engine.machines().iter().filter(|machine| machine.holds_units()).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_at_three_places_answer_through_one_gateway_and_a_place_that_is_lost_costs_no_request()
-> Result<()> {
    let Some(market) = Market::open().await? else { return Ok(()) };
    // Whole seconds, as AWS tells them.
    let clock = Clock::manual(Timestamp::from_second(Timestamp::now().as_second())?);
    let cluster = Cluster::start_with("serves-all", clock.clone(), None).await?;
    let manners = Manners { boot: Duration::from_millis(300), ..Manners::aws() };
    let own = FakeProvider::new(&cluster.provider, cluster.cloud.address(), manners, clock.clone());
    let runpod = market.runpod(clock.clone(), POD_KEY, runpod::PACE)?;
    let pace = Pace { wind_down: Duration::ZERO, ..ec2::PACE };
    let (ec2, aws) = instances::open(&market, &clock, KEY, pace)?;
    let ticking = Ticking::start(clock);
    // Each sells one machine at once.
    let one = json!({ "machines": 1 });
    let pods = account::runpod(&runpod.url());
    let pods = Account::limited(&cluster, "runpod", &pods, one.clone()).await?;
    pods.keys(json!({ "RUNPOD_API_KEY": POD_KEY })).await?;
    let aws = Account::limited(&cluster, "aws", &aws, one).await?;
    aws.keys(json!({ "AWS_ACCESS_KEY_ID": KEY.0, "AWS_SECRET_ACCESS_KEY": KEY.1 })).await?;
    let clouds = ticking.make(&cluster, &[&pods.name, &aws.name], &market.agent).await?;
    let make = Arc::new(Everywhere { clouds, own: Arc::new(own) });
    // What was trained at one place is served at all of them: they reach a bucket.
    let change = account::with_bucket(&market, "s3://bucket/store");
    let running = cluster.operator_making(make, change).await?;
    let mut job = tiny("train")?;
    let recipe = job.spec.recipe.as_mut().context("a recipe")?;
    recipe.datasets[0].path = "builtin:petaflop".to_owned();
    job.spec.placement.providers = vec![pods.name.clone()];
    (job.spec.deadline, job.spec.max_total_cost) = (None, None);
    cluster.create(&job).await?;
    let complete = |job: &TrainingJob| {
        job.status.as_ref().is_some_and(|status| is(&status.conditions, "Complete"))
    };
    cluster.until("train", "Complete", SOON, complete).await?;

    let kubelet = Kubelet::start(&cluster).await?;
    // Of each place a machine, though one of them is the cheapest: they come one after the other.
    let places = [&pods.name, &aws.name, &cluster.provider];
    let spec = json!({
        "model": { "trainingJob": "train" },
        "placement": { "providers": places[..1] },
    });
    cluster.serve("chat", spec).await?;
    let with =
        |count| move |s: &InferenceServiceStatus| s.is("Ready") && s.available_replicas == count;
    cluster.until_service("chat", "at one place", SOON, with(1)).await?;
    for count in 2..=3 {
        let grown = json!({ "spec": {
            "replicas": count,
            "placement": { "providers": places[..count] },
        }});
        cluster.change("chat", grown).await?;
        let what = format!("at {count} places");
        cluster.until_service("chat", &what, SOON, with(u32::try_from(count)?)).await?;
    }
    let (pod, instance) = (runpod.engine(held), ec2.engine(held));
    let ours = cluster.cloud.billed_now().len();
    ensure!((pod.len(), instance.len(), ours) == (1, 1, 1), "{ours} {pod:#?} {instance:#?}");
    let gateway = kubelet.gateway("chat").await?;
    let said = Chat::ask(&gateway).await?;
    ensure!(said.code == 200 && said.body.contains("\"choices\""), "{said:?}");

    // One place after the other is gone without a word: the others answer, and its replica comes again.
    let load = Chat::keep_asking(&gateway);
    let whole = |times: u32| {
        move |s: &InferenceServiceStatus| with(3)(s) && s.interruptions + s.restarts == times
    };
    runpod.engine(|engine| engine.evict(&pod[0].id, None))?;
    cluster.until_service("chat", "whole again", SOON, whole(1)).await?;
    ec2.engine(|engine| engine.evict(&instance[0].id, None))?;
    cluster.until_service("chat", "whole once more", SOON, whole(2)).await?;
    let asked = load.stop().await?;
    ensure!(asked.failed.is_empty() && asked.answered > 10, "{asked:?}");

    cluster.delete_service("chat").await?;
    cluster.until_service_gone("chat").await?;
    cluster.until_no_claims().await?;
    cluster.quiet(&running).await?;
    for engine in [runpod.engine(|engine| engine.invoice()), ec2.engine(|engine| engine.invoice())]
    {
        ensure!(engine.open().is_empty(), "{engine:?}");
    }
    ensure!(cluster.cloud.billed_now().is_empty(), "{:?}", cluster.cloud.billed_now());
    Ok(())
}
