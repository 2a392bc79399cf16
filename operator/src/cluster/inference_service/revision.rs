//! What a replica was made of besides its model: a digest, kept with its claim. A changed spec, or
//! another image of the operator's, thereby rolls as another model does.
//!
//! Two things are told apart. What its machine runs and has (image, resources, service account, pull
//! secrets; a container with its port, probes, volumes and Secrets' names): when that changes the replica is
//! replaced. Where it may be, and at what price: when that changes it is replaced only if its machine is at a
//! place that will no longer do. `latencyTarget` and `interruption` count for the next machine.

use petaflop_arbiter::claim::ClaimSpec;
use petaflop_arbiter::workload::Placement;
use petaflop_crds::inference_service::InferenceServiceSpec;
use serde::Serialize;

/// Hex digits of each of the two digests in [`Revision::text`].
const HALF: usize = 32;

/// What replicas are to be made of.
#[derive(Clone, Debug)]
pub struct Revision {
    text: String,
    places: Option<Placement>,
}

impl Revision {
    /// What this spec asks for, with the image that replicas run.
    pub fn of(spec: &InferenceServiceSpec, image: &str) -> Self {
        // What cannot be read says so where it is placed.
        let places = spec.places().ok();
        let machine = (&spec.resources, &spec.service_account_name, &spec.image_pull_secrets);
        let (resources, account, pull) = machine;
        let made = match &spec.container {
            None => digest(&(image, resources, account, pull)),
            // The operator's own image is not in it.
            Some(container) => {
                let named = (&spec.secrets, &spec.volumes);
                digest(&(container, spec.port, &spec.probes, named, machine))
            }
        };
        Self { text: made + &digest(&places), places }
    }

    /// The same for the same wish: 64 hex digits.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a claim's machine is what is wanted. One that was bought for this very revision always
    /// is, so that nothing is bought twice for one wish.
    pub fn is_of(&self, claim: &ClaimSpec) -> bool {
        // Where it is not said, an earlier operator bought it.
        let Some(bought) = &claim.revision else { return true };
        let made = bought.get(..HALF) == self.text.get(..HALF);
        *bought == self.text
            || (made && self.places.as_ref().is_none_or(|places| places.admits(&claim.offer)))
    }
}

fn digest(content: &impl Serialize) -> String {
    let content = serde_json::to_vec(content).unwrap_or_default();
    blake3::hash(&content).to_hex()[..HALF].to_owned()
}
