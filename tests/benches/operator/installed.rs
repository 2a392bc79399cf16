//! One installation: the shipped program as a process, started as the chart does and with the
//! chart's rights, for one namespace with its jobs; and a node that KWOK pretends.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use kube::api::{ListParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use petaflop_crds::{ComputeClaim, ComputeProvider, TrainingJob};
use petaflop_harness::kwok::{FakeNode, Kwok};
use petaflop_harness::{Component, ControlPlane, Launch, Namespace, eventually};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::operator::install;
use crate::world::roles;

/// Requests of ours that are under way at once: as many as the operator has of claims.
pub(crate) const AT_ONCE: usize = 16;
/// How long anything may take.
pub(crate) const GENEROUS: Duration = Duration::from_secs(900);

/// One installation.
pub(crate) struct Installed {
    pub(crate) plane: &'static ControlPlane,
    pub(crate) client: Client,
    pub(crate) namespace: Namespace,
    /// Its name, and its node's and its provider's.
    pub(crate) name: &'static str,
    petaflop: PathBuf,
    folder: tempfile::TempDir,
}

impl Installed {
    /// Everything but the process.
    pub(crate) async fn new(name: &'static str, petaflop: &Path) -> Result<Self> {
        static KWOK: OnceCell<Kwok> = OnceCell::const_new();
        let plane = ControlPlane::shared().await;
        let client = plane.client().await?;
        install(&client).await?;
        let namespace = plane.namespace(name).await?;
        roles(plane, namespace.name(), name, &[namespace.name().to_owned()])?;
        let kwok = KWOK.get_or_try_init(|| Kwok::start(plane)).await?;
        let node = FakeNode::new(name, 4096, "16Ti").resource("pods", 4096);
        kwok.node(&node.labels([("test", name)])).await?;
        let providers: Api<ComputeProvider> = Api::all(client.clone());
        let provider = serde_json::from_value(json!({
            "apiVersion": "petaflop.dev/v1alpha1",
            "kind": "ComputeProvider",
            "metadata": { "name": name, "labels": { "test": name } },
            "spec": { "nodes": { "selector": { "test": name } }, "allowedNamespaces": ["*"] },
        }))?;
        providers.create(&PostParams::default(), &provider).await?;
        let folder = tempfile::tempdir()?;
        Ok(Self { plane, client, namespace, name, petaflop: petaflop.to_owned(), folder })
    }

    /// Who the operator is, in the audit log.
    pub(crate) fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace.name(), self.name)
    }

    /// The operator.
    pub(crate) async fn start(&self) -> Result<Component> {
        let access = self.plane.service_account(self.namespace.name(), self.name).await?;
        let launch = Launch::new(&self.petaflop)
            .argument("operator")
            .arguments([
                format!("--store-uri=file://{}", self.folder.path().join("store").display()),
                format!("--provider-labels=test={}", self.name),
            ])
            .arguments(["--agent-image=localhost/agent:1", "--runtime-image=localhost/runtime:1"])
            .arguments(["--http-address=127.0.0.1:0", "--leader-elect"])
            .environment("KUBECONFIG", access.kubeconfig().display().to_string())
            .environment("POD_NAMESPACE", self.namespace.name())
            .environment("POD_NAME", format!("{}-0", self.name))
            .environment("PETAFLOP_WATCH_NAMESPACES", self.namespace.name())
            // As its image has it: operator/Containerfile.
            .environment("_RJEM_MALLOC_CONF", "narenas:1");
        Ok(self.plane.run(self.name, launch)?)
    }

    /// Objects of its namespace.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), self.namespace.name())
    }

    /// Waits until so many of its jobs are so.
    pub(crate) async fn until_jobs(
        &self,
        count: usize,
        what: &str,
        so: impl Fn(&TrainingJob) -> bool,
    ) -> Result<()> {
        until(&self.api::<TrainingJob>(), count, what, so).await
    }

    /// Waits until it has exactly so many claims.
    pub(crate) async fn until_claims(&self, count: usize) -> Result<()> {
        let api = self.api::<ComputeClaim>();
        let what = format!("{count} claims");
        let there = eventually(&what, GENEROUS, || async {
            let found = all(&api).await.map_err(|error| error.to_string())?.len();
            // Asking costs the server too.
            match found == count {
                true => Ok(()),
                false => {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    Err(format!("{found}"))
                }
            }
        });
        Ok(there.await?)
    }
}

async fn until<K>(api: &Api<K>, count: usize, what: &str, so: impl Fn(&K) -> bool) -> Result<()>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    let what = format!("{count} are {what}");
    let there = eventually(&what, GENEROUS, || async {
        let found = all(api).await.map_err(|error| error.to_string())?;
        let found = found.iter().filter(|object| so(object)).count();
        match found >= count {
            true => Ok(()),
            false => {
                tokio::time::sleep(Duration::from_millis(500)).await;
                Err(format!("{found}"))
            }
        }
    });
    Ok(there.await?)
}

/// All objects, from the server's cache.
pub(crate) async fn all<K>(api: &Api<K>) -> Result<Vec<K>>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    Ok(api.list(&ListParams::default().match_any()).await?.items)
}

/// Creates objects side by side from bytes that are ready, so that only the server is measured.
/// What it answers is in the order of the answers.
pub(crate) async fn create(
    client: &Client,
    path: &str,
    bodies: Vec<Vec<u8>>,
) -> Result<Vec<String>> {
    futures::stream::iter(bodies)
        .map(|body| async {
            let request = http::Request::post(path).header("content-type", "application/json");
            anyhow::Ok(client.request_text(request.body(body)?).await?)
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// Where objects of ours are created.
pub(crate) fn path(namespace: &str, resource: &str) -> String {
    format!("/apis/petaflop.dev/v1alpha1/namespaces/{namespace}/{resource}")
}

/// A job as somebody applies it.
pub(crate) fn job(name: &str) -> Result<Value> {
    let job = serde_json::to_value(crate::operator::tiny(name)?)?;
    ensure!(job["metadata"]["name"] == *name, "{job}");
    Ok(job)
}

/// The id of a process that runs.
pub(crate) fn pid(program: &Component) -> Result<u32> {
    program.must_be_up()?;
    program.pid().context("it runs")
}
