//! How much memory a model takes, by formulas: for models, methods and number formats of which the
//! runtime makes no plan of its own.
//!
//! Where the runtime plans ([`crate::work`]), the plan is exact and comes first. Everything else is
//! estimated here: whole numbers of bytes, from a model's [`Anatomy`], with published figures as
//! tests (`tests/suite/memory.rs`). Formulas and their sources: docs/fit.md.
//!
//! | module | holds |
//! |---|---|
//! | `format` | [`Format`]: number formats of stored matrices |
//! | `anatomy` | [`Anatomy`]: what a model consists of; parameters, cache of a token |
//! | `hf` | one from a Hugging Face `config.json` |
//! | `serve`, `train` | [`Serving`], [`Training`]: what is done with it; [`Needs`], part by part |
//! | `ladder` | [`ladder()`]: changes that make it smaller, the least harmful first |

mod anatomy;
mod format;
mod hf;
mod ladder;
mod serve;
mod train;

use serde::Serialize;

pub use anatomy::{Anatomy, Attention, Experts, Group, Part, Window};
pub use format::Format;
pub use ladder::{Rung, Use, ladder};
pub use serve::Serving;
pub use train::{Loss, Method, Optimizer, Recompute, Training};

/// Bytes on the devices that compute, part by part. A part that there is not is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Needs {
    /// The model's own numbers.
    pub weights: u64,
    /// Gradients, moments and master copies of what is trained.
    pub states: u64,
    /// What passes through the layers, and what is kept of it for the way back.
    pub activations: u64,
    /// Keys and values of all sequences.
    pub cache: u64,
    /// The numbers of the vocabulary's size, and the loss on them.
    pub logits: u64,
    /// The largest operation's own.
    pub workspace: u64,
}

impl Needs {
    /// All parts, in bytes; what no machine has where they pass 64 bits.
    pub fn total(&self) -> u64 {
        let Self { weights, states, activations, cache, logits, workspace } = *self;
        [weights, states, activations, cache, logits, workspace]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}
