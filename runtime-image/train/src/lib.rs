//! Training: from a job to an artifact.
//!
//! ```text
//! input ─► document ─► split ─► data (tokenizer, pack) ─► trainer ─► artifact ─► store
//!   └─► identity (key, cached?)                     state ◄──┴──► checkpoint
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `trainer` | [`run`]: the loop, and everything around it in order |
//! | `identity` | [`identify`]: a job's key and whether it was finished before |
//! | [`input`] | what was read, its content digest, whether it is still the same |
//! | [`document`] | files and lines of JSON as documents; duplicates removed |
//! | [`split`] | which documents are held out |
//! | `data` | tokenizer and token streams |
//! | [`pack`] | streams as samples of one length; the order of an epoch |
//! | `start` | random weights or a base model's |
//! | `state` | what a checkpoint holds |
//! | [`checkpoint`] | durable folders under a lock; damaged ones passed over |
//! | [`history`], [`curve`] | losses so far, and their picture |
//! | `export` | the weights in the form that was asked for, and the proof of them |
//! | `artifact`, `summary` | what a finished job leaves and says |
//! | [`progress`] | lines for programs and for people |
//! | [`xz`] | what a compressor makes of the same text |
//! | [`error`] | what can end a job badly |

mod artifact;
pub mod checkpoint;
pub mod curve;
mod data;
pub mod document;
pub mod error;
mod export;
pub mod history;
mod identity;
pub mod input;
pub mod pack;
pub mod progress;
pub mod split;
mod start;
mod state;
mod summary;
mod trainer;
pub mod xz;

pub use error::{Class, Error};
pub use identity::{Identity, identify};
pub use summary::peak_rss_bytes;
pub use trainer::{CURVE, Options, Outcome, run};
