//! Where training starts from: a base model's folder, or random weights.

use std::path::{Path, PathBuf};

use petaflop_model::{
    place::Training,
    weights::{self, Weights},
};
use petaflop_plan::{
    recipe::{ModelSource, ResolvedRecipe},
    shape::ModelShape,
};

use crate::{error::Error, input::Source};

/// What a job starts from.
pub(crate) enum Start {
    /// Random weights of this shape.
    Scratch(ModelShape),
    /// The weights in a folder.
    Base {
        /// The folder.
        folder: PathBuf,
        /// They.
        weights: Box<dyn Weights>,
    },
}

impl Start {
    pub(crate) fn of(recipe: &ResolvedRecipe, sources: &[Source]) -> Result<Self, Error> {
        match &recipe.model {
            ModelSource::Scratch(shape) => Ok(Self::Scratch(shape.clone())),
            ModelSource::Base { input } => {
                let source = sources.iter().find(|source| source.name == *input);
                let folder = source.and_then(Source::root).filter(|root| root.is_dir()).ok_or_else(|| {
                    Error::BadInput(format!("input '{input}': a base model is a folder with config.json, tokenizer.json and safetensors or model.gguf"))
                })?;
                let weights = weights::open(folder)
                    .map_err(|error| Error::BadInput(format!("input '{input}': {error}")))?;
                let positions = weights.shape().max_positions;
                if recipe.sequence_len > positions {
                    return Err(Error::BadInput(format!(
                        "recipe: sequence_len: expected at most the base model's {positions} positions, found {}",
                        recipe.sequence_len
                    )));
                }
                Ok(Self::Base { folder: folder.to_owned(), weights })
            }
        }
    }

    pub(crate) fn shape(&self) -> &ModelShape {
        match self {
            Self::Scratch(shape) => shape,
            Self::Base { weights, .. } => weights.shape(),
        }
    }

    /// The base model's folder.
    pub(crate) fn folder(&self) -> Option<&Path> {
        match self {
            Self::Scratch(_) => None,
            Self::Base { folder, .. } => Some(folder),
        }
    }

    /// Fills the model's weights.
    pub(crate) fn fill(&self, model: &mut dyn Training, seed: u64) -> Result<(), Error> {
        match self {
            Self::Scratch(_) => model.init(seed),
            Self::Base { weights, .. } => model.load(&**weights),
        }
        .map_err(Error::model)
    }
}
