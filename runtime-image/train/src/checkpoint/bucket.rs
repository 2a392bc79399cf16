//! Checkpoints in a bucket: what a machine that is lost at any moment leaves behind.
//!
//! A checkpoint is there when its manifest is; files that no manifest names are what a lost
//! machine was writing, and are removed when the bucket is next opened.
//!
//! There is no lock. Two machines that train the same key at once (the first was taken for lost)
//! write the same bytes under the same names, and each removes only what is older than its own
//! newest: at worst one finds a checkpoint incomplete, says so, and uses the one before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use petaflop_store::Objects;

use super::{Checkpoint, Files, MANIFEST, Naming, Writing, Written, manifest, verified};
use crate::error::Error;

/// A bucket's checkpoints, as this process uses them.
#[derive(Debug)]
pub struct Bucket {
    objects: Objects,
    naming: Naming,
    /// For what else a job writes on the way; gone when the job is.
    scratch: tempfile::TempDir,
}

impl Bucket {
    /// Opens it and removes what a lost machine left unfinished.
    ///
    /// # Errors
    /// It cannot be reached, or there is no room for temporary files here.
    pub fn open(uri: &str, key: &str, keep: u32) -> Result<Self, Error> {
        let scratch = tempfile::Builder::new()
            .prefix("petaflop-job-")
            .tempdir()
            .map_err(Error::io("cannot make a folder in", &std::env::temp_dir()))?;
        let objects = Objects::open(uri).map_err(Error::checkpoints)?;
        let bucket = Self { objects, naming: Naming::new(key, keep), scratch };
        for (name, files) in bucket.checkpoints()? {
            if bucket.naming.is_mine(&name) && !files.iter().any(|file| file == MANIFEST) {
                bucket.remove(&name, &files)?;
            }
        }
        Ok(bucket)
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
        for (name, _) in self.checkpoints()?.into_iter().rev() {
            // A store that is away is no damage: it ends the job, which can be tried again.
            let mut unreachable = None;
            let read = verified(&self.naming, &name, |file| {
                match self.objects.get(&format!("{name}/{file}")) {
                    Ok(Some(bytes)) => Ok(bytes),
                    Ok(None) => Err("is missing".into()),
                    Err(error) => {
                        let message = error.to_string();
                        unreachable = Some(error);
                        Err(message)
                    }
                }
            });
            if let Some(error) = unreachable {
                return Err(Error::checkpoints(error));
            }
            match read {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(problem) => skipped(format!(
                    "checkpoint {}/{name}: {problem}; not used",
                    self.objects.name()
                )),
            }
        }
        Ok(None)
    }

    /// As [`super::Folder::write`].
    ///
    /// # Errors
    /// As there.
    pub fn write(&self, step: u64, files: &Files) -> Result<PathBuf, Error> {
        let name = self.naming.name(step);
        let object = |file: &str| format!("{name}/{file}");
        // Only a checkpoint that was passed over as damaged can be in the way.
        self.objects.remove(&object(MANIFEST)).map_err(Error::checkpoints)?;
        for (file, bytes) in files {
            self.objects.put(&object(file), bytes).map_err(Error::checkpoints)?;
        }
        let manifest = manifest(&self.naming, step, files)?;
        self.objects.put(&object(MANIFEST), &manifest).map_err(Error::checkpoints)?;
        let checkpoints = self.checkpoints()?;
        for old in self.naming.outdated(step, checkpoints.keys()) {
            self.remove(&old, &checkpoints[&old])?;
        }
        Ok(PathBuf::from(format!("{}/{name}", self.objects.name())))
    }

    /// As [`super::Folder::write_in_background`].
    #[must_use]
    pub fn write_in_background(&self, step: u64, files: Files) -> Writing {
        let started = Instant::now();
        let (uri, naming) = (self.objects.name().to_owned(), self.naming.clone());
        let scratch = tempfile::tempdir();
        Writing(std::thread::spawn(move || {
            let objects = Objects::open(&uri).map_err(Error::checkpoints)?;
            let scratch =
                scratch.map_err(Error::io("cannot make a folder in", &std::env::temp_dir()))?;
            let path = Self { objects, naming, scratch }.write(step, &files)?;
            Ok(Written { step, path, took: started.elapsed() })
        }))
    }

    /// Every checkpoint's name and files, oldest step first.
    pub(super) fn checkpoints(&self) -> Result<BTreeMap<String, Vec<String>>, Error> {
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for object in self.objects.list().map_err(Error::checkpoints)? {
            if let Some((name, file)) = object.split_once('/')
                && name.starts_with("step-")
            {
                found.entry(name.into()).or_default().push(file.into());
            }
        }
        Ok(found)
    }

    /// The manifest first: what is half removed is not there.
    fn remove(&self, name: &str, files: &[String]) -> Result<(), Error> {
        let rest = files.iter().map(String::as_str).filter(|file| *file != MANIFEST);
        for file in std::iter::once(MANIFEST).chain(rest) {
            self.objects.remove(&format!("{name}/{file}")).map_err(Error::checkpoints)?;
        }
        Ok(())
    }
}
