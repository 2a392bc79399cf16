//! What a job *is*, before anything runs: model shapes, the resolved recipe and
//! its key, and the memory plan — the list of operations, buffers and lifetimes
//! that the runtime executes literally and the arbiter asks "does it fit?".
//!
//! Pure: no I/O, no clock, no threads.
//!
//! | module | holds |
//! |---|---|
//! | [`shape`] | [`shape::ModelShape`]: a Llama-shaped model, from a recipe or a Hugging Face `config.json` |
//! | [`recipe`] | [`recipe::ResolvedRecipe`]; [`recipe::JobSpec`], what the runtime is started with |
//! | [`key`] | [`key::Key`]: the hash of a recipe, its inputs and the numerics version |
//! | [`training`] | [`training::plan_training`]: forward and backward |
//! | [`inference`] | [`inference::plan_inference`]: serving over a key/value cache in blocks |
//! | [`plan`] | [`plan::Plan`]: buffers, steps, exact bytes and arithmetic |
//! | [`ops`] | [`ops::Op`]: the operations |
//! | [`linear`] | linear layers, and [`linear::Adapters`]: low-rank pairs beside their weights |
//! | [`apart`] | [`apart::Fusion`]: operations as one launch, or taken apart |
//! | [`formats`] | in which of the number formats matrices are kept, in files and in serving |
//! | [`dtype`], [`mesh`] | number formats; how a job is spread over devices |
//! | [`machine`] | [`machine::Machine`]: what `petaflop-runtime detect --json` says of a machine |

pub mod apart;
mod builder;
pub mod dtype;
pub mod formats;
mod hf;
pub mod inference;
pub mod key;
mod lifetimes;
pub mod linear;
pub mod machine;
pub mod mesh;
pub mod ops;
pub mod plan;
pub mod recipe;
mod schedule;
pub mod shape;
pub mod training;

/// Raised on purpose whenever a change alters the bits of any result. It is part
/// of every job's key, so artifacts made by older arithmetic are never mistaken
/// for new ones.
pub const NUMERICS_VERSION: u32 = 1;

/// What arithmetic promises, and so whose bits its results have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Numerics {
    /// Every operation rounded as the processor's kernels round it: their very bits.
    #[default]
    Exact,
    /// In products with q8_0 weights activations are rounded to 8 bits, 32 with a scale; else as `Exact`. Serving only.
    Int8Activations,
    /// CUDA's without contraction: rounded as `Exact` is, which no GPU has confirmed yet.
    Cuda,
    /// The same of HIP.
    Hip,
    /// WGSL's: division, square root and multiply-add may be rounded otherwise, by each driver.
    Wgsl,
}

impl std::str::FromStr for Numerics {
    type Err = String;

    /// Those that can be asked for.
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Exact, Self::Int8Activations]
            .into_iter()
            .find(|numerics| numerics.to_string() == text)
            .ok_or_else(|| format!("expected exact or int8-activations, found {text:?}"))
    }
}

impl std::fmt::Display for Numerics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact",
            Self::Int8Activations => "int8-activations",
            Self::Cuda => "cuda",
            Self::Hip => "hip",
            Self::Wgsl => "wgsl",
        })
    }
}
