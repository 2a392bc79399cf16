//! An artifact of another store is taken over: read there, checked, and written here, chunk by
//! chunk, without a disk in between.

use futures::{StreamExt, TryStreamExt, stream};

use crate::{ArtifactHash, Store, StoreError, Stored, sweeps::LONGEST_PUT};

/// Chunks on their way at once: bounds memory to this many × 4 MiB.
const IN_FLIGHT: usize = 4;

impl Store {
    /// Takes an artifact over from another store. Chunks that are here already are neither read nor
    /// written; what was written before something failed serves the next try.
    ///
    /// # Errors
    /// It is not there, or not what its name says; what either store said.
    pub async fn take(&self, from: &Self, artifact: ArtifactHash) -> Result<Stored, StoreError> {
        let manifest = from.manifest(artifact).await?;
        let _guard = self.writing().await?;
        let began = tokio::time::Instant::now();
        let mut bytes_sent = 0;
        loop {
            let sweeps = self.other_sweeps().await?;
            for file in &manifest.files {
                let sent = stream::iter(manifest.chunks(file)).map(|(digest, length)| {
                    let manifest = &manifest;
                    async move {
                        if self.holds(&Self::chunk_object(digest), digest, length).await? {
                            return Ok::<u64, StoreError>(0);
                        }
                        let chunk = from.checked_chunk(manifest, file, digest, length).await?;
                        self.put_chunk(digest, chunk).await
                    }
                });
                let sent: Vec<u64> = sent.buffered(IN_FLIGHT).try_collect().await?;
                bytes_sent += sent.iter().sum::<u64>();
            }
            if began.elapsed() > LONGEST_PUT && self.bucket {
                return Err(StoreError::TooSlow { store: self.name().to_owned() });
            }
            // A gc that ran meanwhile may have taken what was here before.
            if self.other_sweeps().await? == sweeps {
                break;
            }
        }
        bytes_sent += self.put_manifest(&manifest).await?;
        Ok(Stored { hash: artifact, bytes: manifest.bytes(), bytes_sent })
    }
}
