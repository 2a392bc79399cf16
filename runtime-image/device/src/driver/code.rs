//! Compiled kernels on disk, so that a process compiles only what no earlier one did.
//!
//! A file a kernel, named by the hash of all that the code depends on, and beginning with the hash
//! of the code: what was cut short or overwritten is compiled again.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use blake3::Hash;

/// A folder of compiled kernels.
#[derive(Clone, Debug)]
pub struct Kept {
    /// None: nothing is kept.
    folder: Option<PathBuf>,
}

/// Bytes of the hash that a file begins with.
const HASH: usize = blake3::OUT_LEN;

impl Kept {
    /// In this folder, which is made when there is something to keep.
    pub fn at(folder: &Path) -> Kept {
        Kept { folder: Some(folder.to_owned()) }
    }

    /// In the user's own: `$XDG_CACHE_HOME/petaflop/kernels`, else `~/.cache/petaflop/kernels`; nowhere
    /// if neither is known.
    pub fn by_user() -> Kept {
        let named = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let cache = named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")));
        Kept { folder: cache.map(|cache| cache.join("petaflop/kernels")) }
    }

    /// The name for code that depends on all of `parts`.
    pub(crate) fn key(parts: &[&str]) -> Hash {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize()
    }

    fn file(&self, key: &Hash) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(key.to_hex().as_str()))
    }

    /// The code under `key`, if it is there and whole.
    pub(crate) fn find(&self, key: &Hash) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.file(key)?).ok()?;
        let hash: [u8; HASH] = bytes.get(..HASH)?.try_into().ok()?;
        (blake3::hash(&bytes[HASH..]) == hash).then(|| bytes.split_off(HASH))
    }

    /// Keeps `code`, in place of whatever was there. Where that is not possible (a folder
    /// that is read-only) the next process compiles it again, and no more is lost.
    pub(crate) fn keep(&self, key: &Hash, code: &[u8]) {
        let Some(file) = self.file(key) else {
            return;
        };
        if let Err(error) = write(&file, code) {
            tracing::debug!(%error, file = %file.display(), "compiled kernel not kept");
        }
    }
}

/// Writes beside it and renames, so that readers see all of it or nothing.
fn write(file: &Path, code: &[u8]) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let beside = file.with_extension(std::process::id().to_string());
    fs::write(&beside, [blake3::hash(code).as_bytes(), code].concat())?;
    fs::rename(&beside, file).inspect_err(|_| drop(fs::remove_file(&beside)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_found_again_under_all_that_it_depends_on() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let kept = Kept::at(&folder.path().join("made/on/demand"));
        let key = Kept::key(&["text", "sm_90"]);
        assert_eq!(kept.find(&key), None);
        kept.keep(&key, b"code");
        assert_eq!(kept.find(&key).as_deref(), Some(b"code".as_slice()));
        for other in [&["text", "sm_80"], &["texts", "m_90"], &["sm_90", "text"]] {
            assert_eq!(kept.find(&Kept::key(other)), None, "{other:?}");
        }
    }

    #[test]
    fn poisoned_code_is_no_code_and_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let kept = Kept::at(folder.path());
        let key = Kept::key(&["text"]);
        kept.keep(&key, b"code");
        let file = kept.file(&key).expect("it has a folder");
        let whole = fs::read(&file).expect("it was kept");
        let mut turned = whole.clone();
        turned[HASH + 1] ^= 1;
        for wrong in [turned.as_slice(), &whole[..whole.len() - 1], &whole[..HASH - 1], b""] {
            fs::write(&file, wrong).expect("it can be written");
            assert_eq!(kept.find(&key), None, "{wrong:?}");
        }
        kept.keep(&key, b"code");
        assert_eq!(kept.find(&key).as_deref(), Some(b"code".as_slice()));
    }

    #[test]
    fn where_nothing_can_be_written_nothing_is_kept_and_nothing_fails() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let file = folder.path().join("file");
        fs::write(&file, b"no folder").expect("it can be written");
        for kept in [Kept::at(&file), Kept { folder: None }] {
            let key = Kept::key(&["text"]);
            kept.keep(&key, b"code");
            assert_eq!(kept.find(&key), None);
        }
    }
}
