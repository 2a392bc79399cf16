//! What training a model takes: the whole of it, or a few numbers beside it.

use serde::Serialize;

use super::{Anatomy, Format, Needs, Part};
use crate::workload::{Precision, TrainingWork};

/// Bytes of one trained number, with Adam: weight and gradient in two bytes each, a master copy and
/// two moments in four.
const ADAM: u64 = 16;
/// Beside weights that stand elsewhere: the same, low-rank pairs and all.
const ADAM_8BIT: u64 = 6;
/// One scale of four bytes for each 256 numbers of both moments.
const ADAM_8BIT_SCALES: u64 = 32;

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Method {
    /// Every number.
    Full,
    /// Low-rank pairs beside every projection that each token takes; the model stays as it is.
    Lora {
        /// Width of a pair.
        rank: u32,
    },
    /// The same, beside blocks of 4 bits.
    Qlora {
        /// Width of a pair.
        rank: u32,
    },
}

/// How steps are made of gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Optimizer {
    /// AdamW, moments and master copy in 4 bytes.
    Adam,
    /// Moments in one byte, no master copy.
    Adam8bit,
}

/// What is made again on the way back and not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Recompute {
    /// Nothing.
    Nothing,
    /// Norms, and the gate's product.
    Selective,
    /// Whole blocks: only what goes into each is kept.
    Blocks,
}

/// Where the loss is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Loss {
    /// Five copies of the vocabulary's width for each token, as many programs have it.
    Copies,
    /// One, in place.
    InPlace,
    /// One for so many tokens at a time, together with the projection.
    Chunks {
        /// So many.
        tokens: u32,
    },
}

/// How a model is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Training {
    /// What is trained.
    pub method: Method,
    /// How steps are made.
    pub optimizer: Optimizer,
    /// What is made again.
    pub recompute: Recompute,
    /// Where the loss is taken.
    pub loss: Loss,
    /// Sequences of one pass.
    pub sequences: u32,
    /// Passes before a step.
    pub passes: u32,
    /// Tokens of a sequence.
    pub context: u32,
    /// Of the numbers that are computed with: f32 or bf16.
    pub precision: Precision,
}

impl Training {
    /// Bytes of a step, part by part.
    pub fn needs(&self, model: &Anatomy) -> Needs {
        let tokens = u64::from(self.sequences).saturating_mul(self.context.into());
        let (weights, states) = self.states(model);
        Needs {
            weights,
            states,
            activations: self.activations(model).saturating_mul(tokens),
            cache: 0,
            logits: self.logits(model, tokens),
            workspace: self.workspace(model, tokens),
        }
    }

    /// Bytes of the model where it is not trained, and of all that training keeps of what is.
    fn states(&self, model: &Anatomy) -> (u64, u64) {
        let whole = match self.precision {
            Precision::F32 => Format::F32,
            Precision::Bf16 => Format::Bf16,
        };
        match self.method {
            Method::Full => (0, self.of_trained(model.parameters())),
            Method::Lora { rank } => (model.bytes(whole), self.of_trained(pairs(model, rank))),
            Method::Qlora { rank } => {
                let stored = |part: Part| if part.is_inside() { Format::Nf4 } else { whole };
                (model.bytes_by(stored), self.of_trained(pairs(model, rank)))
            }
        }
    }

    fn of_trained(&self, numbers: u64) -> u64 {
        match self.optimizer {
            Optimizer::Adam => numbers.saturating_mul(ADAM),
            Optimizer::Adam8bit => {
                numbers.saturating_mul(ADAM_8BIT).saturating_add(numbers / ADAM_8BIT_SCALES)
            }
        }
    }

    /// Bytes that one token leaves behind in all blocks, with attention that keeps no table of all
    /// pairs of tokens. In two bytes a number, D the width, F the inner one, H heads, A all that
    /// attention keeps: `8 D + 2 A + 6 F + 4 H + 8`. Where norms and the gate's product are made
    /// again, 4 D and 4 F; where blocks are, 2 D each, and one block whole.
    fn activations(&self, model: &Anatomy) -> u64 {
        let hidden = u64::from(model.hidden);
        let width = match self.precision {
            Precision::F32 => 2,
            Precision::Bf16 => 1,
        };
        let attention = {
            let (q, k, v) = model.attention.widths();
            2 * (q + k + v + model.attention.said() + model.attention.latents())
        };
        let heads = 4 * model.attention.heads() + 8;
        let adapters = match self.method {
            Method::Full => 0,
            Method::Lora { rank } | Method::Qlora { rank } => {
                let adapted = |part: Part| part.is_adapted();
                let groups = model.groups();
                let inside = groups.iter().filter(|group| adapted(group.part));
                // A pair's narrow vector, in each layer.
                2 * u64::from(rank) * inside.map(|group| group.count).sum::<u64>()
                    / u64::from(model.layers)
            }
        };
        let block = |inner: u64, chosen: u64, recompute: Recompute| {
            let (wide, inners) = match recompute {
                Recompute::Nothing | Recompute::Blocks => (8, 6),
                Recompute::Selective => (4, 4),
            };
            wide * hidden + attention + inners * inner + chosen + heads + adapters
        };
        let (dense, sparse, taken, chosen) = match model.experts {
            None => (u64::from(model.layers), 0, 0, 0),
            Some(experts) => {
                let sparse = u64::from(experts.layers);
                let active = u64::from(experts.active);
                let taken = active * u64::from(experts.width) + u64::from(experts.shared_width);
                // What goes to each expert and comes back, and the router's word on all.
                let chosen = 4 * active * hidden + 4 * u64::from(experts.count);
                (u64::from(model.layers) - sparse, sparse, taken, chosen)
            }
        };
        let inner = u64::from(model.inner);
        let of_all = match self.recompute {
            Recompute::Blocks => {
                let kept = 2 * hidden * u64::from(model.layers);
                let of_dense = block(inner, 0, self.recompute);
                let of_sparse = block(taken, chosen, self.recompute);
                kept + if sparse > 0 { of_dense.max(of_sparse) } else { of_dense }
            }
            recompute => {
                dense * block(inner, 0, recompute) + sparse * block(taken, chosen, recompute)
            }
        };
        width * of_all
    }

    fn logits(&self, model: &Anatomy, tokens: u64) -> u64 {
        let vocab = u64::from(model.vocab);
        let rows = |tokens: u64| tokens.saturating_mul(4 * vocab);
        match self.loss {
            Loss::Copies => rows(tokens).saturating_mul(5),
            Loss::InPlace => rows(tokens),
            Loss::Chunks { tokens: chunk } => {
                let gradient = match self.method {
                    Method::Full => 4 * vocab * u64::from(model.hidden),
                    Method::Lora { .. } | Method::Qlora { .. } => 0,
                };
                rows(tokens.min(chunk.into())).saturating_add(gradient)
            }
        }
    }

    /// The larger of what attention's way back sums keys' and values' gradients in, and of one matrix
    /// out of its 4 bits.
    fn workspace(&self, model: &Anatomy, tokens: u64) -> u64 {
        let (_, k, v) = model.attention.widths();
        let attention = tokens.saturating_mul(4 * (k + v));
        let panel = match self.method {
            Method::Qlora { .. } => {
                let groups = model.groups();
                let inside = groups.iter().filter(|group| group.part.is_inside());
                2 * inside.map(|group| group.numbers()).max().unwrap_or(0)
            }
            Method::Full | Method::Lora { .. } => 0,
        };
        attention.max(panel)
    }

    /// One step, as work of the arbiter: six operations for each number that a token meets where all
    /// are trained, four where most only pass gradients on, two more where blocks are made again.
    pub fn work(&self, model: &Anatomy) -> TrainingWork {
        let tokens = u64::from(self.sequences).saturating_mul(self.context.into());
        let tokens_per_step = tokens.saturating_mul(self.passes.into());
        let needs = self.needs(model);
        let again = if self.recompute == Recompute::Blocks { 2 } else { 0 };
        let (per_number, trained) = match self.method {
            Method::Full => (6 + again, model.parameters()),
            Method::Lora { rank } | Method::Qlora { rank } => (4 + again, pairs(model, rank)),
        };
        let moved = needs.weights.saturating_add(needs.states);
        TrainingWork {
            steps: 1,
            tokens_per_step,
            flops_per_step: tokens_per_step
                .saturating_mul(per_number)
                .saturating_mul(model.active_parameters()),
            traffic_bytes_per_step: needs
                .activations
                .saturating_mul(2)
                .saturating_add(moved)
                .saturating_mul(self.passes.into()),
            arena_bytes: needs.total(),
            host_bytes: crate::work::PROCESS_BYTES.saturating_add(trained.saturating_mul(12)),
            checkpoint_bytes: trained.saturating_mul(12),
            artifact_bytes: trained.saturating_mul(2),
            input_bytes: 0,
            checkpoint_interval_seconds: Some(600),
            precision: self.precision,
        }
    }
}

/// Numbers in all low-rank pairs of this width: r × (inputs + outputs) of each matrix that has one.
fn pairs(model: &Anatomy, rank: u32) -> u64 {
    let groups = model.groups();
    let adapted = groups.iter().filter(|group| group.part.is_adapted());
    adapted
        .map(|group| {
            u64::from(rank).saturating_mul(group.rows + group.columns).saturating_mul(group.count)
        })
        .fold(0, u64::saturating_add)
}
