//! An artifact's manifest: its files, and the chunks that hold them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::hash::{ArtifactHash, Digest, HashedFile, artifact_hash};

/// Layout of manifest and chunks; raised when a reader of the old one could not read the new one.
pub const FORMAT: u32 = 1;

/// Bytes of every chunk but a file's last. Fixed, so that a file that grew or
/// changed in places shares its unchanged chunks with its former self.
pub const CHUNK_BYTES: u64 = 4 << 20;

/// The files of an artifact, in the byte order of their paths.
///
/// The same files give the same bytes of JSON: nothing else is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The hash that names the artifact.
    pub artifact: ArtifactHash,
    /// Bytes of every chunk but a file's last.
    pub chunk_bytes: u64,
    /// Its files, sorted by path.
    pub files: Vec<FileEntry>,
    /// blake3 of the JSON of `[chunk_bytes, files]`: what the artifact's hash does not cover.
    pub checksum: Digest,
}

/// One file of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Path inside the artifact, `/` between its parts.
    pub path: String,
    /// Length in bytes.
    pub length: u64,
    /// blake3 of the whole content.
    pub blake3: Digest,
    /// blake3 of each chunk, in order; none for an empty file.
    pub chunks: Vec<Digest>,
}

impl Manifest {
    /// Of these files, in any order; their paths are checked.
    pub(crate) fn new(mut files: Vec<FileEntry>) -> Result<Self, String> {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        check_paths(files.iter().map(|f| f.path.as_str()))?;
        Ok(Self {
            format: FORMAT,
            artifact: hash_of(&files),
            chunk_bytes: CHUNK_BYTES,
            checksum: checksum(CHUNK_BYTES, &files),
            files,
        })
    }

    /// Reads the JSON of the artifact `expected` and checks everything that can
    /// be checked without reading chunks. The error says what is wrong.
    pub(crate) fn parse(json: &[u8], expected: ArtifactHash) -> Result<Self, String> {
        let manifest: Self =
            serde_json::from_slice(json).map_err(|e| format!("not a manifest: {e}"))?;
        let Self { format, artifact, chunk_bytes, files, checksum: expected_checksum } = &manifest;
        if *format != FORMAT {
            return Err(format!("format {format}, but this program reads format {FORMAT}"));
        }
        if checksum(*chunk_bytes, files) != *expected_checksum {
            return Err("manifest is corrupt: it does not match its checksum".into());
        }
        if *chunk_bytes == 0 {
            return Err("chunk_bytes is 0".into());
        }
        if !files.is_sorted_by(|a, b| a.path < b.path) {
            return Err("its paths are not sorted".into());
        }
        check_paths(files.iter().map(|f| f.path.as_str()))?;
        for file in files {
            let chunks = file.length.div_ceil(*chunk_bytes);
            if chunks != file.chunks.len() as u64 {
                return Err(format!(
                    "`{}`: {} bytes need {chunks} chunks, but {} are listed",
                    file.path,
                    file.length,
                    file.chunks.len()
                ));
            }
        }
        if *artifact != expected || hash_of(files) != expected {
            return Err(format!("its files hash to {}, not {expected}", hash_of(files)));
        }
        Ok(manifest)
    }

    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.length).sum()
    }

    /// The file at this path.
    pub fn file(&self, path: &str) -> Option<&FileEntry> {
        self.files.binary_search_by(|f| f.path.as_str().cmp(path)).ok().map(|i| &self.files[i])
    }

    /// Each file's chunks with their lengths, in order.
    pub(crate) fn chunks<'a>(
        &self,
        file: &'a FileEntry,
    ) -> impl Iterator<Item = (Digest, u64)> + use<'a> {
        let (size, length) = (self.chunk_bytes, file.length);
        file.chunks
            .iter()
            .zip(0u64..)
            .map(move |(digest, i)| (*digest, size.min(length - i * size)))
    }
}

fn checksum(chunk_bytes: u64, files: &[FileEntry]) -> Digest {
    let json = serde_json::to_vec(&(chunk_bytes, files));
    Digest::of(&json.expect("a manifest is strings and numbers"))
}

fn hash_of(files: &[FileEntry]) -> ArtifactHash {
    artifact_hash(files.iter().map(|f| HashedFile {
        path: &f.path,
        length: f.length,
        content: f.blake3,
    }))
}

/// Checks that the paths can lie together in a folder on any system: relative,
/// inside it, printable, none twice (whatever the case of its letters), none both file and folder.
pub(crate) fn check_paths<'a>(paths: impl IntoIterator<Item = &'a str>) -> Result<(), String> {
    // Lower-cased path or folder -> as first seen, and whether it is a file.
    let mut seen: BTreeMap<String, (&'a str, bool)> = BTreeMap::new();
    let mut any = false;
    for path in paths {
        any = true;
        check_path(path)?;
        let ends = path.match_indices('/').map(|(i, _)| i).chain([path.len()]);
        for end in ends {
            let (part, is_file) = (&path[..end], end == path.len());
            match seen.insert(part.to_lowercase(), (part, is_file)) {
                None => {}
                Some((other, false)) if !is_file && other == part => {}
                Some((other, _)) if other == part && is_file => {
                    return Err(format!("`{part}` is there twice"));
                }
                Some((other, _)) if other == part => {
                    return Err(format!("`{part}` is both a file and a folder"));
                }
                Some((other, _)) => {
                    return Err(format!(
                        "`{other}` and `{part}` differ only in case, which some file systems cannot keep apart"
                    ));
                }
            }
        }
    }
    if any { Ok(()) } else { Err("it holds no file".into()) }
}

fn check_path(path: &str) -> Result<(), String> {
    let problem = if path.is_empty() {
        "is empty"
    } else if path.len() > 1024 {
        "is longer than 1024 bytes"
    } else if path.starts_with('/') {
        "is absolute"
    } else if path.contains(['\\', ':']) {
        "contains `\\` or `:`"
    } else if path.chars().any(char::is_control) {
        "contains a control character"
    } else if path.split('/').any(|p| p.is_empty() || p == "." || p == "..") {
        "has a part that is empty, `.` or `..`"
    } else if path.split('/').any(|p| p.len() > 255) {
        "has a part longer than 255 bytes"
    } else {
        return Ok(());
    };
    Err(format!("path `{}` {problem}", path.escape_debug()))
}
