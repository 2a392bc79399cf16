//! Artifacts that jobs start from and services serve: what must be known of them to decide, read
//! from the store once. What a hash names never changes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::ResourceExt;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::TrainingJob;
use petaflop_plan::dtype::Dtype;
use petaflop_plan::shape::ModelShape;
use petaflop_store::{Store, StoreError};

use crate::cluster::Operator;
use crate::cluster::admit;
use crate::cluster::training_job::Waits;
use crate::embedded::work;
use crate::store_at::StoreAt;

/// What was read, by hash. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Artifacts(Arc<Mutex<HashMap<String, Arc<Artifact>>>>);

/// What must be known of an artifact.
#[derive(Debug)]
pub struct Artifact {
    /// Bytes of all its files.
    pub bytes: u64,
    /// The model in it; or why it is none that is known here.
    pub shape: Result<ModelShape, String>,
    /// The format in which its matrices are served.
    pub weights: Dtype,
}

/// Why nothing is known of an artifact.
#[derive(Debug)]
pub enum Unread {
    /// The store cannot be read now.
    Away(String),
    /// It is not there, or damaged.
    Wrong(String),
}

impl Artifacts {
    /// What is known of it.
    pub fn known(&self, hash: &str) -> Option<Arc<Artifact>> {
        self.lock().get(hash).cloned()
    }

    /// Reads it, unless it is known.
    ///
    /// # Errors
    /// See [`Unread`]; the next call tries again.
    pub async fn read(&self, store: &StoreAt, hash: &str) -> Result<Arc<Artifact>, Unread> {
        if let Some(known) = self.known(hash) {
            return Ok(known);
        }
        let read = Arc::new(read(store, hash).await?);
        self.lock().insert(hash.to_owned(), read.clone());
        Ok(read)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Artifact>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn read(at: &StoreAt, hash: &str) -> Result<Artifact, Unread> {
    let credentials = at.credentials.iter().map(|(k, v)| (k.as_str(), v.expose())).collect();
    let credentials = (!at.credentials.is_empty()).then_some(&credentials);
    let store = Store::open_with(&at.uri, credentials).map_err(unread)?;
    let hash = store.resolve(hash).await.map_err(unread)?;
    let manifest = store.manifest(hash).await.map_err(unread)?;
    let bytes = manifest.files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.length));
    let shape = match store.read_file(hash, work::CONFIG).await {
        Ok(config) => work::shape_of(&config),
        Err(error @ StoreError::NoSuchFile { .. }) => Err(error.to_string()),
        Err(error) => return Err(unread(error)),
    };
    let recipe = match work::is_gguf(&manifest) {
        true => Some(store.read_file(hash, work::RECIPE).await.map_err(unread)?),
        false => None,
    };
    let weights = match &shape {
        Ok(shape) => work::served_as(recipe.as_deref(), shape).map_err(Unread::Wrong)?,
        Err(_) => Dtype::F32,
    };
    Ok(Artifact { bytes, shape, weights })
}

fn unread(error: StoreError) -> Unread {
    match error {
        // It may come, or come again.
        StoreError::Io { .. } | StoreError::Backend { .. } | StoreError::Busy { .. } => {
            Unread::Away(format!("the store cannot be read: {error}"))
        }
        error => Unread::Wrong(error.to_string()),
    }
}

/// Reads what a job starts from. Returns what is missing.
pub async fn learn(operator: &Operator, job: &TrainingJob) -> Option<Waits> {
    for (input, hash) in admit::artifacts(job) {
        let store = &operator.settings.store;
        let (reason, why) = match operator.artifacts.read(store, &hash).await {
            Ok(_) => continue,
            Err(Unread::Away(why)) => (Reason::Unreachable, why),
            Err(Unread::Wrong(why)) => {
                let mend =
                    "name one that is there: status.artifact of the TrainingJob that made it";
                (Reason::InvalidSpec, format!("{why}; {mend}"))
            }
        };
        tracing::info!(job = %job.name_any(), %input, %hash, "cannot be read");
        return Some(Waits { reason, message: format!("input {input}, artifact:{hash}: {why}") });
    }
    None
}
