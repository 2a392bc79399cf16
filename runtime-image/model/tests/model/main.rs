//! Models as their users meet them, against an independent forward pass in f64.

mod common;
mod serving;
mod training;
mod weights;
