//! A folder, or files in memory, become an artifact: chunks, then the manifest.
//!
//! A chunk is the part in which things travel, and what an upload that was cut off need not send
//! again: whoever stores the same bytes later, after a SIGKILL or on another machine, finds it there.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use object_store::{PutMode, path::Path as Object};

use crate::{
    ArtifactHash, Digest, FileEntry, Manifest, Store, StoreError,
    folder::{self, FolderFile},
    manifest::CHUNK_BYTES,
    store::timestamp,
    sweeps::{LONGEST_PUT, Sweeps, TRUSTED},
};

/// Chunks on their way at once: bounds memory to this many × 4 MiB.
const IN_FLIGHT: usize = 4;

/// What [`Store::put_artifact`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The artifact's name.
    pub hash: ArtifactHash,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that were written; chunks that the store held are not sent again.
    pub bytes_sent: u64,
}

impl Store {
    /// Stores the files under `dir` as an artifact. Doing it again is cheap and
    /// gives the same hash; a chunk of the same name that was damaged is written anew.
    ///
    /// When it returns, the artifact is durable. When it fails or is cut off, the
    /// artifact is not there, and what was written serves the next try.
    ///
    /// # Errors
    /// A folder that cannot become an artifact ([`folder::files`]) or changes meanwhile;
    /// [`StoreError::Full`], [`StoreError::ReadOnly`], or what the store said.
    pub async fn put_artifact(&self, dir: &Path) -> Result<Stored, StoreError> {
        let folder = dir.to_path_buf();
        let files = off_thread(move || folder::files(&folder)).await?;
        self.put_all(files.into_iter().map(Input::from).collect(), dir).await
    }

    /// The same of files in memory, by their paths.
    ///
    /// # Errors
    /// Paths that an artifact may not hold; else as [`Store::put_artifact`].
    pub async fn put_files(&self, files: &BTreeMap<String, Bytes>) -> Result<Stored, StoreError> {
        let inputs = files.iter().map(|(path, bytes)| Input {
            path: path.clone(),
            length: bytes.len() as u64,
            content: Content::Memory(bytes.clone()),
        });
        self.put_all(inputs.collect(), Path::new("files in memory")).await
    }

    /// `from` stands for the files in messages.
    async fn put_all(&self, files: Vec<Input>, from: &Path) -> Result<Stored, StoreError> {
        let _guard = self.writing().await?;
        let began = tokio::time::Instant::now();
        let mut bytes_sent = 0;
        let entries = loop {
            let sweeps = self.other_sweeps().await?;
            let mut entries = Vec::with_capacity(files.len());
            for file in &files {
                let (entry, sent) = self.put_file(file.clone()).await?;
                entries.push(entry);
                bytes_sent += sent;
            }
            if began.elapsed() > LONGEST_PUT && self.bucket {
                return Err(StoreError::TooSlow { store: self.name().to_owned() });
            }
            // A gc that ran meanwhile may have taken what was there before.
            if self.other_sweeps().await? == sweeps {
                break entries;
            }
        };
        let manifest = Manifest::new(entries).map_err(|problem| folder::bad(from, &problem))?;
        bytes_sent += self.put_manifest(&manifest).await?;
        Ok(Stored { hash: manifest.artifact, bytes: manifest.bytes(), bytes_sent })
    }

    /// In a local folder the lock has kept them away.
    pub(crate) async fn other_sweeps(&self) -> Result<Sweeps, StoreError> {
        if self.bucket { self.sweeps().await } else { Ok(Sweeps::new()) }
    }

    /// Reads the file once: what is hashed is what is stored.
    async fn put_file(&self, file: Input) -> Result<(FileEntry, u64), StoreError> {
        let path = file.path.clone();
        let length = file.length;
        let mut chunks = Vec::new();
        let mut sent = 0;
        let mut in_flight = FuturesUnordered::new();
        let mut pieces = Pieces::of(file);
        let content = loop {
            let (back, piece) = off_thread(move || {
                let piece = pieces.next()?;
                Ok((pieces, piece))
            })
            .await?;
            pieces = back;
            let Some((digest, piece)) = piece else {
                break pieces.content.finalize().into();
            };
            chunks.push(digest);
            in_flight.push(self.put_chunk(digest, piece));
            if in_flight.len() >= IN_FLIGHT
                && let Some(done) = in_flight.next().await
            {
                sent += done?;
            }
        };
        while let Some(done) = in_flight.next().await {
            sent += done?;
        }
        let entry = FileEntry { path, length, blake3: content, chunks };
        Ok((entry, sent))
    }

    /// Bytes that were sent: 0 where the store held the chunk.
    pub(crate) async fn put_chunk(&self, digest: Digest, piece: Bytes) -> Result<u64, StoreError> {
        let object = Self::chunk_object(digest);
        let length = piece.len() as u64;
        if self.holds(&object, digest, length).await? {
            return Ok(0);
        }
        // Overwrite, not Create: the same name is the same bytes, and a damaged
        // chunk is mended by it. The whole object is replaced at once.
        self.put(&object, piece, PutMode::Overwrite).await?;
        Ok(length)
    }

    /// Whether a good chunk is there. A local folder has only its disk's word for
    /// that, so the chunk is read; a bucket keeps checksums of its own, but its gc may be
    /// after a chunk that is old.
    pub(crate) async fn holds(
        &self,
        object: &Object,
        digest: Digest,
        length: u64,
    ) -> Result<bool, StoreError> {
        let written = match self.head(object).await? {
            Some(meta) if meta.size == length => timestamp(&meta),
            _ => return Ok(false),
        };
        if self.bucket {
            let age = jiff::Timestamp::now().duration_since(written);
            return Ok(age < jiff::SignedDuration::try_from(TRUSTED).unwrap_or_default());
        }
        if self.root.is_none() {
            return Ok(true);
        }
        let held = self.get(object).await?;
        Ok(held.is_some_and(|held| Digest::of(&held) == digest))
    }

    /// Bytes that were sent: 0 where the store held the manifest.
    pub(crate) async fn put_manifest(&self, manifest: &Manifest) -> Result<u64, StoreError> {
        let object = Self::manifest_object(manifest.artifact);
        let json = serde_json::to_vec(manifest).expect("a manifest is strings and numbers");
        let json = Bytes::from(json);
        let length = json.len() as u64;
        if self.put(&object, json.clone(), PutMode::Create).await? {
            return Ok(length);
        }
        // One that is good and yet differs was cut into chunks of another size.
        match self.manifest(manifest.artifact).await {
            Ok(held) if held == *manifest => Ok(0),
            Ok(_) | Err(StoreError::Damaged(_) | StoreError::NotFound { .. }) => {
                self.put(&object, json, PutMode::Overwrite).await?;
                Ok(length)
            }
            Err(e) => Err(e),
        }
    }
}

/// A file of the artifact to be.
#[derive(Clone)]
struct Input {
    path: String,
    /// When it was seen, in bytes.
    length: u64,
    content: Content,
}

#[derive(Clone)]
enum Content {
    File(PathBuf),
    Memory(Bytes),
}

impl From<FolderFile> for Input {
    fn from(FolderFile { path, file, length }: FolderFile) -> Self {
        Self { path, length, content: Content::File(file) }
    }
}

/// A file, chunk by chunk.
struct Pieces {
    source: Content,
    length: u64,
    at: u64,
    open: Option<File>,
    content: blake3::Hasher,
}

impl Pieces {
    fn of(file: Input) -> Self {
        Self {
            source: file.content,
            length: file.length,
            at: 0,
            open: None,
            content: blake3::Hasher::new(),
        }
    }

    /// The next chunk, `None` after the last.
    fn next(&mut self) -> Result<Option<(Digest, Bytes)>, StoreError> {
        let next = CHUNK_BYTES.min(self.length - self.at);
        let piece = match &mut self.source {
            Content::Memory(rest) => rest.split_to(next as usize),
            Content::File(path) => read(path, &mut self.open, next)?,
        };
        if piece.is_empty() {
            return Ok(None);
        }
        self.at += next;
        self.content.update(&piece);
        Ok(Some((Digest::of(&piece), piece)))
    }
}

/// So many bytes of a file from where it was left; at its end, which is 0 bytes away, looks for
/// one byte more than there should be.
fn read(path: &Path, open: &mut Option<File>, bytes: u64) -> Result<Bytes, StoreError> {
    let io = |e| StoreError::io(path, e);
    let file = match open {
        Some(file) => file,
        closed => closed.insert(File::open(path).map_err(io)?),
    };
    let want = bytes.max(1);
    let mut piece = Vec::with_capacity(want as usize);
    let got = file.take(want).read_to_end(&mut piece).map_err(io)? as u64;
    if got != bytes {
        return Err(folder::bad(
            path,
            "changed while it was stored; let its writer finish and try again",
        ));
    }
    Ok(piece.into())
}

/// Runs work on files away from the threads that serve others.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
        Err(_) => Err(StoreError::Stopping),
    }
}
