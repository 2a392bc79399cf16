//! The ledger: what every claim cost, in rows that add up to the last micro-dollar.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::claim::ClaimSpec;
use crate::money::{Usd, UsdPerHour};

/// What a row records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RowKind {
    /// A span of running.
    Running,
    /// The last span: the machine is gone; the sum is an estimate until the provider's bill is read.
    Final,
    /// The provider's bill says otherwise.
    Correction,
}

/// One row. Rows are never changed; equal keys hold equal rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Row {
    /// `<claim uid>/<sequence in six digits>`: the same on every retry.
    pub key: String,
    /// What it records.
    pub kind: RowKind,
    /// Namespace of the owner.
    pub namespace: String,
    /// Name of the owner.
    pub job: String,
    /// Uid of the owner.
    pub job_uid: String,
    /// Name of the claim.
    pub claim: String,
    /// Uid of the claim.
    pub claim_uid: String,
    /// Name of the provider.
    pub provider: String,
    /// Region, or empty.
    pub region: String,
    /// Machine type.
    pub instance_type: String,
    /// Capacity type.
    pub capacity: crate::offer::Capacity,
    /// Begin of the span (inclusive).
    pub from: Timestamp,
    /// End of the span (exclusive).
    pub to: Timestamp,
    /// Rate of the span.
    pub rate: UsdPerHour,
    /// What the span cost; negative only in a correction.
    pub amount: Usd,
}

/// The ledger of one claim: what was written so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimLedger {
    /// What was bought.
    pub spec: ClaimSpec,
    /// Uid of the claim.
    pub claim_uid: String,
    /// When billing began.
    pub began: Timestamp,
    /// Rows written so far, in order.
    pub rows: Vec<Row>,
}
