//! `spec.output.uri`: a finished artifact is copied there. The home's own store always has it
//! too, so that services, cache and `petaflop artifacts` look in one place.

use petaflop_store::{ArtifactHash, Store, StoreError};

use crate::embedded::home::{Home, HomeError};
use crate::uid;

/// Why an artifact is not where it was wanted.
#[derive(Debug, thiserror::Error)]
#[error(
    "spec.output.uri: artifact {artifact} could not be copied to {output}: {why}. It is safe in {store}; mend it and run the same manifest again, which only copies"
)]
pub struct PublishError {
    artifact: String,
    output: String,
    store: String,
    why: String,
}

/// Copies an artifact of the home's store to another store, and binds its key there.
/// What is there already is left alone.
///
/// # Errors
/// Either store refuses; the home's still has the artifact then.
pub async fn copy(
    home: &Home,
    artifact: &str,
    key: &str,
    output: &str,
) -> Result<(), PublishError> {
    let failed = |why: String| PublishError {
        artifact: artifact.to_owned(),
        output: output.to_owned(),
        store: home.store().display().to_string(),
        why,
    };
    let uid = uid::random().map_err(|e| failed(e.to_string()))?;
    let scratch = home.root().join(format!(".copy-{uid}"));
    let own = home.store().display().to_string();
    let copied = through(&own, artifact, key, output, &scratch).await;
    let removed = match std::fs::remove_dir_all(&scratch) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(failed(HomeError::unusable(&scratch)(error).to_string()))
        }
        _ => Ok(()),
    };
    copied.map_err(|error| failed(error.to_string()))?;
    removed
}

/// Brings an artifact into the home's store from where rented machines keep theirs, key and all.
///
/// # Errors
/// Either store refuses; the other has the artifact then.
pub async fn fetch(home: &Home, artifact: &str, key: &str, from: &str) -> Result<(), StoreError> {
    let scratch = home.root().join(format!(".fetch-{artifact}"));
    let fetched = through(from, artifact, key, &home.store().display().to_string(), &scratch).await;
    let _ = std::fs::remove_dir_all(&scratch);
    fetched
}

async fn through(
    from: &str,
    artifact: &str,
    key: &str,
    to: &str,
    scratch: &std::path::Path,
) -> Result<(), StoreError> {
    let from = Store::open(from)?;
    let to = Store::open(to)?;
    if from.name() == to.name() {
        return Ok(());
    }
    let hash: ArtifactHash = from.resolve(artifact).await?;
    from.materialise(hash, scratch).await?;
    let stored = to.put_artifact(scratch).await?;
    to.bind_key(None, key, stored.hash).await
}
