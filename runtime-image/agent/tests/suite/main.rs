//! Agents with real processes, sockets and files.
#![allow(clippy::unwrap_used, clippy::print_stderr)]
#![allow(unreachable_pub, reason = "one test program, several files")]

mod accelerators;
mod dialling;
mod ends;
mod leases;
mod metadata;
mod operator;
mod passes;
mod pods;
mod program;
mod relays;
mod tasks;
