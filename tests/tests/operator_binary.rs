//! The program that the chart starts, as a process against a real API server: it begins, works,
//! ends when it is told to, and is killed and goes on. Its machines are Pods on nodes that KWOK
//! pretends.

mod operator;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use operator::{install, is, tiny};
use petaflop_crds::{ComputeClaim, ComputeProvider, TrainingJob};
use petaflop_harness::kwok::{FakeNode, Kwok};
use petaflop_harness::{Access, Component, ControlPlane, Launch, Namespace, eventually};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

const SOON: Duration = Duration::from_secs(90);

/// A namespace, a node and a ComputeProvider of one test.
struct World {
    plane: &'static ControlPlane,
    client: Client,
    namespace: Namespace,
    test: &'static str,
    folder: tempfile::TempDir,
}

impl World {
    async fn new(test: &'static str) -> Result<Self> {
        static KWOK: OnceCell<Kwok> = OnceCell::const_new();
        let plane = ControlPlane::shared().await;
        let client = plane.client().await?;
        install(&client).await?;
        let kwok = KWOK.get_or_try_init(|| Kwok::start(plane)).await?;
        kwok.node(&FakeNode::new(test, 8, "32Gi").labels([("test", test)])).await?;
        let namespace = plane.namespace(test).await?;
        let folder = tempfile::tempdir()?;
        Ok(Self { plane, client, namespace, test, folder })
    }

    /// A ComputeProvider of this test alone.
    async fn provide(&self, spec: Value) -> Result<()> {
        let providers: Api<ComputeProvider> = Api::all(self.client.clone());
        let object = serde_json::from_value(json!({
            "apiVersion": "petaflop.dev/v1alpha1",
            "kind": "ComputeProvider",
            "metadata": { "name": self.test, "labels": { "test": self.test } },
            "spec": spec,
        }))?;
        providers.create(&PostParams::default(), &object).await?;
        Ok(())
    }

    /// What the chart's Deployment says, for this test's namespace and provider.
    fn launch(&self, access: &Access) -> Result<Launch> {
        let store = self.folder.path().join("store");
        Ok(Launch::new(petaflop_tests::binary("petaflop")?)
            .argument("operator")
            .arguments([
                format!("--store-uri=file://{}", store.display()),
                format!("--provider-labels=test={}", self.test),
                format!("--http-address=127.0.0.1:{}", free_port()?),
            ])
            .arguments(["--agent-image=localhost/agent:1", "--runtime-image=localhost/runtime:1"])
            .argument("--leader-elect")
            .environment("KUBECONFIG", access.kubeconfig().display().to_string())
            .environment("POD_NAMESPACE", self.namespace.name())
            .environment("POD_NAME", format!("{}-0", self.test))
            .environment("PETAFLOP_WATCH_NAMESPACES", self.namespace.name())
            .environment("PETAFLOP_LOG", "info"))
    }

    fn start(&self) -> Result<Component> {
        Ok(self.plane.run(self.test, self.launch(self.plane.admin())?)?)
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), self.namespace.name())
    }

    async fn all<K>(&self) -> Result<Vec<K>>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        Ok(self.api::<K>().list(&ListParams::default()).await?.items)
    }

    /// The provider, once its status is so.
    async fn provider(
        &self,
        program: &Component,
        what: &str,
        so: impl Fn(&ComputeProvider) -> bool,
    ) -> Result<ComputeProvider> {
        let providers: Api<ComputeProvider> = Api::all(self.client.clone());
        let what = format!("{} {what}", self.test);
        let found = eventually(&what, SOON, || async {
            let object = providers.get(self.test).await.map_err(|e| e.to_string())?;
            match so(&object) {
                true => Ok(object),
                false => Err(format!("{:?}\n{}", object.status, program.log_tail())),
            }
        });
        Ok(found.await?)
    }

    async fn holder(&self) -> Result<Option<String>> {
        let lease = self.api::<Lease>().get_opt("petaflop-operator").await?;
        Ok(lease.and_then(|lease| lease.spec).and_then(|spec| spec.holder_identity))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let (client, name) = (self.client.clone(), self.test);
        tokio::spawn(async move {
            let api: Api<ComputeProvider> = Api::all(client);
            let _ = api.delete(name, &DeleteParams::default()).await;
        });
    }
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn conditions(
    object: &ComputeProvider,
) -> &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition] {
    object.status.as_ref().map_or(&[], |status| &status.conditions)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_offers_nodes_survives_a_kill_and_gives_its_lease_back() -> Result<()> {
    let world = World::new("begins").await?;
    world
        .provide(json!({
            "nodes": { "selector": { "test": "begins" } },
            "allowedNamespaces": [world.namespace.name()],
        }))
        .await?;
    let program = world.start()?;
    world.provider(&program, "is Ready", |object| is(conditions(object), "Ready")).await?;

    // A job gets a machine: a claim, and one Pod on the only node there is for it.
    world.api::<TrainingJob>().create(&PostParams::default(), &tiny("tiny")?).await?;
    let pod = eventually("a Pod runs", SOON, || async {
        let pods = world.all::<Pod>().await.map_err(|e| e.to_string())?;
        let runs =
            |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
        pods.into_iter().find(runs).ok_or_else(|| program.log_tail())
    })
    .await?;
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    ensure!(node == Some("begins"), "{node:?}");

    // Killed, and another one in its place: the same claim, the same Pod, no other.
    let first = world.holder().await?.context("somebody leads")?;
    program.kill();
    program.restart()?;
    eventually("another leads", SOON, || async {
        match world.holder().await.map_err(|e| e.to_string())? {
            Some(holder) if holder != first => Ok(()),
            other => Err(format!("{other:?}\n{}", program.log_tail())),
        }
    })
    .await?;
    let claims = world.all::<ComputeClaim>().await?;
    ensure!(claims.len() == 1, "{claims:#?}");
    world.api::<TrainingJob>().delete("tiny", &DeleteParams::default()).await?;
    eventually("nothing is left", SOON, || async {
        let pods = world.all::<Pod>().await.map_err(|e| e.to_string())?;
        if let Some(other) = pods.iter().find(|p| p.uid() != pod.uid()) {
            return Err(format!("another Pod: {}", other.name_any()));
        }
        let claims = world.all::<ComputeClaim>().await.map_err(|e| e.to_string())?;
        let jobs = world.all::<TrainingJob>().await.map_err(|e| e.to_string())?;
        match pods.len() + claims.len() + jobs.len() {
            0 => Ok(()),
            _ => Err(format!("{:?}\n{}", claims.first().map(|c| &c.status), program.log_tail())),
        }
    })
    .await?;

    // Told to end, it leaves the Lease to whoever comes next.
    program.stop(Duration::from_secs(30));
    ensure!(world.holder().await?.is_none(), "{:?}", world.holder().await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_cannot_be_had_here_is_stalled_and_says_what_to_change() -> Result<()> {
    let world = World::new("stalls").await?;
    world.provide(json!({ "host": {} })).await?;
    let program = world.start()?;
    let object =
        world.provider(&program, "is Stalled", |object| is(conditions(object), "Stalled")).await?;
    let stalled = conditions(&object).iter().find(|c| c.type_ == "Stalled").context("Stalled")?;
    ensure!(stalled.reason == "ProviderUnavailable", "{stalled:?}");
    ensure!(stalled.message.contains("nodes: {}"), "{stalled:?}");
    Ok(())
}
