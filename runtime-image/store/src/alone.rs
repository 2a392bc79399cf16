//! Removing single artifacts from a place that one writer has for itself: a job's checkpoints.
//!
//! [`Store::gc`] keeps for two days what nothing refers to, for it may belong to somebody's upload.
//! Whoever writes alone knows whose it is, and need not pay for every state that a model was ever in.

use std::collections::BTreeSet;

use crate::{ArtifactHash, Digest, Manifest, Store, StoreError};

impl Store {
    /// Removes an artifact, and those of its chunks that no other refers to. One that is gone already
    /// is no error; of one whose manifest cannot be read the chunks stay.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while somebody writes to a local folder; what the store said.
    pub async fn remove_artifact(&self, hash: ArtifactHash) -> Result<(), StoreError> {
        let chunks = self.readable(hash).await?.map(chunks).unwrap_or_default();
        let guard = self.removing()?;
        self.remove(&Self::manifest_object(hash)).await?;
        drop(guard);
        self.remove_chunks(chunks).await
    }

    /// Chunks that no artifact refers to: what uploads that were cut off have brought here.
    ///
    /// # Errors
    /// What the store said.
    pub async fn unreferenced_chunks(&self) -> Result<BTreeSet<Digest>, StoreError> {
        let there = self.list_under("chunks").await?;
        let mut chunks: BTreeSet<Digest> = there
            .iter()
            .filter_map(|meta| meta.location.filename().and_then(|name| name.parse().ok()))
            .collect();
        self.leave_referenced(&mut chunks).await?;
        Ok(chunks)
    }

    /// Removes those of these chunks that no artifact refers to.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while somebody writes to a local folder; what the store said.
    pub async fn remove_chunks(&self, mut chunks: BTreeSet<Digest>) -> Result<(), StoreError> {
        let _guard = self.removing()?;
        self.leave_referenced(&mut chunks).await?;
        for digest in chunks {
            self.remove(&Self::chunk_object(digest)).await?;
        }
        Ok(())
    }

    async fn leave_referenced(&self, chunks: &mut BTreeSet<Digest>) -> Result<(), StoreError> {
        for (hash, _) in self.hashes().await? {
            if let Some(manifest) = self.readable(hash).await? {
                for used in self::chunks(manifest) {
                    chunks.remove(&used);
                }
            }
        }
        Ok(())
    }

    /// Its manifest, if it can be read: what is damaged keeps nothing alive.
    async fn readable(&self, hash: ArtifactHash) -> Result<Option<Manifest>, StoreError> {
        match self.manifest(hash).await {
            Ok(manifest) => Ok(Some(manifest)),
            Err(StoreError::Damaged(_) | StoreError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

fn chunks(manifest: Manifest) -> BTreeSet<Digest> {
    manifest.files.into_iter().flat_map(|file| file.chunks).collect()
}
