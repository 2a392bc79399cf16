//! EC2 in the box, asked over HTTP, statement by statement: `docs/providers/box.md` has the table.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod faults;
mod fixture;
mod launch;
mod life;
mod limits;
mod lists;
mod money;
mod prices;
mod services;
mod table;
mod xml;
