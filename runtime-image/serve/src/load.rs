//! From where the model lies to a model that is ready: resolve, plan, check that
//! the plan fits, allocate, read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use petaflop_model::chat::{ChatTemplate, DEFAULT_TEMPLATE, TEMPLATE_FILE};
use petaflop_model::gguf::{model::GgufModel, vocabulary};
use petaflop_model::inference::InferenceModel;
use petaflop_model::place::Serving;
use petaflop_model::tokenizer::{TOKENIZER_FILE, Tokenizer};
use petaflop_model::weights::{self, Weights, WeightsFolder};
use petaflop_model::{ModelError, WeightsError};
use petaflop_plan::Numerics;
use petaflop_plan::dtype::Dtype;
use petaflop_plan::inference::{ServingOptions, plan_inference};
use petaflop_plan::plan::{ALIGNMENT, KV_BLOCK_TOKENS, PlanError};
use petaflop_plan::shape::ModelShape;
use petaflop_store::{StoreError, blocking::Store};

use crate::blocks::Blocks;
use crate::prompt::Prompts;
use crate::server::{Compute, ModelLocation, ServeConfig};
use crate::vocabulary::{Vocabulary, configured_ends};

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store does not have it, or has it damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no room for the artifact's files while they are read.
    #[error("cannot make a temporary folder for the artifact's files: {0}")]
    Scratch(std::io::Error),
    /// Its files cannot be used.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Its tokenizer or chat template cannot be used.
    #[error("{path}: {problem}")]
    Text {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// A setting does not go with the model.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The plan needs more memory than there is.
    #[error(
        "serving needs {planned} bytes with room for one sequence of {context} tokens, but \
         {available} are available; lower --context, --max-sequences or --step-tokens, or use a \
         machine with more memory"
    )]
    DoesNotFit {
        /// Bytes of the smallest plan.
        planned: u64,
        /// Bytes there are.
        available: u64,
        /// Tokens of one sequence.
        context: u32,
    },
    /// The model cannot be brought into memory.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl LoadError {
    /// A file beside the weights that cannot be used.
    pub(crate) fn text(path: &Path, problem: impl std::fmt::Display) -> Self {
        LoadError::Text { path: path.to_owned(), problem: problem.to_string() }
    }
}

/// A model that is ready, and what goes with it.
pub(crate) struct Loaded {
    pub(crate) model: Box<dyn Serving>,
    pub(crate) blocks: Blocks,
    pub(crate) prompts: Prompts,
    pub(crate) vocabulary: Arc<Vocabulary>,
    /// What was planned.
    pub(crate) options: ServingOptions,
    /// Whose bits its answers have.
    pub(crate) numerics: Numerics,
    /// Bytes that the plan takes and that were allocated.
    pub(crate) planned_bytes: u64,
}

/// Loads what the configuration names.
pub(crate) fn load(config: &ServeConfig, on: Compute) -> Result<Loaded, LoadError> {
    match &config.model {
        ModelLocation::Path(path) => load_path(path, config, on),
        ModelLocation::Artifact { store, hash } => {
            let store = Store::open(store)?;
            let hash = store.resolve(hash)?;
            // Checked as it is written; the weights are in memory when it goes.
            let scratch = tempfile::tempdir().map_err(LoadError::Scratch)?;
            let folder = scratch.path().join("artifact");
            store.materialise(hash, &folder)?;
            load_path(&folder, config, on)
        }
    }
}

fn load_path(path: &Path, config: &ServeConfig, on: Compute) -> Result<Loaded, LoadError> {
    match weights::gguf_in(path) {
        Some(file) => load_gguf(&file, config, on),
        None => load_folder(path, config, on),
    }
}

fn load_folder(folder: &Path, config: &ServeConfig, on: Compute) -> Result<Loaded, LoadError> {
    let weights = WeightsFolder::open(folder)?;
    let path = folder.join(TOKENIZER_FILE);
    let tokenizer = Tokenizer::from_file(&path).map_err(|e| LoadError::text(&path, e))?;
    let text = Text {
        tokenizer,
        path: &path,
        template: template(folder)?,
        ends: configured_ends(folder)?,
    };
    ready(&weights, text, config, on)
}

/// A file that has everything in it.
fn load_gguf(file: &Path, config: &ServeConfig, on: Compute) -> Result<Loaded, LoadError> {
    let weights = GgufModel::open(file)?;
    let contents = weights.file().contents();
    let refused = |e: &dyn std::fmt::Display| LoadError::text(file, e);
    let source = vocabulary::template(contents).unwrap_or(DEFAULT_TEMPLATE);
    let text = Text {
        tokenizer: vocabulary::tokenizer(contents).map_err(|e| refused(&e))?,
        path: file,
        template: ChatTemplate::new(source).map_err(|e| refused(&e))?,
        ends: vocabulary::ends(contents),
    };
    ready(&weights, text, config, on)
}

/// What stands between text and tokens.
struct Text<'a> {
    tokenizer: Tokenizer,
    /// The tokenizer's file.
    path: &'a Path,
    template: ChatTemplate,
    /// Tokens that end an answer, besides those that do by their names.
    ends: Vec<u32>,
}

fn ready(
    weights: &dyn Weights,
    text: Text<'_>,
    config: &ServeConfig,
    on: Compute,
) -> Result<Loaded, LoadError> {
    let Text { tokenizer, path, template, ends } = text;
    let shape = weights.shape().clone();
    if tokenizer.vocab() > shape.vocab {
        let (has, knows) = (tokenizer.vocab(), shape.vocab);
        let problem = format!("the tokenizer has {has} tokens, but the model knows {knows}");
        return Err(LoadError::text(path, problem));
    }
    let vocabulary = Vocabulary::of_model(&tokenizer, shape.vocab, ends);

    let model: Box<dyn Serving>;
    let (options, numerics) = match on {
        Compute::Cpu(cpu) => {
            let options = options(&shape, weights.serving_format(), config, config.memory)?;
            model = Box::new(InferenceModel::new(Arc::new(cpu), weights, &options)?);
            (options, config.numerics)
        }
        // Of its own memory the device knows.
        Compute::Device(device) => {
            let options = options(&shape, Dtype::F32, config, None)?;
            let numerics = device.numerics();
            model = device.serving(weights, &options)?;
            (options, numerics)
        }
    };
    Ok(Loaded {
        planned_bytes: model.arena_bytes(),
        model,
        blocks: Blocks::new(options.kv_blocks),
        prompts: Prompts::new(tokenizer, template, shape.vocab),
        vocabulary: Arc::new(vocabulary),
        options,
        numerics,
    })
}

/// The folder's chat template: a file of its own, or, in older folders, a field of
/// `tokenizer_config.json`; ChatML where there is neither.
fn template(folder: &Path) -> Result<ChatTemplate, LoadError> {
    let path = folder.join(TEMPLATE_FILE);
    if let Some(source) = read_if_there(&path)? {
        return ChatTemplate::new(&source).map_err(|e| LoadError::text(&path, e));
    }
    let path = folder.join("tokenizer_config.json");
    let source = match read_if_there(&path)? {
        None => None,
        Some(text) => {
            let config: serde_json::Value =
                serde_json::from_str(&text).map_err(|e| LoadError::text(&path, e))?;
            config["chat_template"].as_str().map(str::to_owned)
        }
    };
    ChatTemplate::new(source.as_deref().unwrap_or(DEFAULT_TEMPLATE))
        .map_err(|e| LoadError::text(&path, e))
}

/// A file's text; `None` where there is no such file.
pub(crate) fn read_if_there(path: &Path) -> Result<Option<String>, LoadError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(LoadError::text(path, e)),
    }
}

/// What to plan with. Where nothing else is asked for, the cache has room for
/// every sequence's whole context, or for as much of that as fits.
fn options(
    shape: &ModelShape,
    weights: Dtype,
    config: &ServeConfig,
    memory: Option<u64>,
) -> Result<ServingOptions, LoadError> {
    let context = config.context.unwrap_or(shape.max_positions);
    let mut options = ServingOptions::new(
        weights,
        config.max_sequences,
        config.step_tokens.max(config.max_sequences),
        context,
    );
    options.numerics = config.numerics;
    if let Some(kv_blocks) = config.kv_blocks {
        options.kv_blocks = kv_blocks;
    }
    let planned = plan_inference(shape, &options)?.arena_bytes();
    let Some(available) = memory else {
        return Ok(options);
    };
    if planned <= available {
        return Ok(options);
    }
    let least = ServingOptions { kv_blocks: context.div_ceil(KV_BLOCK_TOKENS), ..options.clone() };
    let smallest = plan_inference(shape, &least)?;
    let spare = available.checked_sub(smallest.arena_bytes());
    let (Some(spare), None) = (spare, config.kv_blocks) else {
        return Err(LoadError::DoesNotFit {
            planned: if config.kv_blocks.is_some() { planned } else { smallest.arena_bytes() },
            available,
            context,
        });
    };
    // Each layer's keys and values are aligned anew.
    let spare = spare.saturating_sub(2 * u64::from(shape.layers) * ALIGNMENT);
    let block_bytes = smallest.segments.kv_cache.div_ceil(u64::from(least.kv_blocks));
    let more = u32::try_from(spare / block_bytes.max(1)).unwrap_or(u32::MAX);
    options.kv_blocks = least.kv_blocks.saturating_add(more).min(options.kv_blocks);
    tracing::warn!(
        kv_blocks = options.kv_blocks,
        "not every sequence's whole context fits into the memory there is; requests wait for blocks"
    );
    Ok(options)
}
