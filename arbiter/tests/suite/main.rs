//! What the arbiter promises, in one binary: tables for the known cases, properties for the rest.

mod bill;
mod catalogue;
mod checkpoints;
mod constraints;
mod deadlines;
mod decisions;
mod documented;
mod estimates;
mod hostile;
mod launches;
mod ledger;
mod markets;
mod memory;
mod money;
mod moves;
mod properties;
mod queue;
mod spot;
mod worlds;
