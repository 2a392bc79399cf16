//! What both kinds have: resources, placement, containers, references, and the
//! pieces of their status.
//!
//! | module | holds |
//! |---|---|
//! | `resources` | what a machine must have |
//! | `placement` | where a workload may run, and what a loss means |
//! | `container` | any image, its environment, volumes and ports |
//!
//! Every list, map and string is bounded: the API server estimates the cost of
//! each rule from these bounds and refuses a CRD whose rules could be dear.

#![expect(
    unreachable_pub,
    reason = "KubeSchema copies each struct into a function, its `pub` with it"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scalar::Money;

mod container;
mod placement;
mod resources;
pub use container::{Container, EmptyDir, EnvFrom, EnvSource, EnvVar, Port, Volume};
pub use placement::{CapacityType, Deadline, Interruption, InterruptionPolicy, Placement};
pub(crate) use resources::known_models;
pub use resources::{Accelerator, Resources, Vendor};

// Patterns, each with its words in `manifest::check`. `[0-9]`, not `\d`: to Go that is ASCII, to
// Rust's regex any digit.
pub(crate) const ACCELERATOR_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9._-]*$";
pub(crate) const CAPABILITY_PATTERN: &str = "^[0-9]{1,2}[.][0-9]{1,2}$";
pub(crate) const ENV_PATTERN: &str = "^[A-Za-z_][A-Za-z0-9_]*$";
pub(crate) const ABSOLUTE_PATTERN: &str = "^/";
pub(crate) const URL_PATH_PATTERN: &str = "^/[!-~]*$";
pub(crate) const LABEL_PATTERN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
pub(crate) const DNS_NAME_PATTERN: &str =
    "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
pub(crate) const HASH_PATTERN: &str = "^[0-9a-f]{64}$";
pub(crate) const DIGEST_PATTERN: &str = "^blake3:[0-9a-f]{64}$";
pub(crate) const STORE_PATTERN: &str = "^(s3|file)://.+";
pub(crate) const INPUT_PATTERN: &str = "^(s3://.+|https://.+|file:///.+|configmap://[a-z0-9]([-.a-z0-9]*[a-z0-9])?|artifact:[0-9a-f]{64}|builtin:petaflop)$";

/// A key of an object in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyRef {
    /// The object's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
    /// Whether the variable is left out where object or key is not there.
    #[serde(default)]
    pub optional: bool,
}

/// An object in the same namespace that need not be there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OptionalRef {
    /// The object's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Whether it is left out where it is not there.
    #[serde(default)]
    pub optional: bool,
}

/// An object in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NameRef {
    /// The object's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A Secret that the workload needs, by reference only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.mountPath) != (has(self.env) && self.env)")
        .message("a Secret becomes either files under mountPath or environment variables (env: true): give one of them"),
    validation = Rule::new("!has(self.mountPath) || !self.mountPath.matches('/[.]{0,2}(/|$)|^/tmp$|^/(petaflop|work|inputs|proc|sys|dev)(/|$)')").field_path(".mountPath")
        .message("mountPath must be a folder of its own, without //, . or .. in its path or / at its end: not / or /tmp, and not in /petaflop, /work, /inputs, /proc, /sys or /dev")
)]
pub struct SecretRef {
    /// The Secret's name, in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Folder in which each key becomes a file, in memory and for its owner alone to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = ABSOLUTE_PATTERN))]
    pub mount_path: Option<String>,
    /// Each key becomes an environment variable.
    #[serde(default)]
    pub env: bool,
}

/// Where a workload runs now, for people and printer columns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlacementStatus {
    /// Name of the ComputeClaim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// How often the workload was placed, this placement included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    /// Number of the last placement whose end was counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settled: Option<u32>,
    /// The provider's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The provider's name for the kind of machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
    /// Accelerators, such as `2x H100-SXM`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<String>,
    /// How the machine is had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_type: Option<CapacityType>,
    /// Price, dollars an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hourly_price: Option<Money>,
}

/// What a workload has cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CostStatus {
    /// Dollars so far, all machines together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<Money>,
    /// When that was summed up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_of: Option<Time>,
}

pub(crate) fn one() -> u32 {
    1
}
