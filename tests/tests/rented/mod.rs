//! The operator that ships, as a process of its own on a real API server, and EC2 in a box whose
//! machines are only a state: what is bought is known and billed, and nobody answers there. The cloud
//! is some minutes behind, so that nothing is too young to be ended.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::net::SocketAddr;
use std::process::Output;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use petaflop_agent_api::clock::Clock;
use petaflop_cloud_box::ec2::{Ec2, Setup};
use petaflop_cloud_box::engine::machine::{Life, Machine};
use petaflop_cloud_box::host::StateOnly;
use petaflop_crds::{ComputeClaim, ComputeProvider, TrainingJob};
use petaflop_harness::{Component, ControlPlane, Launch, Namespace, eventually};
use petaflop_tests::binary;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::operator::{install, tiny};
use crate::s3;

/// How long anything may take on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(120);
/// The account's key.
pub(crate) const KEY: &str = "AKIABUYER";
/// The cloud's clock is so far behind.
const BEHIND: SignedDuration = SignedDuration::from_secs(200);

/// An API server, a cloud and a store.
pub(crate) struct World {
    pub(crate) plane: &'static ControlPlane,
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) cloud: Ec2,
    pub(crate) store: s3::Server,
    pub(crate) folder: tempfile::TempDir,
    /// Where the operator answers.
    pub(crate) http: SocketAddr,
    ticking: JoinHandle<()>,
    _namespace: Namespace,
}

/// A loopback address that no other test's operator has.
fn own_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    SocketAddr::from(([127, 64 | high & 63, low, NEXT.fetch_add(1, Ordering::Relaxed)], 8080))
}

impl World {
    /// A fresh one, with an account that this secret opens.
    pub(crate) async fn start(
        name: &str,
        secret: &str,
        change: impl FnOnce(&mut Setup),
    ) -> Result<Self> {
        let plane = ControlPlane::shared().await;
        let client = plane.client().await?;
        install(&client).await?;
        let namespace = plane.namespace(name).await?;
        let clock = Clock::manual(Timestamp::now() - BEHIND);
        let mut setup = Setup::new(clock.clone(), KEY, secret, Box::new(StateOnly::default()));
        setup.pace.wind_down = Duration::from_secs(5);
        change(&mut setup);
        let ticking = tokio::spawn(async move {
            let tick = Duration::from_millis(250);
            loop {
                tokio::time::sleep(tick).await;
                clock.advance(tick);
            }
        });
        Ok(Self {
            plane,
            client,
            cloud: Ec2::start(setup)?,
            store: tokio::task::spawn_blocking(s3::Server::start).await?,
            folder: tempfile::tempdir()?,
            http: own_address(),
            ticking,
            namespace: namespace.name().to_owned(),
            _namespace: namespace,
        })
    }

    /// Its ComputeProvider's name.
    pub(crate) fn provider(&self) -> String {
        format!("aws-{}", self.namespace)
    }

    pub(crate) fn providers(&self) -> Api<ComputeProvider> {
        Api::all(self.client.clone())
    }

    /// A ComputeProvider for these regions, with the keys of a Secret or by the operator's own role.
    pub(crate) async fn provide(&self, regions: &[&str], secret: Option<&str>) -> Result<()> {
        let object = json!({
            "apiVersion": "petaflop.dev/v1alpha1", "kind": "ComputeProvider",
            "metadata": { "name": self.provider(), "labels": { "test": self.namespace } },
            "spec": {
                "aws": {
                    "apiBaseUrl": self.cloud.url(), "regions": named(regions),
                    "instanceTypes": ["c7i.large"],
                },
                "credentialsSecretRef": secret.map(|name| json!({ "name": name })),
                "allowedNamespaces": [self.namespace],
            },
        });
        self.providers().create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        Ok(())
    }

    /// From now on it has these regions.
    pub(crate) async fn moves_to(&self, regions: &[&str]) -> Result<()> {
        let change = Patch::Merge(json!({ "spec": { "aws": { "regions": named(regions) } } }));
        self.providers().patch(&self.provider(), &PatchParams::default(), &change).await?;
        Ok(())
    }

    /// The Secret `aws` holds these.
    pub(crate) async fn keys(&self, keys: Value) -> Result<()> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "aws" },
            "stringData": keys,
        });
        secrets.patch("aws", &PatchParams::apply("test"), &Patch::Apply(&secret)).await?;
        Ok(())
    }

    /// The operator, with more in its environment.
    pub(crate) fn operator(&self, more: &[(&str, String)]) -> Result<Component> {
        let launch = Launch::new(binary("petaflop")?)
            .arguments(["operator", "--store-uri=s3://bucket/store"])
            .arguments([
                format!("--provider-labels=test={}", self.namespace),
                format!("--http-address={}", self.http),
                format!("--agent-sha256={}", "0".repeat(64)),
            ])
            .arguments(["--agent-url=https://example.org/petaflop-agent"])
            .arguments(["--agent-image=localhost/agent:1", "--runtime-image=localhost/runtime:1"])
            .environment("PETAFLOP_LOG", "info,petaflop_operator=debug,petaflop_providers=debug")
            .environment("PETAFLOP_PUBLIC_METRICS", "true");
        let launch = self
            .environment()
            .into_iter()
            .chain(more.iter().cloned())
            .fold(launch, |launch, (name, value)| launch.environment(name, value));
        Ok(self.plane.run(&self.namespace, launch)?)
    }

    /// Another command of the program, with the operator's environment.
    pub(crate) async fn command(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(binary("petaflop")?);
        command.args(arguments).envs(self.environment()).kill_on_drop(true);
        command.output().await.context("starting petaflop")
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let mut all: Vec<(&str, String)> = self.store.credentials().into_iter().collect();
        all.extend([
            ("KUBECONFIG", self.plane.admin().kubeconfig().display().to_string()),
            ("POD_NAMESPACE", self.namespace.clone()),
            ("POD_NAME", "test".to_owned()),
            ("PETAFLOP_WATCH_NAMESPACES", self.namespace.clone()),
        ]);
        all
    }

    pub(crate) fn jobs(&self) -> Api<TrainingJob> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) fn claims(&self) -> Api<ComputeClaim> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// All that was ever bought.
    pub(crate) fn machines(&self) -> Vec<Machine> {
        self.cloud.engine(|engine| engine.machines().to_vec())
    }

    /// A job that goes to this cloud alone, and the machine that is bought for it.
    pub(crate) async fn buys(&self, program: &Component, name: &str) -> Result<Machine> {
        let before = self.machines().len();
        let mut job = tiny(name)?;
        let recipe = job.spec.recipe.as_mut().context("a recipe")?;
        recipe.datasets[0].path = "builtin:petaflop".to_owned();
        job.spec.placement.providers = vec![self.provider()];
        (job.spec.deadline, job.spec.max_total_cost) = (None, None);
        self.jobs().create(&PostParams::default(), &job).await?;
        let bought = eventually("a machine is bought and written down", SOON, || async {
            let machine = self.machines().into_iter().nth(before);
            let runs = machine.filter(|machine| machine.life == Life::Running);
            let claims = self.claims().list(&Default::default()).await;
            let claims = claims.map_err(|error| error.to_string())?.items;
            let known = claims.iter().any(|claim| {
                let id = claim.status.as_ref().and_then(|status| status.provider_id.as_deref());
                runs.as_ref().is_some_and(|one| id.is_some_and(|id| id.ends_with(&one.id)))
            });
            match runs {
                Some(machine) if known => Ok(machine),
                other => Err(format!("{other:?}\n{}", program.log_tail())),
            }
        });
        Ok(bought.await?)
    }

    /// Takes the jobs and claims away as if they had never been, without an operator.
    pub(crate) async fn forget_everything(&self) -> Result<()> {
        let let_go = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
        let (how, now) = (PatchParams::default(), DeleteParams::background());
        for job in self.jobs().list(&Default::default()).await? {
            self.jobs().patch(&job.name_any(), &how, &let_go).await?;
            self.jobs().delete(&job.name_any(), &now).await?;
        }
        for claim in self.claims().list(&Default::default()).await? {
            self.claims().patch(&claim.name_any(), &how, &let_go).await?;
            // The job's removal may have been sooner.
            let _ = self.claims().delete(&claim.name_any(), &now).await;
        }
        let gone = eventually("no claims", SOON, || async {
            let claims = self.claims().list(&Default::default()).await;
            let left = claims.map_err(|error| error.to_string())?.items.len();
            if left == 0 { Ok(()) } else { Err(format!("{left} are left")) }
        });
        Ok(gone.await?)
    }

    /// What bills now.
    pub(crate) fn bills(&self) -> usize {
        self.cloud.engine(|engine| engine.invoice().open().len())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.ticking.abort();
        let (api, name) = (self.providers(), self.provider());
        tokio::spawn(async move {
            let let_go = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
            let _ = api.patch(&name, &PatchParams::default(), &let_go).await;
            let _ = api.delete(&name, &DeleteParams::default()).await;
        });
    }
}

fn named(regions: &[&str]) -> Value {
    regions.iter().map(|name| json!({ "name": name })).collect()
}

/// What a command printed, both ways.
pub(crate) fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}: {}{}", output.status, text(&output.stdout), text(&output.stderr))
}
