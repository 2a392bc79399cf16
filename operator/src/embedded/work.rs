//! Where models and data lie, and how large they are: what `petaflop_crds::work` needs
//! to say how much work a job or service is.

use std::path::Path;

use petaflop_arbiter::workload::{ServingWork, TrainingWork};
use petaflop_plan::dtype::Dtype;
use petaflop_plan::inference::ServingOptions;
use petaflop_plan::recipe::{Export, Input, ModelSource, ResolvedRecipe};
use petaflop_plan::shape::ModelShape;
use petaflop_store::blocking::Store;
use petaflop_store::{Manifest, StoreError};
use serde::Deserialize;

/// Size that is assumed for text that lies inside the runtime or in a bucket, which this program does not
/// look at.
const UNSEEN_BYTES: u64 = 2 << 20;

/// What the server plans for when nothing else is said; as `petaflop-runtime serve` has it.
pub const SERVED_SEQUENCES: u32 = 16;
/// Tokens of one of its passes.
pub const SERVED_STEP_TOKENS: u32 = 256;

/// Work of a training job.
///
/// # Errors
/// A model or an input that cannot be planned for, in words.
pub fn training(
    recipe: &ResolvedRecipe,
    inputs: &[Input],
    store: &Path,
    checkpoint_interval_seconds: Option<u32>,
) -> Result<TrainingWork, String> {
    let uri_of = |name: &str| inputs.iter().find(|i| i.name == name).map_or("", |i| i.uri.as_str());
    let shape = trained(recipe, inputs, store)?;
    let data: u64 = recipe.datasets.iter().map(|d| size_of(uri_of(&d.input), store)).sum();
    let base = recipe.model.input().map_or(0, |name| size_of(uri_of(name), store));
    let interval = checkpoint_interval_seconds;
    petaflop_arbiter::work::training(recipe, &shape, data, data + base, interval)
        .map_err(|e| e.to_string())
}

/// The shape of the model that a recipe trains.
///
/// # Errors
/// As [`shape_at`].
pub fn trained(
    recipe: &ResolvedRecipe,
    inputs: &[Input],
    store: &Path,
) -> Result<ModelShape, String> {
    match &recipe.model {
        ModelSource::Scratch(shape) => Ok(shape.clone()),
        ModelSource::Base { input } => {
            let uri = inputs.iter().find(|one| one.name == *input).map_or("", |one| &one.uri);
            shape_at(uri, store)
        }
    }
}

/// Work of one replica that serves a model, its matrices in this format.
///
/// # Errors
/// A model that cannot be planned for, in words.
pub fn serving(shape: &ModelShape, weights: Dtype) -> Result<ServingWork, String> {
    let context = shape.max_positions;
    let options = ServingOptions::new(weights, SERVED_SEQUENCES, SERVED_STEP_TOKENS, context);
    petaflop_arbiter::work::serving(shape, &options).map_err(|e| e.to_string())
}

/// The shape of a model that lies somewhere: a folder, or an artifact of the store.
///
/// # Errors
/// No such model, or one of a kind that is not supported, in words.
pub fn shape_at(uri: &str, store: &Path) -> Result<ModelShape, String> {
    if let Some(hash) = uri.strip_prefix("artifact:") {
        return stored_model(hash, store).map(|(shape, _)| shape);
    }
    let path = Path::new(uri.strip_prefix("file://").unwrap_or(uri)).join(CONFIG);
    shape_of(&std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?)
}

/// The shape of an artifact's model, and the format in which its matrices are served.
///
/// # Errors
/// As [`shape_at`].
pub fn stored_model(hash: &str, store: &Path) -> Result<(ModelShape, Dtype), String> {
    let said = |e: StoreError| e.to_string();
    let store = Store::open(&store.display().to_string()).map_err(said)?;
    let hash = store.resolve(hash).map_err(said)?;
    let shape = shape_of(&store.read_file(hash, CONFIG).map_err(said)?)?;
    let manifest = store.manifest(hash).map_err(said)?;
    let recipe = match is_gguf(&manifest) {
        true => Some(store.read_file(hash, RECIPE).map_err(said)?),
        false => None,
    };
    let weights = served_as(recipe.as_deref(), &shape)?;
    Ok((shape, weights))
}

/// The model's form, in a folder or an artifact.
pub const CONFIG: &str = "config.json";
/// The resolved recipe, in an artifact.
pub const RECIPE: &str = "recipe.json";

/// Whether an artifact's weights are in a GGUF file.
pub fn is_gguf(manifest: &Manifest) -> bool {
    manifest.files.iter().any(|file| file.path == "model.gguf")
}

/// The format in which an artifact of this shape is served: f32, but for a GGUF file, of which
/// its [`RECIPE`] is given, the format that holds what the recipe asked for.
///
/// # Errors
/// A recipe that is none.
pub fn served_as(recipe: Option<&[u8]>, shape: &ModelShape) -> Result<Dtype, String> {
    /// Of a recipe, what a file's form depends on.
    #[derive(Deserialize)]
    struct Output {
        #[serde(default)]
        output: Export,
    }
    let Some(recipe) = recipe else { return Ok(Dtype::F32) };
    let Output { output } = serde_json::from_slice(recipe).map_err(|e| format!("{RECIPE}: {e}"))?;
    Ok(output.served_as(shape))
}

/// The shape that a `config.json` says.
///
/// # Errors
/// It is none, or of a kind that is not supported.
pub fn shape_of(config: &[u8]) -> Result<ModelShape, String> {
    let config = serde_json::from_slice(config).map_err(|e| format!("{CONFIG}: {e}"))?;
    ModelShape::from_hf_config(&config).map_err(|e| format!("{CONFIG}: {e}"))
}

fn size_of(uri: &str, store: &Path) -> u64 {
    if uri.starts_with("builtin:") || uri.starts_with("s3://") {
        return UNSEEN_BYTES;
    }
    if let Some(hash) = uri.strip_prefix("artifact:") {
        let size = || -> Option<u64> {
            let store = Store::open(&store.display().to_string()).ok()?;
            let manifest = store.manifest(store.resolve(hash).ok()?).ok()?;
            Some(manifest.files.iter().map(|file| file.length).sum())
        };
        return size().unwrap_or(0);
    }
    folder_size(Path::new(uri.strip_prefix("file://").unwrap_or(uri)), 0)
}

fn folder_size(path: &Path, depth: u32) -> u64 {
    let Ok(about) = std::fs::metadata(path) else {
        return 0;
    };
    if !about.is_dir() {
        return about.len();
    }
    // A loop of symbolic links ends somewhere.
    if depth > 32 {
        return 0;
    }
    let Ok(entries) = std::fs::read_dir(path) else {
        return 0;
    };
    entries.flatten().map(|entry| folder_size(&entry.path(), depth + 1)).sum()
}
