//! The kind `ComputeClaim`: one machine, or slice of an owned one, that we intend to pay for.
//!
//! Written by the operator alone, **before** the purchase, with its finalizer in the create body.
//! It is the API form of [`petaflop_arbiter::claim::Claim`]: [`convert`] goes both ways without
//! loss. What must hold whoever writes is a rule of the CRD: the specification never changes, the
//! bytes of a request never change within an attempt, an id that was written stays.

#![expect(
    unreachable_pub,
    reason = "KubeSchema copies each struct into a function, its `pub` with it"
)]
#![allow(
    clippy::duplicated_attributes,
    reason = "printer columns are alike in all but their names"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scalar::{Decimal, Moment, Money};
use crate::shared::{ACCELERATOR_PATTERN, CostStatus, HASH_PATTERN, LABEL_PATTERN};

pub mod convert;

/// Keeps a claim until its machine is gone and its last ledger row is written.
pub const FINALIZER: &str = "petaflop.dev/compute";
/// Label: the owner's kind.
pub const OWNER_KIND_LABEL: &str = "petaflop.dev/owner-kind";
/// Label: the owner's name.
pub const OWNER_LABEL: &str = "petaflop.dev/owner";
/// Label: the provider's name.
pub const PROVIDER_LABEL: &str = "petaflop.dev/provider";

/// One machine that is paid for, from before it is asked for until its last second is in the ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "petaflop.dev",
    version = "v1alpha1",
    kind = "ComputeClaim",
    namespaced,
    status = "ComputeClaimStatus",
    shortname = "cc",
    category = "petaflop",
    derive = "PartialEq",
    cel,
    doc = "One machine that is paid for, from before it is asked for until its last second is in the ledger. Written by the operator.",
    selectable = ".spec.provider",
    selectable = ".spec.owner.name",
    selectable = ".status.phase",
    printcolumn(name = "Owner", type_ = "string", json_path = ".spec.owner.name"),
    printcolumn(name = "Provider", type_ = "string", json_path = ".spec.provider"),
    printcolumn(name = "Instance-ID", type_ = "string", json_path = ".status.providerID"),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.offer.instanceType"),
    printcolumn(name = "Zone", type_ = "string", json_path = ".spec.offer.zone"),
    printcolumn(name = "Capacity", type_ = "string", json_path = ".spec.offer.capacity"),
    printcolumn(name = "$/h", type_ = "string", json_path = ".spec.offer.price"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", priority = 1),
    printcolumn(name = "Cost", type_ = "string", json_path = ".status.cost.total", priority = 1),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self == oldSelf").reason(Reason::FieldValueForbidden)
        .message("a claim's spec is immutable: one claim is one intention to buy"),
    validation = Rule::new("self.device == 'Cpu' || has(self.offer.accelerators)").field_path(".device")
        .message("device Accelerators needs an offer that has accelerators"),
)]
pub struct ComputeClaimSpec {
    /// Who asked for it; lives in the same namespace.
    pub owner: ClaimOwner,
    /// Placement number of the owner, from 1.
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    pub placement: u32,
    /// Machine of that placement, from 0.
    #[schemars(range(max = 4_294_967_295_u32))]
    pub index: u32,
    /// Name of the ComputeProvider.
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL_PATTERN))]
    pub provider: String,
    /// What is bought, as it was quoted.
    pub offer: ClaimedOffer,
    /// Which part of it computes.
    pub device: Device,
    /// Most that it is expected to cost, dollars; counts against budgets until it ends.
    pub reserved: Money,
    /// When it was decided.
    pub decided_at: Moment,
    /// What its owner's spec asked for then, where the owner replaces machines of an earlier one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = HASH_PATTERN))]
    pub revision: Option<String>,
    /// Seconds between two checkpoints there, for a job whose work is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 4_294_967_295_u32))]
    pub checkpoint_interval_seconds: Option<u32>,
    /// The places that came next, cheapest first, for the record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    pub runners_up: Vec<RunnerUp>,
}

/// A place that lost against the one that was claimed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunnerUp {
    /// Its offer.
    #[schemars(length(min = 1, max = 512))]
    pub offer: String,
    /// Dollars that it was expected to cost to the end, beside `reserved`.
    pub total: Money,
}

/// Who asked for a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimOwner {
    /// Its kind.
    pub kind: OwnerKind,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its uid: a new object of the same name is another owner.
    #[schemars(length(min = 1, max = 128))]
    pub uid: String,
}

/// Kinds that claims are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OwnerKind {
    /// Runs to completion.
    TrainingJob,
    /// Keeps replicas running.
    InferenceService,
}

/// What is bought, as it was quoted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimedOffer {
    /// The same thing quoted again has the same id.
    #[schemars(length(min = 1, max = 512))]
    pub id: String,
    /// The provider's region.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub region: Option<String>,
    /// The provider's zone or data centre.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub zone: Option<String>,
    /// The provider's name of the machine type.
    #[schemars(length(min = 1, max = 253))]
    pub instance_type: String,
    /// Its accelerators, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accelerators: Option<ClaimedAccelerators>,
    /// Instruction set of its processor.
    pub arch: Arch,
    /// Processors in thousandths, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 4_294_967_295_u32))]
    pub vcpu_milli: Option<u32>,
    /// Host memory that a job may use, bytes, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 9_007_199_254_740_991_u64))]
    pub memory: Option<u64>,
    /// How it is held.
    pub capacity: Capacity,
    /// Price of the whole offer, dollars an hour.
    pub price: Money,
    /// When the provider said so.
    pub quoted_at: Moment,
    /// Seconds after which the quote was too old to buy from.
    #[schemars(range(max = 4_294_967_295_u32))]
    pub ttl_seconds: u32,
    /// Whether somebody we can name owns the machine.
    pub host_owner: HostOwner,
    /// Rates that were measured on this very machine, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<MeasuredRates>,
    /// How many of it can be held at once, where the provider says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 4_294_967_295_u32))]
    pub slots: Option<u32>,
    /// What it takes of things that other offers take of too: the processors of one node, say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub shares: Vec<ClaimedShare>,
    /// Expected losses an hour, where the provider says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interruptions_per_hour: Option<Decimal>,
}

/// A part of something that several offers of one provider are parts of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimedShare {
    /// Of what, by a name that the provider uses once.
    #[schemars(length(min = 1, max = 512))]
    pub of: String,
    /// How much, in whatever unit it has.
    #[schemars(range(max = 9_007_199_254_740_991_u64))]
    pub amount: u64,
    /// How much of it could be held at once, unfinished claims included.
    #[schemars(range(max = 9_007_199_254_740_991_u64))]
    pub all: u64,
}

/// The accelerators of an offer: always one model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimedAccelerators {
    /// Name in the accelerator catalogue.
    #[schemars(length(min = 1, max = 63), regex(pattern = ACCELERATOR_PATTERN))]
    pub model: String,
    /// Devices.
    #[schemars(range(min = 1, max = 1024))]
    pub count: u32,
    /// Memory of one device, bytes, where the provider reports it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 9_007_199_254_740_991_u64))]
    pub memory: Option<u64>,
}

/// Rates that were measured on a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeasuredRates {
    /// f32 matrix product on the processor, 10⁹ operations a second.
    pub gemm_gflops: Decimal,
    /// Reading memory, 10⁹ bytes a second.
    pub read_gb_s: Decimal,
}

/// Instruction set of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Arch {
    /// 64-bit x86.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    #[serde(rename = "aarch64")]
    Aarch64,
}

/// How a machine is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Capacity {
    /// May be taken away at short notice.
    Spot,
    /// Kept until we end it.
    OnDemand,
    /// Ours.
    Owned,
}

/// Whether somebody we can name owns a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HostOwner {
    /// The user, or a provider that owns its data centres.
    Known,
    /// Somebody who rents out a machine through a marketplace.
    Unknown,
}

/// Which part of a machine computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Device {
    /// Its processor.
    Cpu,
    /// Its accelerators.
    Accelerators,
}

/// How far a claim is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.phase) || !(self.phase in ['Attempted', 'Ambiguous']) || has(self.request)").field_path(".request").reason(Reason::FieldValueRequired)
        .message("a claim that was attempted holds its frozen request"),
    validation = Rule::new("!has(self.phase) || self.phase != 'Launched' || has(self.providerID)").field_path(".providerID").reason(Reason::FieldValueRequired)
        .message("a claim that was launched holds its machine's id"),
    validation = Rule::new("!has(self.phase) || !(self.phase in ['Ending', 'Ended']) || has(self.reason)").field_path(".reason").reason(Reason::FieldValueRequired)
        .message("a claim that ends says why"),
    validation = Rule::new("!has(oldSelf.providerID) || (has(self.providerID) && self.providerID == oldSelf.providerID)").field_path(".providerID").reason(Reason::FieldValueForbidden)
        .message("providerID is immutable once it is written"),
    validation = Rule::new("self.attempt >= oldSelf.attempt").field_path(".attempt").reason(Reason::FieldValueForbidden)
        .message("attempt never falls"),
    validation = Rule::new("self.attempt != oldSelf.attempt || !has(oldSelf.request) || !has(self.request) || self.request == oldSelf.request").field_path(".request").reason(Reason::FieldValueForbidden)
        .message("a request is frozen: within one attempt its bytes never change"),
    validation = Rule::new("!has(oldSelf.phase) || oldSelf.phase != 'Ended' || (has(self.phase) && self.phase == 'Ended')").field_path(".phase").reason(Reason::FieldValueForbidden)
        .message("a claim that has ended stays so"),
)]
pub struct ComputeClaimStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions; types and reasons are closed lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// How far it is. Left out: `Planned`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<ComputeClaimPhase>,
    /// Number of the launch attempt; rises only after a definite refusal of a kind worth repeating.
    #[serde(default = "crate::shared::one")]
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    pub attempt: u32,
    /// Every byte of the request of this attempt; holds no secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub request: Option<String>,
    /// When the request was frozen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempted_at: Option<Moment>,
    /// When the last call may have ended whose answer was lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ambiguous_since: Option<Moment>,
    /// The provider's id of the machine.
    #[serde(rename = "providerID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub provider_id: Option<String>,
    /// When the id was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub launched_at: Option<Moment>,
    /// When billing began, once that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub billed_from: Option<Moment>,
    /// Since when the machine runs, where its bill begins then, once that was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_from: Option<Moment>,
    /// When billing ended, once that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub billed_to: Option<Moment>,
    /// Why it ends, or has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub reason: Option<String>,
    /// What it has cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<CostStatus>,
    /// Where its agent is reached: `host:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub endpoint: Option<String>,
    /// The agent that enrolled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentStatus>,
}

/// How far a claim is: the arbiter's phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ComputeClaimPhase {
    /// Written; nothing was asked for.
    Planned,
    /// The request is frozen and may have been sent.
    Attempted,
    /// Sent without a clear answer.
    Ambiguous,
    /// The machine is there.
    Launched,
    /// The machine is being ended.
    Ending,
    /// Gone, and its last ledger row is written.
    Ended,
}

/// The agent that enrolled from a claim's machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// The key that it proved, base64.
    #[schemars(length(min = 1, max = 128))]
    pub public_key: String,
    /// When.
    pub enrolled_at: Time,
}
