//! Places that sell or own compute, behind one trait shaped for buying without
//! leaking a machine.
//!
//! | module | holds |
//! |---|---|
//! | [`provider`] | the trait [`provider::Provider`], identities, frozen requests, instances |
//! | [`machine`] | what is asked of a machine that runs our agent |
//! | [`error`] | what can go wrong: when to try again, and the reason that is shown |
//! | [`price`] | dollars an hour of an owned machine |
//! | [`host`] | this machine (feature `host`) |
//! | [`nodes`] | the nodes of this cluster (feature `nodes`) |
//! | [`runpod`] | an account at RunPod (feature `runpod`) |
//! | [`aws`] | an account at AWS (feature `aws`) |
//! | [`snapshot`] | dated prices of RunPod and AWS, never bought from (feature `snapshot`) |

#[cfg(feature = "aws")]
pub mod aws;
pub mod error;
#[cfg(feature = "host")]
pub mod host;
pub mod machine;
#[cfg(feature = "nodes")]
pub mod nodes;
#[cfg(any(feature = "aws", feature = "host", feature = "nodes", feature = "runpod"))]
pub mod price;
pub mod provider;
#[cfg(feature = "runpod")]
pub mod runpod;
#[cfg(feature = "snapshot")]
pub mod snapshot;

pub use error::{LaunchError, ProviderError, Retry, Waste};
pub use machine::{EnrolmentToken, Machine};
pub use petaflop_arbiter::bill::{Begins, Billing};
pub use provider::{
    Capabilities, Command, Exit, Instance, InstanceId, InstanceState, Listing, Order, Provider,
    Trouble, Used, Work,
};
