//! Packs the text of this repository's own sources and documents into the binary
//! as `builtin:petaflop`. It needs no git and no network, and its content depends
//! on nothing but the files: not on the folder's name, times or order of listing.

use std::{
    env,
    fmt::Write,
    fs, io,
    path::{Path, PathBuf},
};

/// What is packed: folders and files below the repository's root.
const ROOTS: [&str; 14] = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.toml",
    "Makefile",
    "README.md",
    "arbiter",
    "bench",
    "charts",
    "crds",
    "docs",
    "examples",
    "operator",
    "runtime-image",
    "tests",
];
/// Generated text, build output, and what tests compare with.
const LEFT_OUT: [&str; 8] = [
    "data",
    "fixtures",
    "golden",
    "node_modules",
    "petaflop-crds",
    "snapshots",
    "target",
    "testdata",
];
const EXTENSIONS: [&str; 7] = ["md", "py", "rs", "sh", "toml", "yaml", "yml"];
const NAMES: [&str; 2] = ["Containerfile", "Makefile"];

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?);
    let root = manifest.join("../..");
    let mut files = Vec::new();
    for name in ROOTS {
        let path = root.join(name);
        // Watching a missing path would run this at every build; a new one comes with a change to its neighbours.
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
            collect(&path, name, &mut files)?;
        }
    }
    files.sort();
    let mut code = String::from("&[\n");
    for path in files {
        let text = fs::read_to_string(root.join(&path))
            .map_err(|error| io::Error::other(format!("{path}: {error}")))?;
        writeln!(code, "    ({path:?}, {text:?}),").map_err(io::Error::other)?;
    }
    code.push(']');
    let out = PathBuf::from(env::var("OUT_DIR").map_err(io::Error::other)?);
    fs::write(out.join("corpus.rs"), code)
}

fn collect(path: &Path, relative: &str, files: &mut Vec<String>) -> io::Result<()> {
    let name = relative.rsplit('/').next().unwrap_or(relative);
    if name.starts_with('.') || LEFT_OUT.contains(&name) {
        return Ok(());
    }
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if let Some(name) = entry.file_name().to_str() {
                collect(&entry.path(), &format!("{relative}/{name}"), files)?;
            }
        }
    } else if NAMES.contains(&name)
        || name.rsplit_once('.').is_some_and(|(_, ext)| EXTENSIONS.contains(&ext))
    {
        files.push(relative.to_owned());
    }
    Ok(())
}
