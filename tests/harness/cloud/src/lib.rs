//! The cloud in a box: providers whose APIs behave as the real ones were seen to behave, in front of
//! one deterministic engine that rents, evicts and bills. What bills here shares no code with
//! petaflop's ledger, so that each can be held against the other.
//!
//! | module | holds |
//! |---|---|
//! | [`engine`] | products, prices, machines and their life, account, invoice; pure |
//! | [`faults`] | every way to misbehave, by name, and when |
//! | [`host`] | what a rented machine *is*: a trait, and machines that are only a state |
//! | [`machines`] | machines that are real |
//! | [`runpod`] | RunPod's REST v2 and GraphQL |
//! | [`ec2`] | EC2's query protocol, and what of SSM, Pricing and STS belongs to buying there |
//! | [`s3`] | S3's access control and STS, in front of a server that has neither |
//! | `shell` | what each of them stands in: port, clock, lock, faults of the connection |
//!
//! Every statement of these APIs that is kept here, and the test that holds it, stand in
//! `docs/providers/box.md`.

pub mod ec2;
pub mod engine;
pub mod faults;
pub mod host;
pub mod machines;
pub mod runpod;
pub mod s3;
mod shell;
