//! Plain objects of a place, for callers without async: inputs, and names of checkpoints.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, path::Path};

use crate::{
    StoreError,
    place::{self, Credentials, Place},
};

/// The objects below a URI. Calls return when they are done.
#[derive(Debug)]
pub struct Objects {
    objects: Arc<dyn ObjectStore>,
    name: String,
    runtime: tokio::runtime::Runtime,
}

impl Objects {
    /// As [`crate::Store::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open(uri: &str) -> Result<Self, StoreError> {
        Self::open_with(uri, None)
    }

    /// As [`Objects::open`], with these credentials instead of the environment's.
    ///
    /// # Errors
    /// As there.
    pub fn open_with(uri: &str, credentials: Option<&Credentials<'_>>) -> Result<Self, StoreError> {
        let Place { objects, name, root: _ } = place::open(uri, credentials)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| StoreError::io(&name, e))?;
        Ok(Self { objects, name, runtime })
    }

    /// The folder or URI, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes a small object in one piece; what is large is an artifact ([`crate::Store`]), whose chunks
    /// travel by themselves. It is there as a whole, and durable, when this returns; after an
    /// error it is as it was before.
    ///
    /// # Errors
    /// What the store said.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let object = Path::from(name);
        let payload = PutPayload::from_bytes(Bytes::copy_from_slice(bytes));
        let put = self.objects.put(&object, payload);
        self.runtime.block_on(put).map(drop).map_err(|e| self.failed(name, e).writing())
    }

    /// An object's content, `None` where there is no such object.
    ///
    /// # Errors
    /// What the store said.
    pub fn get(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let object = Path::from(name);
        let get = async {
            match async { self.objects.get(&object).await?.bytes().await }.await {
                Ok(bytes) => Ok(Some(bytes.into())),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(e) if place::is_missing(&*self.objects, &object, &e).await => Ok(None),
                Err(e) => Err(e),
            }
        };
        self.runtime.block_on(get).map_err(|e| self.failed(name, e))
    }

    /// Removes an object; one that is gone already is no error.
    ///
    /// # Errors
    /// What the store said.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let object = Path::from(name);
        match self.runtime.block_on(self.objects.delete(&object)) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.failed(name, e).writing()),
        }
    }

    /// The names of all objects, or of those in a folder.
    ///
    /// # Errors
    /// What the store said.
    pub fn list(&self, folder: Option<&str>) -> Result<BTreeSet<String>, StoreError> {
        let folder = folder.map(Path::from);
        let listing = self.objects.list(folder.as_ref()).map_ok(|meta| meta.location.to_string());
        self.runtime.block_on(listing.try_collect()).map_err(|e| self.failed("", e))
    }

    fn failed(&self, name: &str, error: object_store::Error) -> StoreError {
        StoreError::backend(format!("{}/{name}", self.name), error)
    }
}
