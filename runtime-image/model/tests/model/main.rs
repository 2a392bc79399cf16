//! Models as their users meet them, against an independent forward pass in f64.

mod adapters;
mod apart;
mod common;
mod gguf;
mod on_device;
mod serving;
mod training;
mod weights;
