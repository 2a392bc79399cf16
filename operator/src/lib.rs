//! The operator: what watches jobs and services, decides with the arbiter where they
//! go, buys through the providers, and writes down what it cost.
//!
//! ```text
//! observe (I/O) → World → decide(&World, now) → Plan → act (I/O) → record (I/O)
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`act`] | one claim through the buying protocol: **the line that buys** is here |
//! | [`agents`], [`run`] | whoever is on a claimed machine: met, enrolled, listened to; what its command does |
//! | [`fleet`], [`installation`] | what claimed machines are and run; whose they are |
//! | [`accelerators`] | accelerators that were paid for; what is left alone where they are not there |
//! | [`audit`] | machines that carry our identity and should not be there |
//! | [`claims`], [`ledger`] | what is durable: claims wherever they are stored; what they cost |
//! | `aws` | AWS, where this program was built with it |
//! | [`store_at`] | where things are kept, and what opens that |
//! | [`narrow`] | how much of that opens to a machine |
//! | [`costs`] | what was spent |
//! | [`timeline`] | a job's places and prices, as a picture |
//! | [`status`] | what a running job says of itself |
//! | [`spot`] | what the spot policies keep between two decisions |
//! | [`learned`] | what runs teach about rates |
//! | [`models`] | published shapes, by name |
//! | [`restart`] | when what failed is started again |
//! | [`uid`] | names that nothing else has |
//! | [`cluster`] | in a cluster: controllers over objects |
//! | [`http`] | what the operator answers: health, metrics, the API |
//! | [`gateway`] | what the clients of a service talk to; balances over its replicas |
//! | [`embedded`] | without a cluster: `petaflop run` |
//! | `sandbox` | clouds on this machine, to try everything at (feature `sandbox`) |
//! | [`cli`] | the commands, one file each |

pub mod accelerators;
pub mod act;
pub mod agents;
pub mod audit;
mod aws;
pub mod claims;
pub mod cli;
pub mod cluster;
pub mod costs;
pub mod embedded;
pub mod fleet;
pub mod gateway;
pub mod http;
pub mod installation;
pub mod learned;
pub mod ledger;
pub mod models;
pub mod narrow;
pub mod proof;
pub mod restart;
pub mod run;
#[cfg(feature = "sandbox")]
pub mod sandbox;
pub mod spot;
pub mod status;
pub mod store_at;
pub mod timeline;
pub mod uid;
pub mod unmet;
