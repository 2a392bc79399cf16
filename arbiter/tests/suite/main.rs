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
mod own_or_rent;
mod properties;
mod purse;
mod queue;
mod ranges;
mod recorded;
mod spot;
mod spread;
mod worlds;
