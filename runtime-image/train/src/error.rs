//! What can end a training job badly, and what the caller should do about it.

use std::path::{Path, PathBuf};

use petaflop_device::device::DeviceError;
use petaflop_model::error::ModelError;

/// Why a training job did not end well. Every message names the place and the mend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An input, a recipe or a job file that can never work as it is.
    #[error("{0}")]
    BadInput(String),
    /// An input has another content than the job asked for.
    #[error(
        "input '{name}': the content of {uri} is {found}, but the job asks for {expected}; \
         restore the data, or give the new digest (which makes it another job)"
    )]
    Digest {
        /// The input's name.
        name: String,
        /// Where it lies.
        uri: String,
        /// The digest that the job names.
        expected: String,
        /// The digest of what is there.
        found: String,
    },
    /// An input was changed while the job ran; nothing was made of it.
    #[error(
        "input '{name}': {uri} was changed while the job ran (was {before}, is {after}); \
         the job stopped and made no artifact. Start it again when the data is at rest"
    )]
    Changed {
        /// The input's name.
        name: String,
        /// Where it lies.
        uri: String,
        /// The digest at the start.
        before: String,
        /// The digest now, or what stands in the way of reading it.
        after: String,
    },
    /// The plan needs more memory than this machine has for it.
    #[error(
        "the job needs {needed} bytes of memory and this machine has {available} left for it \
         ({source_of_limit}); use a smaller micro_batch_size with more gradient_accumulation_steps, \
         a shorter sequence_len, or a larger machine"
    )]
    DoesNotFit {
        /// Bytes the job needs.
        needed: u64,
        /// Bytes the machine can give.
        available: u64,
        /// What the limit was read from.
        source_of_limit: String,
    },
    /// The system refused the planned memory.
    #[error("{0}; use a smaller micro_batch_size, or a larger machine")]
    OutOfMemory(String),
    /// Another runtime trains with the same checkpoints folder.
    #[error(
        "checkpoints folder {folder}: in use by {holder}; wait for it, stop it, or give this job a folder of its own"
    )]
    Locked {
        /// The folder.
        folder: PathBuf,
        /// What the lock file says of its holder.
        holder: String,
    },
    /// Training left the finite numbers.
    #[error(
        "step {step}: {tensor} is not finite; lower learning_rate or max_grad_norm, or look at the data near this step"
    )]
    NotFinite {
        /// The step, counted from 1; 0 before the first.
        step: u64,
        /// The first tensor found to hold such a value, or the loss.
        tensor: String,
    },
    /// Reading or writing a file failed.
    #[error("{what} {path}: {source}{}", hint(.source))]
    Io {
        /// What was being done: `cannot write checkpoint`.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The progress file cannot be written.
    #[error("progress file: {0}")]
    Progress(String),
    /// The store refused.
    #[error("artifact store: {0}")]
    Store(String),
    /// The bucket that holds the checkpoints refused, or was away for too long.
    #[error("checkpoints: {0}; those that are there are intact: start the job again")]
    Checkpoints(String),
    /// The device refused, or is gone.
    #[error("{}{}", .0, device_hint(.0))]
    Device(DeviceError),
    /// A part of the runtime failed in a way that no input explains.
    #[error("{0}")]
    Internal(String),
}

/// What the failure means for the one who started the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Trying again, here or elsewhere, may help.
    Retry,
    /// The same job can never work.
    BadInput,
    /// The machine is too small.
    DoesNotFit,
    /// The device cannot be computed on; that of another machine may be.
    NoDevice,
}

impl Class {
    /// What a device's answer means.
    #[must_use]
    pub fn of_device(error: &DeviceError) -> Self {
        match error {
            DeviceError::DoesNotFit { .. }
            | DeviceError::OutOfMemory { .. }
            | DeviceError::TooLarge { .. } => Self::DoesNotFit,
            DeviceError::None(_) | DeviceError::Compile { .. } => Self::NoDevice,
            DeviceError::Launch(_) | DeviceError::Lost(_) => Self::Retry,
        }
    }
}

impl Error {
    /// What the failure means for the one who started the job.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::BadInput(_)
            | Self::Digest { .. }
            | Self::Changed { .. }
            | Self::NotFinite { .. } => Class::BadInput,
            Self::DoesNotFit { .. } | Self::OutOfMemory(_) => Class::DoesNotFit,
            Self::Device(error) => Class::of_device(error),
            Self::Locked { .. }
            | Self::Io { .. }
            | Self::Progress(_)
            | Self::Store(_)
            | Self::Checkpoints(_)
            | Self::Internal(_) => Class::Retry,
        }
    }

    pub(crate) fn store(error: petaflop_store::StoreError) -> Self {
        Self::Store(error.to_string())
    }

    pub(crate) fn checkpoints(error: petaflop_store::StoreError) -> Self {
        Self::Checkpoints(error.to_string())
    }

    pub(crate) fn model(error: ModelError) -> Self {
        match error {
            ModelError::Plan(error) => Self::BadInput(format!("recipe: {error}")),
            ModelError::Weights(error) => Self::BadInput(format!("base model: {error}")),
            ModelError::Memory(error) => Self::OutOfMemory(error.to_string()),
            ModelError::Device(error) => Self::Device(error),
            error @ (ModelError::Input { .. } | ModelError::NotFinite { .. }) => {
                Self::Internal(error.to_string())
            }
        }
    }

    /// `step` is counted from 1.
    pub(crate) fn in_step(step: u64, error: ModelError) -> Self {
        match error {
            ModelError::NotFinite { tensor } => Self::NotFinite { step, tensor },
            other => Self::model(other),
        }
    }

    pub(crate) fn io<'a>(
        what: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(std::io::Error) -> Self + 'a {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }
}

/// The mend, for a device that was there.
fn device_hint(error: &DeviceError) -> &'static str {
    match error {
        DeviceError::Lost(_) => {
            "; the last durable checkpoint is intact: start the job again, here or elsewhere"
        }
        DeviceError::Compile { .. } => "; update it, or use another device with --device",
        _ => "",
    }
}

/// The mend, for the failures of a file system that people meet.
fn hint(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind as K;
    match error.kind() {
        K::StorageFull | K::QuotaExceeded => {
            "; free some space (the last durable checkpoint is intact) and start the job again"
        }
        K::FileTooLarge => {
            "; raise the limit on the size of files (the last durable checkpoint is intact) and start the job again"
        }
        K::ReadOnlyFilesystem | K::PermissionDenied => {
            "; give a folder that this process may write to"
        }
        _ => "",
    }
}
