//! Admission: from a document of a manifest to something that can be run, with every
//! choice fixed. Nothing is started here.

use std::path::Path;

use jiff::Timestamp;
use petaflop_crds::{Document, Object};
use petaflop_plan::dtype::Dtype;
use petaflop_plan::recipe::{Input, JobSpec, ResolvedRecipe};
use petaflop_plan::shape::ModelShape;

use crate::embedded::home::{Home, HomeError};
use crate::embedded::job::{
    Admission, Compute, DEFAULT_NAMESPACE, Folder, ServedModel, Serving, Task, Training,
};
use crate::embedded::runtime::{self, JobIdentity, RuntimeError};
use crate::embedded::work;
use crate::uid;
use petaflop_arbiter::workload::OwnerKind;
use petaflop_crds::{InferenceServiceSpec, TrainingJobSpec};

/// Why a document cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// It is wrong; said with its place in the file.
    #[error("{0}")]
    BadInput(String),
    /// The home refuses.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The runtime gave no answer.
    #[error(transparent)]
    Runtime(RuntimeError),
}

impl From<RuntimeError> for AdmitError {
    fn from(error: RuntimeError) -> Self {
        match error {
            RuntimeError::BadInput(message) => Self::BadInput(message),
            RuntimeError::Missing { .. } | RuntimeError::Start { .. } | RuntimeError::Failed(_) => {
                Self::Runtime(error)
            }
        }
    }
}

/// A TrainingJob whose recipe is resolved and whose inputs were found.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// As it was written.
    pub spec: TrainingJobSpec,
    /// Every choice fixed.
    pub recipe: ResolvedRecipe,
    /// Where the inputs lie.
    pub inputs: Vec<Input>,
}

/// Resolves the recipe of a TrainingJob. `data` replaces its datasets' places.
pub fn resolve(
    document: &Document,
    spec: &TrainingJobSpec,
    namespace: &str,
    data: Option<&str>,
) -> Result<Resolved, AdmitError> {
    let mut spec = spec.clone();
    let Some(recipe) = &mut spec.recipe else {
        return Err(AdmitError::BadInput(
            "spec.container runs in a cluster only, so far: kubectl apply it there, or use recipe"
                .to_owned(),
        ));
    };
    let mut directory = document.directory().to_owned();
    if let Some(data) = data {
        // On the command line a path is taken against the current folder.
        directory = std::env::current_dir().unwrap_or(directory);
        let kind = recipe.datasets.first().map(|d| d.kind).unwrap_or_default();
        recipe.datasets = vec![petaflop_crds::recipe::DatasetSpec { path: data.to_owned(), kind }];
    }
    let (recipe, inputs) = recipe
        .resolve(&spec.inputs, &spec.output, Some(&directory))
        .map_err(|errors| AdmitError::BadInput(document.locate(&errors).to_string()))?;
    Ok(Resolved { namespace: namespace.to_owned(), name: document.name(), spec, recipe, inputs })
}

/// Asks the runtime who the job is: its key, its inputs' digests, and whether it was finished before.
pub async fn identify(
    home: &Home,
    runtime: &Path,
    resolved: &Resolved,
) -> Result<JobIdentity, AdmitError> {
    let job = JobSpec {
        recipe: resolved.recipe.clone(),
        inputs: resolved.inputs.clone(),
        store: home.store().display().to_string(),
        result: None,
        checkpoints: home.root().join("tmp").display().to_string(),
        checkpoint_interval_seconds: 1,
        keep_checkpoints: 1,
    };
    let uid = uid::random().map_err(HomeError::unusable(Path::new("/dev/urandom")))?;
    let scratch = home.root().join(format!(".key-{uid}.json"));
    let identity = runtime::key(runtime, &job, &scratch).await;
    let _ = std::fs::remove_file(&scratch);
    Ok(identity?)
}

/// What a resolved job is admitted as. An earlier admission of the same key goes on.
pub fn training(
    home: &Home,
    resolved: Resolved,
    identity: &JobIdentity,
    compute: Compute,
) -> Result<(Folder, Admission), AdmitError> {
    let Resolved { namespace, name, spec, recipe, mut inputs } = resolved;
    let folder = Folder::of(home, OwnerKind::TrainingJob, &namespace, &name);
    let work = work::training(&recipe, &inputs, &home.store(), spec.checkpoint.interval_seconds)
        .map_err(AdmitError::BadInput)?;
    // From here on the data is what it was at admission, or the job stops.
    for input in &mut inputs {
        input.digest = identity.digests.get(&input.name).cloned();
    }
    let known = folder.admission()?;
    let same =
        known.filter(|known| matches!(&known.task, Task::Training(t) if t.key == identity.key));
    let now = Timestamp::now();
    let admission = Admission {
        namespace,
        name,
        uid: match &same {
            Some(known) => known.uid.clone(),
            None => uid::random().map_err(HomeError::unusable(Path::new("/dev/urandom")))?,
        },
        created_at: same.as_ref().map_or(now, |known| known.created_at),
        admitted_at: now,
        compute,
        task: Task::Training(Box::new(Training {
            spec,
            recipe,
            inputs,
            key: identity.key.clone(),
            work,
        })),
    };
    Ok((folder, admission))
}

/// What an InferenceService is admitted as, its model and port known.
pub fn serving(
    home: &Home,
    namespace: &str,
    name: &str,
    spec: &InferenceServiceSpec,
    model: ServedModel,
    port: u16,
    compute: Compute,
) -> Result<(Folder, Admission), AdmitError> {
    let folder = Folder::of(home, OwnerKind::InferenceService, namespace, name);
    let (shape, weights) = served(&model, &home.store())?;
    let work = work::serving(&shape, weights).map_err(AdmitError::BadInput)?;
    let known = folder.admission()?;
    let now = Timestamp::now();
    let admission = Admission {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: match &known {
            Some(known) => known.uid.clone(),
            None => uid::random().map_err(HomeError::unusable(Path::new("/dev/urandom")))?,
        },
        created_at: known.as_ref().map_or(now, |known| known.created_at),
        admitted_at: now,
        compute,
        task: Task::Serving(Box::new(Serving { spec: spec.clone(), model, port, work })),
    };
    Ok((folder, admission))
}

/// The shape of a model that is served, and the format of its matrices.
pub fn served(model: &ServedModel, store: &Path) -> Result<(ModelShape, Dtype), AdmitError> {
    match model {
        ServedModel::Artifact(hash) => {
            work::stored_model(hash, store).map_err(AdmitError::BadInput)
        }
        // As the runtime serves any folder.
        ServedModel::Folder(path) => {
            let shape = work::shape_at(path, store).map_err(AdmitError::BadInput)?;
            Ok((shape, Dtype::F32))
        }
        ServedModel::Gguf(path) => Ok(runtime::model(&runtime::find()?, Path::new(path))?),
    }
}

/// The namespace of a document; a label, for `petaflop_crds::manifest` refuses others.
pub fn namespace_of(document: &Document) -> String {
    let meta = match &document.object {
        Object::TrainingJob(job) => &job.metadata,
        Object::InferenceService(service) => &service.metadata,
    };
    meta.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())
}
