//! `petaflop sandbox`: clouds on this machine, at which nobody pays. Their APIs behave as the real
//! ones do, their machines are process trees in networks of their own, and what they bill shares no
//! code with the ledger (`docs/providers/box.md`). A manifest that runs here runs there unchanged.
//!
//! | module | holds |
//! |---|---|
//! | `clouds` | the providers, what their machines are, and the state folder that leads there |
//! | `amazon` | what of them is AWS (feature `aws`) |
//! | `market` | what the market does while one looks on: machines that are taken away, hosts that die |
//! | `receipt` | what was billed, machine by machine, and what the same hours cost on demand |
//! | `programs` | where the programs of machines are |

#[cfg(feature = "aws")]
mod amazon;
mod clouds;
mod market;
mod programs;
mod receipt;

pub use clouds::{Clouds, SandboxError};
pub use market::{Event, Market};
pub use receipt::{Receipt, Rented};
