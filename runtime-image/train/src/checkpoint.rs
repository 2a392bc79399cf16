//! Durable states of a run, in a folder of this machine or in a bucket that outlives it.
//!
//! ```text
//! checkpoints/
//!   lock                              held (flock) while a runtime trains; says by whom
//!   step-0000000050-<16 digits of key>/
//!     manifest.json                   format, key, step, and (length, blake3) of each file
//!     <file> …
//!   .writing-…                        unfinished; removed when next opened
//! ```
//!
//! In a folder a checkpoint appears by one rename after everything in it has reached the disk;
//! in a bucket ([`bucket`]), where the same files are an artifact, by its name, which is written
//! last. An older one goes only after that. What is damaged is named and passed over for the one
//! before.

mod bucket;

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::Error;

pub use bucket::Bucket;

/// Layout of a checkpoint; raised when a reader of the old one could not read the new one.
const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";
const WRITING: &str = ".writing-";

/// The files of a checkpoint, by name.
pub type Files = BTreeMap<String, Bytes>;

/// A checkpoint that was read back and verified.
#[derive(Debug)]
pub struct Checkpoint {
    /// Steps done.
    pub step: u64,
    /// Its files, each with the hash that its manifest names.
    pub files: Files,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    key: String,
    step: u64,
    files: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct Entry {
    length: u64,
    blake3: String,
}

impl Entry {
    fn of(bytes: &[u8]) -> Self {
        Self { length: bytes.len() as u64, blake3: blake3::hash(bytes).to_string() }
    }
}

/// Which checkpoints are this job's, and how many of them stay.
#[derive(Clone, Debug)]
struct Naming {
    key: String,
    keep: usize,
}

impl Naming {
    fn new(key: &str, keep: u32) -> Self {
        Self { key: key.to_owned(), keep: keep.max(1) as usize }
    }

    fn name(&self, step: u64) -> String {
        format!("step-{step:010}-{:.16}", self.key)
    }

    fn is_mine(&self, name: &str) -> bool {
        name.starts_with("step-") && name.ends_with(&format!("-{:.16}", self.key))
    }

    /// This key's checkpoints beyond the newest that are kept, of those that are not newer than
    /// `step` (a newer one was passed over as damaged; it is overwritten when training gets there).
    fn outdated<'a>(&self, step: u64, names: impl IntoIterator<Item = &'a String>) -> Vec<String> {
        let newest = self.name(step);
        let mut mine: Vec<String> = names
            .into_iter()
            .filter(|name| self.is_mine(name) && **name <= newest)
            .cloned()
            .collect();
        mine.sort_unstable_by(|a, b| b.cmp(a));
        mine.split_off(self.keep.min(mine.len()))
    }
}

/// Where a job keeps its checkpoints.
#[derive(Debug)]
pub enum Checkpoints {
    /// In a folder of this machine.
    Folder(Folder),
    /// In a bucket.
    Bucket(Bucket),
}

impl Checkpoints {
    /// Opens a folder (a path) or a bucket (`s3://bucket/prefix`).
    ///
    /// # Errors
    /// It cannot be used; another process holds the folder.
    pub fn open(place: &str, key: &str, keep: u32) -> Result<Self, Error> {
        if petaflop_store::place::is_remote(place) {
            Ok(Self::Bucket(Bucket::open(place, key, keep)?))
        } else {
            let path = place.strip_prefix("file://").unwrap_or(place);
            Ok(Self::Folder(Folder::open(Path::new(path), key, keep)?))
        }
    }

    /// A folder of this machine for what else the job writes.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        match self {
            Self::Folder(folder) => folder.path(),
            Self::Bucket(bucket) => bucket.scratch(),
        }
    }

    /// The newest undamaged checkpoint of this key; see [`Folder::newest`].
    ///
    /// # Errors
    /// The place cannot be read.
    pub fn newest(&self, skipped: impl FnMut(String)) -> Result<Option<Checkpoint>, Error> {
        match self {
            Self::Folder(folder) => folder.newest(skipped),
            Self::Bucket(bucket) => bucket.newest(skipped),
        }
    }

    /// Writes a checkpoint in the background; see [`Folder::write`].
    #[must_use]
    pub fn write_in_background(&self, step: u64, files: Files) -> Writing {
        match self {
            Self::Folder(folder) => folder.write_in_background(step, files),
            Self::Bucket(bucket) => bucket.write_in_background(step, files),
        }
    }
}

/// A folder of checkpoints, locked for this process.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    naming: Naming,
    // Closing the file releases the lock, also when the process is killed.
    _lock: File,
}

impl Folder {
    /// Creates the folder where it is missing, locks it, and removes what an
    /// interrupted run left unfinished.
    ///
    /// # Errors
    /// The folder cannot be made or written to; another process holds it.
    pub fn open(path: &Path, key: &str, keep: u32) -> Result<Self, Error> {
        let cannot_use = |at: &Path, source| Error::Io {
            what: "cannot use checkpoints folder",
            path: at.into(),
            source,
        };
        fs::create_dir_all(path).map_err(|error| cannot_use(path, error))?;
        let lock =
            lock(path).map_err(|error| error.unwrap_or_else(|source| cannot_use(path, source)))?;
        let folder = Self { path: path.to_owned(), naming: Naming::new(key, keep), _lock: lock };
        for name in folder.names()?.iter().filter(|name| name.starts_with(WRITING)) {
            let path = path.join(name);
            let removed =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(Error::io("cannot remove unfinished file", &path))?;
        }
        Ok(folder)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The newest undamaged checkpoint of this key. `skipped` is told of every
    /// newer one that cannot be used, and why.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn newest(&self, mut skipped: impl FnMut(String)) -> Result<Option<Checkpoint>, Error> {
        let mut names: Vec<String> =
            self.names()?.into_iter().filter(|name| name.starts_with("step-")).collect();
        names.sort_unstable_by(|a, b| b.cmp(a));
        for name in names {
            match self.read(&name) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(problem) => {
                    skipped(format!(
                        "checkpoint {}: {problem}; not used",
                        self.path.join(name).display()
                    ));
                }
            }
        }
        Ok(None)
    }

    /// Writes a checkpoint and makes it durable, then removes those of this key
    /// that are no longer kept. Returns its folder.
    ///
    /// # Errors
    /// The system refuses; then nothing that existed has changed.
    pub fn write(&self, step: u64, files: &Files) -> Result<PathBuf, Error> {
        let name = self.naming.name(step);
        let temporary = self.path.join(format!("{WRITING}{name}"));
        let written = self.write_and_rename(step, files, &temporary, &self.path.join(&name));
        if written.is_err() {
            // Gives the space back; the reason to report is the first one.
            let _ = fs::remove_dir_all(&temporary);
        }
        let path = written?;
        self.prune(step)?;
        Ok(path)
    }

    /// [`Folder::write`] in the background.
    #[must_use]
    pub fn write_in_background(&self, step: u64, files: Files) -> Writing {
        let started = Instant::now();
        let Self { path, naming, _lock: lock } = self;
        // The lock lives as long as any handle on its file does.
        let lock = lock.try_clone();
        let (path, naming) = (path.clone(), naming.clone());
        Writing(std::thread::spawn(move || {
            let folder = Self {
                _lock: lock.map_err(Error::io("cannot share the lock of", &path))?,
                path,
                naming,
            };
            let path = folder.write(step, &files)?;
            let sent = files.values().map(|bytes| bytes.len() as u64).sum();
            Ok(Written { step, path, took: started.elapsed(), sent })
        }))
    }

    fn write_and_rename(
        &self,
        step: u64,
        files: &Files,
        temporary: &Path,
        path: &Path,
    ) -> Result<PathBuf, Error> {
        const WHAT: &str = "cannot write checkpoint";
        let manifest = manifest(&self.naming, step, files)?;
        fs::create_dir_all(temporary).map_err(Error::io(WHAT, temporary))?;
        for (name, bytes) in files.iter().chain([(&MANIFEST.to_owned(), &manifest.into())]) {
            let at = temporary.join(name);
            let write = || {
                let mut file = File::create(&at)?;
                file.write_all(bytes)?;
                file.sync_all()
            };
            write().map_err(Error::io(WHAT, &at))?;
        }
        sync_folder(temporary).map_err(Error::io(WHAT, temporary))?;
        // Only a checkpoint that was passed over as damaged can be in the way.
        if path.exists() {
            fs::remove_dir_all(path)
                .map_err(Error::io("cannot replace damaged checkpoint", path))?;
        }
        fs::rename(temporary, path).map_err(Error::io(WHAT, path))?;
        sync_folder(&self.path).map_err(Error::io(WHAT, &self.path))?;
        Ok(path.to_owned())
    }

    /// Removes what is no longer kept.
    fn prune(&self, step: u64) -> Result<(), Error> {
        for name in self.naming.outdated(step, &self.names()?) {
            let path = self.path.join(name);
            fs::remove_dir_all(&path).map_err(Error::io("cannot remove old checkpoint", &path))?;
        }
        Ok(())
    }

    fn read(&self, name: &str) -> Result<Checkpoint, String> {
        let folder = self.path.join(name);
        verified(&self.naming, name, |file| {
            fs::read(folder.join(file)).map_err(|error| error.to_string())
        })
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let list = || {
            fs::read_dir(&self.path)?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<io::Result<_>>()
        };
        list().map_err(Error::io("cannot list checkpoints in", &self.path))
    }
}

/// The manifest of these files.
fn manifest(naming: &Naming, step: u64, files: &Files) -> Result<Vec<u8>, Error> {
    let manifest = Manifest {
        format: FORMAT,
        key: naming.key.clone(),
        step,
        files: files.iter().map(|(name, bytes)| (name.clone(), Entry::of(bytes))).collect(),
    };
    serde_json::to_vec_pretty(&manifest).map_err(|error| Error::Internal(error.to_string()))
}

/// The checkpoint of this name, whose files `read` gives, or why it cannot be used.
fn verified(
    naming: &Naming,
    name: &str,
    mut read: impl FnMut(&str) -> Result<Vec<u8>, String>,
) -> Result<Checkpoint, String> {
    if !naming.is_mine(name) {
        return Err("belongs to another job".into());
    }
    let mut read = |file: &str| read(file).map_err(|error| format!("{file}: {error}"));
    let Manifest { format, key, step, files: entries } =
        serde_json::from_slice(&read(MANIFEST)?).map_err(|error| format!("{MANIFEST}: {error}"))?;
    if format != FORMAT {
        return Err(format!("has format {format}, this runtime reads format {FORMAT}"));
    }
    if key != naming.key {
        return Err(format!("belongs to another job (key {key})"));
    }
    if naming.name(step) != name {
        return Err(format!("its manifest says step {step}"));
    }
    let mut files = Files::new();
    for (name, expected) in entries {
        let bytes = read(&name)?;
        let found = Entry::of(&bytes);
        if found.length != expected.length {
            return Err(format!(
                "{name} has {} bytes, its manifest says {}",
                found.length, expected.length
            ));
        }
        if found != expected {
            return Err(format!("{name} has another content than its manifest says"));
        }
        files.insert(name, bytes.into());
    }
    Ok(Checkpoint { step, files })
}

/// A checkpoint on its way to the disk, or to a bucket.
#[derive(Debug)]
pub struct Writing(JoinHandle<Result<Written, Error>>);

/// A checkpoint that is durable.
#[derive(Debug)]
pub struct Written {
    /// Steps done.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
    /// From the copy of the state to durable.
    pub took: Duration,
    /// Bytes that were written: a bucket is not sent again what it holds.
    pub sent: u64,
}

impl Writing {
    /// Whether [`Writing::wait`] would return at once.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits until the checkpoint is durable.
    ///
    /// # Errors
    /// As [`Folder::write`].
    pub fn wait(self) -> Result<Written, Error> {
        self.0
            .join()
            .unwrap_or_else(|_| Err(Error::Internal("the checkpoint writer panicked".into())))
    }
}

/// Takes the folder's lock and writes into it who has it.
fn lock(folder: &Path) -> Result<File, Result<Error, io::Error>> {
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(folder.join("lock"))
        .map_err(Err)?;
    match file.try_lock() {
        Ok(()) => {
            let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
            let write = |file: &mut File| {
                file.set_len(0)?;
                write!(file, "process {} on {host}", std::process::id())
            };
            write(&mut file).map_err(Err)?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let read = file.rewind().and_then(|()| file.read_to_string(&mut holder));
            if read.is_err() || holder.is_empty() {
                holder = "another process".into();
            }
            Err(Ok(Error::Locked { folder: folder.to_owned(), holder }))
        }
        Err(TryLockError::Error(error)) => Err(Err(error)),
    }
}

/// Makes the folder's list of names durable.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests;
