//! Where the system's own files are looked for, so that tests can hand in a made tree.

use std::path::{Path, PathBuf};

/// Files of the kernel larger than this are not what we look for.
const LONGEST_FILE: u64 = 4 << 20;

/// The place that stands for `/`, and whether drivers may be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    root: PathBuf,
    /// NVML and Vulkan speak of the real machine whatever the root is, so they are
    /// only asked about that one.
    drivers: bool,
}

impl Roots {
    /// This machine.
    pub fn system() -> Self {
        Self { root: "/".into(), drivers: true }
    }

    /// The files under `root` (`proc/…`, `sys/…`, `dev/…`), and no driver.
    pub fn files_under(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), drivers: false }
    }

    /// Whether drivers may be asked.
    pub fn drivers(&self) -> bool {
        self.drivers
    }

    /// An absolute path of the system, as a path to open.
    pub(crate) fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let absolute = absolute.as_ref();
        self.root.join(absolute.strip_prefix("/").unwrap_or(absolute))
    }

    /// A path to open, as the system would call it.
    pub(crate) fn shown(&self, path: &Path) -> String {
        let inside = path.strip_prefix(&self.root).unwrap_or(path);
        Path::new("/").join(inside).display().to_string()
    }

    /// The text of a file, given by its absolute path. What is missing, forbidden or overlong reads as `None`.
    pub(crate) fn text(&self, absolute: impl AsRef<Path>) -> Option<String> {
        text(&self.path(absolute))
    }

    /// The entries of a folder, given by its absolute path, in order.
    pub(crate) fn entries(&self, absolute: impl AsRef<Path>) -> Vec<PathBuf> {
        entries(&self.path(absolute))
    }
}

/// The text of a file; bytes that are not UTF-8 become `�`. What is missing,
/// forbidden or overlong reads as `None`.
pub(crate) fn text(path: &Path) -> Option<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(LONGEST_FILE + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= LONGEST_FILE).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

/// The first line of a file, trimmed; `None` where there is nothing in it.
pub(crate) fn word(path: &Path) -> Option<String> {
    let text = text(path)?;
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

/// A whole number, decimal or with `0x`.
pub(crate) fn number(path: &Path) -> Option<u64> {
    let word = word(path)?;
    match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    }
}

/// The entries of a folder, in order.
pub(crate) fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    paths.sort();
    paths
}

/// `0, 2-4` → 4 processors: the kernel's list format.
pub(crate) fn count_of_list(list: &str) -> Option<u32> {
    let mut count = 0u32;
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: u32 = first.trim().parse().ok()?;
        let last: u32 = last.trim().parse().ok()?;
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}
