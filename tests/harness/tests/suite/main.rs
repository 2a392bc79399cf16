//! The harness keeps what it says, one file a part of it.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod assets;
mod clearing_up;
mod control_plane;
mod kwok;
mod node;
mod tools;
