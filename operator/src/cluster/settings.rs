//! What the operator is started with. The chart's values become these flags.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use petaflop_providers::runpod::AgentDownload;

pub use crate::store_at::StoreAt;

/// Where agents call that cannot be dialled.
#[derive(Clone, Debug)]
pub struct AgentCalls {
    /// Where the operator listens for them.
    pub listen: SocketAddr,
    /// What agents are told: the same place, as it is reached from outside.
    pub endpoint: String,
}

/// What the operator is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its namespace.
    pub namespace: String,
    /// Name of this replica, for the election: its Pod's.
    pub replica: String,
    /// Namespaces to work in; empty: all.
    pub watch_namespaces: Vec<String>,
    /// Labels of the ComputeProviders to work with (`key=value,…`); `None`: all. For several
    /// installations in one cluster.
    pub provider_labels: Option<String>,
    /// Where artifacts, checkpoints and logs are kept.
    pub store: StoreAt,
    /// Where the ledger is kept.
    pub ledger: StoreAt,
    /// Image that carries `/petaflop-agent`.
    pub agent_image: String,
    /// Where rented machines fetch the agent; without it none are rented that do.
    pub agent_download: Option<AgentDownload>,
    /// The same for Arm.
    pub agent_arm_download: Option<AgentDownload>,
    /// Where agents of rented machines call; `None`: they are dialled.
    pub agent_calls: Option<AgentCalls>,
    /// Image of our runtime.
    pub runtime_image: String,
    /// The runtime's program in it.
    pub runtime: String,
    /// How long an agent may keep its machine without hearing from us.
    pub lease: Duration,
    /// Where `/healthz`, `/readyz`, `/metrics` and the API are served.
    pub http_address: SocketAddr,
    /// Whether everybody may read `/metrics`.
    pub public_metrics: bool,
    /// Image of the operator itself, which gateways of InferenceServices run.
    pub gateway_image: String,
    /// Its ServiceAccount, for messages that say how to let it read a Secret.
    pub service_account: String,
    /// The ClusterRole that would let it, for the same messages.
    pub secret_reader: String,
    /// Folder for the worlds in which something was decided.
    pub record_worlds: Option<PathBuf>,
    /// Whether several replicas elect a leader; else there may be one only.
    pub leader_elect: bool,
}
