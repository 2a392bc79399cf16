//! An [`Anatomy`] from a Hugging Face `config.json`. Fields that a family does not use are left
//! alone; those that it does must be there, of their kind, and agree with each other.

use petaflop_plan::shape::ShapeError;
use serde_json::{Map, Value};

use super::anatomy::{Anatomy, Attention, Experts, Window};

/// Families that are known, by `model_type`.
const FAMILIES: [&str; 10] = [
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen2_moe",
    "qwen3_moe",
    "deepseek_v2",
    "deepseek_v3",
    "kimi_k2",
];

// Far above any model; they keep every product within 64 bits.
const LAYERS: u32 = 1 << 10;
const WIDTH: u32 = 1 << 18;
const HEADS: u32 = 1 << 12;
const HEAD_WIDTH: u32 = 1 << 10;
const INNER: u32 = 1 << 20;
const VOCABULARY: u32 = 1 << 22;
const POSITIONS: u32 = 1 << 30;
const EXPERTS: u32 = 1 << 12;

/// As many numbers as no model has: sixteen bytes for each are still a number of 64 bits.
const PARAMETERS: u64 = 1 << 55;

impl Anatomy {
    /// Reads the `config.json` of a model of the Llama, Mistral, Mixtral, Qwen or DeepSeek families:
    /// grouped-query attention with or without windows, latent attention, experts with or without
    /// shared ones.
    ///
    /// # Errors
    /// The first field that is missing, of another kind, out of range or contradictory, by name.
    pub fn from_hf_config(config: &Value) -> Result<Self, ShapeError> {
        let config = Config(config.as_object().ok_or_else(|| ShapeError::Invalid {
            field: "config.json".to_owned(),
            expected: "an object".to_owned(),
            found: shown(config),
        })?);
        let family = config.family()?;
        let layers = config.count("num_hidden_layers", LAYERS)?;
        let hidden = config.count("hidden_size", WIDTH)?;
        if config.flag("mlp_bias")? {
            return Err(unsupported("mlp_bias", "false", true));
        }
        let attention = match family {
            "deepseek_v2" | "deepseek_v3" | "kimi_k2" => config.latent()?,
            _ => config.grouped(family, hidden)?,
        };
        let experts = config.experts(family, layers)?;
        let dense = layers - experts.map_or(0, |experts| experts.layers);
        let model = Self {
            family: family.to_owned(),
            layers,
            hidden,
            vocab: config.count("vocab_size", VOCABULARY)?,
            max_positions: config.count("max_position_embeddings", POSITIONS)?,
            tied_embeddings: config.flag("tie_word_embeddings")?,
            attention,
            window: config.window(family, layers)?,
            inner: if dense > 0 { config.count("intermediate_size", INNER)? } else { 0 },
            experts,
        };
        let parameters = model.parameters();
        if parameters > PARAMETERS {
            return Err(ShapeError::Contradiction {
                fields: "hidden_size, num_hidden_layers, intermediate_size",
                why: format!("together {parameters} parameters, which no model has"),
            });
        }
        Ok(model)
    }
}

struct Config<'a>(&'a Map<String, Value>);

impl<'a> Config<'a> {
    /// A field that is there and not null.
    fn get(&self, field: &str) -> Option<&'a Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn count(&self, field: &str, most: u32) -> Result<u32, ShapeError> {
        self.optional(field, most)?.ok_or_else(|| ShapeError::Missing {
            field: field.to_owned(),
            expected: "a whole number",
        })
    }

    /// A whole number from 1 to `most`.
    fn optional(&self, field: &str, most: u32) -> Result<Option<u32>, ShapeError> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        let count = value.as_u64().and_then(|n| u32::try_from(n).ok());
        match count.filter(|count| (1..=most).contains(count)) {
            Some(count) => Ok(Some(count)),
            None => Err(ShapeError::Invalid {
                field: field.to_owned(),
                expected: format!("a whole number from 1 to {most}"),
                found: shown(value),
            }),
        }
    }

    /// As [`Self::optional`], where 0 says that there is none.
    fn perhaps(&self, field: &str, most: u32) -> Result<Option<u32>, ShapeError> {
        match self.get(field) {
            Some(value) if value.as_u64() == Some(0) => Ok(None),
            _ => self.optional(field, most),
        }
    }

    /// Absent is false.
    fn flag(&self, field: &str) -> Result<bool, ShapeError> {
        self.get(field).map_or(Ok(false), |value| {
            value.as_bool().ok_or_else(|| ShapeError::Invalid {
                field: field.to_owned(),
                expected: "true or false".to_owned(),
                found: shown(value),
            })
        })
    }

    fn family(&self) -> Result<&'a str, ShapeError> {
        let named = self.get("model_type").map(|value| value.as_str().unwrap_or(""));
        let Some(name) = named else {
            return Err(ShapeError::Missing {
                field: "model_type".to_owned(),
                expected: "a family, as in \"llama\"",
            });
        };
        match FAMILIES.contains(&name) {
            true => Ok(name),
            false => {
                Err(unsupported("model_type", &format!("one of {}", FAMILIES.join(", ")), name))
            }
        }
    }

    fn grouped(&self, family: &str, hidden: u32) -> Result<Attention, ShapeError> {
        let heads = self.count("num_attention_heads", HEADS)?;
        let kv_heads = self.optional("num_key_value_heads", HEADS)?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(ShapeError::Contradiction {
                fields: "num_attention_heads, num_key_value_heads",
                why: format!("{heads} must be a multiple of {kv_heads}"),
            });
        }
        let head_dim = match self.optional("head_dim", HEAD_WIDTH)? {
            Some(width) => width,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(ShapeError::Contradiction {
                    fields: "hidden_size, num_attention_heads",
                    why: format!("without head_dim, {hidden} must be a multiple of {heads}"),
                });
            }
        };
        let bias = self.flag("attention_bias")?;
        Ok(Attention::Grouped {
            heads,
            kv_heads,
            head_dim,
            qkv_bias: bias || family.starts_with("qwen2"),
            output_bias: bias,
            head_norms: family.starts_with("qwen3"),
        })
    }

    fn latent(&self) -> Result<Attention, ShapeError> {
        Ok(Attention::Latent {
            heads: self.count("num_attention_heads", HEADS)?,
            query_rank: self.optional("q_lora_rank", WIDTH)?,
            cache_rank: self.count("kv_lora_rank", WIDTH)?,
            plain: self.count("qk_nope_head_dim", HEAD_WIDTH)?,
            rotated: self.count("qk_rope_head_dim", HEAD_WIDTH)?,
            value: self.count("v_head_dim", HEAD_WIDTH)?,
        })
    }

    /// Which layers look back only so far: `layer_types` says it, else the family's habit does.
    fn window(&self, family: &str, layers: u32) -> Result<Option<Window>, ShapeError> {
        let Some(tokens) = self.optional("sliding_window", POSITIONS)? else {
            return Ok(None);
        };
        let windowed = match (self.get("layer_types"), family) {
            (Some(types), _) => {
                let types = types.as_array().ok_or_else(|| ShapeError::Invalid {
                    field: "layer_types".to_owned(),
                    expected: "a list".to_owned(),
                    found: shown(types),
                })?;
                if types.len() != layers as usize {
                    return Err(ShapeError::Contradiction {
                        fields: "layer_types, num_hidden_layers",
                        why: format!("{} types for {layers} layers", types.len()),
                    });
                }
                let short = types.iter().filter(|kind| *kind == "sliding_attention").count();
                u32::try_from(short).unwrap_or(layers)
            }
            (None, "mistral" | "mixtral") => layers,
            // They name a window, and use it only where a flag says so, above these layers.
            (None, family) if family.starts_with("qwen") => {
                let below = self.perhaps("max_window_layers", LAYERS)?.unwrap_or(0);
                if self.flag("use_sliding_window")? { layers.saturating_sub(below) } else { 0 }
            }
            (None, _) => 0,
        };
        Ok((windowed > 0).then_some(Window { layers: windowed, tokens }))
    }

    fn experts(&self, family: &str, layers: u32) -> Result<Option<Experts>, ShapeError> {
        let active = |count: u32| -> Result<u32, ShapeError> {
            let active = self.count("num_experts_per_tok", EXPERTS)?;
            if active > count {
                let why = format!("a token cannot take {active} of {count} experts");
                return Err(ShapeError::Contradiction { fields: "num_experts_per_tok", why });
            }
            Ok(active)
        };
        let one = |count: u32, width: u32| -> Result<Experts, ShapeError> {
            Ok(Experts {
                layers,
                count,
                active: active(count)?,
                width,
                shared_width: 0,
                shared_gate: false,
                router_bias: false,
            })
        };
        Ok(match family {
            "mixtral" => {
                let count = self.count("num_local_experts", EXPERTS)?;
                Some(one(count, self.count("intermediate_size", INNER)?)?)
            }
            "qwen2_moe" | "qwen3_moe" => {
                let count = self.count("num_experts", EXPERTS)?;
                let width = self.count("moe_intermediate_size", INNER)?;
                let shared = match family {
                    "qwen2_moe" => self.perhaps("shared_expert_intermediate_size", INNER)?,
                    _ => None,
                };
                Some(Experts {
                    layers: self.sparse_layers(layers)?,
                    shared_width: shared.unwrap_or(0),
                    shared_gate: shared.is_some(),
                    ..one(count, width)?
                })
            }
            "deepseek_v2" | "deepseek_v3" | "kimi_k2" => {
                let Some(count) = self.perhaps("n_routed_experts", EXPERTS)? else {
                    return Ok(None);
                };
                let width = self.count("moe_intermediate_size", INNER)?;
                let dense = self.perhaps("first_k_dense_replace", LAYERS)?.unwrap_or(0);
                if let Some(every) = self.perhaps("moe_layer_freq", LAYERS)?.filter(|f| *f != 1) {
                    return Err(unsupported("moe_layer_freq", "1", every));
                }
                let shared = self.perhaps("n_shared_experts", EXPERTS)?.unwrap_or(0);
                let shared_width = shared.checked_mul(width).filter(|width| *width <= INNER);
                Some(Experts {
                    layers: layers.saturating_sub(dense),
                    shared_width: shared_width.ok_or_else(|| ShapeError::Contradiction {
                        fields: "n_shared_experts, moe_intermediate_size",
                        why: format!("{shared} × {width} is wider than {INNER}"),
                    })?,
                    router_bias: family != "deepseek_v2",
                    ..one(count, width)?
                })
            }
            _ => None,
        })
    }

    /// Blocks with experts: each `decoder_sparse_step`-th, but for those that are named.
    fn sparse_layers(&self, layers: u32) -> Result<u32, ShapeError> {
        let every = self.optional("decoder_sparse_step", LAYERS)?.unwrap_or(1);
        let plain: Vec<u64> = match self.get("mlp_only_layers") {
            None => Vec::new(),
            Some(list) => {
                let numbers = list.as_array().map(|list| list.iter().map(Value::as_u64).collect());
                let numbers: Option<Option<Vec<u64>>> = numbers;
                numbers.flatten().ok_or_else(|| ShapeError::Invalid {
                    field: "mlp_only_layers".to_owned(),
                    expected: "a list of numbers".to_owned(),
                    found: shown(list),
                })?
            }
        };
        let sparse =
            |layer: &u32| (layer + 1).is_multiple_of(every) && !plain.contains(&u64::from(*layer));
        Ok(u32::try_from((0..layers).filter(sparse).count()).unwrap_or(layers))
    }
}

/// A value, in a message: short.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(59).chain(['…']).collect() }
}

fn unsupported(field: &str, expected: &str, found: impl std::fmt::Display) -> ShapeError {
    ShapeError::Unsupported {
        field: field.to_owned(),
        expected: expected.to_owned(),
        found: found.to_string(),
    }
}
