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

use jiff::Timestamp;
use petaflop_arbiter::workload::{OwnerKind, Progress, ServingWork, TrainingWork, Workload};
use petaflop_crds::workload::Observed;
use petaflop_crds::{FieldError, InferenceServiceSpec, TrainingJobSpec};
use petaflop_plan::recipe::{Input, ResolvedRecipe};
use serde::{Deserialize, Serialize};

mod folder;
mod status;

pub use folder::Folder;
pub use status::{End, Leaving, Phase, Place, Status};

/// Outside a cluster a manifest without a namespace is in this one.
pub const DEFAULT_NAMESPACE: &str = "default";

/// What is run, every choice fixed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
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
#[serde(rename_all = "camelCase")]
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
#[serde(rename_all = "camelCase")]
pub enum Task {
    /// Train to completion.
    Training(Box<Training>),
    /// Keep a server running.
    Serving(Box<Serving>),
}

/// A TrainingJob.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
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
#[serde(rename_all = "camelCase")]
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
#[serde(rename_all = "camelCase")]
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
                moves: status.moves,
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

/// What the user wants of it now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Intent {
    /// Stop, keep what was done, pay for nothing.
    pub suspend: bool,
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
        // The home may have been written by another version, which knew of more.
        let mut other = serde_json::to_value(&admission).expect("JSON");
        other["task"]["serving"]["work"]["modelBytes"] = 7.into();
        other["laterField"] = 7.into();
        assert_eq!(serde_json::from_value::<Admission>(other).expect("an admission"), admission);
    }
}
