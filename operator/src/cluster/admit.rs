//! Admission in a cluster: the recipe of a job, resolved once, and how much work it is. What was
//! resolved is kept in the job's status, and from then on it is that which counts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use kube::ResourceExt;
use petaflop_arbiter::workload::TrainingWork;
use petaflop_crds::TrainingJob;
use petaflop_plan::recipe::{Input, ModelSource, ResolvedRecipe};

/// Size that is assumed for data that the operator cannot see: text inside the runtime, and what
/// lies behind credentials that only the job has.
const UNSEEN_BYTES: u64 = 2 << 20;

/// A job's recipe, every choice fixed, and how much work it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Admitted {
    /// The recipe.
    pub recipe: ResolvedRecipe,
    /// Its inputs.
    pub inputs: Vec<Input>,
    /// The recipe as it is kept in the status.
    pub text: String,
    /// How much work it is.
    pub work: TrainingWork,
}

/// How much work the jobs are that wait for a machine, by uid and generation; or why they cannot be
/// admitted. Each placement pass asks for all of them. Their recipes are not kept: there are thousands, and each is
/// needed twice in a job's life. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Admissions {
    known: Arc<Mutex<HashMap<String, Known>>>,
}

/// The generation that was looked at, and what came of it.
type Known = (Option<i64>, Result<TrainingWork, Box<str>>);

impl Admissions {
    /// How much work a job is.
    ///
    /// # Errors
    /// As [`admit`].
    pub fn work(&self, job: &TrainingJob) -> Result<TrainingWork, String> {
        let uid = job.uid().unwrap_or_default();
        let generation = job.metadata.generation;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let work = match known.get(&uid) {
            Some((seen, work)) if *seen == generation => work.clone(),
            _ => {
                let work = admit(job).map(|admitted| admitted.work).map_err(String::into_boxed_str);
                known.insert(uid, (generation, work.clone()));
                work
            }
        };
        work.map_err(String::from)
    }

    /// A job wants no machine now.
    pub fn forget(&self, uid: &str) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

/// Admits a job.
///
/// # Errors
/// What of its spec cannot be done, in words.
pub fn admit(job: &TrainingJob) -> Result<Admitted, String> {
    if job.spec.output.uri.is_some() {
        return Err(
            "spec.output.uri is not built yet in a cluster: leave it out; results are kept in \
                    the operator's own store, and status.artifact names the result there"
                .to_owned(),
        );
    }
    let Some(recipe) = &job.spec.recipe else {
        return Err("spec.container is not built yet: use recipe".to_owned());
    };
    let (resolved, inputs) = recipe.resolve(&job.spec.inputs, None).map_err(|errors| {
        let said: Vec<String> =
            errors.iter().map(|error| format!("{}: {}", error.path, error.message)).collect();
        said.join("; ")
    })?;
    // A later release may resolve differently; what this job was admitted with stays.
    let kept = job.status.as_ref().and_then(|status| status.resolved_recipe.as_deref());
    let recipe = match kept {
        Some(text) => serde_json::from_str(text)
            .map_err(|error| format!("status.resolvedRecipe cannot be read: {error}"))?,
        None => resolved,
    };
    let text = serde_json::to_string(&recipe).map_err(|error| error.to_string())?;
    let ModelSource::Scratch(shape) = &recipe.model else {
        return Err("spec.recipe.base_model is not built yet in a cluster: create a new TrainingJob that gives model instead, to train from scratch, or train here by `petaflop run`".to_owned());
    };
    let data = UNSEEN_BYTES * recipe.datasets.len() as u64;
    let interval = u64::from(job.spec.checkpoint.interval_seconds);
    let work = petaflop_arbiter::work::training(&recipe, shape, data, data, interval)
        .map_err(|error| error.to_string())?;
    Ok(Admitted { recipe, inputs, text, work })
}
