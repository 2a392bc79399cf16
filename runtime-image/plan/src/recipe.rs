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
    /// Folder for checkpoints, local to the machine.
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
    /// `builtin:petaflop`, `file:///…`, a plain path, or `artifact:<hash>`.
    pub uri: String,
    /// The content digest it must have, where the user gave one (`blake3:<hex>`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}
