//! RunPod in the box, asked over HTTP, statement by statement: `docs/providers/box.md` has the table.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod catalog;
mod errors;
mod faults;
mod fixture;
mod graphql;
mod life;
mod money;
mod pods;
mod table;
