//! What serving a model takes.

use serde::Serialize;

use super::{Anatomy, Format, Needs};
use crate::workload::{Precision, ServingWork};

/// Tokens of one block of the cache.
const BLOCK: u64 = 16;

/// How a model is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Serving {
    /// Of the weights.
    pub weights: Format,
    /// Of keys and values.
    pub cache: Format,
    /// At once, at most.
    pub sequences: u32,
    /// Tokens of one, at most.
    pub context: u32,
    /// Tokens of one pass, at most.
    pub step_tokens: u32,
}

impl Serving {
    /// Bytes of one replica: weights; the cache of all sequences in whole blocks; two buffers for a
    /// pass, as wide as the widest that follow each other; one row of the vocabulary a sequence.
    pub fn needs(&self, model: &Anatomy) -> Needs {
        let hidden = u64::from(model.hidden);
        let (q, k, v) = model.attention.widths();
        let inner = model.experts.map_or(0, |experts| {
            let taken = u64::from(experts.active) * u64::from(experts.width);
            taken + u64::from(experts.shared_width)
        });
        let inner = inner.max(u64::from(model.inner));
        let wide = 2 * hidden + (q + k + v).max(2 * inner);
        let tokens = u64::from(self.context).next_multiple_of(BLOCK);
        Needs {
            weights: model.bytes(self.weights),
            cache: model.cache(tokens, self.cache).saturating_mul(self.sequences.into()),
            activations: u64::from(self.step_tokens.max(self.sequences))
                .saturating_mul(wide)
                .saturating_mul(self.weights.computed()),
            logits: u64::from(self.sequences) * u64::from(model.vocab) * 4,
            ..Needs::default()
        }
    }

    /// That, as work of the arbiter. A token takes two operations for each number that it meets, and
    /// as many for each that it looks back at.
    pub fn work(&self, model: &Anatomy) -> ServingWork {
        let half_full = u64::from(self.context / 2);
        let (q, _, _) = model.attention.widths();
        let looked_at = (q + model.attention.said())
            .saturating_mul(half_full)
            .saturating_mul(model.layers.into());
        let active = model.active_parameters();
        let share = active as f64 / model.parameters().max(1) as f64;
        let weights = model.bytes(self.weights);
        ServingWork {
            replicas: 1,
            arena_bytes: self.needs(model).total(),
            host_bytes: crate::work::PROCESS_BYTES,
            flops_per_token: 2u64.saturating_mul(active.saturating_add(looked_at)),
            weight_bytes_per_step: (weights as f64 * share) as u64,
            cache_bytes_per_sequence: model.cache(half_full, self.cache),
            max_sequences: self.sequences,
            max_millis_per_token: None,
            precision: match self.weights {
                Format::F32 => Precision::F32,
                _ => Precision::Bf16,
            },
        }
    }
}
