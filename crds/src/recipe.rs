//! What to train, in axolotl's own snake_case names, so that an axolotl file
//! pastes in. [`resolve`] fixes every choice once, before anything starts.
//!
//! Defaults, stated once and taken by [`resolve`] where a field is left out:
//!
//! | field | default |
//! |---|---|
//! | `sequence_len` | 512 |
//! | `micro_batch_size`, `gradient_accumulation_steps` | 1 |
//! | `num_epochs` | 1, unless `max_steps` is given |
//! | `optimizer`, `adam_beta1`, `adam_beta2`, `adam_epsilon`, `weight_decay` | adamw, 0.9, 0.95, 1e-8, 0.1 |
//! | `max_grad_norm` | 1.0 |
//! | `lr_scheduler`, `cosine_min_lr_ratio` | cosine, 0 |
//! | `warmup_steps` | 3 % of `max_steps`, at least 1 and at most 100; with `num_epochs` 20 |
//! | `val_set_size` | 0 |
//! | `seed` | 42 |
//! | `model.kv_heads`, `.head_dim`, `.intermediate` | `heads`, `dim / heads`, `8/3 · dim` rounded up to a multiple of 32 |
//! | `model.max_positions`, `.rope_theta`, `.norm_eps`, `.tied_embeddings` | `sequence_len`, 10000, 1e-5, true |
//!
//! The constant ones stand in the schema as static defaults; the computed ones
//! are never written back into a spec.

#![expect(
    unreachable_pub,
    reason = "KubeSchema copies each struct into a function, its `pub` with it"
)]

pub mod resolve;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "snake_case")]
#[x_kube(
    validation = Rule::new("has(self.base_model) != has(self.model)").reason(Reason::FieldValueRequired)
        .message("exactly one of base_model (start from weights) and model (start from scratch) must be given"),
    validation = Rule::new("!(has(self.num_epochs) && has(self.max_steps))").field_path(".max_steps")
        .message("num_epochs and max_steps exclude each other"),
    validation = Rule::new("!(has(self.warmup_steps) && has(self.warmup_ratio))").field_path(".warmup_ratio")
        .message("warmup_steps and warmup_ratio exclude each other"),
    validation = Rule::new("!has(self.warmup_ratio) || has(self.max_steps)").field_path(".warmup_ratio")
        .message("warmup_ratio needs max_steps: with num_epochs give warmup_steps"),
    validation = Rule::new("!has(self.warmup_steps) || !has(self.max_steps) || self.warmup_steps <= self.max_steps").field_path(".warmup_steps")
        .message("warmup_steps must not be above max_steps"),
    validation = Rule::new("!has(self.cosine_min_lr_ratio) || self.lr_scheduler == 'cosine'").field_path(".cosine_min_lr_ratio")
        .message("cosine_min_lr_ratio belongs to lr_scheduler: cosine"),
    validation = Rule::new("!has(self.model) || !has(self.model.max_positions) || self.model.max_positions >= self.sequence_len").field_path(".sequence_len")
        .message("sequence_len must not be above model.max_positions"),
)]
pub struct Recipe {
    /// Weights to start from: a folder (`./llama`), `/inputs/<name>`, `file://…` or `artifact:<hash>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub base_model: Option<String>,
    /// Shape of a model to train from scratch; its tokenizer is trained too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ScratchModel>,
    /// What to train on, in order.
    #[schemars(length(min = 1, max = 64))]
    pub datasets: Vec<DatasetSpec>,
    /// Share of the documents held out for validation, whole documents, chosen by seed.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 0.5))]
    pub val_set_size: f64,
    /// Train an adapter instead of all weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<Adapter>,
    /// Rank of the adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub lora_r: Option<u32>,
    /// Scale of the adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 65536.0))]
    pub lora_alpha: Option<f64>,
    /// Share of the adapter's inputs dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub lora_dropout: Option<f64>,
    /// Projections that get an adapter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub lora_target_modules: Vec<String>,
    /// Tokens in one sample.
    #[serde(default = "sequence_len")]
    #[schemars(range(min = 2, max = 1_048_576))]
    pub sequence_len: u32,
    /// Samples in one forward and backward pass.
    #[serde(default = "crate::shared::one")]
    #[schemars(range(min = 1, max = 65_536))]
    pub micro_batch_size: u32,
    /// Passes whose gradients are added before one optimiser step.
    #[serde(default = "crate::shared::one")]
    #[schemars(range(min = 1, max = 65_536))]
    pub gradient_accumulation_steps: u32,
    /// Passes over the training split.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub num_epochs: Option<u32>,
    /// Optimiser steps, instead of `num_epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_steps: Option<u64>,
    /// Learning rate at its peak.
    #[schemars(range(min = 0.0, max = 10.0))]
    // A server compares whole numbers with whole bounds: it would take 0 for 1e-9.
    #[x_kube(validation = Rule::new("self > 0.0").message("learning_rate must be above 0"))]
    pub learning_rate: f64,
    /// How the learning rate moves after the warm-up.
    #[serde(default)]
    pub lr_scheduler: LrScheduler,
    /// Learning rate at the end of the cosine, as a share of the peak.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub cosine_min_lr_ratio: Option<f64>,
    /// Steps of linear rise from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1_000_000_000))]
    pub warmup_steps: Option<u64>,
    /// The same as a share of `max_steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub warmup_ratio: Option<f64>,
    /// The optimiser.
    #[serde(default)]
    pub optimizer: OptimizerName,
    /// Decay of matrices; never of gains and biases.
    #[serde(default = "weight_decay")]
    #[schemars(range(min = 0.0, max = 10.0))]
    pub weight_decay: f64,
    /// Decay of the first moment.
    #[serde(default = "adam_beta1")]
    #[schemars(range(min = 0.0, max = 0.999_999))]
    pub adam_beta1: f64,
    /// Decay of the second moment.
    #[serde(default = "adam_beta2")]
    #[schemars(range(min = 0.0, max = 0.999_999_999))]
    pub adam_beta2: f64,
    /// Added to the root of the second moment.
    #[serde(default = "adam_epsilon")]
    #[schemars(range(min = 0.0, max = 1.0))]
    #[x_kube(validation = Rule::new("self > 0.0").message("adam_epsilon must be above 0"))]
    pub adam_epsilon: f64,
    /// Gradients are scaled down to this global L2 norm; 0 switches clipping off.
    #[serde(default = "max_grad_norm")]
    #[schemars(range(min = 0.0, max = 1_000_000.0))]
    pub max_grad_norm: f64,
    /// Seed of every random choice.
    #[serde(default = "seed")]
    #[schemars(range(max = 9_007_199_254_740_991_u64))]
    pub seed: u64,
    /// Trade time for memory by computing activations again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_checkpointing: Option<bool>,
    /// Checkpoints in one pass over the data.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub saves_per_epoch: Option<u32>,
}

/// Shape of a model to train from scratch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "snake_case")]
#[x_kube(
    validation = Rule::new("!has(self.kv_heads) || (self.kv_heads <= self.heads && self.heads % self.kv_heads == 0)").field_path(".kv_heads")
        .message("heads must be a multiple of kv_heads"),
    validation = Rule::new("has(self.head_dim) || self.dim % self.heads == 0").field_path(".heads")
        .message("dim must be a multiple of heads, or head_dim must be given"),
    validation = Rule::new("(has(self.head_dim) ? self.head_dim : self.dim / self.heads) % 2 == 0").field_path(".heads")
        .message("the width of one head must be even: rotary embedding turns pairs"),
)]
pub struct ScratchModel {
    /// Width of the residual stream.
    #[schemars(range(min = 8, max = 65_536))]
    pub dim: u32,
    /// Transformer blocks.
    #[schemars(range(min = 1, max = 1024))]
    pub layers: u32,
    /// Query heads.
    #[schemars(range(min = 1, max = 1024))]
    pub heads: u32,
    /// Key and value heads. Left out: `heads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub kv_heads: Option<u32>,
    /// Width of one head. Left out: `dim / heads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 1024))]
    pub head_dim: Option<u32>,
    /// Width of the SwiGLU inner layer. Left out: 8/3 of `dim`, rounded up to a multiple of 32.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub intermediate: Option<u32>,
    /// Entries of the tokenizer, the 256 bytes and the special tokens included.
    #[schemars(range(min = 259, max = 1_048_576))]
    pub vocab: u32,
    /// Longest sequence it is made for. Left out: `sequence_len`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 1_048_576))]
    pub max_positions: Option<u32>,
    /// Base of the rotary frequencies.
    #[serde(default = "rope_theta")]
    #[schemars(range(min = 2.0, max = 1e12))]
    pub rope_theta: f64,
    /// RMSNorm's epsilon.
    #[serde(default = "norm_eps")]
    #[schemars(range(min = 0.0, max = 0.1))]
    #[x_kube(validation = Rule::new("self > 0.0").message("norm_eps must be above 0"))]
    pub norm_eps: f64,
    /// The output projection shares the embedding's weights.
    #[serde(default = "yes")]
    pub tied_embeddings: bool,
    /// Query, key and value projections have a bias.
    #[serde(default)]
    pub qkv_bias: bool,
    /// Per-head RMSNorm of queries and keys.
    #[serde(default)]
    pub qk_norm: bool,
}

/// One dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub struct DatasetSpec {
    /// `builtin:petaflop`, a path beside the manifest, `/inputs/<name>/…`, `file://…` or `artifact:<hash>`.
    #[schemars(length(min = 1, max = 1024))]
    pub path: String,
    /// How its bytes become samples.
    #[serde(rename = "type", default)]
    pub kind: DatasetType,
}

/// How a dataset's bytes become samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DatasetType {
    /// Plain text; every token is a target.
    #[default]
    Completion,
    /// JSON lines with `messages`; only the assistant's tokens are targets.
    ChatTemplate,
    /// JSON lines with `instruction`, `input`, `output`; only the output is a target.
    Alpaca,
}

/// Kind of adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Adapter {
    /// Low-rank matrices beside frozen weights.
    Lora,
    /// The same beside quantised weights.
    Qlora,
}

/// How the learning rate moves after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LrScheduler {
    /// Half a cosine down to `cosine_min_lr_ratio`.
    #[default]
    Cosine,
    /// A straight line down to 0.
    Linear,
    /// Stays at the peak.
    ConstantWithWarmup,
}

/// The optimiser. All three names mean the same arithmetic: decoupled AdamW.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    /// AdamW.
    #[default]
    Adamw,
    /// AdamW.
    AdamwTorch,
    /// AdamW.
    AdamwTorchFused,
}

fn sequence_len() -> u32 {
    512
}
fn weight_decay() -> f64 {
    0.1
}
fn adam_beta1() -> f64 {
    0.9
}
fn adam_beta2() -> f64 {
    0.95
}
fn adam_epsilon() -> f64 {
    1e-8
}
fn max_grad_norm() -> f64 {
    1.0
}
fn seed() -> u64 {
    42
}
fn rope_theta() -> f64 {
    10_000.0
}
fn norm_eps() -> f64 {
    1e-5
}
fn yes() -> bool {
    true
}
