//! Real servers on loopback, on a small model with random weights.

mod answers;
mod common;
mod refusals;
