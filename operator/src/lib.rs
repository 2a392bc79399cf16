//! The operator: what watches jobs and services, decides with the arbiter where they
//! go, buys through the providers, and writes down what it cost.
//!
//! ```text
//! observe (I/O) → World → decide(&World, now) → Plan → act (I/O) → record (I/O)
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`observe`] | offers, claims, jobs and their costs as one `World` |
//! | [`place`] | the placement pass: decides, writes claims |
//! | [`act`] | one claim through the buying protocol: **the line that buys** is here |
//! | [`operate`] | the loop of one job or service |
//! | [`sweep`] | claims nobody works for, instances no claim wants |
//! | [`command`] | what an instance is told to do |
//! | [`status`] | what a running job says of itself |
//! | [`claims`], [`ledger`], [`job`] | what is durable, in files |
//! | [`home`], [`config`] | the installation |
//! | [`admit`] | from a manifest to something that can be run: every choice fixed |
//! | [`work`], [`models`], [`learn`] | how much work there is; published shapes; what past runs taught |
//! | [`runtime`], [`health`] | the runtime's binary and its servers |
//! | [`cli`] | the commands, one file each |

pub mod act;
pub mod admit;
pub mod claims;
pub mod cli;
pub mod command;
pub mod config;
pub mod health;
pub mod home;
pub mod job;
pub mod learn;
pub mod ledger;
pub mod models;
pub mod observe;
pub mod operate;
pub mod place;
pub mod publish;
pub mod runtime;
pub mod status;
pub mod sweep;
pub mod work;
