//! Folders whose files are in memory alone: a machine's disk may outlive it.
//!
//! Where the provider mounted memory at the place, they are written there; else they are a folder of
//! `/dev/shm`, and the place is a link to it.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use petaflop_agent_api::lease::Nonce;
use petaflop_agent_api::task::Folder;
use rustix::fs::{FsWord, statfs};

/// Memory that every Linux machine has mounted, and every engine mounts in its containers.
const SHARED_MEMORY: &str = "/dev/shm";
/// As statfs(2) says that a file system is in memory.
const TMPFS: FsWord = 0x0102_1994;

/// What was made; gone when dropped.
#[derive(Debug, Default)]
pub(crate) struct Folders {
    links: Vec<PathBuf>,
    folders: Vec<PathBuf>,
}

impl Folders {
    /// Makes them.
    pub(crate) fn make(folders: &[Folder]) -> Result<Self, String> {
        let mut made = Self::default();
        for folder in folders {
            made.add(folder).map_err(|said| format!("{}: {said}", folder.path))?;
        }
        Ok(made)
    }

    fn add(&mut self, folder: &Folder) -> Result<(), String> {
        let path = Path::new(&folder.path);
        let place = match path.symlink_metadata() {
            Ok(meta) if meta.is_dir() && in_memory(path) => path.to_owned(),
            Ok(_) => return Err("is there already, and not in memory: name another folder".into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self
                .link(path)
                .map_err(|e| format!("cannot be made: {e}; name one that the image's user may"))?,
            Err(error) => return Err(error.to_string()),
        };
        for file in &folder.files {
            let file_at = place.join(&file.path);
            let open = OpenOptions::new().write(true).create_new(true).mode(0o400).open(file_at);
            let written = open.and_then(|mut open| open.write_all(&file.bytes));
            written.map_err(|e| format!("{} cannot be written: {e}", file.path))?;
        }
        Ok(())
    }

    /// A link at `path` to a new folder in memory.
    fn link(&mut self, path: &Path) -> io::Result<PathBuf> {
        let mut name = "petaflop-".to_owned();
        for byte in Nonce::generate().0 {
            let _ = write!(name, "{byte:02x}");
        }
        let own = Path::new(SHARED_MEMORY).join(name);
        DirBuilder::new().mode(0o700).create(&own)?;
        self.folders.push(own.clone());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        symlink(&own, path)?;
        self.links.push(path.to_owned());
        Ok(own)
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        // Best effort: what is left goes with the machine.
        for link in &self.links {
            let _ = fs::remove_file(link);
        }
        for folder in &self.folders {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

fn in_memory(path: &Path) -> bool {
    statfs(path).is_ok_and(|system| system.f_type == TMPFS)
}
