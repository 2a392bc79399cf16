//! The resolved recipe — every choice that can change a bit of the result, fixed
//! once at admission — and the job file that the runtime is started with.
//!
//! What is *not* here is as important: no name, place, price, deadline or thread
//! count. Two jobs with equal [`ResolvedRecipe`]s, equal content digests and the
//! same [`crate::NUMERICS_VERSION`] have the same key and the same artifact.

use serde::{Deserialize, Serialize};

use crate::shape::ModelShape;

/// A recipe with every default filled in and every count fixed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolvedRecipe {
    /// Where the starting weights come from.
    pub model: ModelSource,
    /// Where the tokenizer comes from.
    pub tokenizer: TokenizerSource,
    /// What is trained on, in order. Names refer to [`JobSpec::inputs`].
    pub datasets: Vec<Dataset>,
    /// Share of the documents held out for validation, by whole document, chosen by seed. In `[0, 0.5]`.
    pub val_set_size: f64,
    /// Tokens in one training sample.
    pub sequence_len: u32,
    /// Samples in one forward and backward pass.
    pub micro_batch_size: u32,
    /// Passes whose gradients are added before one optimiser step.
    pub gradient_accumulation_steps: u32,
    /// When training ends.
    pub length: TrainingLength,
    /// The optimiser and its constants.
    pub optimizer: Optimizer,
    /// Learning rate at its peak.
    pub learning_rate: f64,
    /// How the learning rate moves.
    pub schedule: Schedule,
    /// Gradients are scaled down to this global L2 norm; 0 switches clipping off.
    pub max_grad_norm: f64,
    /// Seed of every random choice.
    pub seed: u64,
    /// Number format of weights and activations.
    pub precision: Precision,
    /// What the finished weights are written as.
    #[serde(default, skip_serializing_if = "Export::is_default")]
    pub output: Export,
}

/// Where the starting weights come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ModelSource {
    /// Random weights of this shape. The vocabulary is the tokenizer's.
    Scratch(ModelShape),
    /// The weights in the input of this name (a Hugging Face folder or one of our artifacts).
    Base {
        /// Name of an entry of [`JobSpec::inputs`].
        input: String,
    },
}

/// Where the tokenizer comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenizerSource {
    /// A byte-level BPE trained on the training split.
    TrainBpe {
        /// Entries, the 256 bytes and the special tokens included.
        vocab: u32,
    },
    /// The base model's own.
    Base,
}

/// One dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dataset {
    /// Name of an entry of [`JobSpec::inputs`].
    pub input: String,
    /// How its bytes become samples.
    pub kind: DatasetKind,
}

/// How a dataset's bytes become samples (axolotl's `type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatasetKind {
    /// Plain text; every token is a target.
    Completion,
    /// JSON lines with `messages`; only the assistant's tokens are targets.
    ChatTemplate,
    /// JSON lines with `instruction`, `input`, `output`; only the output is a target.
    Alpaca,
}

/// When training ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainingLength {
    /// After this many optimiser steps.
    Steps(u64),
    /// After this many passes over the training split.
    Epochs(u32),
}

/// The optimiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Optimizer {
    /// AdamW (Loshchilov and Hutter 2019): decay is not scaled by the gradient's moments.
    Adamw {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the second moment.
        eps: f64,
        /// Applied to matrices; never to gains and biases.
        weight_decay: f64,
    },
}

/// The learning rate over the steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Steps of linear rise from 0.
    pub warmup_steps: u64,
    /// What follows the rise.
    pub decay: Decay,
    /// Learning rate at the end, as a share of the peak.
    pub min_ratio: f64,
}

/// What follows the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Half a cosine down to the minimum.
    Cosine,
    /// A straight line down to the minimum.
    Linear,
    /// Stays at the peak.
    Constant,
}

/// Number format of weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floats throughout.
    F32,
}

/// What finished weights are written as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Export {
    /// A Hugging Face folder, as they were trained.
    #[default]
    Safetensors,
    /// One GGUF file.
    Gguf(Quantization),
}

impl Export {
    /// Left out of recipes, whose keys are those of before there was a choice.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How the matrices of a GGUF file are kept. Rows that are not whole blocks of 32 stay f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantization {
    /// In f32, as they were trained.
    None,
    /// In q8_0.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// In q4_0, but embedding and output projection in q8_0.
    #[serde(rename = "q4_0")]
    Q4_0,
}

/// What `petaflop-runtime train` is started with: the recipe, where its inputs
/// lie, and where the results go. Everything outside `recipe` may differ between
/// two runs of the same job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// What to train. Together with the inputs' digests: the key.
    pub recipe: ResolvedRecipe,
    /// Where each named input lies.
    pub inputs: Vec<Input>,
    /// The store that takes the artifact (a folder or an object store's URI).
    pub store: String,
    /// Another store that takes the artifact, of this job alone; then `store` is only read, and what may
    /// not be read there is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// Place for checkpoints: a folder of the machine, or an `s3://` URI that outlives it.
    pub checkpoints: String,
    /// Seconds between two checkpoints.
    pub checkpoint_interval_seconds: u64,
    /// Checkpoints kept; at least 1.
    pub keep_checkpoints: u32,
}

/// A named input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The name that the recipe uses.
    pub name: String,
    /// `builtin:petaflop`, `file:///…`, a plain path, `s3://…`, or `artifact:<hash>`.
    pub uri: String,
    /// The content digest it must have, where the user gave one (`blake3:<hex>`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// Entries of a tokenizer that are always there: 256 bytes and the special tokens.
pub const MIN_VOCAB: u32 = 256 + SPECIAL_TOKENS.len() as u32;

/// The special tokens of a tokenizer that we train, in the order of their ids.
pub const SPECIAL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// A field of a recipe that is out of range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field}: expected {expected}, found {found}")]
pub struct RecipeError {
    /// The field, as the recipe names it.
    pub field: String,
    /// What it may be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

impl ModelSource {
    /// The input that holds its weights, where there is one.
    pub fn input(&self) -> Option<&str> {
        match self {
            Self::Scratch(_) => None,
            Self::Base { input } => Some(input),
        }
    }
}

impl ResolvedRecipe {
    /// Checks every field by itself and those that belong together.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<(), RecipeError> {
        let Self {
            model,
            tokenizer,
            datasets,
            val_set_size,
            sequence_len,
            micro_batch_size,
            gradient_accumulation_steps,
            length,
            optimizer,
            learning_rate,
            schedule,
            max_grad_norm,
            seed: _,
            precision: Precision::F32,
            output: _, // any of them
        } = self;
        require(!datasets.is_empty(), "datasets", "at least one", &"none")?;
        for (i, Dataset { input, kind: _ }) in datasets.iter().enumerate() {
            require(
                !input.is_empty(),
                &format!("datasets[{i}].input"),
                "the name of an input",
                &"an empty name",
            )?;
        }
        // Negative zero equals zero but is written differently, and so would change the key.
        let in_range = |value: f64, low: f64, high: f64| {
            value.is_finite() && !value.is_sign_negative() && (low..=high).contains(&value)
        };
        require(in_range(*val_set_size, 0.0, 0.5), "val_set_size", "0 to 0.5", val_set_size)?;
        require(*sequence_len >= 2, "sequence_len", "2 or more", sequence_len)?;
        require(*micro_batch_size >= 1, "micro_batch_size", "1 or more", micro_batch_size)?;
        require(
            *gradient_accumulation_steps >= 1,
            "gradient_accumulation_steps",
            "1 or more",
            gradient_accumulation_steps,
        )?;
        match length {
            TrainingLength::Steps(steps) => {
                require(*steps >= 1, "length.steps", "1 or more", steps)?
            }
            TrainingLength::Epochs(epochs) => {
                require(*epochs >= 1, "length.epochs", "1 or more", epochs)?
            }
        }
        let Optimizer::Adamw { beta1, beta2, eps, weight_decay } = optimizer;
        require(
            in_range(*beta1, 0.0, 1.0) && *beta1 < 1.0,
            "optimizer.adamw.beta1",
            "0 or more and below 1",
            beta1,
        )?;
        require(
            in_range(*beta2, 0.0, 1.0) && *beta2 < 1.0,
            "optimizer.adamw.beta2",
            "0 or more and below 1",
            beta2,
        )?;
        require(in_range(*eps, 1e-30, 1.0), "optimizer.adamw.eps", "1e-30 to 1", eps)?;
        require(
            in_range(*weight_decay, 0.0, 10.0),
            "optimizer.adamw.weight_decay",
            "0 to 10",
            weight_decay,
        )?;
        require(
            in_range(*learning_rate, 0.0, 10.0) && *learning_rate > 0.0,
            "learning_rate",
            "above 0, at most 10",
            learning_rate,
        )?;
        let Schedule { warmup_steps, decay: _, min_ratio } = schedule;
        require(in_range(*min_ratio, 0.0, 1.0), "schedule.min_ratio", "0 to 1", min_ratio)?;
        if let TrainingLength::Steps(steps) = length {
            require(
                warmup_steps <= steps,
                "schedule.warmup_steps",
                &format!("at most the {steps} steps of the job"),
                warmup_steps,
            )?;
        }
        require(
            in_range(*max_grad_norm, 0.0, 1e9),
            "max_grad_norm",
            "0 (no clipping) to 1e9",
            max_grad_norm,
        )?;
        Self::validate_model(model, tokenizer, *sequence_len)
    }

    fn validate_model(
        model: &ModelSource,
        tokenizer: &TokenizerSource,
        sequence_len: u32,
    ) -> Result<(), RecipeError> {
        if let TokenizerSource::TrainBpe { vocab } = tokenizer {
            require(
                *vocab >= MIN_VOCAB,
                "tokenizer.train_bpe.vocab",
                &format!("{MIN_VOCAB} (256 bytes and the special tokens) or more"),
                vocab,
            )?;
        }
        match (model, tokenizer) {
            (ModelSource::Scratch(shape), TokenizerSource::TrainBpe { vocab }) => {
                shape.validate().map_err(|e| RecipeError {
                    field: "model.scratch".to_owned(),
                    expected: "a shape that can be built".to_owned(),
                    found: e.to_string(),
                })?;
                require(
                    shape.vocab == *vocab,
                    "model.scratch.vocab",
                    &format!("the tokenizer's {vocab}"),
                    &shape.vocab,
                )?;
                let most = shape.max_positions;
                require(
                    sequence_len <= most,
                    "sequence_len",
                    &format!("at most the model's {most} positions"),
                    &sequence_len,
                )
            }
            (ModelSource::Scratch(_), TokenizerSource::Base) => require(
                false,
                "tokenizer",
                "train_bpe, since a model from scratch has no tokenizer of its own",
                &"base",
            ),
            (ModelSource::Base { input }, TokenizerSource::Base) => require(
                !input.is_empty(),
                "model.base.input",
                "the name of an input",
                &"an empty name",
            ),
            (ModelSource::Base { .. }, TokenizerSource::TrainBpe { .. }) => require(
                false,
                "tokenizer",
                "base, since the base model's weights belong to its own tokens",
                &"train_bpe",
            ),
        }
    }
}

fn require(
    holds: bool,
    field: &str,
    expected: &str,
    found: &dyn std::fmt::Display,
) -> Result<(), RecipeError> {
    if holds {
        return Ok(());
    }
    Err(RecipeError {
        field: field.to_owned(),
        expected: expected.to_owned(),
        found: found.to_string(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::shape::{Rope, RopeScaling};

    /// A recipe as small as they come.
    pub(crate) fn tiny_recipe() -> ResolvedRecipe {
        ResolvedRecipe {
            model: ModelSource::Scratch(ModelShape {
                layers: 2,
                hidden: 32,
                heads: 4,
                kv_heads: 2,
                head_dim: 8,
                intermediate: 64,
                vocab: 512,
                max_positions: 128,
                norm_eps: 1e-5,
                rope: Rope { theta: 10000.0, scaling: RopeScaling::None },
                tied_embeddings: true,
                qkv_bias: false,
                qk_norm: false,
            }),
            tokenizer: TokenizerSource::TrainBpe { vocab: 512 },
            datasets: vec![Dataset { input: "corpus".to_owned(), kind: DatasetKind::Completion }],
            val_set_size: 0.05,
            sequence_len: 128,
            micro_batch_size: 4,
            gradient_accumulation_steps: 2,
            length: TrainingLength::Steps(20),
            optimizer: Optimizer::Adamw { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 },
            learning_rate: 3e-3,
            schedule: Schedule { warmup_steps: 5, decay: Decay::Cosine, min_ratio: 0.1 },
            max_grad_norm: 1.0,
            seed: 42,
            precision: Precision::F32,
            output: Export::Safetensors,
        }
    }

    #[test]
    fn each_field_out_of_range_is_named() {
        assert_eq!(tiny_recipe().validate(), Ok(()));
        type Change = fn(&mut ResolvedRecipe);
        let cases: [(&str, Change); 12] = [
            ("datasets", |r| r.datasets.clear()),
            ("datasets[0].input", |r| r.datasets[0].input.clear()),
            ("val_set_size", |r| r.val_set_size = 0.6),
            ("val_set_size", |r| r.val_set_size = -0.0),
            ("sequence_len", |r| r.sequence_len = 129),
            ("micro_batch_size", |r| r.micro_batch_size = 0),
            ("length.steps", |r| r.length = TrainingLength::Steps(0)),
            ("learning_rate", |r| r.learning_rate = f64::NAN),
            ("schedule.warmup_steps", |r| r.schedule.warmup_steps = 21),
            ("tokenizer.train_bpe.vocab", |r| {
                r.tokenizer = TokenizerSource::TrainBpe { vocab: 258 }
            }),
            ("model.scratch.vocab", |r| r.tokenizer = TokenizerSource::TrainBpe { vocab: 600 }),
            ("tokenizer", |r| r.tokenizer = TokenizerSource::Base),
        ];
        for (field, change) in cases {
            let mut recipe = tiny_recipe();
            change(&mut recipe);
            assert_eq!(recipe.validate().expect_err(field).field, field);
        }
    }
}
