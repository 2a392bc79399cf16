//! The chase: a job that is driven from place to place by clouds in a box, while all else is real:
//! control plane, operator, client libraries, machines, what they boot with, agent, runtime, store.
//!
//! | module | holds |
//! |---|---|
//! | `once` | one chase over three places, step by step, to the micro-dollar |
//! | `script` | what happens to a job, as a pure function of a seed |
//! | `play` | a script, while it is played |
//! | `report` | what came of it: a line each, and one of JSON |
//! | `seeded` | chases by seed: `make chase N=… SEED=…` |
//! | `oracles` | what must be true of each in the end, and that it can be false |
//! | `dead` | what an operator costs that stays dead |
//! | `clouds` | the two clouds on the same machines |
//! | `world` | a cluster with both clouds |

mod clouds;
mod dead;
#[path = "../market/mod.rs"]
mod market;
mod once;
#[path = "../operator/mod.rs"]
mod operator;
mod oracles;
mod play;
mod report;
mod script;
mod seeded;
mod world;

/// Chases share two processors with their machines: one after the other.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
