//! Where a workload may run, at what price, what a loss means, and until when it should be done.

#![expect(
    unreachable_pub,
    reason = "KubeSchema copies each struct into a function, its `pub` with it"
)]

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scalar::{Money, Span};

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
    /// Seconds on one machine before a move is considered; for a move that only saves money, twice as many
    /// after each move.
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

fn ten() -> u32 {
    10
}
fn twenty() -> u32 {
    20
}
fn nine_hundred() -> u32 {
    900
}
