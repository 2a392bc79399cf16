//! What a running job says of itself: one JSON object a line, in a file beside
//! its log. The last line of a finished job is its exit report.

use serde::{Deserialize, Serialize};

pub use crate::progress::{ProgressReader, ProgressWriter};

/// One line of a job's progress file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Progress {
    /// The job's identity and size are known.
    Started {
        /// The job's key (hex).
        key: String,
        /// Optimiser steps in all.
        steps: u64,
        /// Step it starts from: 0, or that of the checkpoint it resumes.
        from_step: u64,
        /// Tokens trained on in one step.
        tokens_per_step: u64,
        /// Kernel variant and threads, for people.
        backend: String,
        /// Bytes of the training arena: planned.
        planned_bytes: u64,
        /// Bytes of the training arena: allocated. Equal to `planned_bytes`.
        arena_bytes: u64,
    },
    /// An optimiser step ended.
    Step {
        /// Steps done.
        step: u64,
        /// Mean training loss of this step, nats a token.
        loss: f64,
        /// Learning rate of this step.
        learning_rate: f64,
        /// Tokens a second since the last report.
        tokens_per_second: f64,
    },
    /// The validation split was measured.
    Validation {
        /// Steps done.
        step: u64,
        /// Mean loss, nats a token.
        loss: f64,
        /// Bits for each byte of the text.
        bits_per_byte: f64,
    },
    /// A checkpoint is durable.
    Checkpoint {
        /// Steps done.
        step: u64,
        /// Its folder or object prefix.
        path: String,
        /// Seconds from copy to durable.
        seconds: f64,
        /// Bytes that were written: what the place held already is not.
        #[serde(default)]
        sent: u64,
    },
    /// A server takes requests.
    Serving {
        /// Port on which it does.
        port: u16,
        /// What answers: the artifact's hash as it was asked for, or its folder; empty where it is no
        /// model of ours.
        model: String,
    },
    /// A stored thing was damaged and was left out.
    Skipped {
        /// What and why.
        message: String,
    },
    /// The job ended well.
    Finished {
        /// The job's key (hex).
        key: String,
        /// The artifact's hash (hex).
        artifact: String,
        /// The key was finished before; nothing was trained.
        cached: bool,
        /// What is not as it was asked for, and why, for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        caveat: Option<String>,
        /// Facts for people and reports (losses, bits per byte, the xz comparison, rates).
        summary: serde_json::Value,
    },
    /// The job was asked to stop and can go on later.
    Stopped {
        /// Steps done and durable.
        step: u64,
    },
    /// The job ended badly.
    Failed {
        /// What went wrong and how to mend it.
        message: String,
        /// Whether another try could help.
        retry: bool,
    },
}

impl Progress {
    /// Whether nothing follows in this run of the job: it is the exit report.
    pub fn is_last(&self) -> bool {
        match self {
            Self::Finished { .. } | Self::Stopped { .. } | Self::Failed { .. } => true,
            Self::Started { .. }
            | Self::Step { .. }
            | Self::Validation { .. }
            | Self::Checkpoint { .. }
            | Self::Serving { .. }
            | Self::Skipped { .. } => false,
        }
    }
}
