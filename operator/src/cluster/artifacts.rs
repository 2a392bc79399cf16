//! Artifacts that jobs start from and services serve: what must be known of them to decide, read
//! from the store once. What a hash names never changes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::ResourceExt;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::TrainingJob;
use petaflop_plan::dtype::Dtype;
use petaflop_plan::shape::ModelShape;
use petaflop_store::{Store, StoreError, place};

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

/// Whether a job's machine may read what lies there with what opens the operator's store, of whose places the first
/// is the store itself: it is in the same bucket, and what other jobs made and were billed is not.
fn read_with_our_keys(uri: &str, ours: [&str; 2]) -> Result<(), String> {
    let words = |error: StoreError| error.to_string();
    // A pass would open whatever they stand for.
    if uri.contains(['*', '?', '$']) {
        return Err("a name may not hold *, ? or $".to_owned());
    }
    if place::bucket_name(uri).map_err(words)? != place::bucket_name(ours[0]).map_err(words)? {
        return Err("that is another bucket than the operator's store is in, whose keys are for no other: name the \
                    Secret that opens it (secretRef of a container's input), or put the data beside the store"
            .to_owned());
    }
    for ours in ours {
        if place::overlap(uri, ours).map_err(words)? {
            return Err("that is in the operator's own store, or the store is in it: write artifact: and the \
                        hash of what is there, or put the data elsewhere"
                .to_owned());
        }
    }
    Ok(())
}

/// Reads what a job starts from. Returns what is missing.
pub async fn learn(operator: &Operator, job: &TrainingJob) -> Option<Waits> {
    let settings = &operator.settings;
    let own = |name: &str| {
        job.spec.inputs.iter().any(|input| input.name == name && input.secret_ref.is_some())
    };
    for (input, uri) in admit::inputs(job, "s3://") {
        let ours = [settings.store.uri.as_str(), &settings.ledger.uri];
        if !own(&input)
            && let Err(why) = read_with_our_keys(&uri, ours)
        {
            let message = format!("input {input}, {uri}: {why}");
            return Some(Waits { reason: Reason::InvalidSpec, message });
        }
    }
    for (input, uri) in admit::inputs(job, admit::ARTIFACT) {
        let Some(hash) = uri.strip_prefix(admit::ARTIFACT) else { continue };
        let (reason, why) = match operator.artifacts.read(&settings.store, hash).await {
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

#[cfg(test)]
mod tests {
    use super::read_with_our_keys;

    #[test]
    fn our_keys_read_what_lies_beside_the_store_and_nothing_else() {
        let ours = ["s3://bucket/store", "s3://bucket/ledger"];
        for (uri, refused) in [
            ("s3://bucket/data", None),
            ("s3://bucket/store2", None),
            ("s3://other/data", Some("another bucket")),
            ("s3://bucket", Some("the operator's own store")),
            ("s3://bucket/data/../store/chunks", Some("the operator's own store")),
            ("s3://bucket/%6cedger", Some("the operator's own store")),
            ("s3://bucket/d*", Some("may not hold")),
        ] {
            let found = read_with_our_keys(uri, ours).err();
            let as_said = match (&found, refused) {
                (None, None) => true,
                (Some(found), Some(refused)) => found.contains(refused),
                _ => false,
            };
            assert!(as_said, "{uri}: {found:?}");
        }
        // Of a store that is a folder no key opens a bucket.
        assert!(read_with_our_keys("s3://bucket/data", ["/store", "/ledger"]).is_err());
    }
}
