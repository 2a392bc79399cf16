//! What is known of a ComputeProvider.

#![expect(
    unreachable_pub,
    reason = "KubeSchema copies each struct into a function, its `pub` with it"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use petaflop_arbiter::estimate::Correction;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scalar::{Moment, Money};

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
    /// How fast runs on its machines were, and how long its launches took, beside what was estimated.
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

/// What runs on a device, or launches, taught: what is estimated from now on is corrected by it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LearnedRate {
    /// The device and what it did: `H100-SXM/train`; or the provider, of launches: `runpod/launch`.
    #[schemars(length(min = 1, max = 128))]
    pub device: String,
    /// Runs that were measured.
    pub runs: u32,
    /// Sum of ln(measured ÷ estimated), of rates, or of the time until a job worked.
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
