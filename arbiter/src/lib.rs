//! Deciding money: which place a workload goes to, why, and what it cost.
//!
//! Pure: no I/O, no clock, no threads, no randomness. World and time go in, a plan comes out:
//! the same world gives the same plan, bit for bit, on every machine, and a recorded world can be
//! replayed. This crate knows no provider's interface and no Kubernetes.
//!
//! | module | holds |
//! |---|---|
//! | [`money`] | dollars and dollars an hour, in whole micro-dollars |
//! | [`catalogue`] | what each accelerator can do, and all its names |
//! | [`offer`] | one thing that can be had now |
//! | [`market`] | all offers, indexed |
//! | [`workload`] | what is asked for |
//! | [`work`] | how much work that is, by the memory plan that the runtime executes |
//! | [`memory`] | how much memory any model takes, by formulas; what would make it fit |
//! | [`spot`] | spot under a deadline: policies, the exact safety set, the optimum, replay |
//! | [`support`] | where our runtime runs |
//! | [`estimate`] | tokens a second, with uncertainty, corrected by past runs |
//! | [`world`] | everything a decision may depend on |
//! | [`fit`] | does it fit: bytes, devices, engine |
//! | [`decide`] | [`decide::decide`]: world and time in, plan out; [`decide::explain`]: why not that one |
//! | `deadline`, [`watch`] | what the spot policies say of a job that must end in time; what it saw until now |
//! | [`gang`] | several machines in one zone, all or none |
//! | [`decision`] | what a decision says |
//! | [`obstacle`] | what stands between a workload and an offer, with numbers |
//! | `pass`, `place`, `checks`, `limits` | one pass; one workload; every constraint; those of money |
//! | `search`, `candidates` | the offers that come into question, from the best on; those that will do |
//! | `spread` | replicas of a service, not all on spot in one zone |
//! | `objective` | expected dollars to finish, term by term |
//! | [`own_or_rent`] | whether buying a machine pays, beside renting one |
//! | [`claim`] | one machine we intend to pay for |
//! | [`launch`] | [`launch::next_step`]: the protocol that buys it without ever leaking it |
//! | [`bill`] | what a provider bills for a machine, by its rules |
//! | [`ledger`] | what every claim cost |
//! | [`reason`] | the closed list of reasons |

pub mod bill;
mod candidates;
pub mod catalogue;
pub mod checkpoint;
mod checks;
pub mod claim;
mod deadline;
pub mod decide;
pub mod decision;
pub mod estimate;
pub mod fit;
pub mod gang;
pub mod launch;
pub mod ledger;
mod limits;
pub mod market;
pub mod memory;
pub mod money;
mod moves;
mod objective;
pub mod obstacle;
pub mod offer;
pub mod own_or_rent;
mod pass;
mod place;
pub mod reason;
mod search;
pub mod spot;
mod spread;
pub mod support;
pub mod watch;
pub mod work;
pub mod workload;
pub mod world;
