//! One run: a cloud, a ledger and a clock of its own, an operator that can die and come back, and the
//! loop that moves time on whenever nothing is left to do now.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::DeserializeGuard;
use kube::{Api, Client, ResourceExt};
use object_store::memory::InMemory;
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::ledger::Row;
use petaflop_arbiter::money::UsdPerHour;
use petaflop_crds::scalar::Money;
use petaflop_crds::{ComputeClaim, ComputeProvider, InferenceService, SpendBudget, TrainingJob};
use petaflop_fake_provider::cloud::{Billed, Setup, small_offer};
use petaflop_fake_provider::{Cloud, FakeProvider, Manners, Script, script};
use petaflop_harness::{ControlPlane, Namespace};
use petaflop_operator::cluster::installation;
use petaflop_operator::cluster::leader::LEASE;
use petaflop_operator::cluster::operate::{Parts, Running, start};
use petaflop_operator::cluster::providers::MakeProvider;
use petaflop_operator::cluster::settings::{Settings, StoreAt};
use petaflop_operator::ledger::Ledger;
use petaflop_providers::{Provider, ProviderError};
use petaflop_store::Store;
use serde_json::{Value, json};

use crate::calls::{Calls, Fault, Life, Link, Point};
use crate::layers::{Kept, Sold, client};
use crate::oracles::compare;

/// Nothing happened for this long: time may move on.
const STILL: Duration = Duration::from_millis(4);

/// Real time after which a watch brings nothing any more.
const NOTICED: Duration = Duration::from_secs(2);

/// Real time after which a run counts as stuck, however slow the machine.
const STUCK: Duration = Duration::from_secs(60);

/// Micro-dollars an hour of what the cloud sells: 400 a second.
pub(crate) const PRICE: i64 = 1_440_000;

/// Puts a provider behind another.
type TwistProvider = Arc<dyn Fn(Arc<dyn Provider>) -> Arc<dyn Provider> + Send + Sync>;

/// What an operator is given in place of what it would have: the mutations of the protocol.
#[derive(Clone, Default)]
pub(crate) struct Twist {
    /// Between the operator and its client of the API server.
    pub(crate) client: Option<Arc<dyn Fn(Client) -> Client + Send + Sync>>,
    /// Between the operator and its provider.
    pub(crate) provider: Option<TwistProvider>,
}

/// Where runs take place one after the other: a namespace, and two clients that last.
pub(crate) struct Lane {
    pub(crate) client: Client,
    restricted: Client,
    /// The operator's own.
    pub(crate) namespace: Namespace,
    /// Where its users' objects are: the same, unless a test says otherwise.
    pub(crate) jobs_in: String,
    pub(crate) provider: String,
    folder: tempfile::TempDir,
    runs: u32,
    errors: Errors,
}

/// What was logged as an error.
#[derive(Clone, Default)]
pub(crate) struct Errors(pub(crate) Arc<Mutex<Vec<String>>>);

impl Errors {
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A run.
pub(crate) struct World<'a> {
    pub(crate) lane: &'a Lane,
    pub(crate) cloud: Cloud,
    pub(crate) clock: Clock,
    pub(crate) calls: Calls,
    pub(crate) job: String,
    /// What it works on is a service of this name, and no job.
    pub(crate) serves: bool,
    pub(crate) manners: Manners,
    store: Arc<InMemory>,
    twist: Twist,
    processes: Vec<Process>,
    /// What was seen last, and after how many calls.
    last: Option<(usize, Seen)>,
    /// Since when it goes on, in real time.
    pub(crate) began: Instant,
    /// Most claims that stood at once.
    pub(crate) at_once: u64,
    /// Machines that billed while their claim was not there, each once.
    pub(crate) leaks: Vec<String>,
    /// Machines of others are on the bill.
    pub(crate) foreign: bool,
    /// A claim of which the ledger cannot know all.
    pub(crate) unbooked: Option<String>,
    /// What is booked may reach so far beyond what is billed: nobody could say when a machine ended.
    pub(crate) outlived: Duration,
}

struct Process {
    running: Running,
    life: Life,
    /// Its own clock, and when by the world's it began; `None`: the world's.
    own: Option<(Clock, Duration)>,
}

impl Process {
    fn goes(&self) -> bool {
        self.life.link() != Link::Stopped
    }
}

/// What stands in the cluster and in the cloud now.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) job: Option<TrainingJob>,
    pub(crate) service: Option<InferenceService>,
    pub(crate) claims: Vec<ComputeClaim>,
    pub(crate) billed: Vec<Billed>,
}

impl Seen {
    /// Whether the job is gone, as far as we are concerned: the garbage collector, which knows a kind
    /// only half a minute after it was made, may still hold it.
    pub(crate) fn is_gone(&self) -> bool {
        self.metadata().is_none_or(|meta| {
            let finalizers = meta.finalizers.as_deref().unwrap_or_default();
            meta.deletion_timestamp.is_some()
                && finalizers.iter().all(|name| name == "foregroundDeletion")
        })
    }

    /// Whether the job, or the service, says this of itself.
    pub(crate) fn is(&self, condition: &str) -> bool {
        let job = self.job.as_ref().and_then(|job| job.status.as_ref()).map(|s| &s.conditions);
        let service = self.service.as_ref().and_then(|s| s.status.as_ref()).map(|s| &s.conditions);
        (job.or(service).into_iter().flatten()).any(|c| c.type_ == condition && c.status == "True")
    }

    /// Replicas of the service that answer, by what it says of its spec as it is now.
    pub(crate) fn answer(&self) -> u32 {
        let Some(service) = &self.service else { return 0 };
        let status = service.status.as_ref();
        let status = status.filter(|s| s.observed_generation == service.metadata.generation);
        status.map_or(0, |status| status.available_replicas)
    }

    /// What the job, or the service, has cost by its own words.
    pub(crate) fn cost(&self) -> Option<Money> {
        let job = self.job.as_ref().and_then(|job| job.status.as_ref()?.cost.as_ref());
        let service = self.service.as_ref().and_then(|s| s.status.as_ref()?.cost.as_ref());
        job.or(service)?.total.clone()
    }

    /// Its status.
    pub(crate) fn status(&self) -> Value {
        match &self.service {
            Some(service) => json!(service.status),
            None => json!(self.job.as_ref().map(|job| &job.status)),
        }
    }

    /// What the API server keeps of it.
    pub(crate) fn metadata(&self) -> Option<&ObjectMeta> {
        let job = self.job.as_ref().map(|job| &job.metadata);
        job.or(self.service.as_ref().map(|service| &service.metadata))
    }
}

/// Why time stands still.
enum Pause {
    Quiet,
    Dead,
}

impl Lane {
    pub(crate) async fn new(plane: &ControlPlane, errors: Errors) -> Result<Self> {
        let namespace = plane.namespace("faults").await?;
        let name = namespace.name().to_owned();
        let client = plane.client().await?;
        let user = format!("operator-{name}");
        crate::rights::give(&client, &user, &name).await?;
        let mut config = plane.user(&user, &[])?.config().await?;
        config.default_retry = false;
        Ok(Self {
            client,
            restricted: Client::try_from(config)?,
            provider: format!("cloud-{name}"),
            jobs_in: name,
            namespace,
            folder: tempfile::tempdir()?,
            runs: 0,
            errors,
        })
    }

    /// A fresh world, in which these faults will strike.
    pub(crate) async fn world(
        &mut self,
        job: String,
        manners: Manners,
        lasts: Duration,
        faults: impl IntoIterator<Item = (Point, Fault)>,
        twist: Twist,
    ) -> Result<World<'_>> {
        self.runs += 1;
        self.errors.take();
        let clock = Clock::manual(jiff::Timestamp::now());
        let made = script(Script { lasts, key: "k".repeat(64), end: Ok("a".repeat(64)) });
        let cloud = Cloud::start(Setup {
            manners,
            clock: clock.clone(),
            offers: vec![small_offer(&self.provider, UsdPerHour::from_micros(PRICE)?)],
            agent: made,
            bill: self.folder.path().join(format!("bill-{}", self.runs)),
        })?;
        self.provide().await?;
        Ok(World {
            lane: self,
            cloud,
            calls: Calls::new(clock.clone(), faults),
            clock,
            job,
            serves: false,
            manners,
            store: Arc::default(),
            twist,
            processes: Vec::new(),
            last: None,
            began: Instant::now(),
            at_once: 0,
            leaks: Vec::new(),
            foreign: false,
            unbooked: None,
            outlived: Duration::ZERO,
        })
    }

    /// One world for one test: see [`alone`].
    pub(crate) async fn run(
        &mut self,
        name: &str,
        manners: Manners,
        faults: &[(Point, Fault)],
        twist: Twist,
        test: impl AsyncFnOnce(&mut World) -> Result<()>,
    ) -> Result<()> {
        let lasts = match name {
            // Longer than a lease.
            "c10" => Duration::from_secs(3600),
            _ => Duration::from_secs(340),
        };
        let faults = faults.to_vec();
        let mut world = self.world(name.to_owned(), manners, lasts, faults, twist).await?;
        world.live().await?;
        test(&mut world).await?;
        let wrong = world.wrong().await?;
        ensure!(wrong.is_empty(), "{name}: {wrong:#?}");
        world.end().await
    }

    /// A new installation, and a provider that nobody has seen yet.
    async fn provide(&self) -> Result<()> {
        let gone = |result: Result<_, kube::Error>| match result {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop),
        };
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), self.namespace.name());
        gone(secrets.delete(installation::SECRET, &DeleteParams::default()).await.map(drop))?;
        let providers: Api<ComputeProvider> = Api::all(self.client.clone());
        gone(providers.delete(&self.provider, &DeleteParams::default()).await.map(drop))?;
        self.sell().await
    }

    /// The provider's object.
    pub(crate) async fn sell(&self) -> Result<()> {
        let providers: Api<ComputeProvider> = Api::all(self.client.clone());
        let object = serde_json::from_value(json!({
            "apiVersion": "petaflop.dev/v1alpha1",
            "kind": "ComputeProvider",
            "metadata": { "name": self.provider, "labels": { "test": self.namespace.name() } },
            "spec": { "nodes": {}, "allowedNamespaces": [self.jobs_in] },
        }))?;
        providers.create(&PostParams::default(), &object).await.context("the provider")?;
        Ok(())
    }

    pub(crate) fn jobs(&self) -> Api<TrainingJob> {
        Api::namespaced(self.client.clone(), &self.jobs_in)
    }

    pub(crate) fn services(&self) -> Api<InferenceService> {
        Api::namespaced(self.client.clone(), &self.jobs_in)
    }

    pub(crate) fn claims(&self) -> Api<ComputeClaim> {
        Api::namespaced(self.client.clone(), &self.jobs_in)
    }

    /// Where artifacts lie, for services.
    fn artifacts(&self) -> String {
        self.folder.path().join("store").display().to_string()
    }

    /// A model in the store, as far as the operator looks at it: its shape. Gives its hash.
    async fn model(&self) -> Result<String> {
        let folder = self.folder.path().join("model");
        std::fs::create_dir_all(&folder)?;
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 320,
            "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": true, "attention_bias": false, "torch_dtype": "float32",
        });
        std::fs::write(folder.join("config.json"), config.to_string())?;
        let stored = Store::open(&self.artifacts())?.put_artifact(&folder).await?;
        Ok(stored.hash.to_string())
    }
}

/// One world for one test, its operator started, and what must be true in the end whatever the test did.
pub(crate) fn alone(
    name: &str,
    manners: Manners,
    faults: &[(Point, Fault)],
    test: impl AsyncFnOnce(&mut World) -> Result<()>,
) -> Result<()> {
    by_hand(async |errors| {
        let mut lane = Lane::new(crate::plane().await?, errors).await?;
        lane.run(name, manners, faults, Twist::default(), test).await
    })
}

/// A test on a runtime and with a log of its own.
pub(crate) fn by_hand(test: impl AsyncFnOnce(Errors) -> Result<()>) -> Result<()> {
    let errors = Errors::default();
    let _logged = crate::log_to(&errors);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(test(errors))
}

impl World<'_> {
    /// Creates the job: a small recipe, with what the scenario adds to its spec; or the service.
    pub(crate) async fn create(&mut self, extra: Value) -> Result<()> {
        self.last = None;
        if self.serves {
            return self.serve(extra).await;
        }
        let mut object = json!({
            "apiVersion": "petaflop.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": { "name": self.job },
            "spec": {
                "recipe": {
                    "model": { "dim": 128, "layers": 4, "heads": 4, "vocab": 512 },
                    "datasets": [{ "path": "file:///data/text", "type": "completion" }],
                    "sequence_len": 128, "micro_batch_size": 16, "max_steps": 100,
                    "learning_rate": 0.003, "seed": 42,
                },
                "checkpoint": { "graceSeconds": 20 },
            },
        });
        if let (Some(spec), Some(extra)) = (object["spec"].as_object_mut(), extra.as_object()) {
            spec.extend(extra.clone());
        }
        let job = serde_json::from_value(object)?;
        let job = self.lane.jobs().create(&PostParams::default(), &job).await.context("the job")?;
        self.noticed(job.metadata.generation).await;
        Ok(())
    }

    /// Creates the service: a small model, with what the scenario adds to its spec.
    async fn serve(&mut self, extra: Value) -> Result<()> {
        let mut object = json!({
            "apiVersion": "petaflop.dev/v1alpha1",
            "kind": "InferenceService",
            "metadata": { "name": self.job },
            "spec": { "model": { "artifact": self.lane.model().await? } },
        });
        if let (Some(spec), Some(extra)) = (object["spec"].as_object_mut(), extra.as_object()) {
            spec.extend(extra.clone());
        }
        let service = serde_json::from_value(object)?;
        let services = self.lane.services();
        let service = services.create(&PostParams::default(), &service).await;
        self.noticed(service.context("the service")?.metadata.generation).await;
        Ok(())
    }

    /// Scales the service, as `kubectl scale` does.
    pub(crate) async fn scale(&mut self, replicas: u32) -> Result<()> {
        self.last = None;
        let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
        let services = self.lane.services();
        services.patch_scale(&self.job, &PatchParams::default(), &patch).await?;
        self.noticed(services.get(&self.job).await?.metadata.generation).await;
        Ok(())
    }

    pub(crate) async fn delete(&mut self) -> Result<()> {
        self.last = None;
        self.lane.jobs().delete(&self.job, &DeleteParams::background()).await?;
        Ok(())
    }

    pub(crate) async fn suspend(&mut self, suspend: bool) -> Result<()> {
        self.patch(json!({ "suspend": suspend })).await
    }

    /// Changes the job's spec.
    pub(crate) async fn patch(&mut self, spec: Value) -> Result<()> {
        self.last = None;
        let patch = Patch::Merge(json!({ "spec": spec }));
        let job = self.lane.jobs().patch(&self.job, &PatchParams::default(), &patch).await?;
        self.noticed(job.metadata.generation).await;
        Ok(())
    }

    /// What was written comes by a watch, a moment later: time stands still until it has, wherever it
    /// can come at all.
    async fn noticed(&self, is: Option<i64>) {
        let (namespace, name) = (self.lane.jobs_in.as_str(), &self.job);
        let knows = |process: &Process| {
            let operator = &process.running.operator;
            let known = match self.serves {
                true => operator.service(namespace, name).and_then(|s| s.metadata.generation),
                false => operator.job(namespace, name).and_then(|job| job.metadata.generation),
            };
            known == is || process.life.link() != Link::Open
        };
        let began = Instant::now();
        while !self.calls.is_dead()
            && !self.processes.iter().all(knows)
            && began.elapsed() < NOTICED
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// A budget for the whole namespace, of this many dollars an hour.
    pub(crate) async fn budget(&self, limit: &str) -> Result<()> {
        let api: Api<SpendBudget> =
            Api::namespaced(self.lane.client.clone(), self.lane.namespace.name());
        let budget = serde_json::from_value(json!({
            "apiVersion": "petaflop.dev/v1alpha1",
            "kind": "SpendBudget",
            "metadata": { "name": "all" },
            "spec": { "period": "Monthly", "limit": limit, "onExceeded": "Suspend" },
        }))?;
        api.create(&PostParams::default(), &budget).await.context("the budget")?;
        Ok(())
    }

    /// An operator as a new process would start it.
    async fn start(&self, life: &Life, clock: Clock, leader_elect: bool) -> Result<Running> {
        let lane = self.lane;
        let mut client = client(&lane.restricted, life);
        if let Some(twist) = &self.twist.client {
            client = twist(client);
        }
        let objects = Arc::new(Kept { inner: self.store.clone(), life: life.clone() });
        let settings = Settings {
            namespace: lane.namespace.name().to_owned(),
            replica: "test".into(),
            watch_namespaces: vec![lane.jobs_in.clone()],
            provider_labels: Some(format!("test={}", lane.namespace.name())),
            store: StoreAt {
                uri: if self.serves { lane.artifacts() } else { "/nowhere".into() },
                ..StoreAt::default()
            },
            ledger: StoreAt { uri: String::new(), ..StoreAt::default() },
            agent_image: "agent".into(),
            agent_download: None,
            agent_arm_download: None,
            runtime_image: "runtime".into(),
            runtime: "runtime".into(),
            lease: petaflop_operator::agents::LEASE,
            http_address: ([127, 0, 0, 1], 0).into(),
            public_metrics: true,
            gateway_image: "petaflop".into(),
            service_account: "petaflop".into(),
            secret_reader: "petaflop-secret-reader".into(),
            leader_elect,
        };
        let make = Make {
            name: lane.provider.clone(),
            address: self.cloud.address(),
            manners: self.manners,
            clock: self.clock.clone(),
            life: life.clone(),
            twist: self.twist.clone(),
        };
        let parts = Parts {
            client,
            clock,
            ledger: Ledger::over(objects, "the test's ledger"),
            make: Arc::new(make),
        };
        Ok(start(settings, parts).await?)
    }

    /// Starts a process, and another where that one dies at its start.
    pub(crate) async fn live(&mut self) -> Result<()> {
        self.processes.clear();
        loop {
            let life = self.calls.begin();
            let started = tokio::select! {
                started = self.start(&life, self.clock.clone(), false) => Some(started),
                () = self.calls.died() => None,
            };
            match started {
                Some(Ok(running)) => {
                    self.processes.push(Process { running, life, own: None });
                    return Ok(());
                }
                // It says what is missing and exits; whoever runs it starts it again.
                Some(Err(error)) if self.calls.struck() > 0 => {
                    tracing::warn!(%error, "did not start");
                    self.must_go_on("a start")?;
                }
                Some(Err(error)) => return Err(error),
                None => {}
            }
        }
    }

    /// A second operator beside the one that runs; neither knows of the other.
    pub(crate) async fn live_twice(&mut self) -> Result<()> {
        let life = self.calls.begin();
        self.processes.clear();
        for _ in 0..2 {
            let running = self.start(&life, self.clock.clone(), false).await?;
            self.processes.push(Process { running, life: life.clone(), own: None });
        }
        Ok(())
    }

    /// Two operators of which one leads, each with time of its own: the leader first.
    pub(crate) async fn live_elected(&mut self) -> Result<[Life; 2]> {
        self.processes.clear();
        let first = self.calls.begin();
        let second = self.calls.join();
        for life in [&first, &second] {
            let clock = Clock::manual(self.clock.now());
            let running = self.start(life, clock.clone(), true).await?;
            let own = Some((clock, self.clock.boottime()));
            self.processes.push(Process { running, life: life.clone(), own });
            self.settle().await?;
        }
        Ok([first, second])
    }

    /// A stopped process goes on: what it was about to send is sent before it sees how late it is.
    pub(crate) async fn go_on(&mut self, life: &Life) {
        life.set_link(Link::Open);
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = self.clock.boottime();
        for (clock, since) in self.processes.iter().filter_map(|process| process.own.as_ref()) {
            let behind = now.saturating_sub(*since).saturating_sub(clock.boottime());
            clock.advance(behind);
        }
    }

    /// What the first process answers by HTTP.
    pub(crate) async fn http(&self, path: &str) -> Result<(u16, String)> {
        let address = self.processes.first().context("a process")?.running.http;
        let client = reqwest::Client::builder().no_proxy().build()?;
        let answer = client.get(format!("http://{address}{path}")).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// What becomes of all calls of all processes.
    pub(crate) fn link(&self, link: Link) {
        for process in &self.processes {
            process.life.set_link(link);
        }
    }

    /// How often the Lease has changed hands.
    pub(crate) async fn transitions(&self) -> Result<i32> {
        let leases: Api<Lease> =
            Api::namespaced(self.lane.client.clone(), self.lane.namespace.name());
        let spec = leases.get(LEASE).await?.spec.unwrap_or_default();
        Ok(spec.lease_transitions.unwrap_or(0))
    }

    /// Steps the wall of the process that does not lead.
    pub(crate) fn step_second(&self, step: jiff::SignedDuration) {
        if let Some((clock, _)) = self.processes.get(1).and_then(|one| one.own.as_ref()) {
            clock.step_wall(step);
        }
    }

    /// The process dies, whatever it was doing, and nobody starts another.
    pub(crate) fn die(&mut self) {
        self.calls.begin();
        self.processes.clear();
    }

    /// Lets things happen, and time pass, until it is so.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        mut is: impl FnMut(&Seen) -> bool,
    ) -> Result<Seen> {
        for _ in 0..3000 {
            let seen = self.settle().await?;
            if is(&seen) {
                return Ok(seen);
            }
            self.move_on().await?;
        }
        let seen = self.look().await?;
        bail!(
            "never {what}: {:#}, claims {:#?}, last calls {:?}",
            seen.status(),
            seen.claims.iter().map(|claim| &claim.status).collect::<Vec<_>>(),
            self.last_calls()
        )
    }

    /// The job is complete, and its machine and claim gone.
    pub(crate) async fn until_complete(&mut self) -> Result<Seen> {
        self.until("complete", |seen| seen.is("Complete") && seen.claims.is_empty()).await
    }

    /// Lets things happen until nothing is left to do now, and says what stands then.
    pub(crate) async fn settle(&mut self) -> Result<Seen> {
        loop {
            match self.pause().await? {
                Pause::Dead => self.live().await?,
                Pause::Quiet => {
                    let before = self.calls.count();
                    let seen = match self.last.take() {
                        // Nobody has written since.
                        Some((count, seen)) if count == before => {
                            Seen { billed: self.cloud.billed_now(), ..seen }
                        }
                        _ => self.look().await?,
                    };
                    if self.calls.count() == before && !self.calls.is_dead() {
                        self.notice_leaks(&seen);
                        self.last = Some((before, seen.clone()));
                        return Ok(seen);
                    }
                }
            }
        }
    }

    /// Moves the clock to the next thing that waits for it.
    pub(crate) async fn move_on(&self) -> Result<()> {
        loop {
            let own =
                self.processes.iter().filter(|one| one.goes()).filter_map(|one| one.own.as_ref());
            let clocks: Vec<&Clock> =
                own.map(|(clock, _)| clock).chain(std::iter::once(&self.clock)).collect();
            if let Some(wait) = clocks.iter().filter_map(|clock| clock.next_wake()).min() {
                for clock in clocks {
                    clock.advance(wait.max(Duration::from_millis(1)));
                }
                return Ok(());
            }
            self.must_go_on("anything that waits for the clock")?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lets this much time pass, whatever happens in it. Gives the calls that were made.
    pub(crate) async fn pass(&mut self, time: Duration) -> Result<Vec<Point>> {
        let until = self.clock.boottime() + time;
        let before = self.calls.count();
        while self.clock.boottime() < until {
            self.settle().await?;
            self.move_on().await?;
        }
        self.settle().await?;
        Ok(self.calls.made().split_off(before))
    }

    async fn pause(&self) -> Result<Pause> {
        let mut last = (self.calls.count(), Instant::now());
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if self.calls.is_dead() {
                return Ok(Pause::Dead);
            }
            let idle = self.calls.in_flight() == 0
                && self.processes.iter().filter(|one| one.goes()).all(|one| {
                    // Whoever is at work may be waiting for the clock, and who does not lead leaves
                    // its queues alone.
                    let queues = &one.running.queues;
                    let waiting = queues.jobs.depth()
                        + queues.services.depth()
                        + queues.claims.depth()
                        + queues.providers.depth();
                    waiting == 0 || !one.running.operator.leadership.leads()
                });
            let count = self.calls.count();
            if !idle || count != last.0 {
                last = (count, Instant::now());
                self.must_go_on("quiet")?;
            } else if last.1.elapsed() >= STILL {
                self.cloud.settle().await;
                if self.calls.count() == count && self.calls.in_flight() == 0 {
                    return Ok(Pause::Quiet);
                }
            }
        }
    }

    async fn look(&self) -> Result<Seen> {
        let (jobs, services) = (self.lane.jobs(), self.lane.services());
        // One that cannot be read is nobody's, and where the kind is away there are none.
        let claims: Api<DeserializeGuard<ComputeClaim>> =
            Api::namespaced(self.lane.client.clone(), &self.lane.jobs_in);
        let all = ListParams::default();
        let job = async { if self.serves { Ok(None) } else { jobs.get_opt(&self.job).await } };
        let service =
            async { if self.serves { services.get_opt(&self.job).await } else { Ok(None) } };
        let (job, service, claims) = tokio::join!(job, service, claims.list(&all));
        let is_away =
            |error: &kube::Error| matches!(error, kube::Error::Api(status) if status.code == 404);
        let job = job.or_else(|error| if is_away(&error) { Ok(None) } else { Err(error) })?;
        let claims = match claims {
            Err(error) if is_away(&error) => Vec::new(),
            claims => claims?.items.into_iter().filter_map(|claim| claim.0.ok()).collect(),
        };
        Ok(Seen { job, service: service?, claims, billed: self.cloud.billed_now() })
    }

    /// A claim is written before its machine is bought, and goes after it: at no time does a machine
    /// bill that no claim stands for.
    fn notice_leaks(&mut self, seen: &Seen) {
        self.at_once = self.at_once.max(seen.claims.len() as u64);
        for billed in &seen.billed {
            let owned = |claim: &ComputeClaim| {
                claim.uid().is_some_and(|uid| billed.identity.contains(&format!("/{uid}/")))
            };
            if !seen.claims.iter().any(owned) && !self.leaks.contains(&billed.id) {
                self.leaks.push(billed.id.clone());
            }
        }
    }

    fn must_go_on(&self, what: &str) -> Result<()> {
        if self.began.elapsed() > STUCK {
            bail!("{}: still no {what}; last calls: {:?}", self.job, self.last_calls());
        }
        Ok(())
    }

    pub(crate) fn last_calls(&self) -> Vec<String> {
        let made = self.calls.made();
        made.iter().rev().take(15).rev().map(ToString::to_string).collect()
    }

    /// What is wrong now that all is over: machines that bill, rights, panics, and money.
    pub(crate) async fn wrong(&mut self) -> Result<Vec<String>> {
        self.pass(Duration::from_secs(60)).await?;
        let seen = self.settle().await?;
        let mut wrong = self.leaks.clone();
        let panicked = self.errors().into_iter().filter(|error| error.contains("panicked"));
        wrong.extend(panicked);
        wrong.extend(self.calls.denied());
        let wants = seen.claims.iter().filter(|claim| claim.metadata.deletion_timestamp.is_none());
        if seen.billed.len() != wants.clone().count() {
            wrong.push(format!("{:?} bill for {} claims", seen.billed, wants.count()));
        }
        let mut bill = self.cloud.micros_by_identity();
        if self.foreign {
            let rows = self.rows().await?;
            bill.retain(|identity, _| rows.iter().any(|row| identity.contains(&row.claim_uid)));
        }
        let mut rows = self.rows().await?;
        if let Some(claim) = &self.unbooked {
            bill.retain(|identity, _| !identity.contains(claim.as_str()));
            rows.retain(|row| row.claim_uid != *claim);
        }
        let struck = self.calls.struck();
        wrong.extend(compare(&rows, &bill, &self.manners, PRICE, struck, self.outlived));
        Ok(wrong)
    }

    /// Everything in the ledger.
    pub(crate) async fn rows(&self) -> Result<Vec<Row>> {
        Ok(Ledger::over(self.store.clone(), "the test's ledger").rows().await?)
    }

    /// Ends the process for good, and removes what stands in the cluster.
    pub(crate) async fn end(mut self) -> Result<()> {
        self.die();
        let background = DeleteParams::background();
        let bare = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
        let jobs = self.lane.jobs();
        let claims = self.lane.claims();
        for claim in claims.list(&ListParams::default()).await?.items {
            let _ = claims.patch(&claim.name_any(), &PatchParams::default(), &bare).await;
            let _ = claims.delete(&claim.name_any(), &background).await;
        }
        if jobs.get_opt(&self.job).await?.is_some() {
            let _ = jobs.patch(&self.job, &PatchParams::default(), &bare).await;
            let _ = jobs.delete(&self.job, &background).await;
        }
        if self.serves {
            let services = self.lane.services();
            let _ = services.patch(&self.job, &PatchParams::default(), &bare).await;
            let _ = services.delete(&self.job, &background).await;
        }
        let providers: Api<ComputeProvider> = Api::all(self.lane.client.clone());
        let _ = providers.patch(&self.lane.provider, &PatchParams::default(), &bare).await;
        let budgets: Api<SpendBudget> =
            Api::namespaced(self.lane.client.clone(), self.lane.namespace.name());
        let _ = budgets.delete("all", &DeleteParams::default()).await;
        Ok(())
    }

    pub(crate) fn errors(&self) -> Vec<String> {
        self.lane.errors.take()
    }
}

/// Whatever the object says, it is this cloud.
struct Make {
    name: String,
    address: std::net::SocketAddr,
    manners: Manners,
    clock: Clock,
    life: Life,
    twist: Twist,
}

impl MakeProvider for Make {
    fn make(&self, object: &ComputeProvider) -> Result<Arc<dyn Provider>, ProviderError> {
        let name = object.name_any();
        if name != self.name {
            let detail = format!("{name} is not of this test");
            return Err(ProviderError::Misconfigured { provider: name, detail });
        }
        let cloud = FakeProvider::new(&name, self.address, self.manners, self.clock.clone());
        let sold = Sold { inner: Arc::new(cloud), life: self.life.clone() };
        let sold: Arc<dyn Provider> = Arc::new(sold);
        Ok(match &self.twist.provider {
            Some(twist) => twist(sold),
            None => sold,
        })
    }
}
