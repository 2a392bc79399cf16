//! What a machine must have.

#![expect(
    unreachable_pub,
    reason = "KubeSchema copies each struct into a function, its `pub` with it"
)]

use kube::KubeSchema;
use petaflop_arbiter::catalogue::Catalogue;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ACCELERATOR_PATTERN, CAPABILITY_PATTERN, one};
use crate::field_error::Errors;
use crate::scalar::Quantity;

/// What one machine must have. Left out, it is computed from the recipe or the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.accelerator) && has(self.anyOf) && size(self.anyOf) > 0)")
        .message("accelerator and anyOf exclude each other: put the single choice in accelerator, or all alternatives in anyOf")
)]
pub struct Resources {
    /// Processors, as a Kubernetes quantity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Memory in bytes, as a Kubernetes quantity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Local disk in bytes, as a Kubernetes quantity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ephemeral_storage: Option<Quantity>,
    /// The accelerator it must have. Neither this nor `anyOf`: whatever the engine can use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
    /// Alternatives, any of which will do; the cheapest is taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub any_of: Vec<Accelerator>,
}

impl Resources {
    /// Whether a machine without an accelerator is not what is asked for, or not all of it.
    pub fn asks_for_accelerators(&self) -> bool {
        let mut wanted = self.accelerator.iter().chain(&self.any_of);
        wanted.any(|wanted| wanted.vendor != Some(Vendor::None))
    }
}

/// An accelerator that a machine must have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.vendor) && self.vendor == 'None') || (!has(self.models) && !has(self.minMemory) && !has(self.minComputeCapability) && (!has(self.count) || self.count == 1))")
        .message("vendor None means no accelerator at all: leave out models, count, minMemory and minComputeCapability"),
    validation = Rule::new("!has(self.minComputeCapability) || (has(self.vendor) && self.vendor == 'NVIDIA')")
        .message("minComputeCapability is NVIDIA's: set vendor: NVIDIA beside it")
)]
pub struct Accelerator {
    /// Who makes it; `None` asks for a machine without one. Left out: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<Vendor>,
    /// Models by catalogue name (`H100-SXM`) or family (`H100`); any of them will do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 63), regex(pattern = ACCELERATOR_PATTERN)))]
    pub models: Vec<String>,
    /// How many of them one machine has.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub count: u32,
    /// Memory that each must have, as a Kubernetes quantity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_memory: Option<Quantity>,
    /// NVIDIA compute capability that each must have, such as `"8.0"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 5), regex(pattern = CAPABILITY_PATTERN))]
    pub min_compute_capability: Option<String>,
}

/// Maker of an accelerator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Vendor {
    /// NVIDIA.
    NVIDIA,
    /// AMD.
    AMD,
    /// Apple.
    Apple,
    /// No accelerator.
    None,
}

/// Names of accelerators, each of which must be a model's of the catalogue, or a family's.
pub(crate) fn known_models(path: &str, models: &[String], errors: &mut Errors) {
    let rows = Catalogue::embedded().rows();
    for (index, model) in models.iter().enumerate() {
        if !rows.iter().any(|row| row.answers_to(model)) {
            let family = |key: &'static str| key.split('-').next().unwrap_or(key);
            let names: Vec<&str> =
                rows.iter().flat_map(|row| [row.key.as_str(), family(&row.key)]).collect();
            let mend = match crate::nearest(model, &names) {
                Some(near) => format!("did you mean {near}?"),
                None => "`petaflop offers` shows the names".to_owned(),
            };
            errors.add(
                &format!("{path}[{index}]"),
                format_args!("no accelerator is called {model:?}; {mend}"),
            );
        }
    }
}
