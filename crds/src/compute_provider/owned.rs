//! Machines that are one's own: this cluster's nodes, the operator's host, and what their hour costs.

#![expect(
    unreachable_pub,
    reason = "KubeSchema copies each struct into a function, its `pub` with it"
)]

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scalar::Money;

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
