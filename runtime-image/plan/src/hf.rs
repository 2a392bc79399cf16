//! A shape from, and to, a Hugging Face `config.json`.
//!
//! Every field is either read, checked to be what the runtime does, or known to
//! have no bearing on the model's arithmetic. Anything else is refused by name,
//! because a field that is silently ignored gives a model that is silently wrong.

use serde_json::{Map, Value, json};

use crate::shape::{ModelShape, Rope, RopeScaling, ShapeError};

/// Fields that say nothing of the arithmetic of a forward pass.
const WITHOUT_BEARING: [&str; 21] = [
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "bos_token_id",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "hidden_dropout_prob",
    "initializer_range",
    "is_llama_config",
    "max_window_layers",
    "model_type",
    "pad_token_id",
    "resid_pdrop",
    "torch_dtype",
    "transformers_version",
    "transformers.js_config",
    "unk_token_id",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
];

/// Fields that [`ModelShape::from_hf_config`] reads or checks.
const READ: [&str; 23] = [
    "attention_bias",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "mlp_bias",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "partial_rotary_factor",
    "pretraining_tp",
    "quantization_config",
    "rms_norm_eps",
    "rope_interleaved",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
];

impl ModelShape {
    /// Reads the `config.json` of a Llama, Mistral (without a sliding window), Qwen2 or Qwen3 model.
    ///
    /// # Errors
    /// The first field that is missing, of another kind, contradictory, or not supported, by name.
    pub fn from_hf_config(config: &Value) -> Result<Self, ShapeError> {
        let config = Config(config.as_object().ok_or_else(|| ShapeError::Invalid {
            field: "config.json".to_owned(),
            expected: "an object".to_owned(),
            found: shown(config),
        })?);
        let family = config.family()?;
        config.refuse_unsupported()?;
        let (hidden, heads) = (config.count("hidden_size")?, config.count("num_attention_heads")?);
        let head_dim = match config.optional_count("head_dim")? {
            Some(width) => width,
            None if family == Family::Qwen3 => {
                return Err(config.missing("head_dim", "a number (Qwen3 has no default)"));
            }
            None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(ShapeError::Contradiction {
                    fields: "hidden_size, num_attention_heads",
                    why: format!("without head_dim, {hidden} must be a multiple of {heads}"),
                });
            }
        };
        let shape = Self {
            layers: config.count("num_hidden_layers")?,
            hidden,
            heads,
            kv_heads: config.optional_count("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            intermediate: config.count("intermediate_size")?,
            vocab: config.count("vocab_size")?,
            max_positions: config.count("max_position_embeddings")?,
            norm_eps: config.number(config.0, "rms_norm_eps")?,
            rope: config.rope()?,
            tied_embeddings: config.flag("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias: family == Family::Qwen2,
            qk_norm: family == Family::Qwen3,
        };
        shape.validate()?;
        Ok(shape)
    }

    /// The `config.json` that [`Self::from_hf_config`] and Hugging Face's transformers read back as this shape.
    pub fn to_hf_config(&self) -> Value {
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
            rope: Rope { theta, scaling },
            tied_embeddings,
            qkv_bias,
            qk_norm,
        } = self;
        let (architecture, model_type) = match (qkv_bias, qk_norm) {
            (_, true) => ("Qwen3ForCausalLM", "qwen3"),
            (true, false) => ("Qwen2ForCausalLM", "qwen2"),
            (false, false) => ("LlamaForCausalLM", "llama"),
        };
        let scaling = match scaling {
            RopeScaling::None => Value::Null,
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_positions,
            }),
        };
        json!({
            "architectures": [architecture],
            "model_type": model_type,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "vocab_size": vocab,
            "max_position_embeddings": max_positions,
            "rms_norm_eps": norm_eps,
            "rope_theta": theta,
            "rope_scaling": scaling,
            "tie_word_embeddings": tied_embeddings,
            "attention_bias": false,
            "torch_dtype": "float32",
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Llama and Mistral: no biases, no head norms.
    Llama,
    /// Query, key and value biases.
    Qwen2,
    /// Query and key norms.
    Qwen3,
}

struct Config<'a>(&'a Map<String, Value>);

impl Config<'_> {
    /// A field that is there and not null.
    fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|v| !v.is_null())
    }

    fn missing(&self, field: &str, expected: &'static str) -> ShapeError {
        ShapeError::Missing { field: field.to_owned(), expected }
    }

    fn count(&self, field: &str) -> Result<u32, ShapeError> {
        self.optional_count(field)?.ok_or_else(|| self.missing(field, "a number"))
    }

    fn optional_count(&self, field: &str) -> Result<Option<u32>, ShapeError> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        let count = value.as_u64().and_then(|n| u32::try_from(n).ok());
        count.map(Some).ok_or_else(|| invalid(field, "a whole number below 2³²", value))
    }

    fn number(&self, of: &Map<String, Value>, field: &str) -> Result<f64, ShapeError> {
        match of.get(field).filter(|v| !v.is_null()) {
            None => Err(self.missing(field, "a number")),
            Some(value) => value.as_f64().ok_or_else(|| invalid(field, "a number", value)),
        }
    }

    fn flag(&self, field: &str) -> Result<Option<bool>, ShapeError> {
        self.get(field)
            .map(|v| v.as_bool().ok_or_else(|| invalid(field, "true or false", v)))
            .transpose()
    }

    fn family(&self) -> Result<Family, ShapeError> {
        let named = match self.get("architectures") {
            Some(list) => list
                .as_array()
                .and_then(|a| a.first())
                .and_then(Value::as_str)
                .map(|name| ("architectures", name)),
            None => self.get("model_type").and_then(Value::as_str).map(|name| ("model_type", name)),
        };
        let Some((field, name)) = named else {
            return Err(
                self.missing("architectures", "the name of one, as in [\"LlamaForCausalLM\"]")
            );
        };
        match name {
            "LlamaForCausalLM" | "llama" | "MistralForCausalLM" | "mistral" => Ok(Family::Llama),
            "Qwen2ForCausalLM" | "qwen2" => Ok(Family::Qwen2),
            "Qwen3ForCausalLM" | "qwen3" => Ok(Family::Qwen3),
            _ => Err(unsupported(
                field,
                "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM",
                name,
            )),
        }
    }

    fn refuse_unsupported(&self) -> Result<(), ShapeError> {
        for (field, value) in self.0 {
            let ignorable = value.is_null() || value == false || field.starts_with('_');
            if !ignorable
                && !READ.contains(&field.as_str())
                && !WITHOUT_BEARING.contains(&field.as_str())
            {
                return Err(unsupported(
                    field,
                    "only fields of plain Llama, Mistral, Qwen2 and Qwen3 models",
                    shown(value),
                ));
            }
        }
        match self.get("hidden_act").map(|v| v.as_str().unwrap_or("")) {
            None => return Err(self.missing("hidden_act", "silu")),
            Some("silu") => {}
            Some(other) => return Err(unsupported("hidden_act", "silu", other)),
        }
        for field in ["attention_bias", "mlp_bias", "rope_interleaved"] {
            if self.flag(field)? == Some(true) {
                return Err(unsupported(field, "false", true));
            }
        }
        // Qwen models name a window and switch it off; the others switch it off by leaving it out.
        let switched_off = self.flag("use_sliding_window")? == Some(false);
        if let Some(window) = self.get("sliding_window").filter(|_| !switched_off) {
            return Err(unsupported(
                "sliding_window",
                "null, or use_sliding_window: false",
                shown(window),
            ));
        }
        if self.flag("use_sliding_window")? == Some(true) {
            return Err(unsupported("use_sliding_window", "false", true));
        }
        if let Some(types) = self.get("layer_types") {
            let all_full =
                types.as_array().is_some_and(|t| t.iter().all(|t| t == "full_attention"));
            if !all_full {
                return Err(unsupported(
                    "layer_types",
                    "full_attention in every layer",
                    shown(types),
                ));
            }
        }
        for field in ["partial_rotary_factor", "pretraining_tp"] {
            if let Some(value) = self.get(field).filter(|v| v.as_f64() != Some(1.0)) {
                return Err(unsupported(field, "1", shown(value)));
            }
        }
        match self.get("quantization_config") {
            Some(value) => Err(unsupported(
                "quantization_config",
                "weights that are not quantised",
                shown(value),
            )),
            None => Ok(()),
        }
    }

    /// `rope_theta` and `rope_scaling`, or both in `rope_parameters` (transformers 5).
    fn rope(&self) -> Result<Rope, ShapeError> {
        let object = |field: &'static str| match self.get(field) {
            None => Ok(None),
            Some(Value::Object(members)) => Ok(Some((field, members))),
            Some(other) => Err(invalid(field, "an object", other)),
        };
        let (parameters, scaling) = (object("rope_parameters")?, object("rope_scaling")?);
        if parameters.is_some() && scaling.is_some() {
            let why = "both are given; expected one".to_owned();
            return Err(ShapeError::Contradiction { fields: "rope_parameters, rope_scaling", why });
        }
        let theta = match parameters {
            Some((_, members)) if members.contains_key("rope_theta") => {
                self.number(members, "rope_theta")?
            }
            _ => self.number(self.0, "rope_theta")?,
        };
        let Some((field, members)) = parameters.or(scaling) else {
            return Ok(Rope { theta, scaling: RopeScaling::None });
        };
        let kind = members.get("rope_type").or_else(|| members.get("type")).and_then(Value::as_str);
        let known: &[&str] = match kind {
            Some("linear") => &["factor"],
            Some("llama3") => &[
                "factor",
                "low_freq_factor",
                "high_freq_factor",
                "original_max_position_embeddings",
            ],
            _ => &[],
        };
        let unknown = |name: &&String| {
            !known.contains(&name.as_str())
                && !["rope_type", "type", "rope_theta"].contains(&name.as_str())
        };
        let scaling = match kind {
            None => {
                return Err(
                    self.missing(&format!("{field}.rope_type"), "default, linear or llama3")
                );
            }
            Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: self.number(members, "factor")? },
            Some("llama3") => {
                let original = "original_max_position_embeddings";
                let positions = self.number(members, original)?;
                if positions.fract() != 0.0 || !(1.0..=f64::from(u32::MAX)).contains(&positions) {
                    return Err(invalid(original, "a whole number above 0", &members[original]));
                }
                RopeScaling::Llama3 {
                    factor: self.number(members, "factor")?,
                    low_freq_factor: self.number(members, "low_freq_factor")?,
                    high_freq_factor: self.number(members, "high_freq_factor")?,
                    original_max_positions: positions as u32,
                }
            }
            Some(other) => {
                return Err(unsupported(
                    &format!("{field}.rope_type"),
                    "default, linear or llama3",
                    other,
                ));
            }
        };
        if let Some(name) = members.keys().find(unknown) {
            return Err(unsupported(
                &format!("{field}.{name}"),
                "only fields of this rope_type",
                shown(&members[name]),
            ));
        }
        Ok(Rope { theta, scaling })
    }
}

/// A value, in a message: short.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(59).chain(['…']).collect() }
}

fn invalid(field: &str, expected: &str, found: &Value) -> ShapeError {
    ShapeError::Invalid {
        field: field.to_owned(),
        expected: expected.to_owned(),
        found: shown(found),
    }
}

fn unsupported(field: &str, expected: &str, found: impl std::fmt::Display) -> ShapeError {
    ShapeError::Unsupported {
        field: field.to_owned(),
        expected: expected.to_owned(),
        found: found.to_string(),
    }
}
