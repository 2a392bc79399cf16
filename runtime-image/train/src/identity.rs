//! Which result a job will have, known before anything is spent on it.

use std::collections::BTreeMap;

use petaflop_plan::{Numerics, recipe::JobSpec};
use petaflop_store::{ArtifactHash, blocking::Store};

use crate::{
    error::Error,
    input::{self, Builtins, Source},
};

/// What a job is, and whether it was done before.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The job's key (hex).
    pub key: String,
    /// Content digests of its inputs (`blake3:<hex>`), by name.
    pub digests: BTreeMap<String, String>,
    /// The artifact, where a job of this key ended well before.
    pub cached: Option<ArtifactHash>,
}

/// Reads the job's inputs and asks its store, for a result in the processor's arithmetic.
///
/// # Errors
/// A recipe out of range, an input that cannot be read or has another digest, a store that cannot be read.
pub fn identify(job: &JobSpec, builtins: &Builtins) -> Result<Identity, Error> {
    Ok(Identified::new(job, builtins, Numerics::Exact)?.identity)
}

/// An identity with what was read for it.
#[derive(Debug)]
pub(crate) struct Identified {
    pub(crate) identity: Identity,
    pub(crate) sources: Vec<Source>,
    /// Where the artifact is, if it is anywhere.
    pub(crate) store: Store,
}

impl Identified {
    pub(crate) fn new(
        job: &JobSpec,
        builtins: &Builtins,
        numerics: Numerics,
    ) -> Result<Self, Error> {
        job.recipe.validate().map_err(|error| Error::BadInput(format!("recipe: {error}")))?;
        let store = Store::open(&job.store).map_err(Error::store)?;
        let sources = input::read_all(job, builtins, &store)?;
        let digests =
            sources.iter().map(|source| (source.name.clone(), *source.digest.as_bytes())).collect();
        let key = job
            .recipe
            .key_in(&digests, numerics)
            .map_err(|error| Error::BadInput(error.to_string()))?
            .to_string();
        let mut cached = match store.find_key(None, &key) {
            Err(error) if job.result.is_some() && error.is_forbidden() => None,
            found => found.map_err(Error::store)?,
        };
        let mut holds = store;
        if let (None, Some(result)) = (cached, &job.result) {
            holds = Store::open(result).map_err(Error::store)?;
            cached = holds.find_key(None, &key).map_err(Error::store)?;
        }
        let digests = sources
            .iter()
            .map(|source| (source.name.clone(), input::written(source.digest)))
            .collect();
        Ok(Self { identity: Identity { key, digests, cached }, sources, store: holds })
    }
}
