//! One TrainingJob or InferenceService in files:
//!
//! ```text
//! admission.json      what was admitted, every choice fixed (written once a generation)
//! status.json         how far it is (written by its operator only)
//! intent.json         what the user wants of it now: go on, or stop
//! operator.lock       held by the process that works for it; freed however that ends
//! world.json          the world of its last decision and when, for `petaflop explain --world`
//! decision.json       that decision
//! runs/<claim>/       the working folder of one instance: job.json, progress.jsonl, log
//! checkpoints/<key>/  of a job
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use petaflop_arbiter::decision::Decision;
use petaflop_arbiter::estimate::Correction;
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::Capacity;
use petaflop_arbiter::reason::Reason;
use petaflop_arbiter::watch::Watch;
use petaflop_arbiter::workload::{OwnerKind, Progress, ServingWork, TrainingWork, Workload};
use petaflop_arbiter::world::Recorded;
use petaflop_crds::workload::Observed;
use petaflop_crds::{FieldError, InferenceServiceSpec, TrainingJobSpec};
use petaflop_plan::recipe::{Input, ResolvedRecipe};
use serde::{Deserialize, Serialize};

use crate::embedded::home::{self, Home, HomeError};

/// Outside a cluster a manifest without a namespace is in this one.
pub const DEFAULT_NAMESPACE: &str = "default";

/// What is run, every choice fixed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Admission {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// Given at first admission; a new object of the same name gets another.
    pub uid: String,
    /// When it was first admitted.
    pub created_at: Timestamp,
    /// When `deadline.within` began to count: at admission, and again on resume.
    pub admitted_at: Timestamp,
    /// How to compute; changes no bit of any result.
    pub compute: Compute,
    /// What there is to do.
    pub task: Task,
}

/// How to compute; changes no bit of any result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Compute {
    /// Threads to compute with [default: the processors that may be used]
    #[arg(long, env = "PETAFLOP_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Kernel variant: avx512, avx2, neon or portable [default: the best of the processor]
    #[arg(long, env = "PETAFLOP_ISA", value_name = "ISA", value_parser = ["avx512", "avx2", "neon", "portable"])]
    pub isa: Option<String>,
}

/// What there is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Task {
    /// Train to completion.
    Training(Box<Training>),
    /// Keep a server running.
    Serving(Box<Serving>),
}

/// A TrainingJob.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Training {
    /// As it was written.
    pub spec: TrainingJobSpec,
    /// The recipe, resolved once.
    pub recipe: ResolvedRecipe,
    /// Where the inputs lie, with the digests they had at admission.
    pub inputs: Vec<Input>,
    /// Key of the result.
    pub key: String,
    /// What the memory plan says.
    pub work: TrainingWork,
}

/// An InferenceService.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Serving {
    /// As it was written.
    pub spec: InferenceServiceSpec,
    /// The model.
    pub model: ServedModel,
    /// The port it listens on.
    pub port: u16,
    /// What the memory plan says.
    pub work: ServingWork,
}

/// The model that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum ServedModel {
    /// An artifact of this home's store.
    Artifact(String),
    /// A Hugging Face folder.
    Folder(String),
    /// A GGUF file.
    Gguf(String),
}

impl Admission {
    /// The kind of object.
    pub fn kind(&self) -> OwnerKind {
        match self.task {
            Task::Training(_) => OwnerKind::TrainingJob,
            Task::Serving(_) => OwnerKind::InferenceService,
        }
    }

    /// What the arbiter is asked.
    pub fn workload(&self, status: &Status, suspended: bool) -> Result<Workload, Vec<FieldError>> {
        let observed = Observed {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            created_at: self.created_at,
            admitted_at: self.admitted_at,
            progress: Progress {
                steps_done: status.checkpoint_step,
                checkpoint_millis: status.checkpoint_seconds.and_then(Progress::measured),
                spent: status.cost,
                interruptions: status.interruptions,
                placements: status.placements,
            },
            measured: status.measured.clone(),
        };
        let mut workload = match &self.task {
            Task::Training(task) => {
                let mut workload = task.spec.workload(&observed, Some(task.work.clone()))?;
                // This home's store is a folder of this machine.
                let here = task.inputs.iter().filter(|input| input.uri.starts_with("artifact:"));
                workload.tied.extend(here.map(|input| input.uri.clone()));
                workload
            }
            Task::Serving(task) => {
                let mut workload = task.spec.workload(&observed, Some(task.work.clone()))?;
                // One address on this machine is one replica.
                if let petaflop_arbiter::workload::Work::Serving(work) = &mut workload.work {
                    work.replicas = work.replicas.min(1);
                }
                workload.tied.push("its address on this machine".to_owned());
                workload
            }
        };
        workload.suspended |= suspended;
        Ok(workload)
    }
}

/// A summary, as in the API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// No place yet.
    #[default]
    Pending,
    /// A machine was asked for.
    Launching,
    /// A job's command runs.
    Running,
    /// A service answers.
    Available,
    /// Between two machines.
    Interrupted,
    /// Stopped on request; can go on.
    Suspended,
    /// Ended well.
    Complete,
    /// Ended badly.
    Failed,
}

impl Phase {
    /// Whether nothing more happens by itself.
    pub fn is_over(self) -> bool {
        match self {
            Self::Suspended | Self::Complete | Self::Failed => true,
            Self::Pending
            | Self::Launching
            | Self::Running
            | Self::Available
            | Self::Interrupted => false,
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Pending => "Pending",
            Self::Launching => "Launching",
            Self::Running => "Running",
            Self::Available => "Available",
            Self::Interrupted => "Interrupted",
            Self::Suspended => "Suspended",
            Self::Complete => "Complete",
            Self::Failed => "Failed",
        })
    }
}

/// How it will end, decided before its last machine is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct End {
    /// Complete or Failed.
    pub phase: Phase,
    /// Why.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

/// A machine that is left for a better one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Leaving {
    /// The claim.
    pub claim: String,
    /// Why.
    pub reason: Reason,
}

/// Where it runs now, or ran last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Place {
    /// The claim.
    pub claim: String,
    /// The offer's id.
    pub offer: String,
    /// The provider.
    pub provider: String,
    /// The type of machine.
    pub instance_type: String,
    /// How it is held.
    pub capacity: Capacity,
    /// Dollars an hour.
    pub price: UsdPerHour,
}

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Status {
    /// A summary.
    pub phase: Phase,
    /// Why, in the API's words.
    pub reason: Option<Reason>,
    /// For people.
    pub message: String,
    /// Highest placement number used.
    pub placements: u32,
    /// Where it runs now, or ran last.
    pub place: Option<Place>,
    /// The claim whose end was already counted.
    pub counted: Option<String>,
    /// How it will end.
    pub end: Option<End>,
    /// The claim that it leaves for a better place.
    pub leaving: Option<Leaving>,
    /// Optimiser steps done.
    pub step: u64,
    /// Optimiser steps in all.
    pub steps: u64,
    /// Tokens trained on in one step.
    pub tokens_per_step: u64,
    /// Step of the newest durable checkpoint.
    pub checkpoint_step: u64,
    /// Seconds that it took to be durable.
    pub checkpoint_seconds: Option<f64>,
    /// Mean training loss of the first step that was reported, nats a token.
    pub first_loss: Option<f64>,
    /// Mean training loss of the last step, nats a token.
    pub loss: Option<f64>,
    /// Validation, bits for each byte of the text.
    pub bits_per_byte: Option<f64>,
    /// Tokens a second.
    pub tokens_per_second: Option<f64>,
    /// The same beside what was estimated for the machine that it was measured on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Correction>,
    /// Kernel variant and threads.
    pub backend: Option<String>,
    /// Bytes of the arena: planned, and allocated.
    pub arena_bytes: Option<(u64, u64)>,
    /// Hash of the result.
    pub artifact: Option<String>,
    /// The result was there before.
    pub cached: bool,
    /// What the runtime said at the end.
    pub summary: Option<serde_json::Value>,
    /// Address of a service.
    pub url: Option<String>,
    /// Failures of the application, counted against `backoffLimit`.
    pub failures: u32,
    /// Machines lost.
    pub interruptions: u32,
    /// Machines that could not be had, in a row.
    pub refusals: u32,
    /// Nothing is started before this.
    pub not_before: Option<Timestamp>,
    /// What it has cost, by the ledger.
    pub cost: Usd,
    /// When it first ran, or ran again after a stop.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub completed: Option<Timestamp>,
}

impl Status {
    /// Why it leaves this claim's machine, if it does.
    pub fn leaves(&self, claim: &str) -> Option<Reason> {
        let leaving = self.leaving.as_ref().filter(|leaving| leaving.claim == claim);
        leaving.map(|leaving| leaving.reason)
    }

    /// What stays when it is trained again from the first step.
    pub fn without_progress(self) -> Self {
        Self {
            step: 0,
            checkpoint_step: 0,
            checkpoint_seconds: None,
            first_loss: None,
            loss: None,
            bits_per_byte: None,
            tokens_per_second: None,
            measured: None,
            ..self
        }
    }
}

/// What the user wants of it now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Intent {
    /// Stop, keep what was done, pay for nothing.
    pub suspend: bool,
}

/// The files of one job or service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// Its kind.
    pub kind: OwnerKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    root: PathBuf,
}

impl Folder {
    /// Of this object; it need not exist.
    pub fn of(home: &Home, kind: OwnerKind, namespace: &str, name: &str) -> Self {
        Self {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            root: home.root().join(top(kind)).join(namespace).join(name),
        }
    }

    /// Every job and service of a home, by namespace and name, jobs first.
    pub fn all(home: &Home) -> Result<Vec<Self>, HomeError> {
        let mut found = Vec::new();
        for kind in [OwnerKind::TrainingJob, OwnerKind::InferenceService] {
            let top = home.root().join(top(kind));
            for namespace in names_in(&top)? {
                for name in names_in(&top.join(&namespace))? {
                    let folder = Self::of(home, kind, &namespace, &name);
                    if folder.root.join("admission.json").exists() {
                        found.push(folder);
                    }
                }
            }
        }
        Ok(found)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `trainingjob/name`, as commands take it.
    pub fn reference(&self) -> String {
        let kind = match self.kind {
            OwnerKind::TrainingJob => "trainingjob",
            OwnerKind::InferenceService => "inferenceservice",
        };
        format!("{kind}/{}", self.name)
    }

    /// What was admitted; `None` when it does not exist.
    pub fn admission(&self) -> Result<Option<Admission>, HomeError> {
        home::read_json(&self.root.join("admission.json"))
    }

    /// Admits it.
    pub fn admit(&self, admission: &Admission) -> Result<(), HomeError> {
        fs::create_dir_all(&self.root).map_err(HomeError::unusable(&self.root))?;
        home::write_json(&self.root.join("admission.json"), admission)
    }

    /// How far it is.
    pub fn status(&self) -> Result<Status, HomeError> {
        Ok(home::read_json(&self.root.join("status.json"))?.unwrap_or_default())
    }

    /// Writes how far it is.
    pub fn write_status(&self, status: &Status) -> Result<(), HomeError> {
        home::write_json(&self.root.join("status.json"), status)
    }

    /// What the user wants of it now.
    pub fn intent(&self) -> Result<Intent, HomeError> {
        Ok(home::read_json(&self.root.join("intent.json"))?.unwrap_or_default())
    }

    /// Writes what the user wants of it now.
    pub fn write_intent(&self, intent: Intent) -> Result<(), HomeError> {
        home::write_json(&self.root.join("intent.json"), &intent)
    }

    /// Becomes its operator, if nobody is.
    pub fn try_operate(&self) -> Result<Option<File>, HomeError> {
        home::try_lock(&self.root.join("operator.lock"))
    }

    /// Whether some process works for it now.
    pub fn is_operated(&self) -> bool {
        // Not created here: asking must not leave files in a home that is only looked at.
        let Ok(file) = File::open(self.root.join("operator.lock")) else {
            return false;
        };
        matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock))
    }

    /// The last decision and the world it was made in.
    pub fn write_decision(&self, seen: &Recorded, decision: &Decision) -> Result<(), HomeError> {
        home::write_json(&self.root.join("world.json"), seen)?;
        home::write_json(&self.root.join("decision.json"), decision)
    }

    /// What the job, which has a deadline, saw of places where it could be on spot.
    pub fn watched(&self) -> Result<Option<Watch>, HomeError> {
        home::read_json(&self.root.join("watched.json"))
    }

    /// Keeps what a decision saw, of this job.
    pub fn write_watched(&self, uid: &str, watched: &[Watch]) -> Result<(), HomeError> {
        match watched.iter().find(|watch| watch.workload == uid) {
            Some(watch) => home::write_json(&self.root.join("watched.json"), watch),
            None => Ok(()),
        }
    }

    /// The last decision.
    pub fn decision(&self) -> Result<Option<Decision>, HomeError> {
        home::read_json(&self.root.join("decision.json"))
    }

    /// The working folder of one instance.
    pub fn run(&self, claim: &str) -> PathBuf {
        self.root.join("runs").join(claim)
    }

    /// Checkpoints of a key.
    pub fn checkpoints(&self, key: &str) -> PathBuf {
        self.root.join("checkpoints").join(&key[..key.len().min(16)])
    }

    /// Forgets the checkpoints of a key.
    pub fn forget_progress(&self, key: &str) -> Result<(), HomeError> {
        let folder = self.checkpoints(key);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(HomeError::unusable(&folder)(error))
            }
            _ => Ok(()),
        }
    }

    /// Forgets everything about it but its costs, which are in the ledger.
    pub fn remove(&self) -> Result<(), HomeError> {
        fs::remove_dir_all(&self.root).map_err(HomeError::unusable(&self.root))
    }
}

fn top(kind: OwnerKind) -> &'static str {
    match kind {
        OwnerKind::TrainingJob => "jobs",
        OwnerKind::InferenceService => "services",
    }
}

fn names_in(folder: &Path) -> Result<Vec<String>, HomeError> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(HomeError::unusable(folder))?;
        if entry.path().is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_without_a_cluster_stays_on_this_machine() {
        let spec = serde_json::json!({ "model": { "artifact": "a" } });
        let work = ServingWork {
            replicas: 1,
            arena_bytes: 1,
            host_bytes: 1,
            model_bytes: 1,
            flops_per_token: 1,
            weight_bytes_per_step: 1,
            cache_bytes_per_sequence: 1,
            max_sequences: 1,
            max_millis_per_token: None,
            precision: petaflop_arbiter::workload::Precision::F32,
        };
        let serving = Serving {
            spec: serde_json::from_value(spec).expect("a spec"),
            model: ServedModel::Artifact("a".into()),
            port: 8080,
            work,
        };
        let admission = Admission {
            namespace: "default".into(),
            name: "chat".into(),
            uid: "uid".into(),
            created_at: Timestamp::UNIX_EPOCH,
            admitted_at: Timestamp::UNIX_EPOCH,
            compute: Compute::default(),
            task: Task::Serving(Box::new(serving)),
        };
        let workload = admission.workload(&Status::default(), false).expect("a workload");
        // Its clients know one address, and nothing tells a machine elsewhere what to serve.
        assert_eq!(workload.tied, ["its address on this machine"]);
    }
}
