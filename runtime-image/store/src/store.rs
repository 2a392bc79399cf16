//! Opening a store, the few primitives that the other modules are made of,
//! naming artifacts by prefix, and listing them.

use std::{
    fs::{File, TryLockError},
    path::{Path as FilePath, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload, path::Path};
use serde::Serialize;

use crate::{
    ArtifactHash, Damage, Digest, Manifest, StoreError,
    place::{self, Credentials, Place},
    put::off_thread,
};

/// How long a creation whose answer was lost is tried again.
const LOST_ANSWER_WITHIN: std::time::Duration = std::time::Duration::from_secs(30);

/// A store of artifacts. Cheap to clone; all clones are the same store.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) objects: Arc<dyn ObjectStore>,
    /// The folder of a local store.
    pub(crate) root: Option<PathBuf>,
    /// In a bucket, where answers get lost and there is no lock.
    pub(crate) bucket: bool,
    name: String,
}

/// One line of [`Store::list`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArtifactInfo {
    /// Its name.
    pub hash: ArtifactHash,
    /// When its manifest was written to this store.
    pub written: jiff::Timestamp,
    /// Number of files; 0 where the manifest is damaged.
    pub files: usize,
    /// Bytes of all files together; 0 where the manifest is damaged.
    pub bytes: u64,
    /// What is wrong with its manifest. Chunks are looked at by [`Store::verify`].
    pub damage: Option<Damage>,
}

/// Holds off [`Store::gc`] in a local folder while it lives; nothing elsewhere.
pub(crate) struct Guard(
    #[expect(dead_code, reason = "the lock lasts as long as the file")] Option<File>,
);

impl Store {
    /// Opens the store at a folder (`/path`, `path`, `file:///path`), which is made
    /// if it is not there, or in a bucket (`s3://bucket/prefix`) with the endpoint and
    /// credentials of the environment (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, …). A store
    /// that can only be read opens, too; a bucket is first asked when it is used.
    ///
    /// # Errors
    /// [`StoreError::UnsupportedScheme`] for every other kind of place, or why the
    /// folder cannot be made or reached.
    pub fn open(uri: &str) -> Result<Self, StoreError> {
        Self::open_with(uri, None)
    }

    /// As [`Store::open`], with these credentials instead of the environment's.
    ///
    /// # Errors
    /// As there.
    pub fn open_with(uri: &str, credentials: Option<&Credentials<'_>>) -> Result<Self, StoreError> {
        let Place { objects, name, root } = place::open(uri, credentials)?;
        Ok(Self { objects, bucket: root.is_none(), root, name })
    }

    /// Over any object store; `name` stands for it in messages. Nothing keeps its
    /// gc and its writers apart: run it while nobody writes.
    pub fn over(objects: Arc<dyn ObjectStore>, name: impl Into<String>) -> Self {
        Self { objects, root: None, bucket: false, name: name.into() }
    }

    /// The folder or URI, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// An object as a person would look for it: a file path where there is one.
    pub(crate) fn place(&self, object: &Path) -> String {
        format!("{}/{object}", self.name)
    }

    pub(crate) fn chunk_object(digest: Digest) -> Path {
        let hex = digest.to_string();
        Path::from_iter(["chunks", &hex[..2], &hex])
    }

    pub(crate) fn manifest_object(hash: ArtifactHash) -> Path {
        Path::from_iter(["artifacts", &format!("{hash}.json")])
    }

    /// `None` where there is no such object.
    pub(crate) async fn get(&self, object: &Path) -> Result<Option<Bytes>, StoreError> {
        let got = match self.objects.get(object).await {
            Ok(got) => got.bytes().await,
            Err(e) => Err(e),
        };
        match got {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) if place::is_missing(&*self.objects, object, &e).await => Ok(None),
            Err(e) => Err(StoreError::backend(self.place(object), e)),
        }
    }

    /// `None` where there is no such object.
    pub(crate) async fn head(&self, object: &Path) -> Result<Option<ObjectMeta>, StoreError> {
        match self.objects.head(object).await {
            Ok(meta) => Ok(Some(meta)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) if place::is_missing(&*self.objects, object, &e).await => Ok(None),
            Err(e) => Err(StoreError::backend(self.place(object), e)),
        }
    }

    /// Whether the object was written by this call: with [`PutMode::Create`], `false` says
    /// that it was there.
    pub(crate) async fn put(
        &self,
        object: &Path,
        bytes: Bytes,
        mode: PutMode,
    ) -> Result<bool, StoreError> {
        let create = mode == PutMode::Create;
        let began = std::time::Instant::now();
        let mut lost_answer = false;
        loop {
            let payload = PutPayload::from_bytes(bytes.clone());
            match self.objects.put_opts(object, payload, mode.clone().into()).await {
                Ok(_) => return Ok(true),
                // It may be what an earlier try wrote, whose answer was lost.
                Err(object_store::Error::AlreadyExists { .. }) => {
                    return Ok(lost_answer && self.get(object).await? == Some(bytes));
                }
                // The backend repeats by itself what it may; a creation it may not.
                Err(object_store::Error::Generic { .. })
                    if create && self.bucket && began.elapsed() < LOST_ANSWER_WITHIN =>
                {
                    lost_answer = true;
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
                Err(e) => return Err(StoreError::backend(self.place(object), e).writing()),
            }
        }
    }

    /// Removes an object; one that is gone already is no error.
    pub(crate) async fn remove(&self, object: &Path) -> Result<(), StoreError> {
        match self.objects.delete(object).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(StoreError::backend(self.place(object), e).writing()),
        }
    }

    pub(crate) async fn list_under(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        let prefix = Path::from(prefix);
        let mut found: Vec<ObjectMeta> = self
            .objects
            .list(Some(&prefix))
            .try_collect()
            .await
            .map_err(|e| StoreError::backend(self.place(&prefix), e))?;
        found.sort_by(|a, b| a.location.cmp(&b.location));
        Ok(found)
    }

    /// Keeps gc away while an artifact is written. Other writers are let in; a gc
    /// under way is waited for.
    pub(crate) async fn writing(&self) -> Result<Guard, StoreError> {
        let Some(path) = self.lock_file() else {
            return Ok(Guard(None));
        };
        off_thread(move || {
            let file = open_lock(&path)?;
            file.lock_shared().map_err(|e| StoreError::io(&path, e).writing())?;
            Ok(Guard(Some(file)))
        })
        .await
    }

    /// Keeps writers away while gc removes things.
    pub(crate) fn removing(&self) -> Result<Guard, StoreError> {
        let Some(path) = self.lock_file() else {
            return Ok(Guard(None));
        };
        let file = open_lock(&path)?;
        file.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => StoreError::Busy { store: self.name.clone() },
            TryLockError::Error(e) => StoreError::io(&path, e).writing(),
        })?;
        Ok(Guard(Some(file)))
    }

    fn lock_file(&self) -> Option<PathBuf> {
        Some(self.root.as_ref()?.join(".lock"))
    }

    /// Hashes of all artifacts, in order.
    pub(crate) async fn hashes(&self) -> Result<Vec<(ArtifactHash, ObjectMeta)>, StoreError> {
        let objects = self.list_under("artifacts").await?;
        Ok(objects
            .into_iter()
            .filter_map(|meta| {
                let hash = meta.location.filename()?.strip_suffix(".json")?.parse();
                Some((hash.ok()?, meta))
            })
            .collect())
    }

    /// All artifacts, in the order of their hashes. One with a damaged manifest is
    /// listed with what is wrong; chunks are not read.
    ///
    /// # Errors
    /// Why the store cannot be read.
    pub async fn list(&self) -> Result<Vec<ArtifactInfo>, StoreError> {
        let mut artifacts = Vec::new();
        for (hash, meta) in self.hashes().await? {
            let (files, bytes, damage) = match self.manifest(hash).await {
                Ok(manifest) => (manifest.files.len(), manifest.bytes(), None),
                Err(StoreError::Damaged(damage)) => (0, 0, Some(*damage)),
                Err(StoreError::NotFound { .. }) => continue, // removed meanwhile
                Err(e) => return Err(e),
            };
            artifacts.push(ArtifactInfo { hash, written: timestamp(&meta), files, bytes, damage });
        }
        Ok(artifacts)
    }

    /// The artifact whose hash is, or alone begins with, these 4 to 64 digits.
    ///
    /// # Errors
    /// [`StoreError::BadHash`], [`StoreError::NotFound`] or [`StoreError::Ambiguous`].
    pub async fn resolve(&self, prefix: &str) -> Result<ArtifactHash, StoreError> {
        let hex = prefix.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !hex || !(4..=64).contains(&prefix.len()) {
            return Err(StoreError::BadHash(prefix.into()));
        }
        // A whole name needs no list, which not everybody may read.
        if let Ok(hash) = prefix.parse() {
            let there = self.head(&Self::manifest_object(hash)).await?.is_some();
            return if there { Ok(hash) } else { Err(self.not_found(prefix)) };
        }
        let mut candidates: Vec<ArtifactHash> = self
            .hashes()
            .await?
            .into_iter()
            .map(|(hash, _)| hash)
            .filter(|hash| hash.to_string().starts_with(prefix))
            .collect();
        match candidates.pop() {
            None => Err(self.not_found(prefix)),
            Some(only) if candidates.is_empty() => Ok(only),
            Some(last) => {
                candidates.push(last);
                Err(StoreError::Ambiguous { prefix: prefix.into(), candidates })
            }
        }
    }

    pub(crate) fn not_found(&self, name: impl ToString) -> StoreError {
        StoreError::NotFound { name: name.to_string(), store: self.name.clone() }
    }
}

fn open_lock(path: &FilePath) -> Result<File, StoreError> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|e| StoreError::io(path, e).writing())
}

/// When an object was written. Times outside of jiff's ten thousand years become its limits.
pub(crate) fn timestamp(meta: &ObjectMeta) -> jiff::Timestamp {
    let seconds = meta.last_modified.timestamp();
    jiff::Timestamp::from_second(seconds).unwrap_or(if seconds < 0 {
        jiff::Timestamp::MIN
    } else {
        jiff::Timestamp::MAX
    })
}

impl Manifest {
    pub(crate) fn damage(&self, path: &str, object: String, problem: String) -> Damage {
        Damage {
            artifact: Some(self.artifact),
            path: Some(path.into()),
            object,
            problem,
            mend: mend(),
        }
    }
}

/// How what is damaged becomes whole: content-addressed, it can only come from the same files.
pub(crate) fn mend() -> String {
    "run the job again or import the same files again: that writes it anew".into()
}
