//! What became of a TrainingJob.

#![expect(
    unreachable_pub,
    reason = "KubeSchema copies each struct into a function, its `pub` with it"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::{CostStatus, PlacementStatus};

/// What became of a TrainingJob.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainingJobStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions; types and reasons are closed lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// A summary for printing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<TrainingJobPhase>,
    /// Where it runs now, or ran last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementStatus>,
    /// What it has cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<CostStatus>,
    /// How far it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<TrainingProgress>,
    /// When it was admitted: `deadline.within` counts from here, and again from a resumption.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admitted_time: Option<Time>,
    /// The recipe as it was resolved at admission, as JSON. Text, because its bits are part of the
    /// key and a server writes large numbers anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub resolved_recipe: Option<String>,
    /// Key of the result (hex).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Hash of the result (hex).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact: Option<String>,
    /// Whether the result was there before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached: Option<bool>,
    /// Times that it was started again, for whatever reason.
    #[serde(default)]
    pub restarts: u32,
    /// Failures of the application, and machines whose agent was never met, counted against
    /// `backoffLimit`.
    #[serde(default)]
    pub failures: u32,
    /// Machines lost, counted against `maxInterruptions`.
    #[serde(default)]
    pub interruptions: u32,
    /// Machines left for a better place.
    #[serde(default)]
    pub moves: u32,
    /// When it first ran, or ran again after a suspension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
}

/// A summary of the conditions, for printing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TrainingJobPhase {
    /// No place yet.
    Pending,
    /// A machine was asked for.
    Launching,
    /// The command runs.
    Running,
    /// Between two machines.
    Interrupted,
    /// Stopped on request.
    Suspended,
    /// Ended well.
    Complete,
    /// Ended badly.
    Failed,
}

/// How far a TrainingJob is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainingProgress {
    /// Optimiser steps done.
    pub step: u64,
    /// Optimiser steps in all.
    pub steps: u64,
    /// Step of the newest durable checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_step: Option<u64>,
    /// Seconds that it took to be durable. What a move costs, and a loss, is reckoned with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_seconds: Option<f64>,
    /// Mean training loss of the last step, nats a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Validation, bits for each byte of the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<f64>,
    /// Tokens a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
}
