//! Serves a model over the OpenAI API, with continuous batching.
//!
//! ```text
//! http ── api ── prompt ──► queue ──► engine ──► model (petaflop-model)
//!   ▲    (what is asked)  (waiting)  (the batch)
//!   └──── answer ◄──────────────────── sample, text
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `server` | [`serve`]: bind, load, answer, drain; [`ServeConfig`], [`ServeError`] |
//! | `http` | routes; bodies read within bounds; health and metrics |
//! | `api` | what a client may ask, field by field |
//! | `key` | who may ask: [`Key`] |
//! | `error` | what it is told when it cannot be answered |
//! | `prompt` | from text and conversations to tokens |
//! | `load`, `blocks`, `vocabulary` | the model in memory; its cache's free blocks; its tokens |
//! | `queue` | requests that wait; what the server is doing |
//! | `engine` | the batch: admission, passes, sequences |
//! | `sample` | the next token, from logits, settings and position alone |
//! | `text` | from token bytes to text that may be sent |
//! | `answer` | one JSON object, or server-sent events |
//! | `metrics` | what `/metrics` tells |
//!
//! Two promises hold it together. **The same request gets the same tokens**,
//! whatever else is in the batch: the model's arithmetic does not depend on the
//! batch, and the choice of a token depends on (seed, position) alone. **Memory
//! is bounded by the plan**: weights, activations and the key/value cache are
//! allocated before the first request, and a request that has no room waits, is
//! told to come again, or is refused with the numbers.

mod answer;
mod api;
mod blocks;
mod engine;
mod error;
mod forward;
mod http;
mod key;
mod load;
mod metrics;
mod prompt;
mod queue;
mod sample;
mod server;
mod text;
mod vocabulary;

pub use key::Key;
pub use load::LoadError;
pub use server::{Compute, ModelLocation, ServeConfig, ServeError, serve};
