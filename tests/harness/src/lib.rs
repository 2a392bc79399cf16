//! A real Kubernetes for the tests: etcd, apiserver, controller-manager and
//! scheduler as processes that a test can pause, kill and start again; when
//! root, also a node that runs containers. Nothing here imitates Kubernetes.
//!
//! [`ControlPlane`] (the servers, [`Access`] by kubeconfig, a [`Namespace`] a
//! test) · [`Component`] (one process) · [`Writes`] (what was written, from the
//! audit log) · [`Proxy`] (a bad network before the apiserver) · `etcd`
//! (compaction) · [`kwok`] (nodes that do not exist) · [`node`] (one that does)
//! · [`roots`] (root file systems as folders) · [`tools`] (kubectl, helm and others by path).
//!
//! Beneath: `servers` (their command lines), `cache` (what is built or fetched
//! once), `kubernetes` (the build), `certificates`, `ports`, and `state` (the
//! folder of one cluster, and the guardian that clears up even after a test
//! process that was killed).

mod access;
mod audit;
mod cache;
mod certificates;
mod command;
mod control_plane;
mod error;
mod etcd;
mod kubernetes;
pub mod kwok;
mod namespace;
pub mod node;
mod options;
mod ports;
mod process;
mod proxy;
pub mod roots;
mod servers;
mod state;
pub mod tools;

pub use access::Access;
pub use audit::{Object, Tally, Write, Writes};
pub use control_plane::ControlPlane;
pub use error::{Error, Result};
pub use namespace::Namespace;
pub use options::{Options, Part};
pub use process::{Component, Launch};
pub use proxy::{Link, Proxy};

use std::time::Duration;

/// Asks again every 50 ms until `check` gives something or the time is up.
///
/// # Errors
/// [`Error::Late`], with what `check` last said was missing.
pub async fn eventually<T, F>(
    what: &str,
    within: Duration,
    mut check: impl FnMut() -> F,
) -> Result<T>
where
    F: Future<Output = std::result::Result<T, String>>,
{
    let start = std::time::Instant::now();
    loop {
        let missing = match check().await {
            Ok(found) => return Ok(found),
            Err(missing) => missing,
        };
        if start.elapsed() >= within {
            return Err(Error::Late { what: what.to_owned(), within, missing });
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
