//! Admission in a cluster: what a job's machine is to do, and how much work that is. A recipe is
//! resolved once and kept in the job's status; from then on it is that which counts.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use kube::ResourceExt;
use petaflop_agent_api::task;
use petaflop_arbiter::workload::TrainingWork;
use petaflop_crds::TrainingJob;
use petaflop_crds::shared::Container;
use petaflop_crds::training_job::{JobInput, Output};
use petaflop_plan::recipe::{Input, ModelSource, ResolvedRecipe};

use crate::cluster::artifacts::Artifacts;
use crate::fleet::Command;

/// Size that is assumed for data that the operator cannot see: text inside the runtime, and what
/// lies on a machine.
const UNSEEN_BYTES: u64 = 2 << 20;

/// What a job's machine is to do, every choice fixed.
#[derive(Clone, Debug, PartialEq)]
pub enum Admitted {
    /// Our runtime trains.
    Recipe(Box<Recipe>),
    /// A command of the user's runs, in an image of the user's.
    Command(Command),
}

/// A recipe, every choice fixed.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// The recipe.
    pub recipe: ResolvedRecipe,
    /// Its inputs.
    pub inputs: Vec<Input>,
    /// The recipe as it is kept in the status.
    pub text: String,
}

/// What is known of how much work a job is.
#[derive(Clone, Debug, PartialEq)]
pub enum Amount {
    /// What it starts from was not read yet.
    Unread,
    /// So much.
    Training(TrainingWork),
    /// A command of the user's: nobody can say.
    Unknown,
}

/// How much work the jobs are that wait for a machine, by uid and generation; or why they cannot be
/// admitted. Each placement pass asks for all of them. Their recipes are not kept: there are thousands, and each is
/// needed twice in a job's life. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Admissions {
    known: Arc<Mutex<HashMap<String, Known>>>,
}

/// The generation that was looked at, and what came of it.
type Known = (Option<i64>, Result<Amount, Box<str>>);

impl Admissions {
    /// How much work a job is.
    ///
    /// # Errors
    /// As [`admit`]; a base model that cannot be planned for.
    pub fn amount(&self, job: &TrainingJob, artifacts: &Artifacts) -> Result<Amount, String> {
        let uid = job.uid().unwrap_or_default();
        let generation = job.metadata.generation;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let amount = match known.get(&uid) {
            Some((seen, amount)) if *seen == generation => amount.clone(),
            _ => {
                let amount = admit(job).and_then(|admitted| match admitted {
                    Admitted::Recipe(recipe) => amount(job, &recipe, artifacts),
                    Admitted::Command(_) => Ok(Amount::Unknown),
                });
                let amount = amount.map_err(String::into_boxed_str);
                if amount != Ok(Amount::Unread) {
                    known.insert(uid, (generation, amount.clone()));
                }
                amount
            }
        };
        amount.map_err(String::from)
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
    let Output { uri, secret_ref, format: _, quantization: _, keep_checkpoints: _ } =
        &job.spec.output;
    match uri {
        Some(uri) if !uri.starts_with("s3://") => {
            return Err("spec.output.uri: in a cluster give s3://bucket/prefix: what is on a machine goes with it".to_owned());
        }
        Some(_) if secret_ref.is_none() => {
            return Err("spec.output.uri: in a cluster name the Secret that opens it (spec.output.secretRef)".to_owned());
        }
        _ => {}
    }
    match (&job.spec.recipe, &job.spec.container) {
        (Some(recipe), _) => resolve(job, recipe).map(Box::new).map(Admitted::Recipe),
        (None, Some(container)) => {
            // It tells a later attempt of the same job from the first by them.
            let ours = [
                ("PETAFLOP_NAMESPACE", job.namespace().unwrap_or_default()),
                ("PETAFLOP_JOB", job.name_any()),
            ];
            let command = Command::of(container, ours)?;
            let inputs = job.spec.inputs.iter().map(input).collect();
            Ok(Admitted::Command(Command { inputs, ..command }))
        }
        (None, None) => Err("neither spec.recipe nor spec.container is given".to_owned()),
    }
}

fn resolve(job: &TrainingJob, recipe: &petaflop_crds::recipe::Recipe) -> Result<Recipe, String> {
    let (resolved, inputs) =
        recipe.resolve(&job.spec.inputs, &job.spec.output, None).map_err(|errors| {
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
    Ok(Recipe { recipe, inputs, text })
}

impl Command {
    /// Of a job or service that brings its own image. `ours` is what it finds of us in its environment,
    /// where it does not say otherwise.
    ///
    /// # Errors
    /// It names no command.
    pub fn of<const N: usize>(
        container: &Container,
        ours: [(&str, String); N],
    ) -> Result<Self, String> {
        // What `env_from` and `value_from` name is read apart: crate::cluster::secrets.
        let Container { image, command, args, env, env_from: _, working_dir } = container;
        if command.is_empty() {
            return Err("spec.container.command must be given".to_owned());
        }
        let outright = env.iter().filter(|variable| variable.value_from.is_none());
        let own = outright.map(|v| (v.name.clone(), v.value.clone().unwrap_or_default()));
        let ours = ours.into_iter().map(|(name, value)| (name.to_owned(), value));
        Ok(Self {
            image: image.clone(),
            argv: command.iter().chain(args).cloned().collect(),
            env: ours.chain(own).collect(),
            dir: working_dir.clone(),
            inputs: Vec::new(),
        })
    }
}

/// What opens it, and what of it stands in a ConfigMap, is read apart: crate::cluster::secrets.
fn input(JobInput { name, uri, digest, secret_ref: _ }: &JobInput) -> task::Input {
    task::Input {
        name: name.clone(),
        uri: uri.clone(),
        digest: digest.clone(),
        credentials: BTreeMap::new(),
        files: None,
    }
}

/// How much work a recipe is.
fn amount(job: &TrainingJob, admitted: &Recipe, artifacts: &Artifacts) -> Result<Amount, String> {
    let Recipe { recipe, inputs, text: _ } = admitted;
    let (mut data, mut base) = (0_u64, None);
    for input in inputs {
        let read = match artifact(input).map(|hash| artifacts.known(hash)) {
            Some(Some(read)) => Some(read),
            Some(None) => return Ok(Amount::Unread),
            None => None,
        };
        match recipe.model.input() == Some(input.name.as_str()) {
            true => base = read,
            false => data = data.saturating_add(read.map_or(UNSEEN_BYTES, |read| read.bytes)),
        }
    }
    let (shape, base_bytes) = match (&recipe.model, &base) {
        (ModelSource::Scratch(shape), _) => (shape, 0),
        (ModelSource::Base { .. }, Some(base)) => {
            let no_model = |why| format!("spec.recipe.base_model: no model to start from: {why}");
            (base.shape.as_ref().map_err(no_model)?, base.bytes)
        }
        (ModelSource::Base { .. }, None) => {
            return Err("spec.recipe.base_model: in a cluster a base model is an artifact of the \
                        store: write artifact: and the hash that status.artifact of the \
                        TrainingJob has that made it"
                .to_owned());
        }
    };
    let interval = job.spec.checkpoint.interval_seconds;
    let fetched = data.saturating_add(base_bytes);
    petaflop_arbiter::work::training(recipe, shape, data, fetched, interval)
        .map(Amount::Training)
        .map_err(|error| error.to_string())
}

/// What a job starts from that lies in such a place: name of the input, and URI.
pub fn inputs(job: &TrainingJob, scheme: &str) -> Vec<(String, String)> {
    // Of thousands of jobs few start from any, and to resolve a recipe takes a while.
    let recipe = job.spec.recipe.iter();
    let paths = recipe.flat_map(|recipe| {
        recipe.datasets.iter().map(|dataset| &dataset.path).chain(&recipe.base_model)
    });
    let uris = job.spec.inputs.iter().map(|input| &input.uri);
    if !paths.chain(uris).any(|text| text.starts_with(scheme)) {
        return Vec::new();
    }
    let named: Vec<(String, String)> = match admit(job) {
        Ok(Admitted::Recipe(admitted)) => {
            admitted.inputs.into_iter().map(|input| (input.name, input.uri)).collect()
        }
        Ok(Admitted::Command(command)) => {
            command.inputs.into_iter().map(|input| (input.name, input.uri)).collect()
        }
        Err(_) => Vec::new(),
    };
    named.into_iter().filter(|(_, uri)| uri.starts_with(scheme)).collect()
}

/// What the URI of an artifact begins with; its hash follows.
pub const ARTIFACT: &str = "artifact:";

fn artifact(input: &Input) -> Option<&str> {
    input.uri.strip_prefix(ARTIFACT)
}
