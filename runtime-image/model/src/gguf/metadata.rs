//! A model's form as metadata, and back.
//!
//! Of Llama 3's stretched frequencies a file has only the divisors (`rope_freqs.weight`). What they
//! were computed of is added under keys of our own, and taken as published where these are missing.

use petaflop_plan::shape::{ModelShape, Rope, RopeScaling, ShapeError};

use super::names::architecture;
use super::read::Contents;
use super::value::Value;

const LLAMA3: &str = "petaflop.rope.llama3.";
/// Keys `<architecture>.…` that [`shape_of`] reads, or that have no bearing on the arithmetic.
const KNOWN: [&str; 16] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "vocab_size",
];

/// The entries of a model's form.
pub(super) fn entries(shape: &ModelShape) -> Vec<(String, Value)> {
    let ModelShape {
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
        tied_embeddings: _, // there is no output.weight then
        qkv_bias: _,        // the architecture
        qk_norm: _,
    } = shape;
    let architecture = architecture(shape);
    let mut entries = vec![
        ("general.architecture".to_owned(), architecture.into()),
        ("general.type".to_owned(), "model".into()),
    ];
    let mut push = |key: &str, value| entries.push((format!("{architecture}.{key}"), value));
    for (key, count) in [
        ("vocab_size", vocab),
        ("context_length", max_positions),
        ("embedding_length", hidden),
        ("block_count", layers),
        ("feed_forward_length", intermediate),
        ("attention.head_count", heads),
        ("attention.head_count_kv", kv_heads),
        ("attention.key_length", head_dim),
        ("attention.value_length", head_dim),
        ("rope.dimension_count", head_dim),
    ] {
        push(key, Value::U32(*count));
    }
    push("attention.layer_norm_rms_epsilon", Value::F32(*norm_eps as f32));
    push("rope.freq_base", Value::F32(*theta as f32));
    match *scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            push("rope.scaling.type", "linear".into());
            push("rope.scaling.factor", Value::F32(factor as f32));
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_positions,
        } => entries.extend([
            (format!("{LLAMA3}factor"), Value::F64(factor)),
            (format!("{LLAMA3}low_freq_factor"), Value::F64(low_freq_factor)),
            (format!("{LLAMA3}high_freq_factor"), Value::F64(high_freq_factor)),
            (format!("{LLAMA3}original_context_length"), Value::U32(original_max_positions)),
        ]),
    }
    entries
}

/// The form of the model in a file; `divisors` are what its [`super::names::ROPE_FREQS`] hold.
///
/// # Errors
/// The first key that is missing, of another kind, or says what the runtime cannot do.
pub(super) fn shape_of(
    contents: &Contents,
    divisors: Option<&[f32]>,
) -> Result<ModelShape, ShapeError> {
    let keys = Keys { contents, architecture: architecture_of(contents)?, divisors };
    keys.refuse_unknown()?;
    let tensor = |name: &str| contents.tensors.get(name);
    let embedding = tensor("token_embd.weight").and_then(|t| t.shape.first().copied());
    let vocab = match (keys.count("vocab_size")?, embedding.map(u32::try_from)) {
        (Some(vocab), _) | (None, Some(Ok(vocab))) => vocab,
        (None, _) => return Err(keys.missing("vocab_size", "a number")),
    };
    let (hidden, heads) = (keys.needed("embedding_length")?, keys.needed("attention.head_count")?);
    let head_dim = match keys.count("attention.key_length")? {
        Some(width) => width,
        None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        None => return Err(keys.missing("attention.key_length", "a number")),
    };
    for key in ["attention.value_length", "rope.dimension_count"] {
        keys.expect(key, head_dim)?;
    }
    let epsilon = "attention.layer_norm_rms_epsilon";
    let shape = ModelShape {
        layers: keys.needed("block_count")?,
        hidden,
        heads,
        kv_heads: keys.count("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        intermediate: keys.needed("feed_forward_length")?,
        vocab,
        max_positions: keys.needed("context_length")?,
        norm_eps: keys.number(epsilon)?.ok_or_else(|| keys.missing(epsilon, "a number"))?,
        rope: Rope {
            // As llama.cpp takes it to be.
            theta: keys.number("rope.freq_base")?.unwrap_or(10_000.0),
            scaling: keys.rope_scaling()?,
        },
        tied_embeddings: tensor("output.weight").is_none(),
        qkv_bias: keys.architecture == "qwen2",
        qk_norm: keys.architecture == "qwen3",
    };
    shape.validate()?;
    Ok(shape)
}

fn architecture_of(contents: &Contents) -> Result<&str, ShapeError> {
    let (field, expected) = ("general.architecture".to_owned(), "llama, qwen2 or qwen3");
    match contents.metadata.get(&field) {
        None => Err(ShapeError::Missing { field, expected }),
        Some(value) => match value.as_str() {
            Some(known @ ("llama" | "qwen2" | "qwen3")) => Ok(known),
            _ => Err(ShapeError::Unsupported {
                field,
                expected: expected.to_owned(),
                found: value.shown(),
            }),
        },
    }
}

/// Entries of an architecture.
struct Keys<'a> {
    contents: &'a Contents,
    architecture: &'a str,
    divisors: Option<&'a [f32]>,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn missing(&self, key: &str, expected: &'static str) -> ShapeError {
        ShapeError::Missing { field: self.name(key), expected }
    }

    /// What an entry is, in our words; `None` where it is not there.
    fn entry<T>(
        &self,
        name: &str,
        expected: &str,
        take: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ShapeError> {
        let Some(value) = self.contents.metadata.get(name) else {
            return Ok(None);
        };
        take(value).map(Some).ok_or_else(|| ShapeError::Invalid {
            field: name.to_owned(),
            expected: expected.to_owned(),
            found: value.shown(),
        })
    }

    fn count(&self, key: &str) -> Result<Option<u32>, ShapeError> {
        let whole = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        self.entry(&self.name(key), "a whole number below 2³²", whole)
    }

    fn needed(&self, key: &str) -> Result<u32, ShapeError> {
        self.count(key)?.ok_or_else(|| self.missing(key, "a number"))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, ShapeError> {
        self.entry(&self.name(key), "a number", Value::as_f64)
    }

    fn unsupported(&self, key: &str, expected: String, found: String) -> ShapeError {
        ShapeError::Unsupported { field: self.name(key), expected, found }
    }

    fn expect(&self, key: &str, wanted: u32) -> Result<(), ShapeError> {
        match self.count(key)? {
            Some(found) if found != wanted => {
                Err(self.unsupported(key, format!("the heads' {wanted}"), found.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// A field that is ignored gives a model that is wrong in silence.
    fn refuse_unknown(&self) -> Result<(), ShapeError> {
        for (name, value) in &self.contents.metadata {
            let Some(key) = name.strip_prefix(self.architecture).and_then(|k| k.strip_prefix('.'))
            else {
                continue;
            };
            let off = value.as_u64() == Some(0) || *value == Value::Bool(false);
            if !off && !KNOWN.contains(&key) {
                let expected = "only entries of plain llama, qwen2 and qwen3 models".to_owned();
                return Err(self.unsupported(key, expected, value.shown()));
            }
        }
        Ok(())
    }

    fn rope_scaling(&self) -> Result<RopeScaling, ShapeError> {
        let kind = "rope.scaling.type";
        let linear = match self
            .entry(&self.name(kind), "none or linear", |v| v.as_str().map(str::to_owned))?
        {
            None => false,
            Some(kind) if kind == "none" => false,
            Some(kind) if kind == "linear" => true,
            Some(other) => {
                return Err(self.unsupported(kind, "none or linear".to_owned(), other));
            }
        };
        match (linear, self.divisors) {
            (false, None) => Ok(RopeScaling::None),
            (true, None) => {
                let factor = "rope.scaling.factor";
                let given = self.number(factor)?;
                let factor = given.ok_or_else(|| self.missing(factor, "a number"))?;
                Ok(RopeScaling::Linear { factor })
            }
            (true, Some(_)) => Err(ShapeError::Contradiction {
                fields: "rope.scaling.type, rope_freqs.weight",
                why: "both are given; expected one".to_owned(),
            }),
            (false, Some(divisors)) => self.llama3(divisors),
        }
    }

    /// [`GgufModel::check_rope`] holds them against the divisors. The defaults are those of Llama
    /// 3.1 (`config.json`), whose later sizes differ in the factor alone: the largest divisor.
    fn llama3(&self, divisors: &[f32]) -> Result<RopeScaling, ShapeError> {
        let number = |key: &str, default: f64| {
            let given = self.entry(&format!("{LLAMA3}{key}"), "a number", Value::as_f64);
            given.map(|given| given.unwrap_or(default))
        };
        let positions = format!("{LLAMA3}original_context_length");
        let whole = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        let largest = divisors.iter().fold(1.0, |a: f32, b| a.max(*b));
        Ok(RopeScaling::Llama3 {
            factor: number("factor", f64::from(largest))?,
            low_freq_factor: number("low_freq_factor", 1.0)?,
            high_freq_factor: number("high_freq_factor", 4.0)?,
            original_max_positions: self
                .entry(&positions, "a whole number below 2³²", whole)?
                .unwrap_or(8192),
        })
    }
}
