//! The kind `InferenceService`: keep replicas of a model answering.

#![expect(
    unreachable_pub,
    reason = "KubeSchema copies each struct into a function, its `pub` with it"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shared::{
    Container, CostStatus, DNS_NAME_PATTERN, HASH_PATTERN, NameRef, Placement, PlacementStatus,
    Resources, SecretRef, URL_PATH_PATTERN, Volume, one,
};
use crate::training_job::WeightFormat;

/// Keep replicas of a model answering, at the cheapest places that meet the constraints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "petaflop.dev",
    version = "v1alpha1",
    kind = "InferenceService",
    namespaced,
    status = "InferenceServiceStatus",
    shortname = "infs",
    category = "petaflop",
    derive = "PartialEq",
    cel,
    doc = "Keep replicas of a model answering, at the cheapest places that meet the constraints.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    selectable = ".spec.placement.capacityType",
    selectable = ".status.phase",
    selectable = ".status.placement.provider",
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".spec.replicas"),
    printcolumn(name = "Available", type_ = "integer", json_path = ".status.availableReplicas"),
    printcolumn(name = "Provider", type_ = "string", json_path = ".status.placement.provider"),
    printcolumn(name = "$/h", type_ = "string", json_path = ".status.placement.hourlyPrice"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 40")
        .message("metadata.name must be at most 40 characters: the names of its machines are made from it"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must start with a lower-case letter, end with a letter or digit, and have only lower-case letters, digits and '-'"),
)]
#[serde(rename_all = "camelCase")]
// Not built yet. Whoever builds one of these removes its line.
#[x_kube(
    validation = Rule::new("!has(self.latencyTarget) || !has(self.latencyTarget.ttftMs)").field_path(".latencyTarget.ttftMs").reason(Reason::FieldValueForbidden)
        .message("latencyTarget.ttftMs is not built yet: leave it out; how long prompts are is not known beforehand, and tpotMs is planned for"),
    validation = Rule::new("!has(self.placement) || !has(self.placement.interruption) || ((!has(self.placement.interruption.policy) || self.placement.interruption.policy == 'Restart') && (!has(self.placement.interruption.maxInterruptions) || self.placement.interruption.maxInterruptions == 10))").field_path(".placement.interruption").reason(Reason::FieldValueForbidden)
        .message("interruption.policy and maxInterruptions are for TrainingJobs: a service replaces whatever machine is taken away; leave them out"),
)]
// Lasting rules.
#[x_kube(
    validation = Rule::new("has(self.model) != has(self.container)").reason(Reason::FieldValueRequired)
        .message("exactly one of model (our runtime) and container (any image) must be given"),
    validation = Rule::new("!has(self.container) || (has(self.container.command) && self.container.command.size() > 0)").field_path(".container.command").reason(Reason::FieldValueRequired)
        .message("container.command must be given: the agent starts it, and what an image would start by itself is not known before a machine has it"),
    validation = Rule::new("!has(self.container) || (has(self.resources) && has(self.resources.cpu) && has(self.resources.memory))").field_path(".resources").reason(Reason::FieldValueRequired)
        .message("resources.cpu and resources.memory must be given with container: what its command needs cannot be computed"),
    validation = Rule::new("has(self.container) || !has(self.probes) || (!has(self.probes.readiness) && !has(self.probes.liveness) && !has(self.probes.startup))").field_path(".probes").reason(Reason::FieldValueForbidden)
        .message("probes are for container: leave them out; our runtime says itself how it is"),
    validation = Rule::new("has(self.container) || !has(self.secrets) || self.secrets.size() == 0").field_path(".secrets").reason(Reason::FieldValueForbidden)
        .message("secrets are for container: leave them out; our runtime needs none"),
    validation = Rule::new("has(self.container) || !has(self.volumes) || self.volumes.size() == 0").field_path(".volumes").reason(Reason::FieldValueForbidden)
        .message("volumes are for container: leave them out; our runtime reads its model from the store"),
    validation = Rule::new("!has(self.volumes) || self.volumes.all(one, self.volumes.filter(other, other.mountPath == one.mountPath).size() == 1)").field_path(".volumes").reason(Reason::FieldValueInvalid)
        .message("two volumes have one mountPath: give each a folder of its own"),
    validation = Rule::new("!has(self.container) || !has(self.latencyTarget) || (!has(self.latencyTarget.ttftMs) && !has(self.latencyTarget.tpotMs))").field_path(".latencyTarget").reason(Reason::FieldValueForbidden)
        .message("latencyTarget is for model: how fast a container answers cannot be computed; leave it out"),
    validation = Rule::new("!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas").field_path(".minReplicas")
        .message("minReplicas must not be above maxReplicas"),
    validation = Rule::new("!has(self.minReplicas) || self.replicas == 0 || self.replicas >= self.minReplicas").field_path(".replicas")
        .message("replicas must be 0 or at least minReplicas"),
    validation = Rule::new("!has(self.maxReplicas) || self.replicas <= self.maxReplicas").field_path(".replicas")
        .message("replicas must be at most maxReplicas"),
    validation = Rule::new("has(self.managedBy) == has(oldSelf.managedBy) && (!has(self.managedBy) || self.managedBy == oldSelf.managedBy)").field_path(".managedBy").reason(Reason::FieldValueForbidden)
        .message("managedBy is immutable"),
)]
pub struct InferenceServiceSpec {
    /// What answers, on our runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
    /// Any image instead whose command answers HTTP on `port`, supervised by the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// Replicas that should answer.
    #[serde(default = "one")]
    #[schemars(range(max = 1000))]
    pub replicas: u32,
    /// Least that a scaler may ask for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1000))]
    pub min_replicas: Option<u32>,
    /// Most that a scaler may ask for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: Option<u32>,
    /// Port that it answers on. Left out: 8080 in a cluster, outside one a free port from 8080 up. A
    /// container's command must listen on it, on every address; it finds it in `PORT`, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// What each machine must have. Left out: computed from the model. For a container at least `cpu`
    /// and `memory`.
    #[serde(default)]
    pub resources: Resources,
    /// Where replicas may run, and at what price.
    #[serde(default)]
    pub placement: Placement,
    /// How a container's health is asked for; our runtime says itself how it is.
    #[serde(default)]
    pub probes: Probes,
    /// How a new model or image replaces the old one.
    #[serde(default)]
    pub rollout: Rollout,
    /// What happens when nobody asks. Never writes `replicas`.
    #[serde(default)]
    pub idle: Idle,
    /// What the arbiter plans for.
    #[serde(default)]
    pub latency_target: LatencyTarget,
    /// How it is reached from outside.
    #[serde(default)]
    pub route: Route,
    /// Volumes of the cluster, for a container. They keep its replicas on its nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub volumes: Vec<Volume>,
    /// Service account of the Pods that run it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// Secrets with registry credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub image_pull_secrets: Vec<NameRef>,
    /// Secrets that a container needs, by reference only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub secrets: Vec<SecretRef>,
    /// A SpendBudget to count it under; every budget that selects it applies anyway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_ref: Option<NameRef>,
    /// Stop all replicas, pay for nothing.
    #[serde(default)]
    pub suspend: bool,
    /// Who reconciles it. Immutable.
    #[serde(default = "managed_by")]
    #[schemars(length(min = 1, max = 63))]
    pub managed_by: String,
}

fn managed_by() -> String {
    crate::MANAGED_BY.to_owned()
}

/// What answers: exactly one of `artifact`, `trainingJob` and `uri`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.artifact) ? 1 : 0) + (has(self.trainingJob) ? 1 : 0) + (has(self.uri) ? 1 : 0) == 1").reason(Reason::FieldValueRequired)
        .message("exactly one of artifact, trainingJob and uri must be given"),
    validation = Rule::new("has(self.uri) || !has(self.format)")
        .message("format belongs to uri"),
    validation = Rule::new("!has(self.revision)").field_path(".revision").reason(Reason::FieldValueForbidden)
        .message("revision is not built yet: leave it out; what lies at a path, or has this hash, is one version"),
)]
pub struct Model {
    /// Hash of an artifact in the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = HASH_PATTERN))]
    pub artifact: Option<String>,
    /// A TrainingJob in the same namespace; waits until it is Complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub training_job: Option<String>,
    /// Where the model lies: `artifact:<hash>`; outside a cluster also a path or `file:///…`, of a
    /// folder or a GGUF file.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub uri: Option<String>,
    /// Form of the weights at `uri`. Left out: found out by looking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<WeightFormat>,
    /// Version of what lies at `uri`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub revision: Option<String>,
}

/// How the health of a container's replica is asked for, by the agent beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Probes {
    /// Whether it may be sent requests. Left out: once it takes connections on the service's port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Probe>,
    /// Whether it must be replaced: after so many failures its command is ended, and counted as failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub liveness: Option<Probe>,
    /// Whether it has started; the others wait for it. After so many failures its command is ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup: Option<Probe>,
}

/// One HTTP health check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// Path that must answer with 200 to 399.
    #[schemars(length(min = 1, max = 1024), regex(pattern = URL_PATH_PATTERN))]
    pub path: String,
    /// Port. Left out: the service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Seconds before the first check.
    #[serde(default)]
    #[schemars(range(max = 86_400))]
    pub initial_delay_seconds: u32,
    /// Seconds between two checks.
    #[serde(default = "ten")]
    #[schemars(range(min = 1, max = 3600))]
    pub period_seconds: u32,
    /// Seconds that one check may take.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 3600))]
    pub timeout_seconds: u32,
    /// Failures in a row that count.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 10_000))]
    pub failure_threshold: u32,
}

fn ten() -> u32 {
    10
}
fn three() -> u32 {
    3
}

/// How a new model or image replaces the old one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.maxSurge + self.maxUnavailable > 0")
        .message("maxSurge and maxUnavailable must not both be 0: no replica could ever be replaced")
)]
pub struct Rollout {
    /// Replicas above the wanted number while replacing.
    #[serde(default = "one")]
    #[schemars(range(max = 1000))]
    pub max_surge: u32,
    /// Replicas that may be missing while replacing.
    #[serde(default)]
    #[schemars(range(max = 1000))]
    pub max_unavailable: u32,
}

impl Default for Rollout {
    fn default() -> Self {
        Rollout { max_surge: 1, max_unavailable: 0 }
    }
}

/// What happens when nobody asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Idle {
    /// Stop all replicas after this many seconds without a request. Left out: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub scale_to_zero_after_seconds: Option<u32>,
}

/// What the arbiter plans for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LatencyTarget {
    /// Milliseconds to the first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub ttft_ms: Option<u32>,
    /// Milliseconds for each token after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub tpot_ms: Option<u32>,
}

/// How it is reached from outside of the cluster. Left out: by its Service alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.host) || (!has(self.ingressClassName) && !has(self.tlsSecretName))").field_path(".host").reason(Reason::FieldValueRequired)
        .message("host must be given with ingressClassName and tlsSecretName"),
)]
pub struct Route {
    /// Host name of an Ingress before its Service, all paths of which are the service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = DNS_NAME_PATTERN))]
    pub host: Option<String>,
    /// Whose Ingress it is. Left out: the cluster's default class.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = DNS_NAME_PATTERN))]
    pub ingress_class_name: Option<String>,
    /// Secret of the namespace with the certificate for the host. Left out: plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = DNS_NAME_PATTERN))]
    pub tls_secret_name: Option<String>,
}

/// What became of an InferenceService.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct InferenceServiceStatus {
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
    pub phase: Option<InferenceServicePhase>,
    /// Address it answers at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Replicas there are.
    #[serde(default)]
    pub replicas: u32,
    /// Replicas that answer.
    #[serde(default)]
    pub available_replicas: u32,
    /// Replicas of the newest model or image.
    #[serde(default)]
    pub updated_replicas: u32,
    /// Label selector of the replicas, serialised, for scalers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Times that a replica was started again, for whatever reason.
    #[serde(default)]
    pub restarts: u32,
    /// Machines lost.
    #[serde(default)]
    pub interruptions: u32,
    /// Claims that ended and were counted, until they are gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2048), inner(length(min = 1, max = 253)))]
    pub counted: Vec<String>,
    /// Replicas that failed one after the other; the next is tried after 1, 2, 4, … seconds, at most
    /// five minutes. 0 once all is as it should be.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failures: u32,
    /// When the last of them failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure_time: Option<Time>,
    /// Hash of the artifact that answers, or is being brought up (hex).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact: Option<String>,
    /// What replicas are made of beside it, as a digest (hex): image, resources, placement, account.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = HASH_PATTERN))]
    pub revision: Option<String>,
    /// Where replicas run; `hourlyPrice` is the sum over all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementStatus>,
    /// What it has cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<CostStatus>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A summary of the conditions, for printing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum InferenceServicePhase {
    /// Waits for its model or a place.
    Pending,
    /// Replicas start.
    Launching,
    /// Answers.
    Available,
    /// At zero replicas. One that nobody asked for a while wakes with the next request.
    Idle,
    /// Stopped on request.
    Suspended,
    /// Cannot go on without a change.
    Failed,
}
