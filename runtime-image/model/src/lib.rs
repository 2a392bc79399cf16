//! Models: weights, tokenizers, and the plan executed — forward and backward in
//! training, many sequences at once in serving.
//!
//! | module | holds |
//! |---|---|
//! | [`training`] | [`training::TrainingModel`]: forward, backward, clipping, AdamW |
//! | [`on_device`] | [`on_device::DeviceModel`]: the same plan on a device, by recorded kernels |
//! | [`place`] | [`place::Training`], [`place::Serving`]: a model wherever it computes; [`place::Place`]: a device that was chosen |
//! | [`inference`] | [`inference::InferenceModel`]: chunks of many sequences over a paged key/value cache |
//! | [`weights`] | [`weights::Weights`]: read, wherever they lie; [`weights::WeightsFolder`]: Hugging Face folders, written too |
//! | [`gguf`] | GGUF files, read and written |
//! | [`tokenizer`] | [`tokenizer::Tokenizer`]: byte-level BPE, trained and used |
//! | [`chat`] | [`chat::ChatTemplate`]: conversations to tokens; what a user writes stays text |
//! | [`rng`] | [`rng::Philox`]: randomness by counter |
//! | [`error`] | [`error::ModelError`], [`error::WeightsError`] |
//!
//! All models own one arena, exactly as planned ([`petaflop_plan::plan`]), and
//! walk the plan's steps; each step is one kernel call.

mod arena;
mod backward;
pub mod chat;
pub mod error;
pub mod gguf;
pub mod inference;
mod initial;
pub mod on_device;
mod pass;
pub mod place;
pub mod rng;
mod rope;
pub mod tokenizer;
pub mod training;
pub mod weights;

pub use error::{ModelError, WeightsError};
