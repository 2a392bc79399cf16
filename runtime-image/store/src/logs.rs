//! A task's output beyond its machine's life: numbered pieces, and its exit report.
//!
//! ```text
//! logs/<namespace>/<owner>/<claim>/00000000    the first piece of output, as it was written
//! logs/<namespace>/<owner>/<claim>/…
//! logs/<namespace>/<owner>/<claim>/exit.json   how it ended; nothing follows
//! ```

use std::sync::Arc;

use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, path::Path};

use crate::StoreError;

const EXIT: &str = "exit.json";

/// Where a claim's output is kept, below the store.
pub fn prefix(namespace: &str, owner: &str, claim: &str) -> String {
    Path::from_iter(["logs", namespace, owner, claim]).to_string()
}

/// Writes one claim's output.
#[derive(Debug)]
pub struct LogWriter {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    next: u64,
}

impl LogWriter {
    /// Below this prefix, which nobody else writes to.
    pub fn new(objects: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        Self { objects, prefix: Path::from(prefix), next: 0 }
    }

    /// Keeps the next piece. After an error, give the same piece again: it takes the same place.
    ///
    /// # Errors
    /// What the store said.
    pub async fn write(&mut self, piece: Bytes) -> Result<(), StoreError> {
        let object = numbered(&self.prefix, self.next);
        put(&*self.objects, object, piece).await?;
        self.next += 1;
        Ok(())
    }

    /// Keeps the exit report.
    ///
    /// # Errors
    /// What the store said.
    pub async fn finish(&self, report: Bytes) -> Result<(), StoreError> {
        put(&*self.objects, self.prefix.clone().join(EXIT), report).await
    }
}

/// Reads one claim's output, piece by piece.
#[derive(Debug)]
pub struct LogReader {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    next: u64,
}

impl LogReader {
    /// Below this prefix, from the first piece.
    pub fn new(objects: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        Self { objects, prefix: Path::from(prefix), next: 0 }
    }

    /// The next piece, `None` where it is not there yet.
    ///
    /// # Errors
    /// What the store said.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        let piece = get(&*self.objects, numbered(&self.prefix, self.next)).await?;
        self.next += u64::from(piece.is_some());
        Ok(piece)
    }

    /// The exit report, `None` where it is not there yet.
    ///
    /// # Errors
    /// What the store said.
    pub async fn exit(&self) -> Result<Option<Bytes>, StoreError> {
        get(&*self.objects, self.prefix.clone().join(EXIT)).await
    }
}

fn numbered(prefix: &Path, number: u64) -> Path {
    prefix.clone().join(format!("{number:08}"))
}

async fn put(objects: &dyn ObjectStore, object: Path, bytes: Bytes) -> Result<(), StoreError> {
    match objects.put(&object, PutPayload::from_bytes(bytes)).await {
        Ok(_) => Ok(()),
        Err(e) => Err(StoreError::backend(object.to_string(), e).writing()),
    }
}

async fn get(objects: &dyn ObjectStore, object: Path) -> Result<Option<Bytes>, StoreError> {
    let got = match objects.get(&object).await {
        Ok(got) => got.bytes().await,
        Err(e) => Err(e),
    };
    match got {
        Ok(bytes) => Ok(Some(bytes)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(e) => Err(StoreError::backend(object.to_string(), e)),
    }
}
