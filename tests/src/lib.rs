//! What the scenarios in `tests/` share.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};

/// Path of one of the workspace's binaries, in the folder that this test was
/// built into. `make test` builds the binaries first; one that is missing is
/// built here.
///
/// # Errors
/// Why it could not be built.
pub fn binary(name: &str) -> Result<PathBuf> {
    // Cargo puts tests into `<target>/<profile>/deps`, binaries one above.
    let test = std::env::current_exe().context("where this test lies")?;
    let profile = test
        .ancestors()
        .nth(2)
        .with_context(|| format!("{}: expected a path below a target folder", test.display()))?;
    let path = profile.join(name);

    // Tests run side by side; one of them builds.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !path.exists() {
        let target =
            profile.parent().with_context(|| format!("{}: has no parent", profile.display()))?;
        let built = Command::new(env!("CARGO"))
            .args(["build", "--release", "--bin", name, "--target-dir"])
            .arg(target)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .status()
            .context("starting cargo")?;
        ensure!(
            built.success() && path.exists(),
            "cargo build --release --bin {name} did not make {}",
            path.display()
        );
    }
    Ok(path)
}

/// The folder for what is worth keeping between runs, outside of the checkout:
/// `$PETAFLOP_CACHE`, else `~/.cache/petaflop`.
///
/// # Errors
/// Neither `PETAFLOP_CACHE` nor `HOME` is set.
pub fn cache() -> Result<PathBuf> {
    match std::env::var_os("PETAFLOP_CACHE") {
        Some(dir) => Ok(dir.into()),
        None => std::env::home_dir()
            .map(|home| home.join(".cache/petaflop"))
            .context("set PETAFLOP_CACHE or HOME: there is no place for the tests' cache"),
    }
}
