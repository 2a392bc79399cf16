//! The operator without a cluster: `petaflop run` and its companions. Each job or service
//! has a process of its own that works for it; all that they know is in files of a home.
//!
//! | module | holds |
//! |---|---|
//! | [`home`], [`config`] | the installation |
//! | [`admit`] | from a manifest to something that can be run: every choice fixed |
//! | [`work`], [`runtime`] | how much work there is; the runtime's binary |
//! | [`job`], [`claims`] | what is durable, in files |
//! | [`observe`] | offers, claims, jobs and their costs as one `World` |
//! | [`place`] | the placement pass: decides, writes claims |
//! | [`operate`] | the loop of one job or service |
//! | [`command`], [`health`] | what an instance is told to do; whether it answers |
//! | [`live`], [`elsewhere`] | providers elsewhere; machines that are rented there |
//! | [`brought`] | what commands there print, brought here |
//! | [`publish`] | results copied to where they were asked for |
//! | [`sweep`], [`audit`] | claims nobody works for, instances no claim wants; the same looked at for a person |

pub mod admit;
pub mod audit;
pub mod brought;
pub mod claims;
pub mod command;
pub mod config;
pub mod elsewhere;
pub mod health;
pub mod home;
pub mod job;
pub mod live;
pub mod observe;
pub mod operate;
pub mod place;
pub mod publish;
pub mod runtime;
pub mod sweep;
pub mod work;
