//! Our finalizer, on whatever object: set or taken by a compare-and-swap, never another's touched.

use std::fmt::Debug;

use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use petaflop_crds::compute_claim::FINALIZER;
use serde::de::DeserializeOwned;

use crate::cluster::error::is_not_found;

/// Whether it is there.
pub fn is_held(object: &impl ResourceExt) -> bool {
    object.finalizers().iter().any(|name| name == FINALIZER)
}

/// Sets or takes it. `None`: the object is gone, with it or before.
pub async fn hold<K>(api: &Api<K>, object: &K, held: bool) -> Result<Option<K>, kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let mut names: Vec<String> =
        object.finalizers().iter().filter(|name| *name != FINALIZER).cloned().collect();
    if held {
        names.push(FINALIZER.to_owned());
    }
    let last = names.is_empty() && object.meta().deletion_timestamp.is_some();
    // Written only over the very object that was seen.
    let patch = serde_json::json!({ "metadata": {
        "uid": object.uid(),
        "resourceVersion": object.resource_version(),
        "finalizers": names,
    }});
    match api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) if last => Ok(None),
        Ok(object) => Ok(Some(object)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
