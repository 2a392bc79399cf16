//! An artifact becomes files again, every byte of it checked.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};

use crate::{
    ArtifactHash, Damage, Digest, FileEntry, Manifest, Store, StoreError, folder, put::off_thread,
    store::mend,
};

/// Chunks read ahead: bounds memory to this many × 4 MiB.
const AHEAD: usize = 4;

/// A folder that a crash left half filled is removed when it is this old.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

impl Store {
    /// What the artifact holds.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Damaged`] where the manifest is not the one that its name says.
    pub async fn manifest(&self, hash: ArtifactHash) -> Result<Manifest, StoreError> {
        let object = Self::manifest_object(hash);
        let json = self.get(&object).await?.ok_or_else(|| self.not_found(hash))?;
        Manifest::parse(&json, hash).map_err(|problem| {
            StoreError::Damaged(Box::new(Damage {
                artifact: Some(hash),
                path: None,
                object: self.place(&object),
                problem,
                mend: mend(),
            }))
        })
    }

    /// The checked chunks of one file, in order.
    pub(crate) fn chunks<'a>(
        &'a self,
        manifest: &'a Manifest,
        file: &'a FileEntry,
    ) -> impl Stream<Item = Result<Bytes, StoreError>> + 'a {
        stream::iter(manifest.chunks(file))
            .map(move |(digest, length)| self.checked_chunk(manifest, file, digest, length))
            .buffered(AHEAD)
    }

    pub(crate) async fn checked_chunk(
        &self,
        manifest: &Manifest,
        file: &FileEntry,
        digest: Digest,
        length: u64,
    ) -> Result<Bytes, StoreError> {
        let object = Self::chunk_object(digest);
        let damaged = |problem: String| {
            let place = self.place(&object);
            StoreError::Damaged(Box::new(manifest.damage(&file.path, place, problem)))
        };
        let bytes = self.get(&object).await?.ok_or_else(|| damaged("chunk is missing".into()))?;
        if bytes.len() as u64 != length {
            let found = bytes.len();
            return Err(damaged(format!("chunk has {found} bytes, not {length}")));
        }
        if Digest::of(&bytes) != digest {
            return Err(damaged("chunk is corrupt: its bytes hash to another name".into()));
        }
        Ok(bytes)
    }

    /// One file's content, checked. For small files; [`Store::materialise`] takes any.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::NoSuchFile`], [`StoreError::Damaged`].
    pub async fn read_file(&self, hash: ArtifactHash, path: &str) -> Result<Vec<u8>, StoreError> {
        let manifest = self.manifest(hash).await?;
        let file = manifest
            .file(path)
            .ok_or_else(|| StoreError::NoSuchFile { artifact: hash, path: path.into() })?;
        let mut content = Vec::new();
        let mut chunks = std::pin::pin!(self.chunks(&manifest, file));
        while let Some(chunk) = chunks.try_next().await? {
            content.extend_from_slice(&chunk);
        }
        self.check_content(&manifest, file, Digest::of(&content))?;
        Ok(content)
    }

    /// Chunks can each be good and yet be the wrong ones for the file.
    pub(crate) fn check_content(
        &self,
        manifest: &Manifest,
        file: &FileEntry,
        content: Digest,
    ) -> Result<(), StoreError> {
        if content == file.blake3 {
            return Ok(());
        }
        let place = self.place(&Self::manifest_object(manifest.artifact));
        let problem = "its chunks are not those of this file".to_owned();
        Err(StoreError::Damaged(Box::new(manifest.damage(&file.path, place, problem))))
    }

    /// Writes the artifact's files to the folder `dir`, which appears whole, checked
    /// and synced, or not at all. A folder that already holds exactly these files is left as it is.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Damaged`]; [`StoreError::Occupied`] where
    /// `dir` holds anything else; [`StoreError::Full`] and [`StoreError::ReadOnly`].
    pub async fn materialise(&self, hash: ArtifactHash, dir: &Path) -> Result<(), StoreError> {
        if dir.symlink_metadata().is_ok() {
            return same_folder(hash, dir.to_path_buf()).await;
        }
        let manifest = self.manifest(hash).await?;
        let partial = Partial::beside(dir)?;
        for file in &manifest.files {
            self.write_file(&manifest, file, &partial.0.join(&file.path)).await?;
        }
        let (from, to) = (partial.0.clone(), dir.to_path_buf());
        let moved = off_thread(move || {
            sync_folders(&from)?;
            match fs::rename(&from, &to) {
                Ok(()) => sync_parent(&to).map(|()| true),
                // Another process was quicker.
                Err(_) if to.symlink_metadata().is_ok() => Ok(false),
                Err(e) => Err(StoreError::io(&to, e).writing()),
            }
        })
        .await?;
        if moved { Ok(()) } else { same_folder(hash, dir.to_path_buf()).await }
    }

    async fn write_file(
        &self,
        manifest: &Manifest,
        file: &FileEntry,
        to: &Path,
    ) -> Result<(), StoreError> {
        let (open, content) = save(self.chunks(manifest, file), to).await?;
        self.check_content(manifest, file, content.finalize().into())?;
        let path = to.to_path_buf();
        off_thread(move || open.sync_all().map_err(|e| StoreError::io(&path, e).writing())).await
    }
}

/// Writes what comes to a file that is not there yet, not synced, and hashes it on the way.
pub(crate) async fn save(
    pieces: impl Stream<Item = Result<Bytes, StoreError>>,
    to: &Path,
) -> Result<(File, blake3::Hasher), StoreError> {
    let path = to.to_path_buf();
    let mut open = off_thread(move || {
        let failed = |e| StoreError::io(&path, e).writing();
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        File::create_new(&path).map_err(failed)
    })
    .await?;
    let mut content = blake3::Hasher::new();
    let mut pieces = std::pin::pin!(pieces);
    while let Some(piece) = pieces.try_next().await? {
        let path = to.to_path_buf();
        (open, content) = off_thread(move || {
            content.update(&piece);
            open.write_all(&piece).map_err(|e| StoreError::io(&path, e).writing())?;
            Ok((open, content))
        })
        .await?;
    }
    Ok((open, content))
}

/// `Ok` where `dir` holds exactly the artifact's files.
async fn same_folder(hash: ArtifactHash, dir: PathBuf) -> Result<(), StoreError> {
    off_thread(move || {
        let problem = match folder::hash(&dir) {
            Ok(found) if found == hash => return Ok(()),
            Ok(found) => format!("its files hash to {found}"),
            Err(e) => e.to_string(),
        };
        Err(StoreError::Occupied { dir, artifact: hash, problem })
    })
    .await
}

/// A folder beside the one to be made; removed when dropped, unless renamed away.
struct Partial(PathBuf);

impl Partial {
    fn beside(dir: &Path) -> Result<Self, StoreError> {
        let (Some(name), Some(parent)) = (dir.file_name(), dir.parent()) else {
            return Err(folder::bad(dir, "cannot be made; name a folder that is not there yet"));
        };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        fs::create_dir_all(parent).map_err(|e| StoreError::io(parent, e).writing())?;
        let prefix = format!(".{}.partial-", name.to_string_lossy());
        remove_abandoned(parent, &prefix);
        for number in 0u32.. {
            let path = parent.join(format!("{prefix}{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(StoreError::io(path, e).writing()),
            }
        }
        unreachable!("four thousand million partial folders beside each other")
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After a success it is gone already; after a failure it is best effort,
        // and remove_abandoned does the rest.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Best effort: what cannot be removed is in nobody's way.
fn remove_abandoned(parent: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(prefix);
        let old = entry
            .metadata()
            .and_then(|m| m.modified())
            .is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > ABANDONED));
        if ours && old {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Syncs a folder and those below it, so that their entries outlive a crash.
fn sync_folders(dir: &Path) -> Result<(), StoreError> {
    let failed = |e| StoreError::io(dir, e).writing();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    File::open(dir).and_then(|d| d.sync_all()).map_err(failed)
}

fn sync_parent(path: &Path) -> Result<(), StoreError> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)
            .and_then(|d| d.sync_all())
            .map_err(|e| StoreError::io(parent, e).writing()),
        _ => Ok(()),
    }
}
