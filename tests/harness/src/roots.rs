//! Root file systems as folders, made once into the cache, for programs that make containers of their
//! own from them. Nobody may write to them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache;
use crate::command::run;
use crate::error::{Error, Result};
use crate::node::install_busybox;
use crate::tools::by_debian;

/// Debian with what our runtime's image has of it, bash, curl, and util-linux's `mount`.
///
/// # Errors
/// We are not root, or Debian's mirror cannot be reached.
pub fn debian() -> Result<PathBuf> {
    let what = "making a Debian root (about a minute)";
    let folder = cache::once("root-debian-bookworm-curl", what, |into| {
        let debootstrap = by_debian("debootstrap", &["debootstrap"])?;
        let packages = "--include=ca-certificates,curl,libvulkan1,mount";
        run(Command::new(debootstrap)
            .args(["--variant=minbase", packages, "bookworm"])
            .arg(into.join("root")))?;
        let archives = into.join("root/var/cache/apt/archives");
        std::fs::remove_dir_all(&archives).map_err(Error::io(archives.display().to_string()))
    })?;
    Ok(folder.join("root"))
}

/// Busybox and nothing else, as in Alpine's layout: no bash, no glibc. It is Debian's, whose `wget` is
/// made without a time limit, unlike Alpine's, and crashes where it is given one.
///
/// # Errors
/// busybox is missing and we are not root.
pub fn busybox() -> Result<PathBuf> {
    cache::once("root-busybox", "making a root of busybox", |into| {
        install_busybox(into)?;
        empty_into(into)
    })
}

/// No program at all, as in images for static ones.
///
/// # Errors
/// There is no place for the cache.
pub fn empty() -> Result<PathBuf> {
    cache::once("root-empty", "making an empty root", empty_into)
}

fn empty_into(into: &Path) -> Result<()> {
    for folder in ["dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/bin", "var"] {
        let folder = into.join(folder);
        std::fs::create_dir_all(&folder).map_err(Error::io(folder.display().to_string()))?;
    }
    let passwd = into.join("etc/passwd");
    std::fs::write(&passwd, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/\n")
        .map_err(Error::io(passwd.display().to_string()))
}
