//! How a Pod says whose it is. Labels find it; annotations hold what labels cannot.

use k8s_openapi::api::core::v1::Pod;
use petaflop_arbiter::claim::Identity;
use petaflop_arbiter::offer::Offer;

use crate::provider::parse_identity;

/// Label: uid of the installation.
pub const INSTALLATION: &str = "petaflop.dev/installation";
/// Label: uid of the claim.
pub const CLAIM_UID: &str = "petaflop.dev/claim-uid";
/// Label: name of the ComputeProvider.
pub const PROVIDER: &str = "petaflop.dev/provider";
/// Annotation: the identity in its text form.
pub const IDENTITY: &str = "petaflop.dev/identity";
/// Annotation: what was bought, as JSON.
pub const OFFER: &str = "petaflop.dev/offer";
/// Annotation: the node it is for, also before it is bound to it.
pub const NODE: &str = "petaflop.dev/node";

fn label<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether it is a machine of this installation.
pub fn of_installation(pod: &Pod, installation: &str) -> bool {
    label(pod, INSTALLATION) == Some(installation)
}

/// Whose machine it is, where it says so.
pub fn identity_of(pod: &Pod) -> Option<Identity> {
    parse_identity(annotation(pod, IDENTITY)?)
}

pub(super) fn offer_of(pod: &Pod) -> Option<Offer> {
    serde_json::from_str(annotation(pod, OFFER)?).ok()
}

/// The node that a Pod is on; a Pod of ours that is not bound yet will be on the one it is for.
pub(super) fn node_of(pod: &Pod) -> Option<&str> {
    let bound = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    bound.filter(|name| !name.is_empty()).or_else(|| annotation(pod, NODE))
}
