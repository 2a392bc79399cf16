//! A job that may run on spot machines and must end before its deadline.
//!
//! Time goes in whole ticks. At the start of a tick a policy sees which zones have spot, and picks for the
//! whole tick: nothing, spot, or on-demand. What may be picked without ever missing a deadline that on-demand
//! could have met is a closed formula ([`safety`]); which of that is cheapest is the policy's business.
//!
//! | module | holds |
//! |---|---|
//! | [`model`] | terms of a job, what a policy sees, what it may choose |
//! | [`safety`] | the exact set of choices that keep the deadline, and why |
//! | [`policies`] | on-demand, greedy, Uniform Progress, the α rules, R1, P1 |
//! | [`law`], [`learned`] | how long runs of spot last, and what a job learned of it |
//! | [`table`], [`shelf`] | what is cheapest under such a law; tables that are ready |
//! | [`optimum`] | what a clairvoyant would have paid, exactly |
//! | [`trace`] | recorded availability and prices, read without repairs |
//! | [`replay`] | one run of one policy over recorded markets |
//! | [`queue`] | several jobs in one market, with budgets, that take machines from one another |

mod bits;
pub mod law;
pub mod learned;
pub mod model;
pub mod optimum;
pub mod policies;
pub mod queue;
pub mod replay;
pub mod safety;
pub mod shelf;
pub mod table;
pub mod trace;
