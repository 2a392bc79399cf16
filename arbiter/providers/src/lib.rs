//! Places that sell or own compute, behind one trait shaped for buying without
//! leaking a machine.
//!
//! | module | holds |
//! |---|---|
//! | [`provider`] | the trait [`provider::Provider`], identities, frozen requests, instances |
//! | [`error`] | what can go wrong: when to try again, and the reason that is shown |
//! | [`host`] | this machine (feature `host`) |
//! | [`snapshot`] | dated prices of RunPod and AWS, never bought from (feature `snapshot`) |

pub mod error;
#[cfg(feature = "host")]
pub mod host;
pub mod provider;
#[cfg(feature = "snapshot")]
pub mod snapshot;

pub use error::{LaunchError, ProviderError, Retry};
pub use provider::{
    Billing, Capabilities, Command, Instance, InstanceId, InstanceState, Listing, Order, Provider,
};
