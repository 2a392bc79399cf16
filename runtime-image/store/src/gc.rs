//! Removes what nothing refers to, and artifacts that nobody wants to keep.

use std::{
    collections::BTreeSet,
    path::Path as FilePath,
    time::{Duration, SystemTime},
};

use object_store::ObjectMeta;
use serde::Serialize;

use crate::{
    ArtifactHash, Digest, Store, StoreError,
    store::timestamp,
    sweeps::{LONGEST_GC, REMOTE_MIN_AGE},
};

/// Which artifacts stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keep {
    /// All of them; only chunks that no artifact refers to go.
    All,
    /// These, and any younger than [`GcOptions::min_age`].
    Only(BTreeSet<ArtifactHash>),
}

/// What [`Store::gc`] may remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GcOptions {
    /// Which artifacts stay.
    pub keep: Keep,
    /// What is younger than this stays, whatever refers to it: it may belong to an
    /// upload under way.
    pub min_age: Duration,
    /// Only say what would go.
    pub dry_run: bool,
}

/// What [`Store::gc`] removed or, on a dry run, would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Nothing was removed.
    pub dry_run: bool,
    /// Artifacts.
    pub artifacts: Vec<ArtifactHash>,
    /// Keys that named them.
    pub keys: usize,
    /// Chunks, and files that a crash left half written.
    pub chunks: usize,
    /// Bytes of those chunks and files.
    pub bytes: u64,
    /// Chunks that nothing refers to, kept because they are young.
    pub young: usize,
}

impl Store {
    /// Removes what [`GcOptions`] allows: keys first, then manifests, then chunks, so that whatever
    /// cuts it off, no artifact is left that lacks a part. Never removes a chunk that a manifest
    /// refers to; while a manifest is unreadable, no chunk goes at all.
    ///
    /// In a local folder it excludes writers by a lock. In a bucket it removes nothing younger than
    /// [`crate::REMOTE_MIN_AGE`], whatever is asked for, and writers wait for it: see `sweeps`. What it
    /// cannot remove within half an hour there it leaves to the next run.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while somebody writes; [`StoreError::Damaged`] for a manifest that cannot be read
    /// and is to be kept; or why something cannot be listed or removed.
    pub async fn gc(&self, options: &GcOptions) -> Result<GcReport, StoreError> {
        if !self.bucket || options.dry_run {
            return self.remove_unreferenced(options).await;
        }
        let sign = self.begin_sweep().await?;
        let report = self.remove_unreferenced(options).await;
        self.end_sweep(&sign).await?;
        report
    }

    async fn remove_unreferenced(&self, options: &GcOptions) -> Result<GcReport, StoreError> {
        let GcOptions { keep, min_age, dry_run } = options;
        let min_age = if self.bucket { (*min_age).max(REMOTE_MIN_AGE) } else { *min_age };
        let _guard = self.removing()?;
        let until = self.bucket.then(|| tokio::time::Instant::now() + LONGEST_GC);
        let enough = || until.is_some_and(|until| tokio::time::Instant::now() > until);
        let now = jiff::Timestamp::now();
        let old = |meta: &ObjectMeta| {
            Duration::try_from(now.duration_since(timestamp(meta))).is_ok_and(|age| age >= min_age)
        };
        let mut report = GcReport { dry_run: *dry_run, ..GcReport::default() };

        let chunks = self.list_under("chunks").await?;
        let mut used: BTreeSet<Digest> = BTreeSet::new();
        for (hash, meta) in self.hashes().await? {
            let unwanted = matches!(keep, Keep::Only(roots) if !roots.contains(&hash));
            if unwanted && old(&meta) {
                report.artifacts.push(hash);
            } else {
                let manifest = self.manifest(hash).await?;
                used.extend(manifest.files.iter().flat_map(|f| &f.chunks).copied());
            }
        }

        for (object, binding) in self.bindings().await? {
            if binding.is_ok_and(|b| report.artifacts.contains(&b.artifact)) {
                report.keys += 1;
                if !dry_run {
                    self.remove(&object).await?;
                }
            }
        }
        if !dry_run {
            for hash in &report.artifacts {
                self.remove(&Self::manifest_object(*hash)).await?;
            }
        }
        for meta in chunks {
            let digest = meta.location.filename().and_then(|n| n.parse().ok());
            // What is not named like a chunk is not ours to judge.
            let Some(digest) = digest else { continue };
            if used.contains(&digest) {
                continue;
            }
            if !old(&meta) {
                report.young += 1;
                continue;
            }
            if enough() {
                break;
            }
            report.chunks += 1;
            report.bytes += meta.size;
            if !dry_run {
                self.remove(&meta.location).await?;
            }
        }
        if let Some(root) = &self.root {
            for part in ["chunks", "artifacts", "keys"] {
                remove_torn(&root.join(part), min_age, &mut report)?;
            }
        }
        Ok(report)
    }
}

/// Removes files that the local backend was still writing when the process died:
/// `<object>#<number>`, which it never lists.
fn remove_torn(dir: &FilePath, min_age: Duration, report: &mut GcReport) -> Result<(), StoreError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(StoreError::io(dir, e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| StoreError::io(dir, e))?;
        let path = entry.path();
        let meta = entry.metadata().map_err(|e| StoreError::io(&path, e))?;
        if meta.is_dir() {
            remove_torn(&path, min_age, report)?;
            continue;
        }
        let name = entry.file_name();
        let torn = name.to_str().and_then(|n| n.rsplit_once('#')).is_some_and(|(_, number)| {
            !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
        });
        let old = meta
            .modified()
            .is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|a| a >= min_age));
        if torn && old {
            report.chunks += 1;
            report.bytes += meta.len();
            if !report.dry_run {
                std::fs::remove_file(&path).map_err(|e| StoreError::io(&path, e).writing())?;
            }
        }
    }
    Ok(())
}
