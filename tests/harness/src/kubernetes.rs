//! Kubernetes' own programs. `kubernetes/` beside this folder is a Go module
//! that makes one program of all of them; it is built once and cached under the
//! hash of its sources. A binary in `KUBEBUILDER_ASSETS`, where the field's
//! tools put theirs, wins over the build, each by itself.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache;
use crate::command::run;
use crate::error::{Error, Result};
use crate::process::Launch;

/// Of the Go module's `k8s.io/kubernetes`; a test below compares.
pub(crate) const VERSION: &str = "1.36.4";

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kubernetes");

/// A way to start one of Kubernetes' programs.
///
/// # Errors
/// It has to be built and cannot.
pub(crate) fn program(name: &str) -> Result<Launch> {
    if let Some(ready) = asset(name) {
        return Ok(Launch::new(ready));
    }
    Ok(Launch::new(build()?).argument(name))
}

/// A binary of `KUBEBUILDER_ASSETS`.
pub(crate) fn asset(name: &str) -> Option<PathBuf> {
    let path = Path::new(&std::env::var_os("KUBEBUILDER_ASSETS")?).join(name);
    path.is_file().then_some(path)
}

fn build() -> Result<PathBuf> {
    let source = Path::new(SOURCE);
    let mut hash = blake3::Hasher::new();
    for file in ["go.mod", "go.sum", "main.go"] {
        let path = source.join(file);
        let bytes = std::fs::read(&path).map_err(Error::io(path.display().to_string()))?;
        hash.update(&bytes);
    }
    let key = &hash.finalize().to_hex()[..16];
    let built = cache::once(
        &format!("kubernetes-{VERSION}-{key}"),
        &format!("building Kubernetes {VERSION} (about 7 minutes on 2 cores)"),
        |into| {
            run(go()?
                .current_dir(source)
                .env("CGO_ENABLED", "0")
                .env("GOFLAGS", "-trimpath -mod=readonly -buildvcs=false")
                .args(["build", "-ldflags", &link_flags(), "-o"])
                .arg(into.join("kubernetes"))
                .arg("."))
            .map(drop)
        },
    )?;
    Ok(built.join("kubernetes"))
}

/// The version, which the Go module system does not bring into the program:
/// without it the server says v0.0.0 and charts refuse it.
fn link_flags() -> String {
    let mut parts = VERSION.split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let mut flags = String::from("-s -w");
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (name, value) in [
            ("gitVersion", format!("v{VERSION}").as_str()),
            ("gitMajor", major),
            ("gitMinor", minor),
            ("gitTreeState", "clean"),
        ] {
            flags.push_str(&format!(" -X {package}.{name}={value}"));
        }
    }
    flags
}

/// The Go command: `go` of the path, else where Go's own installer puts it.
/// One that is too old for the module (but at least 1.21) fetches the right
/// toolchain itself.
pub(crate) fn go() -> Result<Command> {
    let usual = PathBuf::from("/usr/local/go/bin/go");
    let on_path = std::env::var_os("PATH").and_then(|paths| {
        std::env::split_paths(&paths).map(|dir| dir.join("go")).find(|path| path.is_file())
    });
    let program = on_path.or_else(|| usual.is_file().then_some(usual));
    let program = program.ok_or_else(|| Error::Missing {
        what: format!("Go, which Kubernetes {VERSION} is built with,"),
        mend: "Install Go 1.26 or newer (https://go.dev/dl), on the PATH or in /usr/local/go; \
               or point KUBEBUILDER_ASSETS at a folder with etcd, kube-apiserver, \
               kube-controller-manager and kube-scheduler."
            .into(),
    })?;
    Ok(Command::new(program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_named_here_is_the_one_that_the_module_builds() {
        let module = std::fs::read_to_string(Path::new(SOURCE).join("go.mod")).unwrap();
        assert!(module.contains(&format!("k8s.io/kubernetes v{VERSION}\n")), "{module}");
    }
}
