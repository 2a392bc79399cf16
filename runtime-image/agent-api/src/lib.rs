//! What operator and agent say to each other, and how each knows that it is the
//! other: types, sign, verify. No I/O.
//!
//! | module | holds |
//! |---|---|
//! | [`clock`] | [`clock::Clock`]: wall and monotonic time that tests can move |
//! | [`keys`] | what an operator keeps and what is derived from it; public keys |
//! | [`token`] | [`token::EnrolmentToken`]: the one-time proof of a machine that we bought |
//! | [`session`] | Noise: encrypted, authentic round trips, whoever dials |
//! | [`enrol`] | the operator's judgement of an agent's first words |
//! | [`message`] | what is said inside a session |
//! | [`task`] | what an agent is to run |
//! | [`lease`] | how long an agent may keep its machine without hearing from us |
//! | [`poll`] | how an agent that dials asks for requests |
//! | [`gateway`] | what the operator and a service's gateway tell each other |
//! | [`relay`] | a gateway's streams to a replica, through its agent |
//!
//! Bodies of HTTP requests, where the operator dials: `GET /v1/hello` gives [`session::Enrolment::message`],
//! `POST /v1/hello` takes the welcome; `POST /v1/rpc` takes a [`session::Call`]'s message and gives the response.
//! Where the agent dials, `POST /v1/hello` takes the hello and gives the welcome; `POST /v1/rpc` see [`poll`].

pub mod clock;
pub mod enrol;
pub mod gateway;
pub mod keys;
pub mod lease;
pub mod message;
pub mod poll;
pub mod relay;
pub mod session;
pub mod task;
mod text;
pub mod token;
