//! Container images without a registry: built by buildah from a folder, kept as
//! an archive, loaded into the node.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache;
use crate::command::run;
use crate::error::{Error, Result};
use crate::state::State;
use crate::tools::by_debian;

/// Has a shell and the usual small programs; on every node. Its own command
/// sleeps, which also makes it the image that holds a Pod's network.
pub const BUSYBOX: &str = "localhost/busybox:1";

/// An image to be built, from a folder with a Containerfile.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    folder: &'a Path,
    tag: &'a str,
    containerfile: Option<&'a Path>,
    target: Option<&'a str>,
    base: Option<&'a Path>,
    arguments: Vec<(&'a str, &'a str)>,
}

impl<'a> Image<'a> {
    /// The image `tag` of the folder's `Containerfile`.
    pub fn new(folder: &'a Path, tag: &'a str) -> Self {
        Self { folder, tag, containerfile: None, target: None, base: None, arguments: Vec::new() }
    }

    /// By this Containerfile.
    #[must_use]
    pub fn containerfile(self, path: &'a Path) -> Self {
        Self { containerfile: Some(path), ..self }
    }

    /// Only up to this stage of it.
    #[must_use]
    pub fn target(self, stage: &'a str) -> Self {
        Self { target: Some(stage), ..self }
    }

    /// With the image of this archive, by the name in it, as one that `FROM` finds.
    #[must_use]
    pub fn on(self, archive: &'a Path) -> Self {
        Self { base: Some(archive), ..self }
    }

    /// With a value for one of its `ARG`s.
    #[must_use]
    pub fn argument(mut self, name: &'a str, value: &'a str) -> Self {
        self.arguments.push((name, value));
        self
    }

    /// Builds it, pulling nothing, and writes it as a docker archive to a file
    /// that is not there yet.
    ///
    /// # Errors
    /// buildah is missing and we are not root, or the build fails.
    pub fn build(&self, archive: &Path) -> Result<()> {
        let program = by_debian("buildah", &["buildah"])?;
        let storage = tempfile::tempdir().map_err(Error::io("a folder for buildah"))?;
        let policy = storage.path().join("policy.json");
        std::fs::write(&policy, r#"{ "default": [{ "type": "insecureAcceptAnything" }] }"#)
            .map_err(Error::io(policy.display().to_string()))?;
        let buildah = |what: &str| {
            let mut command = Command::new(&program);
            command.arg("--root").arg(storage.path().join("root"));
            command.arg("--runroot").arg(storage.path().join("run"));
            // Works on any file system, an overlay among them.
            command.args(["--storage-driver", "vfs", what, "--signature-policy"]).arg(&policy);
            command
        };
        let in_file = |path: &Path| format!("docker-archive:{}", path.display());
        if let Some(base) = self.base {
            run(buildah("pull").arg(in_file(base)))?;
        }
        let mut build = buildah("bud");
        build.args(["--isolation", "chroot", "--pull-never", "--tag", self.tag]);
        if let Some(path) = self.containerfile {
            build.arg("--file").arg(path);
        }
        if let Some(stage) = self.target {
            build.args(["--target", stage]);
        }
        for (name, value) in &self.arguments {
            build.args(["--build-arg", &format!("{name}={value}")]);
        }
        run(build.arg(self.folder))?;
        run(buildah("push").arg(self.tag).arg(format!("{}:{}", in_file(archive), self.tag)))
            .map(drop)
    }
}

/// What [`debian_base`] is called, and what Containerfiles begin `FROM`.
pub const DEBIAN: &str = "docker.io/library/debian:bookworm-slim";

/// An archive of the image [`DEBIAN`], made once by debootstrap from Debian's
/// packages: a base for tests, where no registry can be reached, with glibc and
/// all that our images would install.
///
/// # Errors
/// We are not root, or Debian's mirror cannot be reached.
pub fn debian_base() -> Result<PathBuf> {
    let what = "making a Debian base image (about a minute)";
    let folder = cache::once("debian-bookworm-ca-certificates-libvulkan1", what, |into| {
        let debootstrap = by_debian("debootstrap", &["debootstrap"])?;
        let build = into.join("build");
        std::fs::create_dir(&build).map_err(Error::io(build.display().to_string()))?;
        let root = build.join("root");
        let packages = ["--variant=minbase", "--include=ca-certificates,libvulkan1", "bookworm"];
        run(Command::new(debootstrap).args(packages).arg(&root))?;
        let lists = root.join("var/cache/apt/archives");
        std::fs::remove_dir_all(&lists).map_err(Error::io(lists.display().to_string()))?;
        let containerfile = build.join("Containerfile");
        std::fs::write(&containerfile, "FROM scratch\nCOPY root /\nCMD [\"bash\"]\n")
            .map_err(Error::io(containerfile.display().to_string()))?;
        Image::new(&build, DEBIAN).build(&into.join("debian.tar"))?;
        std::fs::remove_dir_all(&build).map_err(Error::io(build.display().to_string()))
    })?;
    Ok(folder.join("debian.tar"))
}

/// The archive of [`BUSYBOX`].
pub(crate) fn busybox(state: &State) -> Result<PathBuf> {
    let folder = state.path("busybox");
    install_busybox(&folder)?;
    let containerfile =
        "FROM scratch\nCOPY bin /bin\nENV PATH=/bin\nCMD [\"sleep\", \"infinity\"]\n";
    std::fs::write(folder.join("Containerfile"), containerfile)
        .map_err(Error::io(folder.display().to_string()))?;
    let archive = state.path("busybox.tar");
    Image::new(&folder, BUSYBOX).build(&archive)?;
    Ok(archive)
}

/// Its programs into `bin` of a folder.
pub(crate) fn install_busybox(folder: &Path) -> Result<()> {
    let binary = by_debian("busybox", &["busybox-static"])?;
    let bin = folder.join("bin");
    std::fs::create_dir_all(&bin)
        .and_then(|()| std::fs::copy(&binary, bin.join("busybox")))
        .map_err(Error::io(bin.display().to_string()))?;
    run(Command::new(bin.join("busybox")).args(["--install", "-s"]).arg(&bin))?;
    // --install links to the path it was called by.
    for entry in std::fs::read_dir(&bin).map_err(Error::io(bin.display().to_string()))? {
        let path = entry.map_err(Error::io(bin.display().to_string()))?.path();
        if path.is_symlink() {
            std::fs::remove_file(&path)
                .and_then(|()| std::os::unix::fs::symlink("busybox", &path))
                .map_err(Error::io(path.display().to_string()))?;
        }
    }
    Ok(())
}
