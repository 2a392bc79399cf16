//! A cloud in a box: an HTTP server that sells machines, bills for them in a
//! ledger of its own, and misbehaves on request in the ways in which real ones
//! were seen to; and the [`Provider`](petaflop_providers::Provider) that speaks
//! to it. What bills here shares no code with petaflop's ledger, so that each can
//! be held against the other.
//!
//! | module | holds |
//! |---|---|
//! | [`manners`] | how the cloud behaves when it behaves: like AWS, like RunPod |
//! | [`fault`] | every way in which it can misbehave, by name, and when |
//! | [`cloud`] | machines, calls, what is asked of the cloud by tests: the oracles |
//! | [`bill`] | the cloud's own ledger, on disk |
//! | [`agent`] | what runs on a machine: nothing, or |
//! | [`mod@script`] | an agent that follows a script, or |
//! | [`real`] | the real agent (feature `agent`) |
//! | `inner` | what goes on in the cloud |
//! | `wire` | the bodies of requests and answers |
//! | `server` | the HTTP side of the cloud |
//! | [`client`] | [`client::FakeProvider`] |

pub mod agent;
pub mod bill;
pub mod client;
pub mod cloud;
pub mod fault;
mod inner;
mod machine;
pub mod manners;
#[cfg(feature = "agent")]
pub mod real;
pub mod script;
mod server;
mod wire;

pub use agent::{AgentEnd, AgentRunner, Boot};
pub use client::FakeProvider;
pub use cloud::{Cloud, Foreign};
pub use fault::{Fault, Kind};
pub use manners::Manners;
pub use script::{Script, script};
