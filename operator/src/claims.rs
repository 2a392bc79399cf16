//! Claims, wherever they are stored: files of a home outside a cluster, `ComputeClaim`
//! objects in one. The buying protocol sees only this.

use async_trait::async_trait;
use jiff::Timestamp;
use petaflop_arbiter::claim::{Claim, ClaimSpec};
use serde::{Deserialize, Serialize};

/// A claim with what its store knows of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredClaim {
    /// Which writing of it was read; opaque, another with every change.
    pub version: String,
    /// Somebody has asked for its removal. It stays until its finalizer goes.
    #[serde(default, skip_serializing_if = "is_false")]
    pub deleting: bool,
    /// When billing began, once that is known.
    pub billed_from: Option<Timestamp>,
    /// Since when its machine runs, where its bill begins then, once that was seen. Whoever comes after
    /// a restart cannot see it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_from: Option<Timestamp>,
    /// Where its agent is reached, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The key that its agent proved at enrolment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_key: Option<String>,
    /// The claim.
    pub claim: Claim,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Why a claim could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ClaimsError {
    /// The store does not answer, or refuses.
    #[error("claims: {what}: {source}")]
    Store {
        /// What was being done.
        what: String,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// This one cannot be written down, whoever tries and whenever.
    #[error("claim {name} is refused: {what}")]
    Refused {
        /// Its name.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// This one may not be written down where it belongs, for now; others may.
    #[error("claim {name} may not be created: {what}")]
    Forbidden {
        /// Its name.
        name: String,
        /// What stands in the way.
        what: String,
    },
    /// What was read is not a claim.
    #[error("claim {name} cannot be read: {what}")]
    Damaged {
        /// Namespace and name.
        name: String,
        /// What is wrong.
        what: String,
    },
}

/// Where claims are stored. Every change is a compare-and-swap on what was read.
#[async_trait]
pub trait Claims: Send + Sync {
    /// Creates a claim, its finalizer in the create body. Where one of that name exists already it is
    /// returned if it is the same owner's, for then it is the same intention; else `None`.
    async fn create(&self, spec: ClaimSpec) -> Result<Option<StoredClaim>, ClaimsError>;

    /// One claim, as the store itself has it now: never from a cache.
    async fn get(&self, namespace: &str, name: &str) -> Result<Option<StoredClaim>, ClaimsError>;

    /// All claims as the store itself has them now, by namespace and name.
    async fn list(&self) -> Result<Vec<StoredClaim>, ClaimsError>;

    /// Writes everything but the specification, if nobody else has since it was read. `None`: somebody has,
    /// or it is gone.
    async fn replace(
        &self,
        read: &StoredClaim,
        new: StoredClaim,
    ) -> Result<Option<StoredClaim>, ClaimsError>;

    /// Takes the finalizer off. One that is being removed is gone then. Repeating it succeeds.
    async fn release(&self, read: &StoredClaim) -> Result<(), ClaimsError>;
}
