//! The kind `ComputeProvider`: one account, or one pool of owned machines.
//!
//! Cluster-scoped, and so are its credentials: a Secret in the operator's own namespace. No
//! namespace may use it until it is named in `allowedNamespaces`.
//!
//! | module | holds |
//! |---|---|
//! | `owned` | this cluster's nodes, this host, and what their hour costs |
//! | `runpod`, `aws` | an account there |
//! | `status` | what is known of it |
//! | `state` | what decisions need of it |

#![expect(
    unreachable_pub,
    reason = "KubeSchema copies each struct into a function, its `pub` with it"
)]

use kube::{CustomResource, KubeSchema};
use petaflop_arbiter::world::ModelRule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scalar::Money;
use crate::shared::{ACCELERATOR_PATTERN, NameRef};

pub(crate) mod aws;
mod owned;
mod runpod;
mod state;
mod status;

pub use aws::{AwsAddress, AwsImages, AwsProvider, AwsRegion};
pub use owned::{HostProvider, NodesProvider, Power, TaintEffect, Toleration, TolerationOperator};
pub use runpod::RunPodProvider;
pub use state::ProviderFacts;
pub use status::{
    BrokenOffers, ComputeProviderStatus, LearnedRate, OfferSummary, OffersStatus, ProviderType,
};

/// A data centre of RunPod's.
pub(crate) const DATA_CENTER_PATTERN: &str = "^[A-Z0-9]+(-[A-Z0-9]+)*$";
/// A version of CUDA.
pub(crate) const CUDA_PATTERN: &str = "^[0-9]+[.][0-9]+$";
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
    /// Which accelerators may be had of it. Left out: all.
    #[serde(default, skip_serializing_if = "AcceleratorRule::is_empty")]
    pub accelerators: AcceleratorRule,
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

/// Which models of accelerators may be had of a provider, by catalogue name (`H100-SXM`) or family (`H100`). It
/// says nothing of machines without accelerators; what runs goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!has(self.allow) || !has(self.deny) || self.allow.all(model, !(model in self.deny))").field_path(".deny")
        .message("a model cannot be in allow and in deny"),
)]
pub struct AcceleratorRule {
    /// Only these. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 63), regex(pattern = ACCELERATOR_PATTERN)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub allow: Vec<String>,
    /// None of these, `allow` or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 63), regex(pattern = ACCELERATOR_PATTERN)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub deny: Vec<String>,
}

impl AcceleratorRule {
    /// Whether it says nothing.
    fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// As decisions see it.
    pub fn rule(&self) -> ModelRule {
        ModelRule { allow: self.allow.clone(), deny: self.deny.clone() }
    }
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

fn yes() -> bool {
    true
}
