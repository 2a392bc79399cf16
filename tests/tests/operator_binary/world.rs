//! A namespace, a node that KWOK pretends and a ComputeProvider of one test; the program with the
//! rights that the chart gives it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use petaflop_crds::{ComputeClaim, ComputeProvider, TrainingJob};
use petaflop_harness::kwok::{FakeNode, Kwok};
use petaflop_harness::{
    Access, Component, ControlPlane, Launch, Namespace, Writes, eventually, tools,
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::operator::{install, tiny};
use crate::support::{chart, documents, helm};

/// How long anything may take on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// A node for each test that has machines, by its name.
const NODES: [&str; 10] = [
    "begins", "stalls", "two", "audited", "lapsed", "guarded", "taken", "filled", "killed", "stop",
];

/// What one test works with.
pub(crate) struct World {
    pub(crate) plane: &'static ControlPlane,
    /// All-powerful.
    pub(crate) client: Client,
    /// The operator's own.
    pub(crate) namespace: Namespace,
    /// Name of the test, of its node, of its ComputeProvider.
    pub(crate) test: &'static str,
    /// Namespaces that it works for.
    pub(crate) watched: Vec<String>,
    /// Where the operator answers by HTTP.
    pub(crate) http: SocketAddr,
    writes: Writes,
    folder: tempfile::TempDir,
}

/// The service accounts and roles of the chart, and nothing else of it.
pub(crate) fn roles(
    plane: &ControlPlane,
    namespace: &str,
    fullname: &str,
    watched: &[String],
) -> Result<()> {
    let text = helm(["template", namespace, "--namespace", namespace], |helm| {
        helm.arg(chart("petaflop")).args([
            "--set",
            &format!("fullnameOverride={fullname},store.uri=s3://b/p"),
            "--set",
            &format!("watchNamespaces={{{}}}", watched.join(",")),
        ])
    })?;
    let kinds = ["ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"];
    let objects: Vec<Value> = documents(&text)?
        .into_iter()
        .filter(|object| kinds.iter().any(|kind| object["kind"] == **kind))
        .collect();
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("roles.json");
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    std::fs::write(&file, list.to_string())?;
    let output = Command::new(tools::kubectl()?)
        .arg(format!("--kubeconfig={}", plane.admin().kubeconfig().display()))
        .args(["apply", "--server-side", "--filename"])
        .arg(&file)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// No service account of a namespace was refused anything for want of rights.
pub(crate) async fn nothing_refused(writes: &Writes, namespace: &str) -> Result<()> {
    let ours = format!("system:serviceaccount:{namespace}:");
    let mut refused = writes.refused().await?;
    refused.retain(|request| request.user.starts_with(&ours));
    ensure!(refused.is_empty(), "{refused:#?}");
    Ok(())
}

/// Where the program of a test answers, also after it was started anew: on a loopback address that no
/// other socket has. A port of 127.0.0.1 that was free once may be somebody's by then.
fn own_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    SocketAddr::from(([127, 64 | high & 63, low, NEXT.fetch_add(1, Ordering::Relaxed)], 8080))
}

impl World {
    /// A fresh one, whose operator works for its own namespace.
    pub(crate) async fn new(test: &'static str) -> Result<Self> {
        let plane = ControlPlane::shared().await;
        let namespace = plane.namespace(test).await?;
        let watched = vec![namespace.name().to_owned()];
        Self::within(plane, test, namespace, watched).await
    }

    /// One whose operator works for these namespaces.
    pub(crate) async fn within(
        plane: &'static ControlPlane,
        test: &'static str,
        namespace: Namespace,
        watched: Vec<String>,
    ) -> Result<Self> {
        static KWOK: OnceCell<Kwok> = OnceCell::const_new();
        let client = plane.client().await?;
        install(&client).await?;
        // All nodes at once: KWOK's client lives as long as the test that starts it.
        KWOK.get_or_try_init(async || {
            let kwok = Kwok::start(plane).await?;
            for name in NODES {
                kwok.node(&FakeNode::new(name, 8, "32Gi").labels([("test", name)])).await?;
            }
            anyhow::Ok(kwok)
        })
        .await?;
        ensure!(NODES.contains(&test), "no node is called {test}");
        Self::over(plane, test, namespace, watched).await
    }

    /// One on servers of the test's own, which know our kinds, with a node of the test's name.
    pub(crate) async fn over(
        plane: &'static ControlPlane,
        test: &'static str,
        namespace: Namespace,
        watched: Vec<String>,
    ) -> Result<Self> {
        let client = plane.client().await?;
        let folder = tempfile::tempdir()?;
        let writes = plane.writes().await?;
        let http = own_address();
        let world = Self { http, plane, client, namespace, test, watched, writes, folder };
        roles(plane, world.namespace.name(), test, &world.watched)?;
        Ok(world)
    }

    /// One of the chart's service accounts: the operator's own has no suffix.
    pub(crate) async fn account(&self, suffix: &str) -> Result<Access> {
        let name = format!("{}{suffix}", self.test);
        Ok(self.plane.service_account(self.namespace.name(), &name).await?)
    }

    /// Objects of a kind that were ever created by this test's operator. Where it was killed while it asked,
    /// the server may answer nobody with an error and have made the object: whatever was written to
    /// afterwards was there.
    pub(crate) async fn created(&self, resource: &str) -> Result<usize> {
        let ours = format!("system:serviceaccount:{}:{}", self.namespace.name(), self.test);
        let mut asked: BTreeMap<String, (usize, bool)> = BTreeMap::new();
        for write in self.writes.all().await? {
            let object = &write.object;
            if object.resource != resource || object.namespace != self.namespace.name() {
                continue;
            }
            if write.verb == "create" && object.subresource.is_empty() {
                if write.user == ours {
                    let (taken, _) = asked.entry(object.name.clone()).or_default();
                    *taken += usize::from(write.was_taken());
                }
            } else if write.was_taken()
                && let Some((_, there)) = asked.get_mut(&object.name)
            {
                *there = true;
            }
        }
        Ok(asked.into_values().map(|(taken, there)| taken.max(usize::from(there))).sum())
    }

    /// A folder of this test on this host.
    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Nobody of this test was refused anything for want of rights.
    pub(crate) async fn nothing_refused(&self) -> Result<()> {
        nothing_refused(&self.writes, self.namespace.name()).await
    }

    /// A ComputeProvider of this test alone: its node.
    pub(crate) async fn provide_nodes(&self) -> Result<()> {
        self.provide(json!({
            "nodes": { "selector": { "test": self.test } }, "allowedNamespaces": ["*"],
        }))
        .await
    }

    /// A ComputeProvider of this test alone.
    pub(crate) async fn provide(&self, spec: Value) -> Result<()> {
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

    /// A folder of this test.
    pub(crate) fn uri(&self, name: &str) -> String {
        format!("file://{}", self.folder.path().join(name).display())
    }

    /// The operator as the chart's Deployment starts it, with its rights.
    pub(crate) async fn start(&self) -> Result<Component> {
        self.start_with(["--leader-elect"]).await
    }

    /// One more of the same Deployment.
    pub(crate) async fn start_beside(&self) -> Result<Component> {
        let name = format!("{}-beside", self.test);
        self.start_as(&name, own_address(), ["--leader-elect"]).await
    }

    /// The operator with other words on its command line.
    pub(crate) async fn start_with<const N: usize>(&self, more: [&str; N]) -> Result<Component> {
        self.start_as(self.test, self.http, more).await
    }

    async fn start_as<const N: usize>(
        &self,
        name: &str,
        http: SocketAddr,
        more: [&str; N],
    ) -> Result<Component> {
        let access = self.account("").await?;
        let launch = Launch::new(petaflop_tests::binary("petaflop")?)
            .argument("operator")
            .arguments([
                format!("--store-uri={}", self.uri("store")),
                format!("--provider-labels=test={}", self.test),
                format!("--http-address={http}"),
            ])
            .arguments(["--agent-image=localhost/agent:1", "--runtime-image=localhost/runtime:1"])
            .arguments(more)
            .environment("KUBECONFIG", access.kubeconfig().display().to_string())
            .environment("POD_NAMESPACE", self.namespace.name())
            .environment("POD_NAME", format!("{name}-0"))
            .environment("PETAFLOP_WATCH_NAMESPACES", self.watched.join(","))
            .environment("PETAFLOP_LOG", "info,petaflop_operator=debug");
        Ok(self.plane.run(name, launch)?)
    }

    /// What `helm test` runs, and whether it is content.
    pub(crate) fn selftest(&self) -> Result<Output> {
        Command::new(petaflop_tests::binary("petaflop")?)
            .arg("selftest")
            .env("PETAFLOP_URL", format!("http://{}", self.http))
            .output()
            .context("starting petaflop")
    }

    /// Another command of the program, as one of the chart's service accounts.
    pub(crate) async fn command(&self, suffix: &str, arguments: &[&str]) -> Result<Output> {
        let access = self.account(suffix).await?;
        Command::new(petaflop_tests::binary("petaflop")?)
            .args(arguments)
            .env("KUBECONFIG", access.kubeconfig())
            .env("POD_NAMESPACE", self.namespace.name())
            .env("PETAFLOP_WATCH_NAMESPACES", self.watched.join(","))
            .env("PETAFLOP_LOG", "info")
            .output()
            .context("starting petaflop")
    }

    /// A bill of this test's operator.
    pub(crate) fn ledger(&self) -> Result<Vec<Value>> {
        let mut rows = Vec::new();
        let mut folders = vec![self.folder.path().join("store/ledger")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder)? {
                let path = entry?.path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => rows.push(serde_json::from_slice(&std::fs::read(path)?)?),
                }
            }
        }
        Ok(rows)
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), self.namespace.name())
    }

    pub(crate) async fn all<K>(&self) -> Result<Vec<K>, String>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let list = self.api::<K>().list(&ListParams::default()).await;
        list.map(|list| list.items).map_err(|error| error.to_string())
    }

    /// The provider, once its status is so.
    pub(crate) async fn provider(
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

    /// A job, and the Pod that it gets.
    pub(crate) async fn job_runs(&self, program: &Component, name: &str) -> Result<Pod> {
        self.job_runs_in(program, self.namespace.name(), name).await
    }

    /// A job of one of the namespaces, and the Pod that it gets.
    pub(crate) async fn job_runs_in(
        &self,
        program: &Component,
        namespace: &str,
        name: &str,
    ) -> Result<Pod> {
        let jobs: Api<TrainingJob> = Api::namespaced(self.client.clone(), namespace);
        jobs.create(&PostParams::default(), &tiny(name)?).await?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let owner = format!("petaflop.dev/owner={name}");
        let found = eventually("a Pod runs", SOON, || async {
            let list = pods.list(&ListParams::default().labels(&owner)).await;
            let runs =
                |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
            let found = list.map_err(|e| e.to_string())?.items.into_iter().find(runs);
            found.ok_or_else(|| program.log_tail())
        });
        Ok(found.await?)
    }

    /// Waits until neither jobs nor claims nor Pods are left.
    pub(crate) async fn nothing_left(&self, program: &Component) -> Result<()> {
        let nothing = eventually("nothing is left", SOON, || async {
            let pods = self.all::<Pod>().await?;
            let claims = self.all::<ComputeClaim>().await?;
            let jobs = self.all::<TrainingJob>().await?;
            match pods.len() + claims.len() + jobs.len() {
                0 => Ok(()),
                _ => {
                    let status = claims.first().map(|claim| &claim.status);
                    Err(format!("{status:?}\n{}", program.log_tail()))
                }
            }
        });
        Ok(nothing.await?)
    }

    /// Who holds the Lease.
    pub(crate) async fn holder(&self) -> Result<Option<String>, String> {
        let lease = self.api::<Lease>().get_opt("petaflop-operator").await;
        let lease = lease.map_err(|error| error.to_string())?;
        Ok(lease.and_then(|lease| lease.spec).and_then(|spec| spec.holder_identity))
    }

    /// Makes the Lease say that it was renewed so long ago.
    pub(crate) async fn nobody_led_for(&self, long: SignedDuration) -> Result<()> {
        let spec = json!({ "renewTime": MicroTime(Timestamp::now() - long) });
        let change = Patch::Merge(json!({ "spec": spec }));
        self.api::<Lease>().patch("petaflop-operator", &PatchParams::default(), &change).await?;
        Ok(())
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

/// The conditions of a provider.
pub(crate) fn conditions(object: &ComputeProvider) -> &[Condition] {
    object.status.as_ref().map_or(&[], |status| &status.conditions)
}

/// What a command printed, both ways.
pub(crate) fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}: {}{}", output.status, text(&output.stdout), text(&output.stderr))
}
