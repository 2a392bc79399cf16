//! Machines elsewhere, for one job without a cluster: what they are, who is on them, what is heard
//! of them. They are bought and ended by the same protocol as everything; here is only what differs
//! from a process of this host.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use petaflop_agent_api::clock::Clock;
use petaflop_agent_api::message::Exit;
use petaflop_arbiter::checkpoint;
use petaflop_arbiter::workload::WorkloadId;
use petaflop_crds::training_job::Cache;
use petaflop_providers::{Begins, Machine};
use petaflop_store::StoreError;
use petaflop_store::logs::LogReader;
use petaflop_store::report::Progress;

use crate::accelerators::promised;
use crate::agents::{self, Agents, Listener, Name, Told, Way};
use crate::claims::StoredClaim;
use crate::embedded::brought::{BroughtError, BroughtLog};
use crate::embedded::claims::FileClaims;
use crate::embedded::config::{Config, Rented};
use crate::embedded::home::{Home, HomeError};
use crate::embedded::job::{self as admitted, Admission, Task};
use crate::embedded::publish;
use crate::fleet::{Fleet, Training};
use crate::installation::Installation;
use crate::narrow::Narrow;
use crate::proof::{self, Refused};
use crate::run::{Run, left_behind};
use crate::store_at::StoreAt;

/// Between two looks at a machine of which nothing new is known, and at one that comes up.
const LOOK: Duration = Duration::from_secs(60);
const LOOK_OFTEN: Duration = Duration::from_secs(5);
/// Where its bill begins once it runs: nobody but we will have seen when that was.
const COMES_UP: Duration = Duration::from_secs(1);

/// What one operator knows of machines elsewhere.
pub struct Elsewhere {
    installation: Arc<Installation>,
    rented: Rented,
    store: StoreAt,
    agents: Agents,
    silent: Arc<Silent>,
    clock: Clock,
    /// Uid of the claim whose machine was looked at last, and when.
    looked: Option<(String, Duration)>,
    /// What the command prints.
    log: Option<BroughtLog>,
}

/// Claims whose agent was not heard from for long.
#[derive(Debug, Default)]
struct Silent(Mutex<BTreeSet<Name>>);

impl Listener for Silent {
    // Whoever works for the claim looks every moment.
    fn heard(&self, _claim: &Name, _owner: &WorkloadId) {}

    fn silent(&self, claim: &Name) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(claim.clone());
    }
}

/// How the agent knows a claim.
fn name_of(stored: &StoredClaim) -> Name {
    (stored.claim.spec.owner.namespace.clone(), stored.claim.spec.name.clone())
}

impl Elsewhere {
    /// Where the home says what rented machines need.
    ///
    /// # Errors
    /// The home has no key of its own, and can make none.
    pub fn of(home: &Home, config: &Config, clock: Clock) -> Result<Option<Self>, HomeError> {
        let Some(rented) = config.rented.clone() else { return Ok(None) };
        let installation = Arc::new(home.identity()?);
        let claims = Arc::new(FileClaims::of(home));
        let silent = Arc::<Silent>::default();
        let agents =
            Agents::new(clock.clone(), installation.clone(), claims, silent.clone(), agents::LEASE);
        let agents = agents
            .map_err(|error| HomeError::unusable(Path::new("TLS"))(std::io::Error::other(error)))?;
        let mut store = StoreAt::of_environment(&rented.store);
        if let Some(sts) = &rented.sts {
            store.narrow = Narrow::of(&store, &sts.clone().into()).map_err(|error| {
                HomeError::unusable(Path::new("rented.sts"))(std::io::Error::other(error))
            })?;
        }
        Ok(Some(Self {
            installation,
            rented,
            store,
            agents,
            silent,
            clock,
            looked: None,
            log: None,
        }))
    }

    /// What all machines have in common.
    pub fn fleet(&self) -> Fleet<'_> {
        Fleet {
            installation: &self.installation,
            runtime_image: &self.rented.runtime_image,
            runtime: &self.rented.runtime,
            // Rented machines fetch the agent by itself.
            agent_image: "",
            store: &self.store,
        }
    }

    /// Who this installation is to its agents.
    pub fn installation(&self) -> Arc<Installation> {
        self.installation.clone()
    }

    /// The machine of a claim; `None` for what runs only here.
    pub fn machine(&self, admission: &Admission, stored: &StoredClaim) -> Option<Machine> {
        match &admission.task {
            Task::Training(task) => Some(Machine {
                grace_seconds: u64::from(task.spec.checkpoint.grace_seconds),
                ..self.fleet().machine(&stored.claim.spec)
            }),
            Task::Serving(_) => None,
        }
    }

    /// Meets the agent of a claim's machine, unless that was done.
    pub fn meet(&self, admission: &Admission, stored: &StoredClaim, endpoint: String) {
        let Task::Training(task) = &admission.task else { return };
        let claim = &stored.claim.spec;
        let training = || Training {
            recipe: task.recipe.clone(),
            inputs: task.inputs.clone(),
            checkpoint_interval_seconds: checkpoint::on(
                claim,
                task.spec.checkpoint.interval_seconds,
            ),
            keep_checkpoints: task.spec.output.keep_checkpoints,
            fresh: task.spec.cache == Cache::Never,
            grace_seconds: u64::from(task.spec.checkpoint.grace_seconds),
            secrets: Default::default(),
            folders: Vec::new(),
            // This process copies it itself: see crate::embedded::publish.
            delivery: None,
            accelerators: promised(claim, task.spec.resources.asks_for_accelerators()),
        };
        let told = || {
            let rights = self.fleet().rights_of_job(claim, &task.inputs);
            let task = self.fleet().training(claim, training()).ok()?;
            Some(Told { task, rights })
        };
        self.agents.meet(&name_of(stored), stored, Way::Dial(endpoint), told);
    }

    /// What the agent said of the command, and the newest lines that the command wrote.
    pub fn heard(&self, stored: &StoredClaim) -> (Option<Run>, Vec<Progress>) {
        let name = name_of(stored);
        (self.agents.run(&name), self.agents.lines(&name))
    }

    /// Brings what a claim's command has printed into this folder, as far as its agent left it in the
    /// store; now and then, and at its end all of it.
    pub async fn bring_log(&mut self, stored: &StoredClaim, folder: &Path, last: bool) {
        // Nobody was met there yet who could have left anything.
        if stored.agent_key.is_none() {
            return;
        }
        if let Err(error) = self.try_bring_log(stored, folder, last).await {
            tracing::warn!(%error, "what the command prints is not brought here now");
        }
    }

    async fn try_bring_log(
        &mut self,
        stored: &StoredClaim,
        folder: &Path,
        last: bool,
    ) -> Result<(), BroughtError> {
        let uid = &stored.claim.uid;
        if self.log.as_ref().is_none_or(|log| !log.is_of(uid)) {
            let prefix = self.fleet().log_sink(&stored.claim.spec).prefix;
            let reader = LogReader::new(self.store.objects()?, &prefix);
            self.log = Some(BroughtLog::new(uid, reader, folder)?);
        }
        match &mut self.log {
            Some(log) => log.bring(&self.clock, last).await,
            None => Ok(()),
        }
    }

    /// Asks for the end of a command that runs. Returns whether it still saves what it has.
    pub fn drains(&self, stored: &StoredClaim, grace: Duration) -> bool {
        self.agents.drains(&name_of(stored), grace)
    }

    /// A claim is over.
    pub fn forget(&self, stored: &StoredClaim) {
        self.agents.forget(&name_of(stored));
    }

    /// When its agent was heard last, as far as this process knows.
    pub fn heard_at(&self, stored: &StoredClaim) -> Option<Timestamp> {
        self.agents.heard(&name_of(stored))
    }

    /// Whether the provider is to be asked how a machine is: it comes up, its agent is silent, or it was
    /// long ago.
    pub fn must_look(&mut self, stored: &StoredClaim, begins: Begins) -> bool {
        let now = self.clock.boottime();
        let silent = &self.silent.0;
        let silent = silent.lock().unwrap_or_else(PoisonError::into_inner).remove(&name_of(stored));
        let rest = match (&stored.agent_key, begins) {
            (Some(_), _) => LOOK,
            (None, Begins::Running) => COMES_UP,
            (None, Begins::Bought) => LOOK_OFTEN,
        };
        let uid = &stored.claim.uid;
        let known = self.looked.as_ref().filter(|(of, _)| of == uid).map(|(_, at)| *at);
        let due = known.is_none_or(|at| now.saturating_sub(at) >= rest);
        if silent || due {
            self.looked = Some((uid.clone(), now));
        }
        silent || due
    }

    /// Brings a result into the home's own store, where services and `petaflop artifacts` look for it.
    ///
    /// # Errors
    /// What was in the way, and where the result is.
    pub async fn bring_home(
        &self,
        home: &Home,
        owner_uid: &str,
        artifact: &str,
        task: &admitted::Training,
    ) -> Result<(), String> {
        let (uri, key) = (&self.store.uri, &task.key);
        let told = proof::Told { artifact, key, recipe: &task.recipe, inputs: &task.inputs };
        let failed = |error: &StoreError| {
            format!(
                "artifact {artifact} could not be brought here: {error}. It is safe in {uri}; mend it and run the \
                 same manifest again, which only copies"
            )
        };
        self.fleet().publish(owner_uid, told).await.map_err(|refused| match refused {
            Refused::Store(error) => failed(&error),
            wrong @ Refused::Wrong { .. } => wrong.to_string(),
        })?;
        publish::fetch(home, artifact, key, uri).await.map_err(|error| failed(&error))
    }

    /// How the command of a claim ended whose machine is gone, as its agent left it in the store.
    ///
    /// # Errors
    /// The store cannot be read, which says nothing about the command.
    pub async fn left_behind(&self, stored: &StoredClaim) -> Result<Option<Exit>, StoreError> {
        left_behind(self.store.objects()?, &stored.claim.spec).await
    }
}
