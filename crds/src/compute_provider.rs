//! The kind `ComputeProvider`: one account, or one pool of owned machines.
//!
//! Cluster-scoped, and so are its credentials: a Secret in the operator's own namespace. No
//! namespace may use it until it is named in `allowedNamespaces`.

#![expect(
    unreachable_pub,
    reason = "KubeSchema copies each struct into a function, its `pub` with it"
)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use petaflop_arbiter::estimate::Correction;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scalar::{Moment, Money};
use crate::shared::NameRef;

pub(crate) mod aws;
mod state;

pub use aws::{AwsAddress, AwsImages, AwsProvider, AwsRegion};
pub use state::ProviderFacts;

/// A data centre of RunPod's.
pub(crate) const DATA_CENTER_PATTERN: &str = "^[A-Z0-9]+(-[A-Z0-9]+)*$";
/// An address of an API.
pub(crate) const ADDRESS_PATTERN: &str = "^https?://[^/?#@]+(/[^?#]*)?$";

/// A namespace's name, or all of them.
pub(crate) const NAMESPACE_PATTERN: &str = "^([*]|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$";

/// One account or pool from which machines are had.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "petaflop.dev",
    version = "v1alpha1",
    kind = "ComputeProvider",
    status = "ComputeProviderStatus",
    shortname = "cprov",
    category = "petaflop",
    derive = "PartialEq",
    cel,
    doc = "One account, or one pool of owned machines, from which machines are had.",
    selectable = ".spec.state",
    printcolumn(name = "Type", type_ = "string", json_path = ".status.type"),
    printcolumn(name = "State", type_ = "string", json_path = ".spec.state"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Offers", type_ = "integer", json_path = ".status.offers.count"),
    printcolumn(name = "Machines", type_ = "integer", json_path = ".status.machines"),
    printcolumn(name = "$/h", type_ = "string", json_path = ".status.hourlyPrice"),
    printcolumn(name = "Month", type_ = "string", json_path = ".status.spentThisMonth"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = 1),
    validation = Rule::new("size(self.metadata.name) <= 40")
        .message("metadata.name must be at most 40 characters: claims carry it as a label"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must start with a lower-case letter, end with a letter or digit, and have only lower-case letters, digits and '-'"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.nodes) ? 1 : 0) + (has(self.host) ? 1 : 0) + (has(self.runpod) ? 1 : 0) + (has(self.aws) ? 1 : 0) == 1").reason(Reason::FieldValueRequired)
        .message("exactly one of nodes, host, runpod and aws must be given"),
    validation = Rule::new("has(self.nodes) == has(oldSelf.nodes) && has(self.host) == has(oldSelf.host) && has(self.runpod) == has(oldSelf.runpod) && has(self.aws) == has(oldSelf.aws)").reason(Reason::FieldValueForbidden)
        .message("a provider's type is immutable: create another ComputeProvider"),
    validation = Rule::new("!has(self.credentialsSecretRef) || has(self.runpod) || has(self.aws)").field_path(".credentialsSecretRef")
        .message("credentialsSecretRef belongs to runpod and aws: machines of one's own need none"),
    validation = Rule::new("!has(self.runpod) || has(self.credentialsSecretRef)").field_path(".credentialsSecretRef").reason(Reason::FieldValueRequired)
        .message("runpod needs credentialsSecretRef: a Secret in the operator's namespace that holds the key RUNPOD_API_KEY"),
    validation = Rule::new("!has(self.power) || has(self.nodes) || has(self.host)").field_path(".power")
        .message("power belongs to nodes and host: others state their own prices"),
)]
pub struct ComputeProviderSpec {
    /// The nodes of this cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodesProvider>,
    /// The machine that the operator runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<HostProvider>,
    /// A RunPod account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runpod: Option<RunPodProvider>,
    /// An AWS account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aws: Option<AwsProvider>,
    /// Namespaces whose workloads may use it; `"*"` stands for all. Empty: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 63), regex(pattern = NAMESPACE_PATTERN)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub allowed_namespaces: Vec<String>,
    /// Whether new machines are had from it.
    #[serde(default)]
    pub state: ProviderSwitch,
    /// Secret with its credentials, in the operator's namespace; for RunPod its key is
    /// `RUNPOD_API_KEY`; for AWS `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, where there is one,
    /// `AWS_SESSION_TOKEN`; without it AWS is asked as the operator's own role (a role of its
    /// ServiceAccount, or an instance profile). It is read again when it changes. The operator must be
    /// allowed to read it: `providerSecrets` in the chart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<NameRef>,
    /// Hard limits, whoever asks.
    #[serde(default)]
    pub limits: Limits,
    /// Added to every price it quotes, in per cent: a discount that it does not show (negative), or
    /// a cost that it does not bill.
    #[serde(default)]
    #[schemars(range(min = -99, max = 1000))]
    pub price_adjustment_percent: i32,
    /// What an hour of an owned machine costs. Left out: the defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power: Option<Power>,
}

/// The nodes of this cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodesProvider {
    /// Labels that a node must have. Empty: every node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32), inner(length(max = 63)))]
    pub selector: BTreeMap<String, String>,
    /// Taints that its Pods tolerate; nodes with others are left alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
}

/// A taint that is tolerated, as Pods write it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.operator != 'Exists' || !has(self.value)").field_path(".value")
        .message("value belongs to operator Equal"),
    validation = Rule::new("has(self.key) || self.operator == 'Exists'").field_path(".key")
        .message("a toleration without key tolerates everything: say operator: Exists"),
)]
pub struct Toleration {
    /// The taint's key. Left out: every taint.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 317))]
    pub key: Option<String>,
    /// Whether the value matters.
    #[serde(default)]
    pub operator: TolerationOperator,
    /// The taint's value.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,
    /// The taint's effect. Left out: every effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
}

/// Whether a taint's value matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TolerationOperator {
    /// The taint has this value.
    #[default]
    Equal,
    /// The taint has any value.
    Exists,
}

/// What a taint does to Pods that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TaintEffect {
    /// They are not placed there.
    NoSchedule,
    /// They are placed there only if nothing else will do.
    PreferNoSchedule,
    /// They are ended.
    NoExecute,
}

/// The machine that the operator runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostProvider {}

/// A RunPod account. Its machines fetch the agent themselves: the operator must be told where it
/// lies (`agentDownload` in the chart), and keep its store where they reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.vcpuCounts.all(n, n in [2, 4, 8, 16, 32, 64, 128])").field_path(".vcpuCounts")
        .message("vcpuCounts are powers of two, from 2 to 128"),
    validation = Rule::new("size(self.acceleratorCounts) + size(self.vcpuCounts) > 0").field_path(".acceleratorCounts")
        .message("acceleratorCounts and vcpuCounts are both empty: nothing could be had"),
)]
pub struct RunPodProvider {
    /// Data centres in which machines may be, by RunPod's names (`EU-RO-1`). Empty: any, and the
    /// Community cloud, whose machines are in none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63), regex(pattern = DATA_CENTER_PATTERN)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub data_centers: Vec<String>,
    /// How many accelerators a machine may have. Prices of each size are asked for by themselves,
    /// once a minute and cloud. Empty: no machines with accelerators.
    #[serde(default = "accelerator_counts")]
    #[schemars(length(max = 8), inner(range(min = 1, max = 64)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub accelerator_counts: Vec<u32>,
    /// How many processors a machine without accelerators may have. Empty: no such machines.
    #[serde(default = "vcpu_counts")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub vcpu_counts: Vec<u32>,
    /// Disk of each machine, GB: gone with it, and a part of its price.
    #[serde(default = "disk_gb")]
    #[schemars(range(min = 10, max = 20_000))]
    pub disk_gb: u32,
    /// Whether machines are had that may be taken away, where they are cheaper.
    #[serde(default = "yes")]
    pub spot: bool,
    /// Id of a registry credential in the account, where images are not public.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub registry_credential_id: Option<String>,
    /// Where the API is, if not at `https://api.runpod.io`: a proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), regex(pattern = ADDRESS_PATTERN))]
    pub api_base_url: Option<String>,
}

fn accelerator_counts() -> Vec<u32> {
    vec![1, 2, 4, 8]
}
fn vcpu_counts() -> Vec<u32> {
    vec![2, 4, 8, 16, 32]
}
// A cent an hour, with nothing to round.
fn disk_gb() -> u32 {
    73
}
fn yes() -> bool {
    true
}

impl Default for RunPodProvider {
    fn default() -> Self {
        Self {
            data_centers: Vec::new(),
            accelerator_counts: accelerator_counts(),
            vcpu_counts: vcpu_counts(),
            disk_gb: disk_gb(),
            spot: yes(),
            registry_credential_id: None,
            api_base_url: None,
        }
    }
}

/// Whether new machines are had from a provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProviderSwitch {
    /// Yes.
    #[default]
    Enabled,
    /// No; what runs goes on.
    Cordoned,
    /// No; nothing is asked of it but to end what there is.
    Disabled,
}

/// Hard limits of a provider, whoever asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Dollars an hour, all its machines together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hourly: Option<Money>,
    /// Dollars in a calendar month (UTC).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly: Option<Money>,
    /// Machines at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100_000))]
    pub machines: Option<u32>,
}

/// What an hour of an owned machine costs: electricity beyond idling, and a margin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.loadWatts >= self.idleWatts").field_path(".loadWatts")
        .message("loadWatts must not be below idleWatts")
)]
pub struct Power {
    /// Dollars for one kilowatt-hour.
    #[serde(default = "usd_per_kwh")]
    pub usd_per_kwh: Money,
    /// Power of one machine at rest, watts.
    #[serde(default = "idle_watts")]
    #[schemars(range(max = 1_000_000))]
    pub idle_watts: u32,
    /// Power of one machine at full load, watts, without accelerators.
    #[serde(default = "load_watts")]
    #[schemars(range(max = 1_000_000))]
    pub load_watts: u32,
    /// Power usage effectiveness in thousandths: cooling and losses.
    #[serde(default = "pue_milli")]
    #[schemars(range(min = 1000, max = 10_000))]
    pub pue_milli: u32,
    /// Opportunity margin on top, per cent.
    #[serde(default = "margin_percent")]
    #[schemars(range(max = 10_000))]
    pub margin_percent: u32,
}

fn usd_per_kwh() -> Money {
    Money("0.25".to_owned())
}
fn idle_watts() -> u32 {
    30
}
fn load_watts() -> u32 {
    120
}
fn pue_milli() -> u32 {
    1100
}
fn margin_percent() -> u32 {
    10
}

impl Default for Power {
    fn default() -> Self {
        Power {
            usd_per_kwh: usd_per_kwh(),
            idle_watts: idle_watts(),
            load_watts: load_watts(),
            pue_milli: pue_milli(),
            margin_percent: margin_percent(),
        }
    }
}

/// What is known of a ComputeProvider.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComputeProviderStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions; types and reasons are closed lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Which of the types it is, for printing.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<ProviderType>,
    /// Machines that are paid for, or are about to be.
    #[serde(default)]
    pub machines: u32,
    /// Regions in which machines were ever claimed. Those that the spec does not name any more are
    /// looked through for what is left there. Nothing takes one out but a person who made sure of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub regions: Vec<String>,
    /// What is left alone because one of its machines lacked the accelerators that it was bought for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["claimUid".into()]))]
    pub broken: Vec<BrokenOffers>,
    /// How fast runs on its machines were, beside what was estimated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["device".into()]))]
    pub rates: Vec<LearnedRate>,
    /// Sum of their prices, dollars an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hourly_price: Option<Money>,
    /// Dollars in this calendar month, by the ledger.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spent_this_month: Option<Money>,
    /// What it offers; all of it is at `/api/v1/offers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offers: Option<OffersStatus>,
}

/// Offers of one class, one of whose machines lacked its accelerators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BrokenOffers {
    /// The claim whose machine it was.
    #[schemars(length(min = 1, max = 128))]
    pub claim_uid: String,
    /// The region.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 128))]
    pub region: String,
    /// The machine type.
    #[schemars(length(min = 1, max = 253))]
    pub instance_type: String,
    /// Of an owned machine: what it shares with others that are left alone too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 512)))]
    pub shares: Vec<String>,
    /// Until when.
    pub until: Moment,
}

/// What runs on a device taught: rates that are estimated from now on are corrected by it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LearnedRate {
    /// The device and what it did: `H100-SXM/train`.
    #[schemars(length(min = 1, max = 128))]
    pub device: String,
    /// Runs that were measured.
    pub runs: u32,
    /// Sum of ln(measured rate ÷ estimated rate).
    pub sum_ln_ratio: f64,
}

impl From<Correction> for LearnedRate {
    fn from(Correction { key, sum_ln_ratio, runs }: Correction) -> Self {
        Self { device: key, runs, sum_ln_ratio }
    }
}

impl From<LearnedRate> for Correction {
    fn from(LearnedRate { device, runs, sum_ln_ratio }: LearnedRate) -> Self {
        Self { key: device, sum_ln_ratio, runs }
    }
}

/// The types of providers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProviderType {
    /// This cluster's nodes.
    Nodes,
    /// The operator's machine.
    Host,
    /// RunPod.
    RunPod,
    /// AWS.
    AWS,
}

/// What a provider offers, in short.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OffersStatus {
    /// Offers there are.
    pub count: u32,
    /// The cheapest of them, the cheapest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub cheapest: Vec<OfferSummary>,
    /// When they were last quoted differently than before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<Time>,
}

/// One offer, for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OfferSummary {
    /// The provider's name of the machine type.
    pub instance_type: String,
    /// Region or zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Accelerators, such as `2x H100-SXM`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<String>,
    /// Dollars an hour.
    pub hourly_price: Money,
}
