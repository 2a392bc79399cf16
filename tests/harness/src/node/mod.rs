//! A node that runs containers: kubelet, containerd with runc, and kube-proxy,
//! all real, in [`namespaces`] of their own. Root only. Started with the control
//! plane by [`crate::Options::with_node`].

mod images;
mod namespaces;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node as Object;
use kube::Api;
use serde_json::json;

pub(crate) use images::install_busybox;
pub use images::{BUSYBOX, DEBIAN, Image, debian_base};
pub(crate) use namespaces::Namespaces;

use crate::access::Access;
use crate::certificates::Authority;
use crate::command::run;
use crate::error::{Error, Result};
use crate::process::{Component, Launch};
use crate::state::{Medium, State};
use crate::tools::by_debian;
use crate::{eventually, kubernetes, tools};

/// The node's name.
pub const NAME: &str = "node-1";

/// The running node. Its containers, mounts, addresses and control groups end
/// with it.
#[derive(Debug)]
pub struct Node {
    // Dropped in this order.
    kubelet: Component,
    kube_proxy: Component,
    containerd: Component,
    _namespaces: Namespaces,
    state: Arc<State>,
}

/// What must be there before the control plane: it is told the addresses.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) namespaces: Namespaces,
    state: Arc<State>,
}

/// Makes sure of the programs that a node is made of. Root only.
///
/// # Errors
/// We are not root, or a Debian package cannot be installed.
pub fn install() -> Result<()> {
    if !tools::is_root() {
        return Err(Error::Unfit("a node that runs containers needs root".into()));
    }
    for (program, package) in [
        ("containerd", "containerd"),
        ("runc", "runc"),
        ("/usr/lib/cni/ptp", "containernetworking-plugins"),
        ("nft", "nftables"),
        ("ip", "iproute2"),
        ("unshare", "util-linux"),
        ("nsenter", "util-linux"),
        ("busybox", "busybox-static"),
        ("buildah", "buildah"),
    ] {
        by_debian(program, &[package])?;
    }
    Ok(())
}

impl Ground {
    pub(crate) fn new() -> Result<Self> {
        install()?;
        let state = Arc::new(State::new(Medium::Disk)?);
        Ok(Self { namespaces: Namespaces::new(&state)?, state })
    }
}

impl Node {
    /// Starts the node's programs and waits until it is Ready. `url` is the API
    /// server's as the node reaches it.
    pub(crate) async fn start(
        ground: Ground,
        url: &str,
        authority: &Authority,
        client: kube::Client,
    ) -> Result<Self> {
        let Ground { namespaces, state } = ground;
        let access = |file: &str, user: &str, groups: &[&str]| {
            let identity = authority.client(file, user, groups)?;
            Access::by_certificate(&state, file, url, &authority.certificate, &identity)
        };
        let kubelet_access = access("kubelet", &format!("system:node:{NAME}"), &["system:nodes"])?;
        let proxy_access = access("kube-proxy", "system:kube-proxy", &[])?;

        let containerd = containerd(&namespaces, &state)?;
        let kubelet = kubelet(&namespaces, &state, authority, &kubelet_access)?;
        let kube_proxy = kube_proxy(&namespaces, &state, &proxy_access)?;
        let node = Self { kubelet, kube_proxy, containerd, _namespaces: namespaces, state };
        let busybox = images::busybox(&node.state)?;
        node.load_image(&busybox)?;
        node.ready(client).await?;
        Ok(node)
    }

    async fn ready(&self, client: kube::Client) -> Result<()> {
        let nodes: Api<Object> = Api::all(client);
        let ready = eventually("the node Ready", Duration::from_secs(120), || async {
            let node = nodes.get(NAME).await.map_err(|e| e.to_string())?;
            let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
            match conditions.into_iter().find(|condition| condition.type_ == "Ready") {
                Some(ready) if ready.status == "True" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        for component in [&self.containerd, &self.kubelet, &self.kube_proxy] {
            component.must_be_up()?;
        }
        ready.map_err(|error| match error {
            Error::Late { what, within, missing } => Error::Late {
                what,
                within,
                missing: format!("{missing}; the kubelet's log:\n{}", self.kubelet.log_tail()),
            },
            other => other,
        })
    }

    /// Gives the node an image of a docker or OCI archive; Pods use it with
    /// `imagePullPolicy: Never`.
    ///
    /// # Errors
    /// containerd does not take it.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        run(Command::new(by_debian("ctr", &["containerd"])?)
            .arg("--address")
            .arg(self.state.path(SOCKET))
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(archive))
        .map(drop)
    }

    /// Builds an image and loads it.
    ///
    /// # Errors
    /// As [`Image::build`] and [`Self::load_image`].
    pub fn build_image(&self, image: &Image<'_>) -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("a folder for the image"))?;
        let archive = folder.path().join("image.tar");
        image.build(&archive)?;
        self.load_image(&archive)
    }

    /// kubelet.
    pub fn kubelet(&self) -> &Component {
        &self.kubelet
    }

    /// kube-proxy.
    pub fn kube_proxy(&self) -> &Component {
        &self.kube_proxy
    }

    /// containerd.
    pub fn containerd(&self) -> &Component {
        &self.containerd
    }
}

/// containerd's socket in the state folder.
const SOCKET: &str = "containerd.sock";

fn containerd(namespaces: &Namespaces, state: &Arc<State>) -> Result<Component> {
    let program = by_debian("containerd", &["containerd"])?;
    let network = json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [{
            // Routed, each Pod on a wire of its own: unlike on a bridge, what
            // kube-proxy translates comes back the same way.
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "dataDir": state.path("addresses"),
                "ranges": [[{ "subnet": namespaces.pods() }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    });
    let networks = state.path("cni");
    std::fs::create_dir(&networks).map_err(Error::io(networks.display().to_string()))?;
    state.write("cni/pods.conflist", network.to_string())?;
    let path = |inside: &str| state.path(inside).display().to_string();
    // restrict_oom_score_adj: without the right to lower it runc dies otherwise.
    let config = format!(
        r#"
version = 2
root = "{root}"
state = "{run}"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
address = "{socket}"
[ttrpc]
address = "{socket}.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
path = "{opt}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{BUSYBOX}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{cni}"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#,
        root = path("containerd"),
        run = path("containerd-run"),
        socket = path(SOCKET),
        opt = path("opt"),
        cni = path("cni"),
    );
    let config = state.write("containerd.toml", config)?;
    let launch = namespaces
        .launch(&program.display().to_string())
        .argument(format!("--config={}", config.display()));
    let containerd = Component::start_wrapped("containerd", launch, state)?;
    let ctr = by_debian("ctr", &["containerd"])?;
    let asked = std::time::Instant::now();
    while run(Command::new(&ctr).args(["--address", &path(SOCKET), "version"])).is_err() {
        containerd.must_be_up()?;
        if asked.elapsed() > Duration::from_secs(60) {
            return Err(Error::Late {
                what: "containerd ready".into(),
                within: asked.elapsed(),
                missing: containerd.log_tail(),
            });
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(containerd)
}

fn kubelet(
    namespaces: &Namespaces,
    state: &Arc<State>,
    authority: &Authority,
    access: &Access,
) -> Result<Component> {
    let group = format!("petaflop-{}", namespaces.index());
    control_group(&group, state)?;
    // No name server: this cluster has no DNS, Services are reached by address.
    let resolver = state.write("resolv.conf", "")?;
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{group}"),
        "cgroupsPerQOS": true,
        "enforceNodeAllocatable": ["pods"],
        "failSwapOn": false,
        "containerRuntimeEndpoint": format!("unix://{}", state.path(SOCKET).display()),
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": authority.certificate },
        },
        "authorization": { "mode": "Webhook" },
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {},
        "resolvConf": resolver,
        "podLogsDir": state.path("pod-logs"),
        "volumePluginDir": state.path("volume-plugins"),
        // Tests wait for Pods: look often.
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
    });
    let config = state.write("kubelet.json", config.to_string())?;
    let launch = within(namespaces, kubernetes::program("kubelet")?).arguments([
        format!("--config={}", config.display()),
        format!("--kubeconfig={}", access.kubeconfig().display()),
        format!("--hostname-override={NAME}"),
        format!("--node-ip={}", namespaces.node()),
        format!("--root-dir={}", state.path("kubelet").display()),
        format!("--cert-dir={}", state.path("kubelet-pki").display()),
    ]);
    Component::start_wrapped("kubelet", launch, state)
}

fn kube_proxy(namespaces: &Namespaces, state: &Arc<State>, access: &Access) -> Result<Component> {
    let launch = within(namespaces, kubernetes::program("kube-proxy")?).arguments([
        format!("--kubeconfig={}", access.kubeconfig().display()),
        format!("--hostname-override={NAME}"),
        format!("--cluster-cidr={}", namespaces.pods()),
        "--proxy-mode=nftables".into(),
        // Leave the machine's connection tracking as it is.
        "--conntrack-max-per-core=0".into(),
        "--conntrack-tcp-timeout-established=0s".into(),
        "--conntrack-tcp-timeout-close-wait=0s".into(),
    ]);
    Component::start_wrapped("kube-proxy", launch, state)
}

fn within(namespaces: &Namespaces, program: Launch) -> Launch {
    namespaces.launch(&program.program.display().to_string()).arguments(program.arguments)
}

/// A control group of this node's own, in every hierarchy there is: a kubelet
/// ends what it does not know below its root.
fn control_group(name: &str, state: &State) -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let unified = root.join("cgroup.controllers").exists();
    let hierarchies = if unified {
        vec![root.to_owned()]
    } else {
        let entries = std::fs::read_dir(root).map_err(Error::io(root.display().to_string()))?;
        entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.is_dir() && !path.is_symlink())
            .collect()
    };
    for hierarchy in &hierarchies {
        let group = hierarchy.join(name);
        std::fs::create_dir_all(&group).map_err(Error::io(group.display().to_string()))?;
        state.undo(&format!(
            "tries=50; while [ -d {0} ] && [ $tries -gt 0 ]; do \
             find {0} -depth -type d -exec rmdir {{}} +; tries=$((tries - 1)); \
             [ -d {0} ] && sleep 0.1; done",
            group.display()
        ))?;
    }
    Ok(())
}
