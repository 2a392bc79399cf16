//! Which artifact a finished job's key names.

use bytes::Bytes;
use object_store::{PutMode, path::Path as Object};
use serde::Serialize;

use crate::{ArtifactHash, Damage, Digest, Store, StoreError};

/// Stands for "no namespace": jobs run outside a cluster.
const NO_NAMESPACE: &str = "-";

/// A key and the artifact that it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyBinding {
    /// The namespace it holds in; `None` outside a cluster.
    pub namespace: Option<String>,
    /// The job's key, 64 hex digits.
    pub key: String,
    /// The artifact.
    pub artifact: ArtifactHash,
}

impl Store {
    /// Says that the job of this key gave this artifact, which must be in the store. Durable
    /// when it returns; saying it again changes nothing.
    ///
    /// # Errors
    /// [`StoreError::KeyTaken`] where the key names another artifact that is still there,
    /// [`StoreError::NotFound`] or [`StoreError::Damaged`] where `artifact` is not.
    pub async fn bind_key(
        &self,
        namespace: Option<&str>,
        key: &str,
        artifact: ArtifactHash,
    ) -> Result<(), StoreError> {
        let object = key_object(namespace, key)?;
        let _guard = self.writing().await?;
        self.manifest(artifact).await?;
        let content = Bytes::from(format!("{artifact}\n"));
        if self.put(&object, content.clone(), PutMode::Create).await? {
            return Ok(());
        }
        match self.binding(&object).await {
            Ok(Some(bound)) if bound == artifact => Ok(()),
            Ok(Some(bound)) if !self.is_gone(bound).await? => Err(StoreError::KeyTaken {
                key: key.into(),
                bound,
                offered: artifact,
                object: self.place(&object),
            }),
            // Damaged, removed meanwhile, or naming what is no longer there.
            Ok(_) | Err(StoreError::Damaged(_)) => {
                self.put(&object, content, PutMode::Overwrite).await?;
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// The artifact that this key names, where the job was finished before. Looks in
    /// this namespace only: who may use another's results asks for them there.
    ///
    /// A binding that is damaged, or whose manifest is missing or damaged, is no hit: it is logged and
    /// the job runs again, which mends it. Chunks are checked when the artifact is read.
    ///
    /// # Errors
    /// [`StoreError::BadKey`], or why the store cannot be read.
    pub async fn find_key(
        &self,
        namespace: Option<&str>,
        key: &str,
    ) -> Result<Option<ArtifactHash>, StoreError> {
        let object = key_object(namespace, key)?;
        let found = match self.binding(&object).await {
            Ok(None) => return Ok(None),
            Ok(Some(artifact)) => self.manifest(artifact).await.map(|_| artifact),
            Err(e) => Err(e),
        };
        match found {
            Ok(artifact) => Ok(Some(artifact)),
            Err(e @ (StoreError::Damaged(_) | StoreError::NotFound { .. })) => {
                tracing::warn!(key, error = %e, "the stored result of this key is not used");
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// All bindings, in the order of namespace and key; damaged ones are left out
    /// here and named by [`Store::verify`].
    ///
    /// # Errors
    /// Why the store cannot be read.
    pub async fn keys(&self) -> Result<Vec<KeyBinding>, StoreError> {
        let mut bindings = Vec::new();
        for (_, binding) in self.bindings().await? {
            bindings.extend(binding.ok());
        }
        Ok(bindings)
    }

    pub(crate) async fn bindings(
        &self,
    ) -> Result<Vec<(Object, Result<KeyBinding, Damage>)>, StoreError> {
        let mut bindings = Vec::new();
        for meta in self.list_under("keys").await? {
            let object = meta.location;
            let parts: Vec<String> = object.parts().map(|p| p.as_ref().to_owned()).collect();
            let [_, namespace, key] = parts.as_slice() else {
                continue; // not ours
            };
            let binding = match self.binding(&object).await {
                Ok(None) => continue, // removed meanwhile
                Ok(Some(artifact)) => Ok(KeyBinding {
                    namespace: (namespace != NO_NAMESPACE).then(|| namespace.clone()),
                    key: key.clone(),
                    artifact,
                }),
                Err(StoreError::Damaged(damage)) => Err(*damage),
                Err(e) => return Err(e),
            };
            bindings.push((object, binding));
        }
        Ok(bindings)
    }

    async fn binding(&self, object: &Object) -> Result<Option<ArtifactHash>, StoreError> {
        let Some(content) = self.get(object).await? else {
            return Ok(None);
        };
        let text = std::str::from_utf8(&content).unwrap_or_default();
        match text.strip_suffix('\n').unwrap_or(text).parse() {
            Ok(artifact) => Ok(Some(artifact)),
            Err(_) => Err(StoreError::Damaged(Box::new(Damage {
                artifact: None,
                path: None,
                object: self.place(object),
                problem: "holds no artifact hash".into(),
                mend: "it is ignored; running the job again writes it anew".into(),
            }))),
        }
    }

    async fn is_gone(&self, artifact: ArtifactHash) -> Result<bool, StoreError> {
        match self.manifest(artifact).await {
            Ok(_) => Ok(false),
            Err(StoreError::Damaged(_) | StoreError::NotFound { .. }) => Ok(true),
            Err(e) => Err(e),
        }
    }
}

fn key_object(namespace: Option<&str>, key: &str) -> Result<Object, StoreError> {
    if key.parse::<Digest>().is_err() {
        return Err(StoreError::BadKey {
            what: "key",
            value: key.into(),
            expected: "64 lower-case hex digits",
        });
    }
    let namespace = match namespace {
        None => NO_NAMESPACE,
        Some(name) if is_label(name) => name,
        Some(name) => {
            return Err(StoreError::BadKey {
                what: "namespace",
                value: name.into(),
                expected: "1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit",
            });
        }
    };
    Ok(Object::from_iter(["keys", namespace, key]))
}

/// A DNS label (RFC 1123), as Kubernetes asks of namespaces.
fn is_label(name: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase();
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| alphanumeric(*b) || *b == b'-')
        && bytes.first().is_some_and(|b| alphanumeric(*b))
        && bytes.last().is_some_and(|b| alphanumeric(*b))
}
