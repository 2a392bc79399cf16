//! Agents with real processes, sockets and files.
#![allow(clippy::unwrap_used, clippy::print_stderr)]
#![allow(unreachable_pub, reason = "one test program, several files")]

mod accelerators;
mod delivery;
mod dialling;
mod ends;
mod folders;
mod inputs;
mod leases;
mod metadata;
mod operator;
mod passes;
mod pods;
mod probes;
mod program;
mod relays;
#[path = "../../../store/tests/common/s3.rs"]
mod s3;
mod tasks;
