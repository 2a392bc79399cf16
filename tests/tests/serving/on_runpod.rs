//! A service whose replicas are at two places: on machines of the cluster's own network, and rented from
//! RunPod in a box, whose pods are real machines, reached at the port that it maps.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use petaflop_agent_api::clock::Clock;
use petaflop_agent_api::task;
use petaflop_cloud_box::runpod::PACE;
use petaflop_crds::{ComputeProvider, InferenceServiceStatus, TrainingJob};
use petaflop_fake_provider::{FakeProvider, Manners};
use petaflop_operator::cluster::providers::MakeProvider;
use petaflop_operator::cluster::settings::Settings;
use petaflop_providers::{Provider, ProviderError};
use serde_json::json;

use crate::market::Market;
use crate::market::time::Ticking;
use crate::operator::{Cluster, is, tiny};
use crate::serving::{Chat, Kubelet, Says};

const KEY: &str = "rpa_of_the_account";
const SOON: Duration = Duration::from_secs(240);

/// RunPod and the cluster's own machines.
struct Both {
    runpod: Arc<dyn MakeProvider>,
    own: Arc<dyn Provider>,
}

impl MakeProvider for Both {
    fn make(&self, object: &ComputeProvider) -> Result<Arc<dyn Provider>, ProviderError> {
        match object.name_any() == self.own.name() {
            true => Ok(self.own.clone()),
            false => self.runpod.make(object),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_at_two_places_answer_through_one_gateway_and_a_place_that_is_lost_costs_no_request()
-> Result<()> {
    let Some(market) = Market::open().await? else { return Ok(()) };
    let clock = Clock::manual(jiff::Timestamp::now());
    let cluster = Cluster::start_with("serves-both", clock.clone(), None).await?;
    let manners = Manners { boot: Duration::from_millis(300), ..Manners::aws() };
    let own = FakeProvider::new(&cluster.provider, cluster.cloud.address(), manners, clock.clone());
    let runpod = market.runpod(clock.clone(), KEY, PACE)?;
    let ticking = Ticking::start(clock);
    let provider = provide(&cluster, &runpod.url()).await?;
    // What was trained here is served there: both sides reach a bucket.
    let credentials: Vec<_> = market.store.credentials().into_iter().collect();
    let rented = ticking.make(&cluster, &[&provider], &market.agent).await?;
    let make = Both { runpod: rented, own: Arc::new(own) };
    let change = |settings: &mut Settings| {
        settings.store.uri = "s3://bucket/store".to_owned();
        let secrets = credentials.into_iter();
        settings.store.credentials =
            secrets.map(|(name, value)| (name.to_owned(), task::Secret::new(value))).collect();
    };
    let running = cluster.operator_making(Arc::new(make), change).await?;
    let mut job = tiny("train")?;
    let recipe = job.spec.recipe.as_mut().context("a recipe")?;
    recipe.datasets[0].path = "builtin:petaflop".to_owned();
    job.spec.placement.providers = vec![provider.clone()];
    (job.spec.deadline, job.spec.max_total_cost) = (None, None);
    cluster.create(&job).await?;
    let complete = |job: &TrainingJob| {
        job.status.as_ref().is_some_and(|status| is(&status.conditions, "Complete"))
    };
    cluster.until("train", "Complete", SOON, complete).await?;

    let kubelet = Kubelet::start(&cluster).await?;
    let spec = json!({
        "model": { "trainingJob": "train" },
        "placement": { "providers": [provider] },
    });
    cluster.serve("chat", spec).await?;
    let with = |count: u32| {
        move |s: &InferenceServiceStatus| s.is("Ready") && s.available_replicas == count
    };
    cluster.until_service("chat", "there", SOON, with(1)).await?;
    let pods = || runpod.engine(|engine| engine.machines().to_vec());
    let serving = || {
        pods().into_iter().filter(|pod| {
            let identity = pod.order.boot.environment.get("PETAFLOP_IDENTITY");
            pod.ended.is_none() && identity.is_some_and(|whose| whose.contains("/infs-chat-"))
        })
    };
    ensure!(serving().count() == 1 && cluster.cloud.created() == 0, "{:#?}", pods());
    let gateway = kubelet.gateway("chat").await?;
    let said = Chat::ask(&gateway).await?;
    ensure!(said.code == 200 && said.body.contains("\"choices\""), "{said:?}");

    // No more can be had at RunPod: the second replica is the cluster's own.
    let both = json!({ "spec": {
        "replicas": 2,
        "placement": { "providers": [provider, cluster.provider] },
    }});
    cluster.change("chat", both).await?;
    cluster.until_service("chat", "at two places", SOON, with(2)).await?;
    ensure!(serving().count() == 1 && cluster.cloud.billed_now().len() == 1, "{:#?}", pods());

    // A place is gone without a word: the other one answers, and the replica comes again.
    let load = Chat::keep_asking(&gateway);
    let lost = serving().next().context("a pod")?;
    runpod.engine(|engine| engine.evict(&lost.id, None))?;
    cluster
        .until_service("chat", "whole again", SOON, |s| {
            with(2)(s) && s.interruptions + s.restarts == 1
        })
        .await?;
    let asked = load.stop().await?;
    ensure!(asked.failed.is_empty() && asked.answered > 10, "{asked:?}");

    cluster.delete_service("chat").await?;
    cluster.until_service_gone("chat").await?;
    cluster.until_no_claims().await?;
    cluster.quiet(&running).await?;
    let open = runpod.engine(|engine| engine.invoice().open().len());
    ensure!(open == 0, "{:?}", runpod.engine(|engine| engine.invoice()));
    ensure!(cluster.cloud.billed_now().is_empty(), "{:?}", cluster.cloud.billed_now());
    let providers: Api<ComputeProvider> = Api::all(cluster.client.clone());
    providers.delete(&provider, &DeleteParams::default()).await?;
    Ok(())
}

/// RunPod as a ComputeProvider of one machine at once, its key in a Secret.
async fn provide(cluster: &Cluster, url: &str) -> Result<String> {
    let namespace = &cluster.namespace;
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
    let secret = serde_json::from_value(json!({
        "metadata": { "name": "runpod" }, "stringData": { "RUNPOD_API_KEY": KEY },
    }))?;
    secrets.create(&PostParams::default(), &secret).await?;
    let name = format!("runpod-{namespace}");
    let object = serde_json::from_value(json!({
        "apiVersion": "petaflop.dev/v1alpha1", "kind": "ComputeProvider",
        "metadata": { "name": name, "labels": { "test": namespace } },
        "spec": {
            "runpod": { "apiBaseUrl": url, "acceleratorCounts": [1], "vcpuCounts": [2] },
            "credentialsSecretRef": { "name": "runpod" },
            "allowedNamespaces": [namespace],
            "limits": { "machines": 1 },
        },
    }))?;
    let providers: Api<ComputeProvider> = Api::all(cluster.client.clone());
    providers.create(&PostParams::default(), &object).await?;
    Ok(name)
}
