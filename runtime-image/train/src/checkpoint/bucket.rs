//! Checkpoints in a bucket: what a machine that is lost at any moment leaves behind.
//!
//! ```text
//! steps/step-0000000050-<16 digits of key>    the hash of an artifact that holds
//!                                             manifest.json and the checkpoint's files
//! artifacts/ chunks/                          as in every store
//! ```
//!
//! A checkpoint is there when its name is, which is written last. Its chunks are in the store as
//! soon as each has travelled, so that an upload which was cut off, by a SIGKILL too, goes on where
//! it was when training gets to that step again, and what did not change since the last
//! checkpoint is not sent at all. Chunks that no checkpoint came to use go after the next one.
//!
//! There is no lock. Two machines that train the same key at once (the first was taken for lost)
//! write the same bytes under the same names, and each removes only checkpoints that are older than its
//! own newest, and chunks that were there when it began: at worst one finds a checkpoint incomplete, says
//! so, and uses the one before.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use petaflop_store::{ArtifactHash, Digest, Objects, StoreError, blocking::Store};

use super::{Checkpoint, Files, MANIFEST, Naming, Writing, Written, manifest, verified};
use crate::error::Error;

/// Where the names of checkpoints are.
const STEPS: &str = "steps";

/// A bucket's checkpoints, as this process uses them.
#[derive(Debug)]
pub struct Bucket {
    place: Arc<Place>,
    /// For what else a job writes on the way; gone when the job is.
    scratch: tempfile::TempDir,
}

/// What a thread of its own can write to.
#[derive(Debug)]
struct Place {
    /// The names.
    objects: Objects,
    /// The artifacts.
    store: Store,
    naming: Naming,
    /// What it was found to hold for nobody, until it is removed.
    left: Mutex<Option<Left>>,
}

/// What uploads that were cut off left behind.
#[derive(Debug)]
struct Left {
    artifacts: BTreeSet<ArtifactHash>,
    chunks: BTreeSet<Digest>,
}

impl Bucket {
    /// Opens it.
    ///
    /// # Errors
    /// It cannot be reached, or there is no room for temporary files here.
    pub fn open(uri: &str, key: &str, keep: u32) -> Result<Self, Error> {
        let scratch = tempfile::Builder::new()
            .prefix("petaflop-job-")
            .tempdir()
            .map_err(Error::io("cannot make a folder in", &std::env::temp_dir()))?;
        let place = Place {
            objects: Objects::open(uri).map_err(Error::checkpoints)?,
            store: Store::open(uri).map_err(Error::checkpoints)?,
            naming: Naming::new(key, keep),
            left: Mutex::new(None),
        };
        let left = place.left_behind().map_err(Error::checkpoints)?;
        *place.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(left);
        Ok(Self { place: Arc::new(place), scratch })
    }

    /// A folder of this machine for what else the job writes.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// As [`super::Folder::newest`].
    ///
    /// # Errors
    /// The bucket cannot be read.
    pub fn newest(&self, mut skipped: impl FnMut(String)) -> Result<Option<Checkpoint>, Error> {
        let Place { objects, naming, .. } = &*self.place;
        for name in self.place.names().map_err(Error::checkpoints)?.into_iter().rev() {
            // A store that is away is no damage: it ends the job, which can be tried again.
            let mut unreachable = None;
            let mut hash = None;
            let read = verified(naming, &name, |file| {
                self.place.read(&name, &mut hash, file).map_err(|error| match error {
                    StoreError::Damaged(_)
                    | StoreError::NotFound { .. }
                    | StoreError::NoSuchFile { .. }
                    | StoreError::BadHash(_) => error.to_string(),
                    error => {
                        let message = error.to_string();
                        unreachable = Some(error);
                        message
                    }
                })
            });
            if let Some(error) = unreachable {
                return Err(Error::checkpoints(error));
            }
            match read {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(problem) => {
                    skipped(format!("checkpoint {}/{name}: {problem}; not used", objects.name()));
                }
            }
        }
        Ok(None)
    }

    /// As [`super::Folder::write`].
    ///
    /// # Errors
    /// As there.
    pub fn write(&self, step: u64, files: &Files) -> Result<PathBuf, Error> {
        self.place.write(step, files).map(|(path, _)| path)
    }

    /// As [`super::Folder::write_in_background`].
    #[must_use]
    pub fn write_in_background(&self, step: u64, files: Files) -> Writing {
        let started = Instant::now();
        let place = self.place.clone();
        Writing(std::thread::spawn(move || {
            let (path, sent) = place.write(step, &files)?;
            Ok(Written { step, path, took: started.elapsed(), sent })
        }))
    }

    /// The names of all checkpoints, oldest step first.
    #[cfg(test)]
    pub(super) fn names(&self) -> Vec<String> {
        self.place.names().unwrap().into_iter().collect()
    }

    /// Chunks that no checkpoint uses.
    #[cfg(test)]
    pub(super) fn unreferenced_chunks(&self) -> usize {
        self.place.store.unreferenced_chunks().unwrap().len()
    }
}

impl Place {
    /// Writes a checkpoint; where it is, and how many bytes that took.
    fn write(&self, step: u64, files: &Files) -> Result<(PathBuf, u64), Error> {
        let mut files = files.clone();
        files.insert(MANIFEST.to_owned(), manifest(&self.naming, step, &files)?.into());
        let name = self.naming.name(step);
        let sent = self.put(step, &name, &files).map_err(Error::checkpoints)?;
        Ok((PathBuf::from(format!("{}/{STEPS}/{name}", self.objects.name())), sent))
    }

    fn put(&self, step: u64, name: &str, files: &Files) -> Result<u64, StoreError> {
        // Only a checkpoint that was passed over as damaged can be in the way.
        self.remove(name)?;
        let stored = self.store.put_files(files)?;
        self.objects.put(&at(name), format!("{}\n", stored.hash).as_bytes())?;
        for old in self.naming.outdated(step, &self.names()?) {
            self.remove(&old)?;
        }
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Left { artifacts, chunks }) = left {
            for unnamed in artifacts.difference(&self.named()?) {
                self.store.remove_artifact(*unnamed)?;
            }
            self.store.remove_chunks(chunks)?;
        }
        Ok(stored.bytes_sent)
    }

    /// The names of all checkpoints, oldest step first.
    fn names(&self) -> Result<BTreeSet<String>, StoreError> {
        let names = self.objects.list(Some(STEPS))?;
        let steps = names.iter().filter_map(|name| name.strip_prefix(STEPS)?.strip_prefix('/'));
        Ok(steps.filter(|name| name.starts_with("step-")).map(str::to_owned).collect())
    }

    /// The artifact of this name, `None` where there is no such checkpoint.
    fn artifact(&self, name: &str) -> Result<Option<ArtifactHash>, StoreError> {
        let Some(content) = self.objects.get(&at(name))? else { return Ok(None) };
        let text = String::from_utf8_lossy(&content);
        text.trim_end().parse().map(Some).map_err(|_| StoreError::BadHash(text.into_owned()))
    }

    /// One file of a checkpoint, whose artifact is looked up once.
    fn read(
        &self,
        name: &str,
        hash: &mut Option<ArtifactHash>,
        file: &str,
    ) -> Result<Vec<u8>, StoreError> {
        let missing =
            || StoreError::NotFound { name: at(name), store: self.objects.name().to_owned() };
        let hash = match hash {
            Some(hash) => hash,
            unknown => unknown.insert(self.artifact(name)?.ok_or_else(missing)?),
        };
        self.store.read_file(*hash, file)
    }

    /// The artifacts of all checkpoints.
    fn named(&self) -> Result<BTreeSet<ArtifactHash>, StoreError> {
        let mut named = BTreeSet::new();
        for name in self.names()? {
            match self.artifact(&name) {
                Ok(hash) => named.extend(hash),
                Err(StoreError::BadHash(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(named)
    }

    /// The name first: what is half removed is not there.
    fn remove(&self, name: &str) -> Result<(), StoreError> {
        let artifact = match self.artifact(name) {
            Err(StoreError::BadHash(_)) => None,
            artifact => artifact?,
        };
        self.objects.remove(&at(name))?;
        match artifact {
            Some(hash) => self.store.remove_artifact(hash),
            None => Ok(()),
        }
    }

    fn left_behind(&self) -> Result<Left, StoreError> {
        let named = self.named()?;
        let artifacts = self.store.list()?.into_iter().map(|artifact| artifact.hash);
        Ok(Left {
            artifacts: artifacts.filter(|hash| !named.contains(hash)).collect(),
            chunks: self.store.unreferenced_chunks()?,
        })
    }
}

fn at(name: &str) -> String {
    format!("{STEPS}/{name}")
}
