//! Where runs take place: a namespace on the real API server, and the provider's object in it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::money::UsdPerHour;
use petaflop_crds::{ComputeClaim, ComputeProvider, InferenceService, TrainingJob};
use petaflop_fake_provider::cloud::{Setup, small_offer};
use petaflop_fake_provider::{Cloud, Manners, Script, script};
use petaflop_harness::{ControlPlane, Namespace};
use petaflop_operator::cluster::{installation, patience};
use petaflop_store::Store;
use serde_json::json;

use super::{PRICE, Twist, World};
use crate::calls::{Calls, Fault, Point};

/// Where runs take place one after the other: a namespace, and two clients that last.
pub(crate) struct Lane {
    pub(crate) client: Client,
    pub(super) restricted: Client,
    /// The operator's own.
    pub(crate) namespace: Namespace,
    /// Where its users' objects are: the same, unless a test says otherwise.
    pub(crate) jobs_in: String,
    pub(crate) provider: String,
    folder: tempfile::TempDir,
    runs: u32,
    pub(super) errors: Errors,
}

/// What was logged as an error.
#[derive(Clone, Default)]
pub(crate) struct Errors(pub(crate) Arc<Mutex<Vec<String>>>);

impl Errors {
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
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
            restricted: patience::client(config)?,
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
            orphaned: None,
            foreign: false,
            unseen: Duration::ZERO,
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
            // Longer than a lease, or than all fields of a kind take.
            "c10" | "j-budget" | "j-provider" | "j-within" => Duration::from_secs(3600),
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
    pub(super) fn artifacts(&self) -> String {
        self.folder.path().join("store").display().to_string()
    }

    /// A model in the store, as far as the operator looks at it: its shape, of which one size makes
    /// another model. Gives its hash.
    pub(crate) async fn model(&self, vocabulary: u32) -> Result<String> {
        let folder = self.folder.path().join(format!("model-{vocabulary}"));
        std::fs::create_dir_all(&folder)?;
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": vocabulary,
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

/// The clouds that there are: what is tried in one must hold in the other. Where not everything is
/// tried, it is the one that knows no tokens.
pub(crate) fn clouds() -> &'static [Manners] {
    static CLOUDS: [Manners; 2] = [Manners::runpod(), Manners::aws()];
    if everything() { &CLOUDS } else { &CLOUDS[..1] }
}

/// Whether all is tried, and not a sample.
pub(crate) fn everything() -> bool {
    std::env::var("PETAFLOP_FAULTS").is_ok_and(|value| value == "all")
}

/// The same with the manners of each cloud that is tried.
pub(crate) fn on_each(
    name: &str,
    faults: &[(Point, Fault)],
    test: impl AsyncFn(&mut World) -> Result<()>,
) -> Result<()> {
    for &manners in clouds() {
        alone(name, manners, faults, async |world| test(world).await)
            .with_context(|| format!("{name} with the manners of {:?}", manners.style))?;
    }
    Ok(())
}

/// A test on a runtime and with a log of its own.
pub(crate) fn by_hand(test: impl AsyncFnOnce(Errors) -> Result<()>) -> Result<()> {
    let errors = Errors::default();
    let _logged = crate::log_to(&errors);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(test(errors))
}
