//! What can go wrong with a model.

use std::path::PathBuf;

use petaflop_device::OutOfMemory;
use petaflop_device::device::DeviceError;
use petaflop_plan::plan::PlanError;
use petaflop_plan::shape::ShapeError;

/// Why a model cannot be made, loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The shape or the options have no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The system would not give the planned memory.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// The weights cannot be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The device refused, or is gone.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Tokens, targets or blocks that do not fit the plan.
    #[error("{what}: expected {expected}, found {found}")]
    Input {
        /// Which.
        what: &'static str,
        /// What it may be.
        expected: String,
        /// What it was.
        found: String,
    },
    /// The loss is not a finite number.
    #[error(
        "the loss is not finite: {tensor} is the first that holds a number that is not; use a lower learning rate or a tighter max_grad_norm"
    )]
    NotFinite {
        /// The first buffer of the plan, in the order of the pass, with a bad number.
        tensor: String,
    },
}

/// Why a folder of weights cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The system's answer.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that is not what it should be.
    #[error("{path}: {what}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// `config.json` describes what the runtime cannot run.
    #[error("{path}: {source}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The field and why.
        source: ShapeError,
    },
    /// A tensor is not what the shape says.
    #[error("{path}: tensor {tensor}: expected {expected}, found {found}")]
    Tensor {
        /// The file, or the folder where no file has the tensor.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// What the shape says.
        expected: String,
        /// What the file says.
        found: String,
    },
}
