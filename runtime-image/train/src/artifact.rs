//! What a finished job leaves: a folder of files that depends on its key alone.
//!
//! ```text
//! config.json           the model's shape, as Hugging Face writes it
//! model.safetensors     its weights; or model.gguf, a whole model by itself
//! tokenizer.json        its tokenizer
//! chat_template.jinja   how a conversation becomes text
//! recipe.json           the resolved recipe
//! training.json         what happened: losses, data, and the arithmetic's version
//! ```
//!
//! No time, cost, host, path or thread count is in any of them.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use petaflop_kernel::Cpu;
use petaflop_model::{chat::TEMPLATE_FILE, place, tokenizer::TOKENIZER_FILE};
use petaflop_plan::{NUMERICS_VERSION, recipe::ResolvedRecipe};
use petaflop_store::{ArtifactHash, blocking::Store};
use serde::{Deserialize, Serialize};

use crate::{
    data::Data,
    error::Error,
    export::{self, Verified},
    history::History,
};

/// Name of the record in an artifact.
pub(crate) const TRAINING: &str = "training.json";
/// Losses in `training.json` at most: enough to draw the curve anew.
const LOSSES: u64 = 200;

/// Facts of a training that the key determines.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Training {
    pub(crate) key: String,
    pub(crate) numerics_version: u32,
    pub(crate) digests: BTreeMap<String, String>,
    pub(crate) parameters: u64,
    pub(crate) steps: u64,
    pub(crate) tokens_per_step: u64,
    pub(crate) documents: Documents,
    /// (steps done, mean loss of that step in nats a token), evenly spread, the last step included.
    pub(crate) losses: Vec<(u64, f64)>,
    /// (steps done, loss in nats a token, bits per byte).
    pub(crate) validation: Vec<(u64, f64, f64)>,
    /// Of weights that were written in another form than they were trained in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) exported: Option<Verified>,
}

/// What became of the data's documents.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Documents {
    pub(crate) train: u64,
    pub(crate) validation: u64,
    pub(crate) duplicates_removed: u64,
    pub(crate) train_bytes: u64,
    pub(crate) train_tokens: u64,
    /// Tokens of the validation split that are to be predicted.
    pub(crate) validation_targets: u64,
    /// The bytes that they stand for.
    pub(crate) validation_bytes: u64,
}

impl Training {
    pub(crate) fn new(
        key: &str,
        digests: &BTreeMap<String, String>,
        parameters: u64,
        tokens_per_step: u64,
        documents: Documents,
        history: &History,
    ) -> Self {
        let steps = history.losses.len() as u64;
        let every = steps.div_ceil(LOSSES).max(1);
        let losses =
            (1..).zip(&history.losses).filter(|(step, _)| step % every == 0 || *step == steps);
        Self {
            key: key.to_owned(),
            numerics_version: NUMERICS_VERSION,
            digests: digests.clone(),
            parameters,
            steps,
            tokens_per_step,
            documents,
            losses: losses.map(|(step, &loss)| (step, loss)).collect(),
            validation: history.validation.clone(),
            exported: None,
        }
    }
}

/// Puts the model and its records into the store and binds the key to them; notes in `training`
/// how the exported weights were found to be.
///
/// # Errors
/// The files cannot be written, or the store refuses.
pub(crate) fn publish(
    store: &Store,
    scratch: &Path,
    recipe: &ResolvedRecipe,
    training: &mut Training,
    model: &mut dyn place::Training,
    cpu: &Arc<Cpu>,
    data: &Data,
) -> Result<ArtifactHash, Error> {
    const WHAT: &str = "cannot write artifact";
    let folder = tempfile::Builder::new()
        .prefix(".writing-artifact-")
        .tempdir_in(scratch)
        .map_err(Error::io(WHAT, scratch))?;
    training.exported = export::write(folder.path(), recipe, model, cpu, data)?;
    let files = [
        (TOKENIZER_FILE, data.tokenizer.clone()),
        (TEMPLATE_FILE, data.chat_template.clone().into_bytes()),
        ("recipe.json", json(recipe)?),
        (TRAINING, json(training)?),
    ];
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::write(&path, bytes).map_err(Error::io(WHAT, &path))?;
    }
    let stored = store.put_artifact(folder.path()).map_err(Error::store)?;
    store.bind_key(None, &training.key, stored.hash).map_err(Error::store)?;
    Ok(stored.hash)
}

/// Indented, with a line end: people read these.
fn json(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    let mut text =
        serde_json::to_vec_pretty(value).map_err(|error| Error::Internal(error.to_string()))?;
    text.push(b'\n');
    Ok(text)
}
