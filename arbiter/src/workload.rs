//! What is asked for, in the arbiter's own words: a TrainingJob or an InferenceService after
//! everything that only Kubernetes or a file knows has been resolved.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::catalogue::Vendor;
use crate::estimate::Correction;
use crate::money::{Usd, UsdPerHour};
use crate::offer::{Capacity, HostOwner, Offer};

/// Which kind of object asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum OwnerKind {
    /// Runs to completion.
    TrainingJob,
    /// Keeps replicas running.
    InferenceService,
}

impl OwnerKind {
    /// The short name that begins a claim's name.
    pub const fn short(self) -> &'static str {
        match self {
            OwnerKind::TrainingJob => "trj",
            OwnerKind::InferenceService => "infs",
        }
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadId {
    /// Kind of the object.
    pub kind: OwnerKind,
    /// Its namespace; outside a cluster `default`.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid: a new object of the same name is another workload.
    pub uid: String,
}

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A workload that wants machines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Who asks.
    pub id: WorkloadId,
    /// When it was created: earlier ones are placed first.
    pub created_at: Timestamp,
    /// What runs it.
    pub engine: Engine,
    /// What there is to do.
    pub work: Work,
    /// Least host resources of one machine.
    pub resources: Resources,
    /// Alternatives, any of which will do. Empty: no device requirement, so every offer counts, if
    /// need be as its processor alone.
    pub accelerators: Vec<Alternative>,
    /// Where it may go.
    pub placement: Placement,
    /// The promise that is planned for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_by: Option<Timestamp>,
    /// Hard limit of everything this workload may ever cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_total_cost: Option<Usd>,
    /// What happens when a machine is taken away.
    pub interruption: Interruption,
    /// What was done and spent before.
    pub progress: Progress,
    /// Wants no machine now.
    pub suspended: bool,
    /// What it needs that only the cluster, or this host, has, in words. With any of it, remote
    /// machines are not for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tied: Vec<String>,
    /// How fast it was itself where it ran last, beside what was estimated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Correction>,
}

/// What runs the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Engine {
    /// Our own runtime: goes only where the support table allows.
    Runtime,
    /// An image of the user's: it is taken at its word.
    Container,
}

/// What there is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Work {
    /// Train to completion.
    Training(TrainingWork),
    /// Keep replicas.
    Serving(ServingWork),
    /// A container of which only its declared needs are known; priced by the hour.
    Opaque(OpaqueWork),
}

/// Number format of the arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats throughout.
    F32,
    /// bfloat16 weights and activations, f32 accumulation.
    Bf16,
}

/// A training run, as the memory plan describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrainingWork {
    /// Optimiser steps in all.
    pub steps: u64,
    /// Tokens trained on in one step.
    pub tokens_per_step: u64,
    /// Operations of one step, forward, backward and optimiser (a fused multiply-add counts two).
    pub flops_per_step: u64,
    /// Bytes that one step must move through device memory at least.
    pub traffic_bytes_per_step: u64,
    /// Bytes of the training arena: on the device that computes.
    pub arena_bytes: u64,
    /// Bytes of host memory beside the arena (process, tokenizer, data, a checkpoint in flight).
    pub host_bytes: u64,
    /// Bytes of one checkpoint.
    pub checkpoint_bytes: u64,
    /// Bytes of the finished artifact.
    pub artifact_bytes: u64,
    /// Bytes of data and base model that a fresh machine must fetch.
    pub input_bytes: u64,
    /// Seconds between two checkpoints, where its owner says; else each place has its own: [`crate::checkpoint`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_interval_seconds: Option<u32>,
    /// Number format.
    pub precision: Precision,
}

/// Replicas of a model, as the memory plan describes one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServingWork {
    /// Replicas wanted now.
    pub replicas: u32,
    /// Bytes on the computing device: weights, cache and activations at the planned concurrency.
    pub arena_bytes: u64,
    /// Bytes of host memory beside the arena.
    pub host_bytes: u64,
    /// Operations to decode one token of one sequence.
    pub flops_per_token: u64,
    /// Bytes that one decoding step must read, whatever the batch (the weights).
    pub weight_bytes_per_step: u64,
    /// Bytes that each sequence adds to a decoding step (its cache, half full).
    pub cache_bytes_per_sequence: u64,
    /// Sequences decoded at once.
    pub max_sequences: u32,
    /// Longest time to one token that is still good enough, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_millis_per_token: Option<u32>,
    /// Number format.
    pub precision: Precision,
}

/// A container of which only its declared needs are known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpaqueWork {
    /// Machines wanted now.
    pub replicas: u32,
    /// Bytes of image and inputs that a fresh machine must fetch.
    pub fetch_bytes: u64,
}

/// Least host resources of one machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Processors in thousandths.
    pub vcpu_milli: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Disk in bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub disk: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde asks for")]
const fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde asks for")]
const fn is_none_yet(moves: &u32) -> bool {
    *moves == 0
}

/// One acceptable kind of device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Alternative {
    /// The processor (the API's `vendor: None`).
    Cpu,
    /// Accelerators.
    Devices(DeviceRequest),
}

/// Accelerators that will do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceRequest {
    /// Vendor, if it matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<Vendor>,
    /// Acceptable models: catalogue keys (`H100-SXM`) or their family (`H100`). Empty: any.
    pub models: Vec<String>,
    /// Devices; an offer with more will do.
    pub count: u32,
    /// Most devices, where more will not do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_count: Option<u32>,
    /// Least memory of one device, in bytes (nominal: "40Gi" takes a 40 GB card).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_memory: Option<u64>,
    /// Least CUDA compute capability, as (major, minor); other vendors never meet it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_compute_capability: Option<(u32, u32)>,
    /// A software stack of the catalogue that must drive them (`cuda`, `rocm`, `vulkan`, `metal`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<String>,
    /// They must be linked with one another by more than PCIe.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub linked: bool,
}

/// Where a workload may go. Empty lists allow everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Provider names.
    pub providers: Vec<String>,
    /// Regions.
    pub regions: Vec<String>,
    /// Zones.
    pub zones: Vec<String>,
    /// Regions that are never used.
    pub exclude_regions: Vec<String>,
    /// The only capacity type, where one is asked for (`None` is the API's `Auto`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// Highest price of one machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_hourly_price: Option<UsdPerHour>,
    /// Machines of unknown owners will do.
    pub allow_untrusted_hosts: bool,
    /// Our runtime may go where it was compiled and never run.
    pub allow_unverified: bool,
}

/// What happens when a machine is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interruption {
    /// Start again elsewhere, or give up.
    pub policy: InterruptionPolicy,
    /// Interruptions after which it gives up all the same.
    pub max_interruptions: u32,
    /// Least saving, in percent of what is left to pay, that is worth a move.
    pub switch_if_savings_percent: u32,
    /// Seconds a place is kept before a move is thought of; for a move that only saves dollars, twice as long after each move.
    pub min_hold_seconds: u32,
}

impl Default for Interruption {
    /// The API's defaults.
    fn default() -> Interruption {
        Interruption {
            policy: InterruptionPolicy::Restart,
            max_interruptions: 10,
            switch_if_savings_percent: 20,
            min_hold_seconds: 900,
        }
    }
}

/// Start again elsewhere, or give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InterruptionPolicy {
    /// Go on from the last checkpoint on another machine.
    Restart,
    /// The workload fails.
    Fail,
}

/// What was done and spent before now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Optimiser steps that are durable.
    pub steps_done: u64,
    /// Milliseconds that its newest checkpoint took to be durable, as its runtime measured them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_millis: Option<i64>,
    /// Everything its claims have cost, by the ledger.
    pub spent: Usd,
    /// Interruptions so far.
    pub interruptions: u32,
    /// Machines that it left for a better place so far; those that it lost are no moves.
    #[serde(default, skip_serializing_if = "is_none_yet")]
    pub moves: u32,
    /// Highest placement number used so far, by its status and its claims; 0 before the first.
    pub placements: u32,
}

impl Progress {
    /// [`Progress::checkpoint_millis`] of the seconds that a runtime says: what no clock measures
    /// (below 0, beyond a week, no number) says nothing.
    pub fn measured(checkpoint_seconds: f64) -> Option<i64> {
        (0.0..=604_800.0)
            .contains(&checkpoint_seconds)
            .then(|| (checkpoint_seconds * 1000.0).ceil() as i64)
    }
}

impl Placement {
    /// Whether an offer is at a place that will do, at the price that it was quoted at.
    pub fn admits(&self, offer: &Offer) -> bool {
        let one_of = |list: &[String], name: &String| list.is_empty() || list.contains(name);
        one_of(&self.providers, &offer.provider)
            && one_of(&self.regions, &offer.region)
            && one_of(&self.zones, &offer.zone)
            && !self.exclude_regions.contains(&offer.region)
            && self.capacity.is_none_or(|capacity| capacity == offer.capacity)
            && self.max_hourly_price.is_none_or(|limit| offer.price <= limit)
            && (self.allow_untrusted_hosts || offer.owner == HostOwner::Known)
    }
}

impl Workload {
    /// Machines it wants now.
    pub fn machines_wanted(&self) -> u32 {
        if self.suspended {
            return 0;
        }
        match &self.work {
            Work::Training(_) => 1,
            Work::Serving(work) => work.replicas,
            Work::Opaque(work) => work.replicas,
        }
    }
}
