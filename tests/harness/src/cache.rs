//! What is built or fetched once and kept outside of the checkout:
//! `$PETAFLOP_CACHE`, else `~/.cache/petaflop`. Test binaries run side by side,
//! so whoever comes first holds a lock file and the others wait for it.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

fn root() -> Result<PathBuf> {
    std::env::var_os("PETAFLOP_CACHE")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache/petaflop")))
        .ok_or_else(|| Error::Missing {
            what: "a place for what the tests build once".into(),
            mend: "Set PETAFLOP_CACHE or HOME.".into(),
        })
}

/// The folder `entry` of the cache, filled by `fill` if it is not there yet.
/// `what` says on standard error what takes the time. A `fill` that fails or is
/// killed leaves nothing behind that counts.
pub(crate) fn once(
    entry: &str,
    what: &str,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let root = root()?;
    let done = root.join(entry);
    if done.exists() {
        return Ok(done);
    }
    locked(entry, || {
        if done.exists() {
            return Ok(());
        }
        eprintln!("{what}, once, into {}", done.display());
        let partial = root.join(format!("{entry}.partial"));
        if partial.exists() {
            std::fs::remove_dir_all(&partial).map_err(Error::io(partial.display().to_string()))?;
        }
        std::fs::create_dir(&partial).map_err(Error::io(partial.display().to_string()))?;
        fill(&partial)?;
        std::fs::rename(&partial, &done).map_err(Error::io(done.display().to_string()))
    })?;
    Ok(done)
}

/// Does something while no other process does the same; says so if it waits.
pub(crate) fn locked<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let root = root()?;
    std::fs::create_dir_all(&root).map_err(Error::io(root.display().to_string()))?;
    let path = root.join(format!("{name}.lock"));
    let lock = File::create(&path).map_err(Error::io(path.display().to_string()))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("waiting for another process that holds {}", path.display());
            lock.lock().map_err(Error::io(path.display().to_string()))?;
        }
        Err(TryLockError::Error(source)) => {
            return Err(Error::Io { what: path.display().to_string(), source });
        }
    }
    work()
}
