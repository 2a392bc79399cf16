//! The files of a folder in the order in which they are hashed, and the hash that
//! the folder would have as an artifact.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use crate::{
    ArtifactHash, Digest, StoreError,
    hash::{HashedFile, artifact_hash},
    manifest::check_paths,
};

/// A regular file under a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderFile {
    /// Path relative to the folder, `/` between its parts.
    pub path: String,
    /// Where it lies.
    pub file: PathBuf,
    /// Its length when it was seen, in bytes.
    pub length: u64,
}

/// The regular files under `dir`, in the byte order of their relative paths. Empty folders do not count.
///
/// # Errors
/// Links and special files, names that are not UTF-8 and paths that an artifact may
/// not hold are refused by name, and so is a folder without files.
pub fn files(dir: &Path) -> Result<Vec<FolderFile>, StoreError> {
    let mut files = Vec::new();
    walk(dir, "", &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    check_paths(files.iter().map(|f| f.path.as_str()))
        .map_err(|problem| bad(dir, &format!("{problem}; rename or remove what does not fit")))?;
    Ok(files)
}

fn walk(dir: &Path, prefix: &str, files: &mut Vec<FolderFile>) -> Result<(), StoreError> {
    let io = |e| StoreError::io(dir, e);
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        let file = entry.path();
        let name = entry
            .file_name()
            .into_string()
            .map_err(|_| bad(&file, "its name is not UTF-8; rename it"))?;
        let path = format!("{prefix}{name}");
        // Of the entry itself: a link is seen as a link.
        let meta = entry.metadata().map_err(|e| StoreError::io(&file, e))?;
        if meta.is_dir() {
            walk(&file, &format!("{path}/"), files)?;
        } else if meta.is_file() {
            files.push(FolderFile { path, file, length: meta.len() });
        } else {
            return Err(bad(
                &file,
                "is a link or special file; put a regular file in its place or remove it",
            ));
        }
    }
    Ok(())
}

/// The hash that the files under `dir` have as an artifact, by whatever store.
/// Also the content digest of a folder given as input.
///
/// # Errors
/// As [`files`], and why a file cannot be read.
pub fn hash(dir: &Path) -> Result<ArtifactHash, StoreError> {
    let files = files(dir)?;
    let mut hashed = Vec::with_capacity(files.len());
    for file in &files {
        let (content, length) = hash_file(&file.file)?;
        hashed.push(HashedFile { path: &file.path, length, content });
    }
    Ok(artifact_hash(hashed))
}

/// blake3 and length in bytes of a file's content.
///
/// # Errors
/// Why it cannot be read.
pub fn hash_file(file: &Path) -> Result<(Digest, u64), StoreError> {
    let io = |e| StoreError::io(file, e);
    let mut from = File::open(file).map_err(io)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(io(e)),
        };
    }
    Ok((hasher.finalize().into(), hasher.count()))
}

pub(crate) fn bad(path: &Path, problem: &str) -> StoreError {
    StoreError::BadInput { path: path.display().to_string(), problem: problem.into() }
}
