//! A Llama-shaped model: RMSNorm, RoPE, grouped-query attention, SwiGLU.

use serde::{Deserialize, Serialize};

use crate::dtype::Dtype;
use crate::formats::{EMBEDDING, HEAD};

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

/// What a tensor is to the optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorRole {
    /// A weight matrix, decayed.
    Matrix,
    /// A norm's gain.
    Gain,
    /// A projection's bias.
    Bias,
    /// The first matrix of a low-rank pair, decayed.
    AdapterDown,
    /// The second, decayed; 0 at the start, so that the pair begins as nothing.
    AdapterUp,
}

impl TensorRole {
    /// Whether weight decay applies: to matrices.
    pub const fn decays(self) -> bool {
        match self {
            Self::Matrix | Self::AdapterDown | Self::AdapterUp => true,
            Self::Gain | Self::Bias => false,
        }
    }

    /// Whether it belongs to an adapter, not to the model itself.
    pub const fn is_adapter(self) -> bool {
        match self {
            Self::AdapterDown | Self::AdapterUp => true,
            Self::Matrix | Self::Gain | Self::Bias => false,
        }
    }
}

/// A tensor of a shape, by its Hugging Face name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorInfo {
    /// `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Dimensions, slowest first; matrices are `[out, in]`.
    pub shape: Vec<u64>,
    /// What it is to the optimiser.
    pub role: TensorRole,
}

/// What is wrong with a shape or a `config.json`. Fields are named as they are written there.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ShapeError {
    /// A field that must be there is not.
    #[error("{field}: missing; expected {expected}")]
    Missing {
        /// Its name.
        field: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// A field holds something of another kind.
    #[error("{field}: expected {expected}, found {found}")]
    Invalid {
        /// Its name.
        field: String,
        /// What it should hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// The model uses something that the runtime does not have.
    #[error("{field}: {found} is not supported; expected {expected}")]
    Unsupported {
        /// Its name.
        field: String,
        /// What is supported.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// Two fields cannot both hold.
    #[error("{fields}: {why}")]
    Contradiction {
        /// Their names.
        fields: &'static str,
        /// Why not.
        why: String,
    },
}

// Bounds on each dimension, far above any model, that keep every sum within 64 bits.
const MAX_LAYERS: u32 = 1 << 10;
const MAX_HIDDEN: u32 = 1 << 18;
const MAX_HEADS: u32 = 1 << 12;
const MAX_HEAD_DIM: u32 = 1 << 10;
const MAX_INTERMEDIATE: u32 = 1 << 20;
const MAX_VOCAB: u32 = 1 << 22;
const MAX_POSITIONS: u32 = 1 << 26;

impl ModelShape {
    /// Width of all query heads together.
    pub fn q_width(&self) -> u64 {
        u64::from(self.heads) * u64::from(self.head_dim)
    }

    /// Width of all key heads together; also of all value heads.
    pub fn kv_width(&self) -> u64 {
        u64::from(self.kv_heads) * u64::from(self.head_dim)
    }

    /// Width of queries, keys and values together.
    pub fn qkv_width(&self) -> u64 {
        self.q_width() + 2 * self.kv_width()
    }

    /// # Errors
    /// The first field that is out of range, or two that contradict each other.
    pub fn validate(&self) -> Result<(), ShapeError> {
        let Self {
            layers,
            hidden,
            heads,
            kv_heads,
            head_dim,
            intermediate,
            vocab,
            max_positions,
            norm_eps,
            rope,
            tied_embeddings: _,
            qkv_bias,
            qk_norm,
        } = self;
        for (field, found, most) in [
            ("layers", *layers, MAX_LAYERS),
            ("hidden", *hidden, MAX_HIDDEN),
            ("heads", *heads, MAX_HEADS),
            ("kv_heads", *kv_heads, MAX_HEADS),
            ("head_dim", *head_dim, MAX_HEAD_DIM),
            ("intermediate", *intermediate, MAX_INTERMEDIATE),
            ("vocab", *vocab, MAX_VOCAB),
            ("max_positions", *max_positions, MAX_POSITIONS),
        ] {
            if found == 0 || found > most {
                return Err(invalid(field, format!("1 to {most}"), found));
            }
        }
        if !heads.is_multiple_of(*kv_heads) {
            let why = format!("heads must be a multiple of kv_heads, found {heads} and {kv_heads}");
            return Err(ShapeError::Contradiction { fields: "heads, kv_heads", why });
        }
        if !head_dim.is_multiple_of(2) {
            return Err(invalid(
                "head_dim",
                "an even number (rotary embedding turns pairs)".to_owned(),
                head_dim,
            ));
        }
        if !(norm_eps.is_finite() && *norm_eps > 0.0 && *norm_eps < 1.0) {
            return Err(invalid("norm_eps", "above 0 and below 1".to_owned(), norm_eps));
        }
        if *qkv_bias && *qk_norm {
            let why =
                "no published architecture has both a query/key/value bias and query/key norms"
                    .to_owned();
            return Err(ShapeError::Contradiction { fields: "qkv_bias, qk_norm", why });
        }
        rope.validate()
    }

    /// All tensors, in the order in which a plan lays them out. Those that are
    /// stacked into one matrix follow each other.
    pub fn tensors(&self) -> Vec<TensorInfo> {
        let (hidden, inner, vocab) =
            (u64::from(self.hidden), u64::from(self.intermediate), u64::from(self.vocab));
        let (q, kv, head) = (self.q_width(), self.kv_width(), u64::from(self.head_dim));
        let mut tensors = Vec::new();
        let mut push = |name: String, shape: &[u64], role| {
            tensors.push(TensorInfo { name, shape: shape.to_vec(), role })
        };
        push(EMBEDDING.to_owned(), &[vocab, hidden], TensorRole::Matrix);
        for l in 0..self.layers {
            let name = |what: &str| format!("model.layers.{l}.{what}");
            push(name("input_layernorm.weight"), &[hidden], TensorRole::Gain);
            let projections = [("q_proj", q), ("k_proj", kv), ("v_proj", kv)];
            for (what, width) in projections {
                push(
                    name(&format!("self_attn.{what}.weight")),
                    &[width, hidden],
                    TensorRole::Matrix,
                );
            }
            if self.qkv_bias {
                for (what, width) in projections {
                    push(name(&format!("self_attn.{what}.bias")), &[width], TensorRole::Bias);
                }
            }
            if self.qk_norm {
                push(name("self_attn.q_norm.weight"), &[head], TensorRole::Gain);
                push(name("self_attn.k_norm.weight"), &[head], TensorRole::Gain);
            }
            push(name("self_attn.o_proj.weight"), &[hidden, q], TensorRole::Matrix);
            push(name("post_attention_layernorm.weight"), &[hidden], TensorRole::Gain);
            push(name("mlp.gate_proj.weight"), &[inner, hidden], TensorRole::Matrix);
            push(name("mlp.up_proj.weight"), &[inner, hidden], TensorRole::Matrix);
            push(name("mlp.down_proj.weight"), &[hidden, inner], TensorRole::Matrix);
        }
        push("model.norm.weight".to_owned(), &[hidden], TensorRole::Gain);
        if !self.tied_embeddings {
            push(HEAD.to_owned(), &[vocab, hidden], TensorRole::Matrix);
        }
        tensors
    }

    /// Numbers in all tensors; tied embeddings count once.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(|t| t.shape.iter().product::<u64>()).sum()
    }

    /// Bytes of keys and values of one token in all layers.
    pub fn kv_bytes_per_token(&self, dtype: Dtype) -> u64 {
        2 * u64::from(self.layers) * dtype.bytes(self.kv_width())
    }
}

impl Rope {
    fn validate(&self) -> Result<(), ShapeError> {
        let Self { theta, scaling } = self;
        if !(theta.is_finite() && *theta > 1.0) {
            return Err(invalid("rope.theta", "a number above 1".to_owned(), theta));
        }
        let factor_ok = |factor: f64| factor.is_finite() && factor >= 1.0;
        match *scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } if factor_ok(factor) => Ok(()),
            RopeScaling::Linear { factor } => {
                Err(invalid("rope.scaling.factor", "1 or more".to_owned(), factor))
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            } => {
                if !factor_ok(factor) {
                    return Err(invalid("rope.scaling.factor", "1 or more".to_owned(), factor));
                }
                if original_max_positions == 0 {
                    return Err(invalid(
                        "rope.scaling.original_max_positions",
                        "1 or more".to_owned(),
                        0,
                    ));
                }
                if !(low_freq_factor.is_finite()
                    && high_freq_factor.is_finite()
                    && 0.0 < low_freq_factor
                    && low_freq_factor < high_freq_factor)
                {
                    let why = format!(
                        "expected 0 < low < high, found {low_freq_factor} and {high_freq_factor}"
                    );
                    return Err(ShapeError::Contradiction {
                        fields: "rope.scaling.low_freq_factor, high_freq_factor",
                        why,
                    });
                }
                Ok(())
            }
        }
    }
}

fn invalid(field: &str, expected: String, found: impl std::fmt::Display) -> ShapeError {
    ShapeError::Invalid { field: field.to_owned(), expected, found: found.to_string() }
}
