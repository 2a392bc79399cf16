//! A Llama-shaped model: RMSNorm, RoPE, grouped-query attention, SwiGLU.

use serde::{Deserialize, Serialize};

/// Everything the planner and the runtime need to know of a model's form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelShape {
    /// Transformer blocks.
    pub layers: u32,
    /// Width of the residual stream (`hidden_size`).
    pub hidden: u32,
    /// Query heads.
    pub heads: u32,
    /// Key/value heads; `heads` is a multiple of it.
    pub kv_heads: u32,
    /// Width of one head; even.
    pub head_dim: u32,
    /// Width of the SwiGLU inner layer (`intermediate_size`).
    pub intermediate: u32,
    /// Vocabulary size.
    pub vocab: u32,
    /// Longest sequence the model was made for (`max_position_embeddings`).
    pub max_positions: u32,
    /// RMSNorm's epsilon.
    pub norm_eps: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// The output projection shares the embedding's weights.
    pub tied_embeddings: bool,
    /// Query, key and value projections have a bias (Qwen2).
    pub qkv_bias: bool,
    /// Per-head RMSNorm of queries and keys (Qwen3).
    pub qk_norm: bool,
}

/// Rotary position embedding, in the half-split ("rotate half") layout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How frequencies are stretched beyond the trained context.
    pub scaling: RopeScaling,
}

/// Stretching of the rotary frequencies (Hugging Face `rope_scaling`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type", deny_unknown_fields)]
pub enum RopeScaling {
    /// Frequencies as they are.
    None,
    /// Every position divided by `factor`.
    Linear {
        /// Divisor of positions.
        factor: f64,
    },
    /// Llama 3: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are stretched.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context the base model was trained for.
        original_max_positions: u32,
    },
}
