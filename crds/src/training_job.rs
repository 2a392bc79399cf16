//! The kind `TrainingJob`: train something, to completion.

#![expect(
    unreachable_pub,
    reason = "KubeSchema copies each struct into a function, its `pub` with it"
)]

use kube::{CustomResource, KubeSchema};
use petaflop_plan::recipe::{self, Export};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::FieldError;
use crate::recipe::Recipe;
use crate::scalar::Money;
use crate::shared::{
    Container, DIGEST_PATTERN, Deadline, INPUT_PATTERN, LABEL_PATTERN, NameRef, Placement, Port,
    Resources, STORE_PATTERN, SecretRef, Volume,
};

mod status;
pub use status::{TrainingJobPhase, TrainingJobStatus, TrainingProgress};

/// Train something, to completion, at the cheapest place that meets the constraints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "petaflop.dev",
    version = "v1alpha1",
    kind = "TrainingJob",
    namespaced,
    status = "TrainingJobStatus",
    shortname = "trj",
    category = "petaflop",
    derive = "PartialEq",
    cel,
    doc = "Train something, to completion, at the cheapest place that meets the constraints.",
    selectable = ".spec.placement.capacityType",
    selectable = ".status.phase",
    selectable = ".status.placement.provider",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Provider", type_ = "string", json_path = ".status.placement.provider"),
    printcolumn(name = "Instance", type_ = "string", json_path = ".status.placement.instanceType"),
    printcolumn(name = "GPU", type_ = "string", json_path = ".status.placement.accelerator"),
    printcolumn(name = "$/h", type_ = "string", json_path = ".status.placement.hourlyPrice"),
    printcolumn(name = "Cost", type_ = "string", json_path = ".status.cost.total"),
    printcolumn(name = "Restarts", type_ = "integer", json_path = ".status.restarts"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Region", type_ = "string", json_path = ".status.placement.region", priority = 1),
    printcolumn(name = "Spot", type_ = "string", json_path = ".status.placement.capacityType", priority = 1),
    printcolumn(name = "Claim", type_ = "string", json_path = ".status.placement.claim", priority = 1),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = 1),
    validation = Rule::new("size(self.metadata.name) <= 40")
        .message("metadata.name must be at most 40 characters: the names of its machines are made from it"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must start with a lower-case letter, end with a letter or digit, and have only lower-case letters, digits and '-'"),
)]
#[serde(rename_all = "camelCase")]
// Not built yet. Whoever builds one of these removes its line.
#[x_kube(
    validation = Rule::new("!has(self.recipe) || !has(self.inputs) || self.inputs.all(input, !has(input.secretRef))").field_path(".inputs").reason(Reason::FieldValueForbidden)
        .message("secretRef of an input is not built yet for recipe, whose data is opened with what opens the store: leave it out"),
    validation = Rule::new("self.nodes <= 1").field_path(".nodes").reason(Reason::FieldValueForbidden)
        .message("more than one node is not built yet: nodes must be 1"),
    validation = Rule::new("!has(self.checkpoint) || !has(self.checkpoint.uri)").field_path(".checkpoint.uri").reason(Reason::FieldValueForbidden)
        .message("checkpoint.uri is not built yet: leave it out; checkpoints are kept where artifacts are"),
    validation = Rule::new("!has(self.recipe) || !has(self.recipe.adapter)").field_path(".recipe.adapter").reason(Reason::FieldValueForbidden)
        .message("adapter (lora, qlora) is not built yet: leave it out to train all weights"),
    validation = Rule::new("!has(self.recipe) || (!has(self.recipe.lora_r) && !has(self.recipe.lora_alpha) && !has(self.recipe.lora_dropout) && !has(self.recipe.lora_target_modules))").field_path(".recipe").reason(Reason::FieldValueForbidden)
        .message("lora_r, lora_alpha, lora_dropout and lora_target_modules are not built yet: leave them out"),
    validation = Rule::new("!has(self.recipe) || !has(self.recipe.gradient_checkpointing) || !self.recipe.gradient_checkpointing").field_path(".recipe.gradient_checkpointing").reason(Reason::FieldValueForbidden)
        .message("gradient_checkpointing is not built yet: leave it out, or lower micro_batch_size and raise gradient_accumulation_steps"),
    validation = Rule::new("!has(self.recipe) || !has(self.recipe.saves_per_epoch)").field_path(".recipe.saves_per_epoch").reason(Reason::FieldValueForbidden)
        .message("saves_per_epoch is not built yet: set spec.checkpoint.intervalSeconds"),
)]
// Lasting rules.
#[x_kube(
    validation = Rule::new("has(self.recipe) != has(self.container)").reason(Reason::FieldValueRequired)
        .message("exactly one of recipe (our runtime) and container (any image) must be given"),
    validation = Rule::new("!has(self.container) || (has(self.container.command) && self.container.command.size() > 0)").field_path(".container.command").reason(Reason::FieldValueRequired)
        .message("container.command must be given: the agent starts it, and what an image would start by itself is not known before a machine has it"),
    validation = Rule::new("!has(self.container) || !has(self.output) || !has(self.output.uri)").field_path(".output.uri").reason(Reason::FieldValueForbidden)
        .message("a container leaves no artifact that could be copied: let its command write to the bucket"),
    validation = Rule::new("!has(self.container) || !has(self.inputs) || self.inputs.all(input, input.uri != 'builtin:petaflop')").field_path(".inputs").reason(Reason::FieldValueInvalid)
        .message("builtin:petaflop is inside our runtime: a container cannot have it"),
    validation = Rule::new("!has(self.container) || !has(self.cache) || self.cache != 'Always' || self.container.image.contains('@sha256:')").field_path(".container.image").reason(Reason::FieldValueInvalid)
        .message("cache Always needs an image by its digest (name@sha256:…): what a tag names may be something else tomorrow"),
    validation = Rule::new("!has(self.container) || !has(self.cache) || self.cache != 'Always' || !has(self.inputs) || self.inputs.all(input, has(input.digest) || input.uri.startsWith('artifact:'))").field_path(".inputs").reason(Reason::FieldValueInvalid)
        .message("cache Always needs the digest of each input that is not an artifact: what is there may be something else tomorrow"),
    validation = Rule::new("!has(self.container) || !has(self.cache) || self.cache != 'Always' || ((!has(self.container.env) || self.container.env.all(v, !has(v.valueFrom) || !has(v.valueFrom.configMapKeyRef))) && (!has(self.container.envFrom) || self.container.envFrom.all(from, !has(from.configMapRef))))").field_path(".container").reason(Reason::FieldValueForbidden)
        .message("cache Always does not go with ConfigMaps in the environment, which may change: write the values out"),
    validation = Rule::new("!has(self.container) || !has(self.cache) || self.cache != 'Always' || !has(self.volumes) || self.volumes.size() == 0").field_path(".volumes").reason(Reason::FieldValueForbidden)
        .message("cache Always does not go with volumes, whose content may change: bring the data by inputs with a digest"),
    validation = Rule::new("!has(self.volumes) || self.volumes.all(one, self.volumes.filter(other, other.mountPath == one.mountPath).size() == 1)").field_path(".volumes").reason(Reason::FieldValueInvalid)
        .message("two volumes have one mountPath: give each a folder of its own"),
    validation = Rule::new("has(self.recipe) == has(oldSelf.recipe) && (!has(self.recipe) || self.recipe == oldSelf.recipe)").field_path(".recipe").reason(Reason::FieldValueForbidden)
        .message("recipe is immutable: create a new TrainingJob"),
    validation = Rule::new("has(self.container) == has(oldSelf.container) && (!has(self.container) || self.container == oldSelf.container)").field_path(".container").reason(Reason::FieldValueForbidden)
        .message("container is immutable: create a new TrainingJob"),
    validation = Rule::new("has(self.inputs) == has(oldSelf.inputs) && (!has(self.inputs) || self.inputs == oldSelf.inputs)").field_path(".inputs").reason(Reason::FieldValueForbidden)
        .message("inputs are immutable: create a new TrainingJob"),
    validation = Rule::new("self.output.quantization == 'none' || self.output.format == 'gguf'").field_path(".output.quantization").reason(Reason::FieldValueInvalid)
        .message("output.quantization needs output.format gguf: safetensors hold the weights as they were trained"),
    validation = Rule::new("!has(self.container) || self.output.format == 'safetensors'").field_path(".output.format").reason(Reason::FieldValueForbidden)
        .message("output.format is for recipe: a container's command writes what it likes"),
    validation = Rule::new("self.output.format == oldSelf.output.format && self.output.quantization == oldSelf.output.quantization").field_path(".output").reason(Reason::FieldValueForbidden)
        .message("output.format and output.quantization are immutable: create a new TrainingJob"),
    validation = Rule::new("has(self.activeDeadlineSeconds) == has(oldSelf.activeDeadlineSeconds) && (!has(self.activeDeadlineSeconds) || self.activeDeadlineSeconds == oldSelf.activeDeadlineSeconds)").field_path(".activeDeadlineSeconds").reason(Reason::FieldValueForbidden)
        .message("activeDeadlineSeconds is immutable"),
    validation = Rule::new("has(self.managedBy) == has(oldSelf.managedBy) && (!has(self.managedBy) || self.managedBy == oldSelf.managedBy)").field_path(".managedBy").reason(Reason::FieldValueForbidden)
        .message("managedBy is immutable"),
)]
pub struct TrainingJobSpec {
    /// What to train, on our runtime; axolotl's field names. Immutable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Recipe>,
    /// Any image instead, supervised by the agent. Immutable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// Named data, found at /inputs/<name>. Immutable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub inputs: Vec<JobInput>,
    /// What becomes of the result.
    #[serde(default)]
    pub output: Output,
    /// Machines that work together. Immutable.
    #[serde(default = "crate::shared::one")]
    #[schemars(range(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("nodes is immutable").reason(Reason::FieldValueForbidden))]
    pub nodes: u32,
    /// What each machine must have. Left out: computed from the recipe.
    #[serde(default)]
    pub resources: Resources,
    /// Where it may run, and at what price.
    #[serde(default)]
    pub placement: Placement,
    /// When it should be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Deadline>,
    /// How progress is kept.
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// Volumes of the cluster. They keep the job on its nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub volumes: Vec<Volume>,
    /// Ports that the command listens on, for whoever reaches its Pod. They keep the job on the cluster's nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub ports: Vec<Port>,
    /// Service account of the Pods that run it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// Secrets with registry credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub image_pull_secrets: Vec<NameRef>,
    /// Secrets that it needs, by reference only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub secrets: Vec<SecretRef>,
    /// A SpendBudget to count it under; every budget that selects it applies anyway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_ref: Option<NameRef>,
    /// Hard stop, dollars over all machines: Failed with CostLimitExceeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_total_cost: Option<Money>,
    /// Failures before the job fails: of the application, and machines whose agent was never met.
    /// Interruptions are counted apart.
    #[serde(default = "three")]
    #[schemars(range(max = 1000))]
    pub backoff_limit: u32,
    /// Hard kill after this many seconds; the clock starts again on resume. Immutable.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 315_360_000))]
    pub active_deadline_seconds: Option<u32>,
    /// Delete the object this many seconds after its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 315_360_000))]
    pub ttl_seconds_after_finished: Option<u32>,
    /// Whether a finished result with the same key may be used instead. A container's key stands for its image by
    /// digest, command, environment, inputs by digest, the names of its Secrets, and the job's own name.
    #[serde(default)]
    pub cache: Cache,
    /// Stop, keep what was done, pay for nothing.
    #[serde(default)]
    pub suspend: bool,
    /// Who reconciles it. Immutable.
    #[serde(default = "managed_by")]
    #[schemars(length(min = 1, max = 63))]
    pub managed_by: String,
}

fn three() -> u32 {
    3
}

fn managed_by() -> String {
    crate::MANAGED_BY.to_owned()
}

/// Named data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!self.uri.startsWith('https://') || has(self.digest)").field_path(".digest").reason(Reason::FieldValueRequired)
        .message("an https:// input needs a digest: what an address answers is not always the same"),
    validation = Rule::new("!has(self.secretRef) || self.uri.startsWith('s3://')").field_path(".secretRef").reason(Reason::FieldValueForbidden)
        .message("secretRef opens buckets: only an s3:// input has one")
)]
pub struct JobInput {
    /// Its name: the data is found at /inputs/<name>.
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL_PATTERN))]
    pub name: String,
    /// Where it comes from: `s3://`, `https://`, `file://`, `configmap://`, `artifact:<hash>`, `builtin:petaflop`.
    #[schemars(length(min = 1, max = 1024), regex(pattern = INPUT_PATTERN))]
    pub uri: String,
    /// Content digest that it must have: `blake3:<64 hex digits>`. Whoever gives another is told the one that was
    /// found.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71), regex(pattern = DIGEST_PATTERN))]
    pub digest: Option<String>,
    /// Secret of the same namespace that opens the bucket, its keys named as in the environment: `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, …. Left out: what opens the
    /// operator's store, where the data lies in its bucket, beside it; no other bucket is opened with that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<NameRef>,
}

/// What becomes of the result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.secretRef) || has(self.uri)").field_path(".secretRef").reason(Reason::FieldValueForbidden)
        .message("secretRef opens the store of uri: give that, too")
)]
pub struct Output {
    /// Store that takes the artifact, beside the installation's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = STORE_PATTERN))]
    pub uri: Option<String>,
    /// Secret of the same namespace that opens it, its keys named as in the environment: `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, …. Outside a cluster the environment does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<NameRef>,
    /// Form of the weights. Immutable.
    #[serde(default)]
    pub format: WeightFormat,
    /// How the matrices of a GGUF file are kept; rows that are not whole blocks of 32 stay as they are. Immutable.
    #[serde(default)]
    pub quantization: Quantization,
    /// Checkpoints kept.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 100))]
    pub keep_checkpoints: u32,
}

fn two() -> u32 {
    2
}

impl Default for Output {
    fn default() -> Self {
        Output {
            uri: None,
            secret_ref: None,
            format: WeightFormat::Safetensors,
            quantization: Quantization::None,
            keep_checkpoints: two(),
        }
    }
}

impl Output {
    /// What the runtime is to write.
    ///
    /// # Errors
    /// A number format that the form of the weights does not have. (The CRD's rules refuse it too.)
    pub fn export(&self) -> Result<Export, FieldError> {
        let quantization = match self.quantization {
            Quantization::None => recipe::Quantization::None,
            Quantization::Q8_0 => recipe::Quantization::Q8_0,
            Quantization::Q4_0 => recipe::Quantization::Q4_0,
        };
        match (self.format, self.quantization) {
            (WeightFormat::Gguf, _) => Ok(Export::Gguf(quantization)),
            (WeightFormat::Safetensors, Quantization::None) => Ok(Export::Safetensors),
            (WeightFormat::Safetensors, _) => Err(FieldError::new(
                "spec.output.quantization",
                "output.quantization needs output.format gguf",
            )),
        }
    }
}

/// Form of the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WeightFormat {
    /// A Hugging Face folder with safetensors files.
    #[default]
    Safetensors,
    /// One GGUF file.
    Gguf,
}

/// Number format of exported weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Quantization {
    /// As trained.
    #[default]
    None,
    /// Eight bits, blocks of 32.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// Four bits, blocks of 32; embedding and output projection eight.
    #[serde(rename = "q4_0")]
    Q4_0,
}

/// How progress is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// Where checkpoints go. Left out: beside the output.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = STORE_PATTERN))]
    pub uri: Option<String>,
    /// Seconds between two checkpoints. Left out: √(2 · what one takes · the mean time between losses), for each
    /// place its own, between ten seconds and an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub interval_seconds: Option<u32>,
    /// Seconds that a stopping job has for its last checkpoint.
    #[serde(default = "ninety")]
    #[schemars(range(max = 3600))]
    pub grace_seconds: u32,
}

fn ninety() -> u32 {
    90
}

impl Default for Checkpoint {
    fn default() -> Self {
        Checkpoint { uri: None, interval_seconds: None, grace_seconds: ninety() }
    }
}

/// Whether a finished result with the same key may be used instead of training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Cache {
    /// For recipes yes, for containers no.
    #[default]
    Auto,
    /// Train anew.
    Never,
    /// For containers too: what ran to its end once is not run again.
    Always,
}
