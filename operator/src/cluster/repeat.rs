//! `cache: Always` of a container: what ran to its end once is not run again.
//!
//! Its key stands for all that goes into it (the image by digest, the command, its environment, its inputs by digest),
//! for the Secrets that it names, and for the job's name, which it finds in its environment. What the key names is an
//! artifact of one file that says what ran, so that the store shows, keeps and removes it like any other. The rules of
//! the kind refuse what would not be known beforehand: a tag, an input without a digest, a ConfigMap.

use std::collections::BTreeMap;

use kube::ResourceExt;
use petaflop_crds::TrainingJob;
use petaflop_crds::training_job::Cache;
use petaflop_store::{Digest, Store, StoreError};
use serde_json::json;

use crate::store_at::StoreAt;

/// The one file of the artifact.
const RECORD: &str = "container.json";

/// What ran, or is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    namespace: String,
    /// 64 hex digits.
    pub key: String,
    record: Vec<u8>,
}

impl Ran {
    /// Of a job; `None` where it does not say that a result may be used again.
    pub fn of(job: &TrainingJob) -> Option<Self> {
        let spec = &job.spec;
        let container = spec.container.as_ref().filter(|_| spec.cache == Cache::Always)?;
        let namespace = job.namespace().unwrap_or_default();
        let record = json!({
            "namespace": namespace,
            "job": job.name_any(),
            "container": container,
            "inputs": spec.inputs,
            "secrets": spec.secrets,
        });
        let record = record.to_string().into_bytes();
        Some(Self { namespace, key: Digest::of(&record).to_string(), record })
    }

    /// Whether it ran to its end before.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn is_known(&self, at: &StoreAt) -> Result<bool, StoreError> {
        let store = at.store(&at.uri)?;
        Ok(store.find_key(Some(&self.namespace), &self.key).await?.is_some())
    }

    /// Keeps that it did. Doing it again changes nothing.
    ///
    /// # Errors
    /// What the store said.
    pub async fn keep(&self, at: &StoreAt) -> Result<(), StoreError> {
        let store: Store = at.store(&at.uri)?;
        let files = BTreeMap::from([(RECORD.to_owned(), self.record.clone().into())]);
        let stored = store.put_files(&files).await?;
        store.bind_key(Some(&self.namespace), &self.key, stored.hash).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn job(changes: &[(&str, Value)]) -> TrainingJob {
        let image = format!("registry.example/tool@sha256:{}", "a".repeat(64));
        let digest = format!("blake3:{}", "b".repeat(64));
        let mut job = json!({
            "apiVersion": "petaflop.dev/v1alpha1", "kind": "TrainingJob",
            "metadata": {"name": "nightly", "namespace": "team"},
            "spec": {
                "cache": "Always",
                "container": {"image": image, "command": ["run"], "env": [{"name": "A", "value": "1"}]},
                "inputs": [{"name": "text", "uri": "https://example.org/text", "digest": digest}],
                "secrets": [{"name": "token", "env": true}],
                "placement": {"maxHourlyPrice": "1"},
            },
        });
        for (path, value) in changes {
            *job.pointer_mut(path).expect("it is there") = value.clone();
        }
        serde_json::from_value(job).expect("a job")
    }

    #[test]
    fn a_key_is_that_of_all_that_goes_in_and_of_nothing_else() {
        let key = |changes: &[(&str, Value)]| Ran::of(&job(changes)).map(|ran| ran.key);
        let known = key(&[]).expect("it may be used again");
        assert_eq!(key(&[("/spec/placement/maxHourlyPrice", json!("2"))]), Some(known.clone()));
        for (path, value) in [
            ("/metadata/name", json!("hourly")),
            ("/metadata/namespace", json!("others")),
            ("/spec/container/image", json!(format!("tool@sha256:{}", "c".repeat(64)))),
            ("/spec/container/command", json!(["ru", "n"])),
            ("/spec/container/env/0/value", json!("2")),
            ("/spec/inputs/0/digest", json!(format!("blake3:{}", "d".repeat(64)))),
            ("/spec/secrets/0/name", json!("another")),
        ] {
            assert_ne!(key(&[(path, value)]), Some(known.clone()), "{path}");
        }
        for cache in ["Auto", "Never"] {
            assert_eq!(key(&[("/spec/cache", json!(cache))]), None, "{cache}");
        }
    }

    #[tokio::test]
    async fn what_was_kept_is_known_and_may_be_kept_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = StoreAt { uri: folder.path().display().to_string(), ..StoreAt::default() };
        let ran = Ran::of(&job(&[])).expect("it may be used again");
        assert!(!ran.is_known(&at).await.expect("a store"));
        for _ in 0..2 {
            ran.keep(&at).await.expect("a store");
            assert!(ran.is_known(&at).await.expect("a store"));
        }
        let another = Ran::of(&job(&[("/metadata/namespace", json!("others"))])).expect("a key");
        assert!(!another.is_known(&at).await.expect("a store"));
    }
}
