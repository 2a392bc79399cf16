//! Nodes that do not exist, kept alive by KWOK: for accelerators that no test
//! machine has, and for more Pods than one could run. A Pod that the scheduler
//! puts there runs at once, ends when it is annotated with [`EXIT_CODE`], and is
//! gone as soon as it is deleted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};

use crate::control_plane::ControlPlane;
use crate::error::{Error, Result};
use crate::process::{Component, Launch};
use crate::state::{Medium, State};
use crate::{eventually, tools};

/// Annotation that ends a Pod with the exit code it names.
pub const EXIT_CODE: &str = "test/exit-code";

/// Which nodes are KWOK's.
const OURS: &str = "kwok.x-k8s.io/node";

/// KWOK, running against one control plane.
pub struct Kwok {
    component: Component,
    client: kube::Client,
}

/// A node to be pretended.
#[derive(Clone, Debug)]
pub struct FakeNode {
    name: String,
    labels: BTreeMap<String, String>,
    resources: BTreeMap<String, String>,
}

impl FakeNode {
    /// CPUs and memory (as in `64Gi`), and nothing else.
    #[must_use]
    pub fn new(name: &str, cpus: u32, memory: &str) -> Self {
        let labels = [
            ("kubernetes.io/hostname", name),
            ("kubernetes.io/arch", "amd64"),
            ("kubernetes.io/os", "linux"),
        ];
        let resources = [
            ("cpu", cpus.to_string()),
            ("memory", memory.to_owned()),
            ("ephemeral-storage", "500Gi".to_owned()),
            ("pods", "110".to_owned()),
        ];
        Self {
            name: name.to_owned(),
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            resources: resources.map(|(key, value)| (key.to_owned(), value)).into(),
        }
    }

    /// Eight H100, labelled as NVIDIA's device plugin and feature discovery do.
    #[must_use]
    pub fn with_8_h100(name: &str) -> Self {
        Self::new(name, 128, "2Ti").resource("nvidia.com/gpu", 8).labels([
            ("nvidia.com/gpu.product", "NVIDIA-H100-80GB-HBM3"),
            ("nvidia.com/gpu.memory", "81559"),
            ("nvidia.com/gpu.count", "8"),
            ("nvidia.com/gpu.replicas", "1"),
            ("nvidia.com/gpu.family", "hopper"),
            ("nvidia.com/gpu.compute.major", "9"),
            ("nvidia.com/gpu.compute.minor", "0"),
            ("nvidia.com/gpu.mode", "compute"),
            ("nvidia.com/gpu.sharing-strategy", "none"),
            ("nvidia.com/cuda.driver-version.major", "570"),
            ("nvidia.com/mig.capable", "true"),
            ("nvidia.com/mig.strategy", "single"),
            ("feature.node.kubernetes.io/pci-10de.present", "true"),
        ])
    }

    /// Eight MI300X, labelled as AMD's device plugin and node labeller do.
    #[must_use]
    pub fn with_8_mi300x(name: &str) -> Self {
        Self::new(name, 192, "2Ti").resource("amd.com/gpu", 8).labels([
            ("amd.com/gpu.product-name", "AMD_Instinct_MI300X_OAM"),
            ("amd.com/gpu.vram", "192G"),
            ("amd.com/gpu.device-id", "74a1"),
            ("amd.com/gpu.family", "AI"),
            ("amd.com/gpu.cu-count", "304"),
            ("feature.node.kubernetes.io/amd-gpu", "true"),
        ])
    }

    /// One more extended resource.
    #[must_use]
    pub fn resource(mut self, name: &str, count: u32) -> Self {
        self.resources.insert(name.to_owned(), count.to_string());
        self
    }

    /// More labels, or others in place of those that are there.
    #[must_use]
    pub fn labels<'a>(mut self, labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        self.labels
            .extend(labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())));
        self
    }

    fn object(&self) -> Node {
        let quantities = || self.resources.iter().map(|(k, v)| (k.clone(), Quantity(v.clone())));
        Node {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(self.labels.clone()),
                annotations: Some([(OURS.to_owned(), "fake".to_owned())].into()),
                ..Default::default()
            },
            status: Some(NodeStatus {
                allocatable: Some(quantities().collect()),
                capacity: Some(quantities().collect()),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

/// Addresses for the Pods of one KWOK, of this host alone: a test that wants to can answer at a Pod's,
/// and what another test answers must not be at the same.
fn addresses() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let process = (std::process::id() & 63) as u8;
    let one = NEXT.fetch_add(1, Ordering::Relaxed) & 15;
    format!("127.{}.{}.0/20", 128 | process, one << 4)
}

impl Kwok {
    /// Starts KWOK. It looks after the nodes made by [`Self::node`] only.
    ///
    /// # Errors
    /// It cannot be built or started.
    pub async fn start(plane: &ControlPlane) -> Result<Self> {
        let program = tokio::task::spawn_blocking(tools::kwok)
            .await
            .map_err(|failure| Error::Unfit(failure.to_string()))??;
        let state = Arc::new(State::new(Medium::Memory)?);
        let stages = state.write("stages.yaml", include_str!("kwok-stages.yaml"))?;
        let access = plane.user("kwok", &["system:masters"])?;
        let launch = Launch::new(program).arguments([
            format!("--config={}", stages.display()),
            format!("--kubeconfig={}", access.kubeconfig().display()),
            "--manage-all-nodes=false".into(),
            format!("--manage-nodes-with-annotation-selector={OURS}=fake"),
            "--node-lease-duration-seconds=40".into(),
            format!("--cidr={}", addresses()),
            "--node-ip=192.0.2.1".into(),
        ]);
        let component = Component::start("kwok", launch, &state)?;
        Ok(Self { component, client: plane.client().await? })
    }

    /// Makes a node and waits until it is Ready.
    ///
    /// # Errors
    /// The API server refuses it, or KWOK has ended.
    pub async fn node(&self, node: &FakeNode) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let what = format!("node {}", node.name);
        nodes.create(&PostParams::default(), &node.object()).await.map_err(Error::api(&what))?;
        let what = format!("{what} Ready");
        let ready = eventually(&what, Duration::from_secs(60), || async {
            let node = nodes.get(&node.name).await.map_err(|e| e.to_string())?;
            let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
            if conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True") {
                return Ok(());
            }
            Err(format!("{conditions:?}"))
        })
        .await;
        self.component.must_be_up()?;
        ready
    }

    /// The process: paused, its nodes' leases run out after 40 s.
    pub fn component(&self) -> &Component {
        &self.component
    }
}
