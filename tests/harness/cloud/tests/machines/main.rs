//! Machines that are real: what runs on them, what they reach, and that nothing is left of them.
//! Root only; said loudly where that is missing.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod agents;
mod containers;
mod faults;
mod fixture;
mod leaks;
mod operator;
mod whole;
