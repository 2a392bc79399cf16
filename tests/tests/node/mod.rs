//! A real node that has our images and a bucket: all that a user's cluster would have, the registry
//! aside. Commands are those that people type.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use petaflop_harness::node::{self, Image};
use petaflop_harness::{ControlPlane, Options, eventually, tools};
use petaflop_tests::{binary, static_binary};

/// Of the chart and of its images.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Opens the bucket; its value must show up nowhere.
pub(crate) const SECRET_KEY: &str = "secret-canary";

/// The image of the bucket's server.
const BUCKET_IMAGE: &str = "localhost/versitygw:test";

/// The cluster.
pub(crate) struct Site {
    /// Its servers and its node.
    pub(crate) plane: ControlPlane,
}

/// A file of the repository.
pub(crate) fn at_root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Starts the cluster and gives its node the images, by the names that the chart has for them. `None`,
/// said aloud, where nobody may start a node.
pub(crate) async fn start() -> Result<Option<Site>> {
    if !tools::is_root() {
        ensure!(std::env::var_os("CI").is_none(), "not tested: a real node needs root");
        eprintln!("not run here: a real node needs root");
        return Ok(None);
    }
    let site = Site { plane: ControlPlane::start(Options::default().with_node()).await? };
    site.load_images()?;
    Ok(Some(site))
}

impl Site {
    fn load_images(&self) -> Result<()> {
        let folder = tempfile::tempdir()?;
        let bin = folder.path().join("bin");
        std::fs::create_dir(&bin)?;
        for program in [
            binary("petaflop")?,
            binary("petaflop-runtime")?,
            static_binary("petaflop-agent")?,
            tools::versitygw()?,
        ] {
            let name = program.file_name().context("a program's name")?;
            std::fs::copy(&program, bin.join(name))
                .with_context(|| program.display().to_string())?;
        }
        let base = node::debian_base()?;
        let (operator, runtime) =
            (at_root("operator/Containerfile"), at_root("runtime-image/Containerfile"));
        for (name, containerfile, target) in [
            ("petaflop", &operator, None),
            ("petaflop-runtime", &runtime, Some("cpu")),
            ("petaflop-agent", &runtime, Some("agent")),
        ] {
            // What a name without a registry stands for.
            let tag = format!("docker.io/library/{name}:{VERSION}");
            let image = Image::new(folder.path(), &tag)
                .containerfile(containerfile)
                .argument("BINARIES", "given")
                .argument("BASE", node::DEBIAN)
                .on(&base);
            let image = target.into_iter().fold(image, Image::target);
            self.plane.node().build_image(&image).with_context(|| tag.clone())?;
        }
        let containerfile = folder.path().join("Containerfile");
        std::fs::write(&containerfile, "FROM scratch\nCOPY bin/versitygw /\n")?;
        self.plane.node().build_image(&Image::new(folder.path(), BUCKET_IMAGE))?;
        Ok(())
    }

    /// What a program prints that finds the cluster by its kubeconfig; `input` is its standard input.
    fn run(&self, program: PathBuf, arguments: &[&str], input: &str) -> Result<String> {
        let home = tempfile::tempdir()?;
        let mut command = Command::new(program);
        command.args(arguments).env("KUBECONFIG", self.plane.admin().kubeconfig());
        for variable in ["HOME", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(variable, home.path());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
        child.stdin.take().context("its input")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("{arguments:?} ended with {}:\n{errors}{said}", output.status);
        }
        Ok(said)
    }

    /// `kubectl …`, split at spaces.
    pub(crate) fn kubectl(&self, arguments: &str) -> Result<String> {
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        self.run(tools::kubectl()?, &arguments, "")
    }

    /// `kubectl apply --server-side` of a text, in a namespace.
    pub(crate) fn apply(&self, namespace: &str, manifest: &str) -> Result<()> {
        let arguments = ["apply", "--namespace", namespace, "--server-side", "--filename", "-"];
        self.run(tools::kubectl()?, &arguments, manifest).map(drop)
    }

    /// `helm …`, split at spaces, in the repository's root.
    pub(crate) fn helm(&self, arguments: &str) -> Result<String> {
        let charts = at_root("charts").display().to_string();
        let arguments = arguments.replace(" charts", &format!(" {charts}"));
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        self.run(tools::helm()?, &arguments, "")
    }

    /// Asks kubectl until what it prints is as it should be.
    pub(crate) async fn until(
        &self,
        what: &str,
        within: Duration,
        arguments: &str,
        is: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let found = eventually(what, within, || async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            match self.kubectl(arguments) {
                Ok(said) if is(&said) => Ok(said),
                Ok(said) => Err(said),
                Err(error) => Err(format!("{error:#}")),
            }
        });
        Ok(found.await?)
    }

    /// A namespace in which only restricted Pods may run.
    pub(crate) fn restricted_namespace(&self, name: &str) -> Result<()> {
        self.kubectl(&format!("create namespace {name}"))?;
        self.kubectl(&format!(
            "label namespace {name} pod-security.kubernetes.io/enforce=restricted"
        ))
        .map(drop)
    }

    /// A bucket `petaflop`, served in the cluster; its address.
    pub(crate) async fn bucket(&self) -> Result<String> {
        self.restricted_namespace("storage")?;
        let locked_down =
            r#"{"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}"#;
        self.apply(
            "storage",
            &format!(
                r#"
apiVersion: v1
kind: Service
metadata: {{name: bucket}}
spec: {{selector: {{app: bucket}}, ports: [{{port: 7070}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: bucket, labels: {{app: bucket}}}}
spec:
  securityContext: {{runAsNonRoot: true, runAsUser: 1000, fsGroup: 1000, seccompProfile: {{type: RuntimeDefault}}}}
  initContainers:
    - name: make
      image: {busybox}
      command: [mkdir, -p, /data/petaflop]
      securityContext: {locked_down}
      volumeMounts: [{{name: data, mountPath: /data}}]
  containers:
    - name: serve
      image: {BUCKET_IMAGE}
      command: [/versitygw, --access, access, --secret, {SECRET_KEY}, --port, ":7070", posix, /data]
      securityContext: {locked_down}
      readinessProbe: {{tcpSocket: {{port: 7070}}, periodSeconds: 1}}
      volumeMounts: [{{name: data, mountPath: /data}}]
  volumes: [{{name: data, emptyDir: {{}}}}]
"#,
                busybox = node::BUSYBOX,
            ),
        )?;
        self.kubectl("wait --namespace storage pod/bucket --for=condition=Ready --timeout=60s")?;
        let address = self.kubectl(
            "get --namespace storage service/bucket --output jsonpath={.spec.clusterIP}",
        )?;
        Ok(format!("http://{address}:7070"))
    }
}
