//! What a claimed machine is, and what its agent is told to run: the same with a cluster and without.

use std::collections::BTreeMap;

use petaflop_agent_api::task::{
    self, Accelerators, Delivery, Folder, LogSink, PROGRESS_FILE, Secret, Task, TaskFile,
};
use petaflop_arbiter::claim::ClaimSpec;
use petaflop_arbiter::offer::Offer;
use petaflop_crds::compute_claim::{OWNER_KIND_LABEL, OWNER_LABEL, OwnerKind};
use petaflop_plan::recipe::{Input, JobSpec, ResolvedRecipe};
use petaflop_providers::Machine;
use petaflop_providers::machine::{AgentSource, Bootstrap};
use petaflop_store::{ArtifactHash, StoreError};

use crate::installation::Installation;
use crate::narrow::{Narrow, Rights};
use crate::proof::{Refused, Told};
use crate::store_at::StoreAt;

/// Where an agent listens.
pub const AGENT_PORT: u16 = 7443;

/// What is asked for where nothing else is known: one processor, and 1 GiB.
const CPU_MILLIS: u32 = 1000;
const MEMORY: u64 = 1 << 30;

/// What all machines of an installation have in common.
#[derive(Clone, Copy)]
pub struct Fleet<'a> {
    /// Whose they are.
    pub installation: &'a Installation,
    /// Image of our runtime.
    pub runtime_image: &'a str,
    /// The runtime's program in it.
    pub runtime: &'a str,
    /// Image that carries the agent, for machines that fetch images.
    pub agent_image: &'a str,
    /// Where artifacts, checkpoints and logs are kept.
    pub store: &'a StoreAt,
}

/// What of a TrainingJob its machine must know.
pub struct Training {
    /// The recipe, resolved once.
    pub recipe: ResolvedRecipe,
    /// Where its inputs lie.
    pub inputs: Vec<Input>,
    /// Seconds between two checkpoints.
    pub checkpoint_interval_seconds: u64,
    /// Checkpoints that are kept.
    pub keep_checkpoints: u32,
    /// It is trained even where its result is there already.
    pub fresh: bool,
    /// Seconds that it has for its last checkpoint.
    pub grace_seconds: u64,
    /// What it finds in its environment, beside what opens the store.
    pub secrets: BTreeMap<String, Secret>,
    /// What it finds as files, in memory.
    pub folders: Vec<Folder>,
    /// A store that is to have its result too, and what opens it.
    pub delivery: Option<(String, BTreeMap<String, Secret>)>,
    /// What its agent makes sure of before anything runs.
    pub accelerators: Option<Accelerators>,
}

/// A command of the user's, in an image of the user's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The image.
    pub image: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment beyond the image's own.
    pub env: BTreeMap<String, String>,
    /// Folder it starts in, if it matters.
    pub dir: Option<String>,
    /// Data that it finds on its machine.
    pub inputs: Vec<task::Input>,
}

/// Which machine of a job this is, for a command that begins anew on each: 1 is the first.
const PLACEMENT: &str = "PETAFLOP_PLACEMENT";

impl Fleet<'_> {
    /// The machine of a claim. An offer of an owned machine is a slice: all of it is asked for.
    pub fn machine(&self, claim: &ClaimSpec) -> Machine {
        let Offer { vcpu_milli, memory, .. } = &claim.offer;
        let kind = OwnerKind::from(claim.owner.kind).as_str().to_owned();
        let labels = [(OWNER_KIND_LABEL, kind), (OWNER_LABEL, claim.owner.name.clone())];
        Machine {
            image: self.runtime_image.to_owned(),
            agent: AgentSource::Image(self.agent_image.to_owned()),
            bootstrap: Bootstrap {
                operator_key: self.installation.root.noise().public().to_string(),
                endpoint: None,
                port: AGENT_PORT,
            },
            cpu_millis: vcpu_milli.unwrap_or(CPU_MILLIS),
            memory: memory.unwrap_or(MEMORY),
            ephemeral: None,
            ports: Vec::new(),
            service_account: None,
            image_pull_secrets: Vec::new(),
            volumes: Vec::new(),
            grace_seconds: 0,
            labels: labels.map(|(label, value)| (label.to_owned(), value)).into(),
        }
    }

    /// What the agent of a job's machine is told to run.
    ///
    /// # Errors
    /// The job cannot be written down as JSON.
    pub fn training(&self, claim: &ClaimSpec, job: Training) -> Result<Task, serde_json::Error> {
        let Training { recipe, inputs, checkpoint_interval_seconds, keep_checkpoints, .. } = job;
        let job_spec = JobSpec {
            recipe,
            inputs,
            store: self.store.uri.clone(),
            result: self.store.narrow.is_some().then(|| self.result(&claim.owner.uid)),
            checkpoints: self.checkpoints(&claim.owner.uid),
            checkpoint_interval_seconds,
            keep_checkpoints,
        };
        let mut argv: Vec<String> =
            [self.runtime, "train", "--job", "job.json", "--progress", PROGRESS_FILE]
                .map(str::to_owned)
                .into();
        if job.fresh {
            argv.push("--fresh".to_owned());
        }
        let own = job_spec.result.clone();
        let delivery = job.delivery.map(|(to, credentials)| Delivery {
            to,
            credentials,
            from: own.into_iter().chain([self.store.uri.clone()]).collect(),
        });
        let mut secrets = self.store.handed_on();
        secrets.extend(job.secrets);
        Ok(Task {
            argv,
            env: BTreeMap::new(),
            secrets,
            files: vec![TaskFile {
                path: "job.json".to_owned(),
                bytes: serde_json::to_vec_pretty(&job_spec)?,
            }],
            folders: job.folders,
            inputs: Vec::new(),
            delivery,
            dir: None,
            progress: PROGRESS_FILE.to_owned(),
            log_sink: Some(self.log_sink(claim)),
            grace_seconds: job.grace_seconds,
            server: None,
            relay: None,
            pass: None,
            accelerators: job.accelerators,
        })
    }

    /// What the agent of a machine is told to run for a user's command. It is given what the user
    /// names, and nothing that opens our store: the agent alone writes its output there.
    pub fn command(
        &self,
        claim: &ClaimSpec,
        command: Command,
        (secrets, folders): (BTreeMap<String, Secret>, Vec<Folder>),
        grace_seconds: u64,
        accelerators: Option<Accelerators>,
    ) -> Task {
        let Command { image: _, argv, mut env, dir, inputs } = command;
        env.insert(PLACEMENT.to_owned(), claim.placement.to_string());
        Task {
            argv,
            env,
            secrets,
            files: Vec::new(),
            folders,
            inputs,
            delivery: None,
            dir,
            progress: PROGRESS_FILE.to_owned(),
            log_sink: Some(self.log_sink(claim)),
            grace_seconds,
            server: None,
            relay: None,
            pass: None,
            accelerators,
        }
    }

    /// Where a job's checkpoints are. Of this object alone: another of the same name and key must not
    /// take them over, for its data may have been looked at under other rights.
    pub fn checkpoints(&self, owner_uid: &str) -> String {
        format!("{}/checkpoints/{owner_uid}", self.store.uri)
    }

    /// Where the logs of a claim go.
    pub fn log_sink(&self, claim: &ClaimSpec) -> LogSink {
        let owner = &claim.owner;
        LogSink {
            uri: self.store.uri.clone(),
            prefix: format!("logs/{}/{}/{}", owner.namespace, owner.name, claim.name),
            credentials: self.store.handed_on(),
        }
    }

    /// What the machine of a job may touch, where that is less than everything.
    pub fn rights_of_job(&self, claim: &ClaimSpec, inputs: &[Input]) -> Option<(Narrow, Rights)> {
        let narrow = self.store.narrow.clone()?;
        let rights = Rights {
            own: Some(format!("checkpoints/{}", claim.owner.uid)),
            log: self.log_sink(claim).prefix,
            // Whoever knows such a name knows what is in it, or what it is made of.
            reads: ["keys/-/*", "artifacts/*", "chunks/*"].map(str::to_owned).into(),
            inputs: inputs.iter().map(|input| input.uri.clone()).collect(),
            told: true,
        };
        Some((narrow, rights))
    }

    /// What the machine of a user's command may touch, where that is less than everything: its log, and
    /// those of its inputs that nothing of the job's own opens.
    pub fn rights_of_command(
        &self,
        claim: &ClaimSpec,
        inputs: &[task::Input],
    ) -> Option<(Narrow, Rights)> {
        let narrow = self.store.narrow.clone()?;
        let shared = inputs.iter().filter(|input| input.credentials.is_empty());
        let inputs: Vec<String> = shared.map(|input| input.uri.clone()).collect();
        let artifacts = inputs.iter().filter_map(|uri| uri.strip_prefix("artifact:"));
        let mut reads: Vec<String> =
            artifacts.map(|hash| format!("artifacts/{hash}.json")).collect();
        if !reads.is_empty() {
            reads.push("chunks/*".to_owned());
        }
        let log = self.log_sink(claim).prefix;
        Some((narrow, Rights { log, reads, inputs, ..Rights::default() }))
    }

    /// What the machine of a replica may touch, where that is less than everything.
    pub fn rights_of_replica(&self, claim: &ClaimSpec, artifact: &str) -> Option<(Narrow, Rights)> {
        let narrow = self.store.narrow.clone()?;
        let rights = Rights {
            log: self.log_sink(claim).prefix,
            reads: vec![format!("artifacts/{artifact}.json"), "chunks/*".to_owned()],
            told: true,
            ..Rights::default()
        };
        Some((narrow, rights))
    }

    /// Where a job's machine leaves its result, where it may not write to the store that all share.
    fn result(&self, owner_uid: &str) -> String {
        format!("{}/result", self.checkpoints(owner_uid))
    }

    /// Takes a job's result over into the store that all share, checked. Doing it again changes nothing.
    ///
    /// # Errors
    /// It is not there, not what it is called, or of another key; what the store said.
    pub async fn publish(&self, owner_uid: &str, told: Told<'_>) -> Result<(), Refused> {
        let Told { artifact, key, .. } = told;
        if self.store.narrow.is_none() {
            return Ok(());
        }
        let bad = |_| StoreError::BadHash(artifact.to_owned());
        let artifact: ArtifactHash = artifact.parse().map_err(bad)?;
        let shared = self.store.store(&self.store.uri)?;
        if shared.find_key(None, key).await? == Some(artifact) {
            return told.prove(&shared, artifact).await;
        }
        let own = self.store.store(&self.result(owner_uid))?;
        told.prove(&own, artifact).await?;
        shared.take(&own, artifact).await?;
        shared.bind_key(None, key, artifact).await?;
        Ok(own.remove_artifact(artifact).await?)
    }
}
