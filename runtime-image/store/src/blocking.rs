//! [`Store`](crate::Store) for callers without async: the same calls, the same promises.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    path::Path,
};

use bytes::Bytes;

use crate::{
    ArtifactHash, ArtifactInfo, Digest, GcOptions, GcReport, KeyBinding, Manifest, StoreError,
    Stored, VerifyReport,
};

/// As [`crate::fetch::fetch`], with the credentials of the environment.
///
/// # Errors
/// As there.
pub fn fetch(uri: &str, to: &Path) -> Result<Option<ArtifactHash>, StoreError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| StoreError::io(uri, e))?;
    runtime.block_on(crate::fetch::fetch(uri, None, to))
}

/// A store whose calls return when they are done.
#[derive(Debug)]
pub struct Store {
    inner: crate::Store,
    runtime: tokio::runtime::Runtime,
}

impl Store {
    /// As [`crate::Store::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open(uri: &str) -> Result<Self, StoreError> {
        let inner = crate::Store::open(uri)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| StoreError::io(inner.name(), e))?;
        Ok(Self { inner, runtime })
    }

    /// The store underneath, for async callers.
    pub fn inner(&self) -> &crate::Store {
        &self.inner
    }

    /// The folder or URI, for messages.
    pub fn name(&self) -> &str {
        self.inner.name()
    }

    /// As [`crate::Store::put_artifact`].
    ///
    /// # Errors
    /// As there.
    pub fn put_artifact(&self, dir: &Path) -> Result<Stored, StoreError> {
        self.wait(self.inner.put_artifact(dir))
    }

    /// As [`crate::Store::put_files`].
    ///
    /// # Errors
    /// As there.
    pub fn put_files(&self, files: &BTreeMap<String, Bytes>) -> Result<Stored, StoreError> {
        self.wait(self.inner.put_files(files))
    }

    /// As [`crate::Store::remove_artifact`].
    ///
    /// # Errors
    /// As there.
    pub fn remove_artifact(&self, hash: ArtifactHash) -> Result<(), StoreError> {
        self.wait(self.inner.remove_artifact(hash))
    }

    /// As [`crate::Store::unreferenced_chunks`].
    ///
    /// # Errors
    /// As there.
    pub fn unreferenced_chunks(&self) -> Result<BTreeSet<Digest>, StoreError> {
        self.wait(self.inner.unreferenced_chunks())
    }

    /// As [`crate::Store::remove_chunks`].
    ///
    /// # Errors
    /// As there.
    pub fn remove_chunks(&self, chunks: BTreeSet<Digest>) -> Result<(), StoreError> {
        self.wait(self.inner.remove_chunks(chunks))
    }

    /// As [`crate::Store::manifest`].
    ///
    /// # Errors
    /// As there.
    pub fn manifest(&self, hash: ArtifactHash) -> Result<Manifest, StoreError> {
        self.wait(self.inner.manifest(hash))
    }

    /// As [`crate::Store::read_file`].
    ///
    /// # Errors
    /// As there.
    pub fn read_file(&self, hash: ArtifactHash, path: &str) -> Result<Vec<u8>, StoreError> {
        self.wait(self.inner.read_file(hash, path))
    }

    /// As [`crate::Store::materialise`].
    ///
    /// # Errors
    /// As there.
    pub fn materialise(&self, hash: ArtifactHash, dir: &Path) -> Result<(), StoreError> {
        self.wait(self.inner.materialise(hash, dir))
    }

    /// As [`crate::Store::bind_key`].
    ///
    /// # Errors
    /// As there.
    pub fn bind_key(
        &self,
        namespace: Option<&str>,
        key: &str,
        artifact: ArtifactHash,
    ) -> Result<(), StoreError> {
        self.wait(self.inner.bind_key(namespace, key, artifact))
    }

    /// As [`crate::Store::find_key`].
    ///
    /// # Errors
    /// As there.
    pub fn find_key(
        &self,
        namespace: Option<&str>,
        key: &str,
    ) -> Result<Option<ArtifactHash>, StoreError> {
        self.wait(self.inner.find_key(namespace, key))
    }

    /// As [`crate::Store::keys`].
    ///
    /// # Errors
    /// As there.
    pub fn keys(&self) -> Result<Vec<KeyBinding>, StoreError> {
        self.wait(self.inner.keys())
    }

    /// As [`crate::Store::list`].
    ///
    /// # Errors
    /// As there.
    pub fn list(&self) -> Result<Vec<ArtifactInfo>, StoreError> {
        self.wait(self.inner.list())
    }

    /// As [`crate::Store::resolve`].
    ///
    /// # Errors
    /// As there.
    pub fn resolve(&self, prefix: &str) -> Result<ArtifactHash, StoreError> {
        self.wait(self.inner.resolve(prefix))
    }

    /// As [`crate::Store::verify`].
    ///
    /// # Errors
    /// As there.
    pub fn verify(&self, artifact: Option<ArtifactHash>) -> Result<VerifyReport, StoreError> {
        self.wait(self.inner.verify(artifact))
    }

    /// As [`crate::Store::gc`].
    ///
    /// # Errors
    /// As there.
    pub fn gc(&self, options: &GcOptions) -> Result<GcReport, StoreError> {
        self.wait(self.inner.gc(options))
    }

    /// On a thread of its own where the caller is itself inside an async runtime,
    /// which would refuse to be blocked.
    fn wait<T: Send>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return self.runtime.block_on(work);
        }
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| self.runtime.block_on(work));
            waiter.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
