//! The API of petaflop: the kinds, their validation rules, and how each becomes
//! one of the arbiter's workloads.
//!
//! | module | holds |
//! |---|---|
//! | [`training_job`] | the kind `TrainingJob` |
//! | [`inference_service`] | the kind `InferenceService` |
//! | [`compute_claim`] | the kind `ComputeClaim`, and how it becomes the arbiter's claim and back |
//! | [`compute_provider`] | the kind `ComputeProvider`, and how decisions see it |
//! | [`spend_budget`] | the kind `SpendBudget`, and how decisions see it |
//! | [`shared`] | what workloads have in common: resources, placement, containers, status pieces |
//! | [`scalar`] | money, quantities, spans and points of time, as strings that parse exactly |
//! | [`conditions`] | the closed lists of condition types |
//! | [`recipe`] | what to train, in axolotl's names; [`recipe::resolve`] fixes every choice once |
//! | [`workload`] | each workload kind as the arbiter's `Workload` |
//! | [`manifest`] | reading manifests from files, with errors that name the place and the mend |
//! | [`crds`] | the CustomResourceDefinitions, as they are installed |

pub mod compute_claim;
pub mod compute_provider;
pub mod conditions;
pub mod crds;
mod field_error;
pub mod inference_service;
pub mod manifest;
pub mod recipe;
pub mod scalar;
pub mod shared;
pub mod spend_budget;
pub mod training_job;
pub mod workload;

pub use compute_claim::{ComputeClaim, ComputeClaimSpec, ComputeClaimStatus};
pub use compute_provider::{ComputeProvider, ComputeProviderSpec, ComputeProviderStatus};
pub use field_error::FieldError;
pub use inference_service::{InferenceService, InferenceServiceSpec, InferenceServiceStatus};
pub use manifest::{Document, ManifestErrors, Object};
pub use spend_budget::{SpendBudget, SpendBudgetSpec, SpendBudgetStatus};
pub use training_job::{TrainingJob, TrainingJobSpec, TrainingJobStatus};

/// API group of every kind.
pub const GROUP: &str = "petaflop.dev";
/// The one served version.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of every manifest.
pub const API_VERSION: &str = "petaflop.dev/v1alpha1";
/// Value of `spec.managedBy` that makes our own operator responsible.
pub const MANAGED_BY: &str = "petaflop.dev/operator";

/// The name of `names` that `text` was most likely meant to be, if one is near.
pub(crate) fn nearest<'a>(text: &str, names: &[&'a str]) -> Option<&'a str> {
    names
        .iter()
        .map(|name| {
            (strsim::damerau_levenshtein(&text.to_lowercase(), &name.to_lowercase()), *name)
        })
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4 && *distance < name.len())
        .min()
        .map(|(_, name)| name)
}
