//! What a job *is*, before anything runs: model shapes, the resolved recipe and
//! its key, and the memory plan — the list of operations, buffers and lifetimes
//! that the runtime executes literally and the arbiter asks "does it fit?".
//!
//! Pure: no I/O, no clock, no threads.
//!
//! | module | holds |
//! |---|---|
//! | [`shape`] | [`shape::ModelShape`]: a Llama-shaped model, from a recipe or a Hugging Face `config.json` |
//! | [`recipe`] | [`recipe::ResolvedRecipe`] and its key; [`recipe::JobSpec`], what the runtime is started with |
//! | [`machine`] | [`machine::Machine`]: what `petaflop-runtime detect --json` says of a machine |

pub mod machine;
pub mod recipe;
pub mod shape;

/// Raised on purpose whenever a change alters the bits of any result. It is part
/// of every job's key, so artifacts made by older arithmetic are never mistaken
/// for new ones.
pub const NUMERICS_VERSION: u32 = 1;
