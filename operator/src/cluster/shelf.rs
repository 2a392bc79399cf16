//! The objects of one kind, as the watch brought them, packed: most of them are only kept, and there may
//! be many thousands. Whoever looks at one unpacks it, which takes some microseconds.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cluster::table::Name;

/// Packs the objects of one kind. They are alike: each is written as what differs from the first.
#[derive(Debug)]
pub struct Packer<K> {
    first: OnceLock<Box<[u8]>>,
    kind: PhantomData<fn() -> K>,
}

/// An object as it is kept. Only whoever packed it can unpack it.
#[derive(Debug)]
pub struct Packed<K> {
    bytes: Box<[u8]>,
    /// How many bytes it has unpacked.
    length: usize,
    kind: PhantomData<fn() -> K>,
}

impl<K> Default for Packer<K> {
    fn default() -> Self {
        Self { first: OnceLock::new(), kind: PhantomData }
    }
}

impl<K: Serialize + DeserializeOwned> Packer<K> {
    /// Packs an object.
    pub fn pack(&self, object: &K) -> Packed<K> {
        // Fields by name, for what is `None` is left out; floats bit by bit.
        let plain = rmp_serde::to_vec_named(object).expect("what was read can be written");
        let first = self.first.get_or_init(|| plain.clone().into());
        let bytes = lz4_flex::block::compress_with_dict(&plain, first).into();
        Packed { bytes, length: plain.len(), kind: PhantomData }
    }

    /// The object that was packed.
    pub fn unpack(&self, packed: &Packed<K>) -> K {
        let first = self.first.get().map_or(&[][..], |first| first);
        let plain = lz4_flex::block::decompress_with_dict(&packed.bytes, packed.length, first);
        rmp_serde::from_slice(&plain.expect("packed here")).expect("packed here")
    }
}

/// The objects of one kind. Clones are the same shelf.
#[derive(Debug)]
pub struct Shelf<K>(Arc<Inner<K>>);

#[derive(Debug)]
struct Inner<K> {
    packer: Packer<K>,
    objects: Mutex<HashMap<Name, Kept<K>>>,
    is_over: fn(&K) -> bool,
}

#[derive(Debug)]
struct Kept<K> {
    packed: Packed<K>,
    uid: String,
    over: bool,
}

impl<K> Clone for Shelf<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Resource + Serialize + DeserializeOwned> Shelf<K> {
    /// An empty one, of a kind of which some objects come to an end that they stay at.
    pub fn new(is_over: fn(&K) -> bool) -> Self {
        Self(Arc::new(Inner { packer: Packer::default(), objects: Mutex::default(), is_over }))
    }

    /// Keeps an object, in place of an earlier one of its name.
    pub fn put(&self, object: &K) {
        let kept = Kept {
            packed: self.0.packer.pack(object),
            uid: object.uid().unwrap_or_default(),
            over: (self.0.is_over)(object),
        };
        self.lock().insert(named(object), kept);
    }

    /// An object is gone.
    pub fn remove(&self, object: &K) {
        self.lock().remove(&named(object));
    }

    /// One object. What has no namespace is found under the empty one.
    pub fn get(&self, namespace: &str, name: &str) -> Option<K> {
        let objects = self.lock();
        let kept = objects.get(&(namespace.to_owned(), name.to_owned()))?;
        Some(self.0.packer.unpack(&kept.packed))
    }

    /// All objects.
    pub fn all(&self) -> Vec<K> {
        self.those(|_, _| true, |_| true)
    }

    /// The objects of a namespace.
    pub fn of_namespace(&self, namespace: &str) -> Vec<K> {
        self.those(|name, _| name.0 == namespace, |_| true)
    }

    /// The objects that have not come to their end, but for those of some uids.
    pub fn unfinished(&self, but: impl Fn(&str) -> bool) -> Vec<K> {
        self.those(|_, kept| !kept.over && !but(&kept.uid), |_| true)
    }

    /// The objects of which something holds: each is unpacked to be asked.
    pub fn filtered(&self, holds: impl Fn(&K) -> bool) -> Vec<K> {
        self.those(|_, _| true, holds)
    }

    /// Their names.
    pub fn names(&self) -> Vec<Name> {
        self.lock().keys().cloned().collect()
    }

    fn those(&self, meant: impl Fn(&Name, &Kept<K>) -> bool, holds: impl Fn(&K) -> bool) -> Vec<K> {
        let objects = self.lock();
        let meant = objects.iter().filter(|(name, kept)| meant(name, kept));
        meant.map(|(_, kept)| self.0.packer.unpack(&kept.packed)).filter(holds).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Kept<K>>> {
        self.0.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Namespace and name of an object; the empty namespace, where it has none.
pub fn named(object: &impl Resource) -> Name {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use petaflop_crds::{ComputeClaim, TrainingJob};
    use serde_json::json;

    use super::*;
    use crate::cluster::testing::claim_spec;

    fn job(namespace: &str, name: &str, learning_rate: f64) -> TrainingJob {
        serde_json::from_value(json!({
            "apiVersion": "petaflop.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {
                "namespace": namespace, "name": name, "uid": format!("uid-{name}"), "resourceVersion": "7",
                "creationTimestamp": "2026-11-21T10:00:00Z", "labels": {"team": "a"},
            },
            "spec": {
                "recipe": {
                    "model": {"dim": 128, "layers": 4, "heads": 4, "vocab": 512},
                    "datasets": [{"path": "builtin:petaflop", "type": "completion"}],
                    "sequence_len": 128, "max_steps": 20, "learning_rate": learning_rate,
                },
                "budgetRef": {"name": "b"},
            },
            "status": {
                "conditions": [{
                    "type": "Ready", "status": "False", "reason": "Launching", "message": "waits",
                    "lastTransitionTime": "2026-11-21T10:00:01Z", "observedGeneration": 1,
                }],
                "progress": {"step": 3, "steps": 20, "loss": 0.1 + learning_rate},
            },
        }))
        .expect("a job")
    }

    #[test]
    fn what_is_packed_comes_out_as_it_was() {
        let packer = Packer::default();
        // Numbers that a reader of decimals may get wrong in the last bit.
        let rates = [0.1, 1.0 / 3.0, 5e-324, 1.797_693_134_862_315_7e308, 8.533_523_8e-5];
        let jobs: Vec<TrainingJob> = rates.iter().map(|rate| job("ns", "a", *rate)).collect();
        let packed: Vec<_> = jobs.iter().map(|job| packer.pack(job)).collect();
        for (job, packed) in jobs.iter().zip(&packed) {
            let out = packer.unpack(packed);
            assert_eq!(
                (&out.metadata, &out.spec, &out.status),
                (&job.metadata, &job.spec, &job.status)
            );
        }
        let claims: Packer<ComputeClaim> = Packer::default();
        let spec = claim_spec("c", "j", jiff::Timestamp::UNIX_EPOCH);
        let claim = ComputeClaim::planned(&spec).expect("a claim");
        let out = claims.unpack(&claims.pack(&claim));
        assert_eq!(
            (&out.metadata, &out.spec, &out.status),
            (&claim.metadata, &claim.spec, &claim.status)
        );
    }

    #[test]
    fn what_is_like_the_first_takes_little_room() {
        let packer = Packer::default();
        let first = packer.pack(&job("ns", "first", 0.1));
        let second = packer.pack(&job("ns", "second", 0.2));
        assert!(
            second.bytes.len() * 4 < first.length,
            "{} of {}",
            second.bytes.len(),
            first.length
        );
    }

    #[test]
    fn it_holds_what_was_put_last_and_not_what_was_removed() {
        let shelf = Shelf::new(|job: &TrainingJob| job.metadata.name.as_deref() == Some("over"));
        for name in ["a", "over", "settled"] {
            shelf.put(&job("ns", name, 0.1));
        }
        shelf.put(&job("other", "a", 0.1));
        shelf.put(&job("ns", "a", 0.5));
        let rate =
            shelf.get("ns", "a").and_then(|job| job.spec.recipe).map(|recipe| recipe.learning_rate);
        assert_eq!(rate, Some(0.5));
        assert_eq!((shelf.names().len(), shelf.of_namespace("other").len()), (4, 1));
        let names = |jobs: Vec<TrainingJob>| {
            let mut names: Vec<String> = jobs.iter().map(ResourceExt::name_any).collect();
            names.sort();
            names
        };
        assert_eq!(names(shelf.unfinished(|uid| uid == "uid-settled")), ["a", "a"]);
        shelf.remove(&job("ns", "a", 0.1));
        assert!(shelf.get("ns", "a").is_none());
        assert_eq!(shelf.all().len(), 3);
    }
}
