//! Training: from a job to an artifact.

pub mod checkpoint;
pub mod curve;
pub mod document;
pub mod error;
pub mod input;
pub mod pack;
pub mod progress;
pub mod split;
pub mod xz;

pub use error::{Class, Error};
