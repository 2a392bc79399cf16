//! The gateway: what the Service of an InferenceService selects. An HTTP/1.1 reverse
//! proxy for APIs in OpenAI's form, streams included, over replicas that come and go.
//!
//! ```text
//! client → serve → proxy ─ headers, payload → replicas (balance) → upstream → replica
//!                    └ none ready: hold → Wish            relay ← first byte ┘
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | every bound and deadline, with its default |
//! | [`replicas`] | the replicas of the moment; who is left alone after a failure, and probed |
//! | [`balance`] | who gets the next request; pure |
//! | [`hold`] | requests that wait for a replica, and what is told of them: [`Wish`] |
//! | [`payload`] | a request's body: kept to be sent again, or streamed once |
//! | [`upstream`] | connections to replicas: the trait [`Connect`], idle ones kept |
//! | [`by_agent`] | how they are made: straight, or through the replica's agent, encrypted |
//! | [`proxy`] | one request: try, try elsewhere, give up. **The [`Gateway`]** |
//! | [`relay`] | an answer on its way to the client |
//! | [`headers`] | what passes from one side to the other |
//! | [`refusal`] | what the gateway itself answers, as OpenAI's error object |
//! | [`metrics`] | `petaflop_gateway_…` |
//! | [`control`] | what the operator tells of replicas, and what it is told |
//! | [`serve`] | sockets, health, drain |
//!
//! Promises: a request is repeated only while no byte of an answer was passed on, so a
//! client sees one answer or a cut one, never two; memory is bounded by [`Config`]
//! whatever clients send; a client that leaves ends its request on the replica at once.

mod balance;
mod by_agent;
mod config;
mod control;
mod headers;
mod hold;
mod metrics;
mod payload;
mod proxy;
mod refusal;
mod relay;
mod replicas;
mod serve;
mod upstream;

pub use by_agent::ByAgent;
pub use config::Config;
pub use control::{Control, ControlError};
pub use hold::Wish;
pub use proxy::Gateway;
pub use replicas::{Replica, State};
pub use serve::{listen, serve, serve_controlled};
pub use upstream::{Connect, Io, Tcp};

/// What a body may fail with, as hyper takes it.
type BoxError = Box<dyn std::error::Error + Send + Sync>;
