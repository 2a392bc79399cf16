//! What is remembered of an instance after its processes are gone. The living
//! are known by the identity they carry; a record only adds when it began and ended.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use petaflop_arbiter::claim::Identity;
use petaflop_arbiter::offer::Offer;
use serde::{Deserialize, Serialize};

use crate::provider::InstanceId;

/// One instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) id: InstanceId,
    pub(super) identity: Identity,
    /// Its working folder: what it wrote there last is its last sign of life.
    pub(super) dir: PathBuf,
    /// Bytes it was said to need.
    pub(super) memory: u64,
    pub(super) grace_seconds: u64,
    pub(super) started: Timestamp,
    pub(super) stop_requested: Option<Timestamp>,
    pub(super) ended: Option<Timestamp>,
    /// What was bought; not known of one that was found without a record.
    #[serde(default)]
    pub(super) offer: Option<Offer>,
}

impl Record {
    /// Of an instance that was found running without a record.
    pub(super) fn found(id: InstanceId, identity: Identity, started: Timestamp) -> Self {
        Self {
            id,
            identity,
            dir: PathBuf::new(),
            memory: 0,
            grace_seconds: 10,
            started,
            stop_requested: None,
            ended: None,
            offer: None,
        }
    }

    /// Replaces the file; a reader sees the old record or the new one.
    pub(super) fn write(&self, folder: &Path) -> io::Result<()> {
        let path = path_of(folder, &self.id);
        let thread = std::thread::current().id();
        let draft = folder.join(format!(".{}.{}.{thread:?}.tmp", self.id, std::process::id()));
        fs::write(&draft, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&draft, path)
    }

    /// The newest change in its working folder, never before its start. Where that folder is
    /// gone too nothing is known, and it counts as alive until now: rather too dear than lost.
    pub(super) fn last_sign_of_life(&self) -> Timestamp {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return Timestamp::now().max(self.started);
        };
        entries
            .filter_map(|entry| entry.ok()?.metadata().ok()?.modified().ok())
            .filter_map(|time| Timestamp::try_from(time).ok())
            .fold(self.started, Timestamp::max)
    }
}

/// All records. A damaged one is left out, with a warning.
pub(super) fn all(folder: &Path) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match read_path(&path) {
            Ok(record) => records.extend(record),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "a damaged record is left out")
            }
        }
    }
    Ok(records)
}

/// One record.
pub(super) fn read(folder: &Path, id: &InstanceId) -> io::Result<Option<Record>> {
    read_path(&path_of(folder, id))
}

/// Notes when an instance ended, unless that is known already.
pub(super) fn note_end(folder: &Path, id: &InstanceId, at: Timestamp) -> io::Result<()> {
    match read(folder, id)? {
        Some(mut record) if record.ended.is_none() => {
            record.ended = Some(at);
            record.write(folder)
        }
        _ => Ok(()),
    }
}

fn read_path(path: &Path) -> io::Result<Option<Record>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn path_of(folder: &Path, id: &InstanceId) -> PathBuf {
    folder.join(format!("{id}.json"))
}
