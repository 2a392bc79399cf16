//! How fast work goes on a device, how sure that is, and what past runs taught.

use serde::{Deserialize, Serialize};

/// What past runs taught about rates: for a device and an operation, how measured rates compare
/// with estimated ones.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Corrections {
    /// One for each device and operation that was ever measured, sorted by key.
    pub entries: Vec<Correction>,
}

/// What was learned of one device and operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Correction {
    /// `<device>/<operation>`: `H100-SXM/train`, `cpu-x86_64/serve`.
    pub key: String,
    /// Sum of ln(measured rate ÷ estimated rate).
    pub sum_ln_ratio: f64,
    /// Runs that were measured.
    pub runs: u32,
}
