//! What the scenarios in `tests/` share.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};

/// Path of one of the workspace's binaries, in the folder that this test was
/// built into. `cargo test` of the workspace builds the binaries first; one
/// that is missing is built here.
///
/// # Errors
/// Why it could not be built.
pub fn binary(name: &str) -> Result<PathBuf> {
    built(name, None)
}

/// Path of a binary that needs nothing of the system it runs on, built against musl.
///
/// # Errors
/// Why it could not be built: rustup's target or `musl-gcc` may be missing.
pub fn static_binary(name: &str) -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    built(name, Some(triple)).context("`make musl` installs what a static binary is built with")
}

fn built(name: &str, triple: Option<String>) -> Result<PathBuf> {
    // Cargo puts tests into `<target>/<profile>/deps`, binaries one above.
    let test = std::env::current_exe().context("where this test lies")?;
    let profile = test
        .ancestors()
        .nth(2)
        .with_context(|| format!("{}: expected a path below a target folder", test.display()))?;
    let target =
        profile.parent().with_context(|| format!("{}: has no parent", profile.display()))?;
    let path = match &triple {
        Some(triple) => target.join(triple).join("release").join(name),
        None => profile.join(name),
    };

    // Tests run side by side; one of them builds.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !path.exists() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--release", "--bin", name, "--target-dir"]).arg(target);
        // As it ships; and with clouds on this machine where they are tested.
        if name == "petaflop" {
            cargo.args(["--features", "petaflop-operator/aws"]);
            if cfg!(feature = "sandbox") {
                cargo.args(["--features", "petaflop-operator/sandbox"]);
            }
        }
        if let Some(triple) = &triple {
            cargo.args(["--target", triple]);
            cargo.env(format!("CC_{}", triple.replace('-', "_")), "musl-gcc");
        }
        let built = cargo
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
