//! A cluster for one test of the operator: a namespace of the shared API server, a cloud in a box
//! whose machines run real agents, and an operator in this process.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use object_store::local::LocalFileSystem;
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::ledger::Row;
use petaflop_crds::{ComputeClaim, ComputeProvider, TrainingJob};
use petaflop_fake_provider::agent::AgentRunner;
use petaflop_fake_provider::cloud::{Setup, small_offer};
use petaflop_fake_provider::{Cloud, FakeProvider, Manners};
use petaflop_harness::{Access, ControlPlane, Namespace, eventually};
use petaflop_operator::cluster::operate::{Parts, Running, start};
use petaflop_operator::cluster::providers::MakeProvider;
use petaflop_operator::cluster::settings::{Settings, StoreAt};
use petaflop_operator::ledger::Ledger;
use petaflop_providers::{Provider, ProviderError};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::sync::OnceCell;

/// The operator as a library, its cloud and its namespace.
pub(crate) struct Cluster {
    /// The servers that all tests share.
    pub(crate) plane: &'static ControlPlane,
    /// All-powerful.
    pub(crate) client: Client,
    /// Of this test, for its jobs and for the operator's own objects.
    pub(crate) namespace: String,
    /// Where machines are bought.
    pub(crate) cloud: Cloud,
    /// Tells operator and machines the time.
    pub(crate) clock: Clock,
    /// Its ComputeProvider.
    pub(crate) provider: String,
    _namespace: Namespace,
    folder: tempfile::TempDir,
}

/// Whatever the object says, it is this cloud.
struct Make {
    name: String,
    address: std::net::SocketAddr,
    manners: Manners,
    clock: Clock,
}

impl MakeProvider for Make {
    fn make(&self, object: &ComputeProvider) -> Result<Arc<dyn Provider>, ProviderError> {
        let name = object.name_any();
        if name != self.name {
            // Another test's.
            let detail = format!("{name} is not of this test");
            return Err(ProviderError::Misconfigured { provider: name, detail });
        }
        Ok(Arc::new(FakeProvider::new(&name, self.address, self.manners, self.clock.clone())))
    }
}

impl Cluster {
    /// A fresh one on the machine's own clock. `name` is the test's.
    pub(crate) async fn start(name: &str) -> Result<Self> {
        Self::start_with(name, Clock::system(), None).await
    }

    /// One on another clock, or with other agents on its machines than the real ones.
    pub(crate) async fn start_with(
        name: &str,
        clock: Clock,
        agent: Option<AgentRunner>,
    ) -> Result<Self> {
        let plane = ControlPlane::shared().await;
        let client = plane.client().await?;
        install(&client).await?;
        let namespace = plane.namespace(name).await?;
        let folder = tempfile::tempdir()?;
        let manners = Manners { boot: Duration::from_millis(300), ..Manners::aws() };
        let cloud = Cloud::start(Setup {
            manners,
            clock: clock.clone(),
            offers: vec![small_offer(&format!("cloud-{}", namespace.name()), "0.40".parse()?)],
            agent: agent.unwrap_or_else(|| {
                petaflop_fake_provider::real::real(&folder.path().join("machines"))
            }),
            bill: folder.path().join("bill"),
        })?;
        let cluster = Self {
            plane,
            client,
            namespace: namespace.name().to_owned(),
            cloud,
            clock,
            provider: format!("cloud-{}", namespace.name()),
            _namespace: namespace,
            folder,
        };
        cluster.provide().await?;
        Ok(cluster)
    }

    /// Where artifacts and checkpoints go.
    pub(crate) fn store(&self) -> String {
        self.folder.path().join("store").display().to_string()
    }

    /// The machines' folders.
    pub(crate) fn machines(&self) -> std::path::PathBuf {
        self.folder.path().join("machines")
    }

    /// Lets whatever trains on its machines rest, so that it is not over before something happens.
    pub(crate) fn at_rest(&self) -> Result<AtRest> {
        let found = trainers(&self.machines())?;
        ensure!(!found.is_empty(), "nothing trains, or it is over already");
        found.iter().try_for_each(|pid| kill_process(*pid, Signal::STOP))?;
        Ok(AtRest(found))
    }

    /// The operator, in this process.
    pub(crate) async fn operator(&self) -> Result<Running> {
        self.operator_as(self.plane.admin()).await
    }

    /// The operator with somebody's rights.
    pub(crate) async fn operator_as(&self, access: &Access) -> Result<Running> {
        self.start_operator(access, |_| {}).await
    }

    /// The operator with other settings.
    pub(crate) async fn operator_with(
        &self,
        change: impl FnOnce(&mut Settings),
    ) -> Result<Running> {
        self.start_operator(self.plane.admin(), change).await
    }

    /// The operator with other settings and other providers.
    pub(crate) async fn operator_making(
        &self,
        make: Arc<dyn MakeProvider>,
        change: impl FnOnce(&mut Settings),
    ) -> Result<Running> {
        self.start_making(self.plane.admin(), make, change).await
    }

    async fn start_operator(
        &self,
        access: &Access,
        change: impl FnOnce(&mut Settings),
    ) -> Result<Running> {
        let make = Make {
            name: self.provider.clone(),
            address: self.cloud.address(),
            manners: Manners { boot: Duration::from_millis(300), ..Manners::aws() },
            clock: self.clock.clone(),
        };
        self.start_making(access, Arc::new(make), change).await
    }

    async fn start_making(
        &self,
        access: &Access,
        make: Arc<dyn MakeProvider>,
        change: impl FnOnce(&mut Settings),
    ) -> Result<Running> {
        let ledger = self.ledger()?;
        let mut config = access.config().await?;
        config.default_retry = false;
        let mut settings = Settings {
            namespace: self.namespace.clone(),
            replica: "test".into(),
            watch_namespaces: vec![self.namespace.clone()],
            provider_labels: Some(format!("test={}", self.namespace)),
            store: StoreAt { uri: self.store(), ..StoreAt::default() },
            ledger: StoreAt { uri: String::new(), ..StoreAt::default() },
            agent_image: "localhost/petaflop-agent:test".into(),
            agent_download: None,
            agent_arm_download: None,
            agent_calls: None,
            runtime_image: "localhost/petaflop-runtime:test".into(),
            runtime: petaflop_tests::binary("petaflop-runtime")?.display().to_string(),
            lease: petaflop_operator::agents::LEASE,
            http_address: ([127, 0, 0, 1], 0).into(),
            public_metrics: false,
            gateway_image: "localhost/petaflop:test".into(),
            service_account: "petaflop".into(),
            secret_reader: "petaflop-secret-reader".into(),
            record_worlds: None,
            leader_elect: false,
        };
        change(&mut settings);
        let parts =
            Parts { client: Client::try_from(config)?, clock: self.clock.clone(), ledger, make };
        Ok(start(settings, parts).await?)
    }

    fn ledger(&self) -> Result<Ledger> {
        let folder = self.folder.path().join("ledger");
        std::fs::create_dir_all(&folder)?;
        let objects = LocalFileSystem::new_with_prefix(&folder)?.with_fsync(true);
        Ok(Ledger::over(Arc::new(objects), folder.display().to_string()))
    }

    /// The rows of the ledger.
    pub(crate) async fn rows(&self) -> Result<Vec<Row>> {
        Ok(self.ledger()?.rows().await?)
    }

    /// Reasons of the events about objects of this name, and what they say, oldest first.
    pub(crate) async fn events(&self, name: &str) -> Result<Vec<(String, String)>> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut events = api.list(&ListParams::default()).await?.items;
        events.retain(|event| {
            event.regarding.as_ref().is_some_and(|object| object.name.as_deref() == Some(name))
        });
        events.sort_by_key(|event| event.event_time.as_ref().map(|at| at.0));
        let said =
            |event: Event| (event.reason.unwrap_or_default(), event.note.unwrap_or_default());
        Ok(events.into_iter().map(said).collect())
    }

    /// Micro-dollars in the ledger.
    pub(crate) async fn booked(&self) -> Result<i64> {
        Ok(self.ledger()?.rows().await?.iter().map(|row| row.amount.micros()).sum())
    }

    async fn provide(&self) -> Result<()> {
        let api: Api<ComputeProvider> = Api::all(self.client.clone());
        let object = serde_json::from_value(json!({
            "apiVersion": "petaflop.dev/v1alpha1",
            "kind": "ComputeProvider",
            "metadata": { "name": self.provider, "labels": { "test": self.namespace } },
            "spec": { "nodes": {}, "allowedNamespaces": [self.namespace] },
        }))?;
        api.create(&PostParams::default(), &object).await?;
        Ok(())
    }

    fn jobs(&self) -> Api<TrainingJob> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates a job.
    pub(crate) async fn create(&self, job: &TrainingJob) -> Result<()> {
        self.jobs().create(&PostParams::default(), job).await?;
        Ok(())
    }

    /// Asks for a job's removal.
    pub(crate) async fn delete(&self, name: &str) -> Result<()> {
        self.jobs().delete(name, &DeleteParams::background()).await?;
        Ok(())
    }

    /// A job as it is now.
    pub(crate) async fn job(&self, name: &str) -> Result<TrainingJob> {
        Ok(self.jobs().get(name).await?)
    }

    /// The claims that there are.
    pub(crate) async fn claims(&self) -> Result<Vec<ComputeClaim>> {
        let api: Api<ComputeClaim> = Api::namespaced(self.client.clone(), &self.namespace);
        Ok(api.list(&ListParams::default()).await?.items)
    }

    /// Waits until a job is so.
    pub(crate) async fn until(
        &self,
        name: &str,
        what: &str,
        within: Duration,
        is: impl Fn(&TrainingJob) -> bool,
    ) -> Result<TrainingJob> {
        let what = format!("{name} is {what}");
        let found = eventually(&what, within, || async {
            let job = self.jobs().get(name).await.map_err(|error| error.to_string())?;
            match is(&job) {
                true => Ok(job),
                false => Err(format!("status: {:?}", job.status)),
            }
        });
        Ok(found.await?)
    }

    /// Waits until a job is gone.
    pub(crate) async fn until_gone(&self, name: &str) -> Result<()> {
        let what = format!("{name} is gone");
        let gone = eventually(&what, Duration::from_secs(60), || async {
            match self.jobs().get_opt(name).await.map_err(|error| error.to_string())? {
                None => Ok(()),
                Some(job) => Err(format!("finalizers: {:?}", job.finalizers())),
            }
        });
        Ok(gone.await?)
    }

    /// Waits until there are no claims.
    pub(crate) async fn until_no_claims(&self) -> Result<()> {
        let none = eventually("no claims", Duration::from_secs(60), || async {
            let claims = self.claims().await.map_err(|error| error.to_string())?;
            match claims.is_empty() {
                true => Ok(()),
                false => Err(format!("{:?}", claims[0].status)),
            }
        });
        Ok(none.await?)
    }

    /// Waits until the operator has nothing left to do soon.
    pub(crate) async fn quiet(&self, running: &Running) -> Result<()> {
        let quiet = eventually("a quiet operator", Duration::from_secs(60), || async {
            let soon = Duration::from_secs(10);
            let queues = &running.queues;
            let quiet = [&queues.jobs, &queues.services, &queues.claims];
            match quiet.iter().all(|queue| queue.is_quiet(soon)) {
                true => Ok(()),
                false => Err("something waits for its turn".to_owned()),
            }
        });
        Ok(quiet.await?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The provider is of the whole cluster; the namespace removes itself.
        let (client, name) = (self.client.clone(), self.provider.clone());
        tokio::spawn(async move {
            let api: Api<ComputeProvider> = Api::all(client);
            let _ = api.delete(&name, &DeleteParams::default()).await;
        });
    }
}

/// Our kinds on the server that all tests share, once.
pub(crate) async fn install(client: &Client) -> Result<()> {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    INSTALLED.get_or_try_init(|| define(client)).await.map(drop)
}

/// Our kinds, on a server that does not know them.
pub(crate) async fn define(client: &Client) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in petaflop_crds::crds::all() {
        api.create(&PostParams::default(), &crd).await?;
    }
    // Each is served in its own time; these two are asked for first.
    let claims: Api<ComputeClaim> = Api::all(client.clone());
    let providers: Api<ComputeProvider> = Api::all(client.clone());
    eventually("our kinds are served", Duration::from_secs(30), || async {
        let all = ListParams::default();
        let lists = tokio::try_join!(claims.list(&all), providers.list(&all));
        lists.map(drop).map_err(|error| error.to_string())
    })
    .await?;
    Ok(())
}

/// `examples/tiny.yaml`, its data by absolute path: outside of a manifest's folder there is no other.
pub(crate) fn tiny(name: &str) -> Result<TrainingJob> {
    let text = include_str!("../../../examples/tiny.yaml");
    let mut job: TrainingJob = serde_saphyr::from_str(text)?;
    let license = Path::new(env!("CARGO_MANIFEST_DIR")).join("../LICENSE").canonicalize()?;
    job.metadata.name = Some(name.to_owned());
    let recipe = job.spec.recipe.as_mut().context("a recipe")?;
    recipe.datasets[0].path = format!("file://{}", license.display());
    Ok(job)
}

/// Whether a condition is true.
pub(crate) fn is(conditions: &[Condition], type_: &str) -> bool {
    conditions.iter().any(|c| c.type_ == type_ && c.status == "True")
}

/// Processes that train on a cluster's machines.
fn trainers(machines: &Path) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else { continue };
        let at = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        let argv = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if at.starts_with(machines) && String::from_utf8_lossy(&argv).contains("train") {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Processes that train and were told to rest.
pub(crate) struct AtRest(Vec<Pid>);

impl AtRest {
    /// They go on.
    pub(crate) fn go_on(self) -> Result<()> {
        Ok(self.0.iter().try_for_each(|pid| kill_process(*pid, Signal::CONT))?)
    }
}
