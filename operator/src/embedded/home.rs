//! `$PETAFLOP_HOME`: one installation's state, in files.
//!
//! ```text
//! installation            its uid, made once
//! root.key                what the keys of its agents are derived from, made once; nobody else may read it
//! config.yaml             what the user may set (see `config`)
//! regions.json            regions of AWS in which machines were ever had (`live`)
//! claims/<name>.json      claims, changed by compare-and-swap (`claims`)
//! ledger/…                rows of money, created and never changed (`ledger`)
//! jobs/<namespace>/<name>/      one TrainingJob (`job`)
//! services/<namespace>/<name>/  one InferenceService (`job`)
//! host/                   the host provider's own records
//! store/                  artifacts
//! ```
//!
//! Two homes never touch each other: machines carry the installation's uid, and
//! a sweep only ever looks at its own.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use petaflop_agent_api::keys::OperatorRoot;

use crate::installation::Installation;
use crate::ledger::Ledger;
use crate::uid;

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// No folder was named and none can be guessed.
    #[error(
        "no folder for state: neither PETAFLOP_HOME, XDG_DATA_HOME nor HOME is set; set PETAFLOP_HOME to a folder that can be written"
    )]
    Unknown,
    /// The folder is there but refuses us.
    #[error(
        "cannot use {path}: {source}; make it writable, free some space, or set PETAFLOP_HOME to another folder"
    )]
    Unusable {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file in it is not what we wrote.
    #[error("{path} is damaged: {what}; move it away to go on")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was expected.
        what: String,
    },
}

impl HomeError {
    pub(crate) fn unusable(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Unusable { path: path.to_owned(), source }
    }
}

/// One installation.
#[derive(Clone, Debug)]
pub struct Home {
    root: PathBuf,
    installation: String,
}

impl Home {
    /// Where state lives when the user names no folder: `$PETAFLOP_HOME`, else the
    /// XDG data folder.
    pub fn default_root() -> Result<PathBuf, HomeError> {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        set("PETAFLOP_HOME")
            .or_else(|| set("XDG_DATA_HOME").map(|d| d.join("petaflop")))
            .or_else(|| set("HOME").map(|d| d.join(".local/share/petaflop")))
            .ok_or(HomeError::Unknown)
    }

    /// Opens the folder, making it (and the installation's uid) at first use.
    pub fn open(root: &Path) -> Result<Self, HomeError> {
        fs::create_dir_all(root).map_err(HomeError::unusable(root))?;
        let root = root.canonicalize().map_err(HomeError::unusable(root))?;
        for folder in ["claims", "ledger", "jobs", "services", "host", "store"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(HomeError::unusable(&path))?;
        }
        let installation = installation_uid(&root.join("installation"))?;
        Ok(Self { root, installation })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The uid that machines of this installation carry.
    pub fn installation(&self) -> &str {
        &self.installation
    }

    /// Who this installation is to its agents. Its root is made at first use.
    ///
    /// # Errors
    /// The file cannot be used, or is damaged.
    pub fn identity(&self) -> Result<Installation, HomeError> {
        let path = self.root.join("root.key");
        if read_optional(&path)?.is_none() {
            let draft = draft_of(&path);
            let root = OperatorRoot::generate();
            let mut private = File::options();
            let private = private.write(true).create_new(true).mode(0o600);
            let linked = private
                .open(&draft)
                .and_then(|mut file| {
                    file.write_all(&*root.to_bytes()).and_then(|()| file.sync_all())
                })
                .and_then(|()| fs::hard_link(&draft, &path));
            let _ = fs::remove_file(&draft);
            match linked {
                // Of two processes that make it at once both use the same one.
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(HomeError::unusable(&path)(error));
                }
                _ => sync_folder_of(&path)?,
            }
        }
        let bytes = fs::read(&path).map_err(HomeError::unusable(&path))?;
        let root = <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| HomeError::Damaged {
            path: path.clone(),
            what: "expected 32 bytes; machines that run know only the key it held".to_owned(),
        })?;
        Ok(Installation { uid: self.installation.clone(), root: OperatorRoot::from_bytes(root) })
    }

    /// The ledger: a file a row, synced before the next step.
    pub fn ledger(&self) -> Result<Ledger, HomeError> {
        let path = self.root.join("ledger");
        let objects = LocalFileSystem::new_with_prefix(&path)
            .map_err(|error| HomeError::Unusable { path: path.clone(), source: error.into() })?;
        Ok(Ledger::over(Arc::new(objects.with_fsync(true)), path.display().to_string()))
    }

    /// The artifact store's folder.
    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }
}

/// Reads the uid, or makes it; of two processes that start at once both use the same one.
fn installation_uid(path: &Path) -> Result<String, HomeError> {
    if read_optional(path)?.is_none() {
        let made = uid::random().map_err(HomeError::unusable(Path::new("/dev/urandom")))?;
        create_new(path, format!("{made}\n").as_bytes())?;
    }
    let text = fs::read_to_string(path).map_err(HomeError::unusable(path))?;
    parse_uid(path, &text)
}

fn parse_uid(path: &Path, text: &str) -> Result<String, HomeError> {
    let uid = text.trim();
    let plausible = uid.len() == 36 && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    if plausible {
        Ok(uid.to_owned())
    } else {
        Err(HomeError::Damaged {
            path: path.to_owned(),
            what: "expected one line with the installation's uid".into(),
        })
    }
}

/// Replaces a file so that a reader, or a crash, sees the old bytes or the new ones.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), HomeError> {
    let draft = draft_of(path);
    let written = write_synced(&draft, bytes).and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written.map_err(HomeError::unusable(path))?;
    sync_folder_of(path)
}

/// Creates a file that must not exist yet. Returns whether it was made.
pub fn create_new(path: &Path, bytes: &[u8]) -> Result<bool, HomeError> {
    let draft = draft_of(path);
    let linked = write_synced(&draft, bytes).and_then(|()| fs::hard_link(&draft, path));
    let _ = fs::remove_file(&draft);
    match linked {
        Ok(()) => {
            sync_folder_of(path)?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(HomeError::Unusable { path: path.to_owned(), source }),
    }
}

/// Takes a lock file, waiting for whoever has it. It is given back when the file is
/// dropped, or when the process ends however it ends.
pub fn lock(path: &Path) -> Result<File, HomeError> {
    let file = File::create(path).map_err(HomeError::unusable(path))?;
    file.lock().map_err(HomeError::unusable(path))?;
    Ok(file)
}

/// Takes a lock file if nobody has it.
pub fn try_lock(path: &Path) -> Result<Option<File>, HomeError> {
    let file = File::create(path).map_err(HomeError::unusable(path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(source)) => {
            Err(HomeError::Unusable { path: path.to_owned(), source })
        }
    }
}

/// The bytes of a file, or nothing when there is none.
pub fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, HomeError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HomeError::Unusable { path: path.to_owned(), source }),
    }
}

/// Reads a JSON file of ours, or nothing when there is none.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, HomeError> {
    let Some(bytes) = read_optional(path)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| HomeError::Damaged { path: path.to_owned(), what: error.to_string() })
}

/// Replaces a JSON file of ours.
pub fn write_json<T: serde::Serialize>(path: &Path, value: &T) -> Result<(), HomeError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| HomeError::Unusable { path: path.to_owned(), source: e.into() })?;
    text.push(b'\n');
    write_atomic(path, &text)
}

/// A name beside `path` that no other process or thread uses.
fn draft_of(path: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}-{next}.tmp", std::process::id()))
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_folder_of(path: &Path) -> Result<(), HomeError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|f| f.sync_all()).map_err(HomeError::unusable(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installation_keeps_its_uid_and_two_homes_differ() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let a = Home::open(&folder.path().join("a")).expect("home a");
        let again = Home::open(&folder.path().join("a")).expect("home a again");
        let b = Home::open(&folder.path().join("b")).expect("home b");
        assert_eq!(a.installation(), again.installation());
        assert_ne!(a.installation(), b.installation());
    }

    #[test]
    fn of_many_first_starts_at_once_all_see_one_uid() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let uids: Vec<String> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| Home::open(folder.path()).map(|h| h.installation)))
                .collect();
            workers.into_iter().map(|w| w.join().expect("no panic").expect("a home")).collect()
        });
        assert!(uids.iter().all(|uid| *uid == uids[0]), "{uids:?}");
    }

    #[test]
    fn a_damaged_uid_is_named_and_not_replaced() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("installation"), "?").expect("written");
        let error = Home::open(folder.path()).expect_err("refused");
        assert!(error.to_string().contains("installation is damaged"), "{error}");
    }

    #[test]
    fn the_root_of_the_keys_is_made_once_and_nobody_else_may_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let home = Home::open(folder.path()).expect("a home");
        let key = || home.identity().expect("an identity").root.noise().public().to_string();
        assert_eq!(key(), key());
        let path = folder.path().join("root.key");
        let mode = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(&path, b"short").expect("written");
        assert!(matches!(home.identity(), Err(HomeError::Damaged { .. })));
    }

    #[test]
    fn create_new_never_overwrites() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("row.json");
        assert!(create_new(&path, b"1").expect("created"));
        assert!(!create_new(&path, b"2").expect("left alone"));
        assert_eq!(fs::read(&path).expect("read"), b"1");
    }
}
