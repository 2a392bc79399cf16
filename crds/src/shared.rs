//! What both kinds have: resources, placement, containers, references, and the
//! pieces of their status.
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

use crate::scalar::{Money, Quantity, Span};

// Patterns, each with its words in `manifest::check`. `[0-9]`, not `\d`: to Go that is ASCII, to
// Rust's regex any digit.
pub(crate) const ACCELERATOR_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9._-]*$";
pub(crate) const CAPABILITY_PATTERN: &str = "^[0-9]{1,2}[.][0-9]{1,2}$";
pub(crate) const ENV_PATTERN: &str = "^[A-Za-z_][A-Za-z0-9_]*$";
pub(crate) const ABSOLUTE_PATTERN: &str = "^/";
pub(crate) const URL_PATH_PATTERN: &str = "^/[!-~]*$";
pub(crate) const LABEL_PATTERN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
pub(crate) const HOST_PATTERN: &str =
    "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
pub(crate) const HASH_PATTERN: &str = "^[0-9a-f]{64}$";
pub(crate) const DIGEST_PATTERN: &str = "^blake3:[0-9a-f]{64}$";
pub(crate) const STORE_PATTERN: &str = "^(s3|file)://.+";
pub(crate) const INPUT_PATTERN: &str = "^(s3://.+|https://.+|file:///.+|configmap://[a-z0-9]([-.a-z0-9]*[a-z0-9])?|artifact:[0-9a-f]{64}|builtin:petaflop)$";

/// What one machine must have. Left out, it is computed from the recipe or the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.accelerator) && has(self.anyOf) && size(self.anyOf) > 0)")
        .message("accelerator and anyOf exclude each other: put the single choice in accelerator, or all alternatives in anyOf")
)]
pub struct Resources {
    /// Processors, as a Kubernetes quantity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Memory in bytes, as a Kubernetes quantity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Local disk in bytes, as a Kubernetes quantity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ephemeral_storage: Option<Quantity>,
    /// The accelerator it must have. Neither this nor `anyOf`: whatever the engine can use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
    /// Alternatives, any of which will do; the cheapest is taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub any_of: Vec<Accelerator>,
}

impl Resources {
    /// Whether a machine without an accelerator is not what is asked for, or not all of it.
    pub fn asks_for_accelerators(&self) -> bool {
        let mut wanted = self.accelerator.iter().chain(&self.any_of);
        wanted.any(|wanted| wanted.vendor != Some(Vendor::None))
    }
}

/// An accelerator that a machine must have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.vendor) && self.vendor == 'None') || (!has(self.models) && !has(self.minMemory) && !has(self.minComputeCapability) && (!has(self.count) || self.count == 1))")
        .message("vendor None means no accelerator at all: leave out models, count, minMemory and minComputeCapability"),
    validation = Rule::new("!has(self.minComputeCapability) || (has(self.vendor) && self.vendor == 'NVIDIA')")
        .message("minComputeCapability is NVIDIA's: set vendor: NVIDIA beside it")
)]
pub struct Accelerator {
    /// Who makes it; `None` asks for a machine without one. Left out: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<Vendor>,
    /// Models by catalogue name (`H100-SXM`) or family (`H100`); any of them will do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 63), regex(pattern = ACCELERATOR_PATTERN)))]
    pub models: Vec<String>,
    /// How many of them one machine has.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub count: u32,
    /// Memory that each must have, as a Kubernetes quantity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_memory: Option<Quantity>,
    /// NVIDIA compute capability that each must have, such as `"8.0"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 5), regex(pattern = CAPABILITY_PATTERN))]
    pub min_compute_capability: Option<String>,
}

/// Maker of an accelerator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Vendor {
    /// NVIDIA.
    NVIDIA,
    /// AMD.
    AMD,
    /// Apple.
    Apple,
    /// No accelerator.
    None,
}

/// Where a workload may run, and at what price.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Providers that may be used, by name. Empty: all that this namespace may use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub providers: Vec<String>,
    /// Regions that may be used. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub regions: Vec<String>,
    /// Zones that may be used. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub zones: Vec<String>,
    /// Regions that may not be used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub exclude_regions: Vec<String>,
    /// How the machine is had. `Auto` takes whatever is expected to cost least.
    #[serde(default)]
    pub capacity_type: CapacityType,
    /// Most that one machine may cost, dollars an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_hourly_price: Option<Money>,
    /// Whether storage and registry credentials may go to machines of unknown owners.
    #[serde(default)]
    pub allow_untrusted_hosts: bool,
    /// Whether our runtime may go to a backend that was only compiled, never run.
    #[serde(default)]
    pub allow_unverified: bool,
    /// What happens when the machine is taken away or a cheaper one appears.
    #[serde(default)]
    pub interruption: Interruption,
}

impl Default for Placement {
    fn default() -> Self {
        Placement {
            providers: Vec::new(),
            regions: Vec::new(),
            zones: Vec::new(),
            exclude_regions: Vec::new(),
            capacity_type: CapacityType::Auto,
            max_hourly_price: None,
            allow_untrusted_hosts: false,
            allow_unverified: false,
            interruption: Interruption::default(),
        }
    }
}

/// How a machine is had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CapacityType {
    /// May be taken away at any time; cheap.
    Spot,
    /// Rented at the list price until given back.
    OnDemand,
    /// One's own.
    Owned,
    /// Any of them.
    #[default]
    Auto,
}

impl From<petaflop_arbiter::offer::Capacity> for CapacityType {
    fn from(capacity: petaflop_arbiter::offer::Capacity) -> Self {
        match capacity {
            petaflop_arbiter::offer::Capacity::Spot => Self::Spot,
            petaflop_arbiter::offer::Capacity::OnDemand => Self::OnDemand,
            petaflop_arbiter::offer::Capacity::Owned => Self::Owned,
        }
    }
}

/// What happens when the machine is taken away or a cheaper one appears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Interruption {
    /// Go on elsewhere from the last checkpoint, or fail.
    #[serde(default)]
    pub policy: InterruptionPolicy,
    /// Interruptions after which the workload fails.
    #[serde(default = "ten")]
    #[schemars(range(max = 10000))]
    pub max_interruptions: u32,
    /// Move to a cheaper place when it saves at least this share of what is left to pay.
    #[serde(default = "twenty")]
    #[schemars(range(max = 100))]
    pub switch_if_savings_percent: u32,
    /// Seconds on one machine before a move is considered.
    #[serde(default = "nine_hundred")]
    #[schemars(range(max = 604_800))]
    pub min_hold_seconds: u32,
}

impl Default for Interruption {
    fn default() -> Self {
        Interruption {
            policy: InterruptionPolicy::Restart,
            max_interruptions: ten(),
            switch_if_savings_percent: twenty(),
            min_hold_seconds: nine_hundred(),
        }
    }
}

/// What an interruption leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum InterruptionPolicy {
    /// Go on elsewhere from the last checkpoint.
    #[default]
    Restart,
    /// Fail.
    Fail,
}

/// A promise the arbiter plans for. Missing it is a condition, not a kill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.finishBy) != has(self.within)")
        .message("exactly one of finishBy (a point in time) and within (a span from the start) must be given")
)]
pub struct Deadline {
    /// Point in time (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 20, max = 40), extend("format" = "date-time"))]
    pub finish_by: Option<String>,
    /// Span from admission, such as `52h`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<Span>,
}

/// Any image, supervised by the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// Image to run.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// Replaces the image's entry point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 4096)))]
    pub command: Vec<String>,
    /// Replaces the image's arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 4096)))]
    pub args: Vec<String>,
    /// Environment variables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub env: Vec<EnvVar>,
    /// All keys of a Secret or ConfigMap as environment variables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub env_from: Vec<EnvFrom>,
    /// Folder the command starts in.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub working_dir: Option<String>,
}

/// One environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.value) && has(self.valueFrom))")
        .message("value and valueFrom exclude each other")
)]
pub struct EnvVar {
    /// Its name.
    #[schemars(length(min = 1, max = 253), regex(pattern = ENV_PATTERN))]
    pub name: String,
    /// Its value.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32768))]
    pub value: Option<String>,
    /// Where its value is read from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_from: Option<EnvSource>,
}

/// Where an environment variable's value is read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.secretKeyRef) != has(self.configMapKeyRef)")
        .message("exactly one of secretKeyRef and configMapKeyRef must be given")
)]
pub struct EnvSource {
    /// A key of a Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<KeyRef>,
    /// A key of a ConfigMap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeyRef>,
}

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

/// All keys of a Secret or ConfigMap as environment variables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.secretRef) != has(self.configMapRef)")
        .message("exactly one of secretRef and configMapRef must be given")
)]
pub struct EnvFrom {
    /// Put before each key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub prefix: Option<String>,
    /// The Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<OptionalRef>,
    /// The ConfigMap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<OptionalRef>,
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

/// A volume of the cluster, for machines that are its nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.persistentVolumeClaim) ? 1 : 0) + (has(self.configMap) ? 1 : 0) + (has(self.emptyDir) ? 1 : 0) == 1")
        .message("exactly one of persistentVolumeClaim, configMap and emptyDir must be given"),
    validation = Rule::new("!self.mountPath.matches('/[.]{0,2}(/|$)|^/tmp$|^/(petaflop|work|inputs|proc|sys|dev)(/|$)')").field_path(".mountPath")
        .message("mountPath must be a folder of its own, without //, . or .. in its path or / at its end: not / or /tmp, and not in /petaflop, /work, /inputs, /proc, /sys or /dev"),
)]
pub struct Volume {
    /// Its name.
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL_PATTERN))]
    pub name: String,
    /// Folder at which it is mounted.
    #[schemars(length(min = 1, max = 1024), regex(pattern = ABSOLUTE_PATTERN))]
    pub mount_path: String,
    /// Whether it may not be written to.
    #[serde(default)]
    pub read_only: bool,
    /// A claim in the same namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<NameRef>,
    /// A ConfigMap in the same namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map: Option<NameRef>,
    /// An empty folder that lives as long as the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDir>,
}

/// An empty folder that lives as long as the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EmptyDir {
    /// Most it may hold, as a Kubernetes quantity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<Quantity>,
}

/// A port that the command listens on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Its name.
    #[schemars(length(min = 1, max = 15), regex(pattern = LABEL_PATTERN))]
    pub name: String,
    /// Its number.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
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
fn ten() -> u32 {
    10
}
fn twenty() -> u32 {
    20
}
fn nine_hundred() -> u32 {
    900
}
