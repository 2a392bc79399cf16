//! A Pod as an instance: where it is in its life, what it bills, what is wrong
//! with it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodStatus};
use petaflop_arbiter::reason::Reason;

use super::labels;
use super::manifest::{AGENT_PORT, CONTAINER};
use crate::provider::{Exit, Instance, InstanceId, InstanceState, Trouble};

/// A Pod's name as an instance: `namespace/name/uid`. The uid keeps a Pod of the same name that
/// came later from being taken for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodId {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
}

impl PodId {
    pub(super) fn of(pod: &Pod) -> Option<Self> {
        let meta = &pod.metadata;
        Some(Self {
            namespace: meta.namespace.clone()?,
            name: meta.name.clone()?,
            uid: meta.uid.clone()?,
        })
    }

    pub(super) fn parse(id: &InstanceId) -> Option<Self> {
        let mut parts = id.0.split('/').map(str::to_owned);
        let id = Self { namespace: parts.next()?, name: parts.next()?, uid: parts.next()? };
        parts.next().is_none().then_some(id)
    }

    pub(super) fn instance(&self) -> InstanceId {
        let Self { namespace, name, uid } = self;
        InstanceId(format!("{namespace}/{name}/{uid}"))
    }
}

/// What a Pod of ours is. `None` for one without name and uid, which no server gives.
pub(super) fn of(pod: &Pod) -> Option<Instance> {
    let id = PodId::of(pod)?;
    let nothing = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&nothing);
    let state = state(pod, status);
    let terminated = terminated(status);
    let started = status.start_time.as_ref().map(|time| time.0);
    Some(Instance {
        id: id.instance(),
        identity: labels::identity_of(pod),
        state,
        started,
        ended: (state == InstanceState::Terminated)
            .then(|| started.and_then(|_| ended(status, terminated)))
            .flatten(),
        offer: labels::offer_of(pod),
        hourly: None,
        running: None,
        endpoint: endpoint(pod, status),
        exit: terminated.map(exit),
        trouble: trouble(pod, status),
    })
}

fn state(pod: &Pod, status: &PodStatus) -> InstanceState {
    match (status.phase.as_deref(), &pod.metadata.deletion_timestamp) {
        (Some("Succeeded" | "Failed"), _) => InstanceState::Terminated,
        (_, Some(_)) => InstanceState::Terminating,
        // Unknown: its node does not answer. It may run on.
        (Some("Running" | "Unknown"), None) => InstanceState::Running,
        (_, None) => InstanceState::Pending,
    }
}

fn work(status: &PodStatus) -> Option<&ContainerStatus> {
    status.container_statuses.iter().flatten().find(|container| container.name == CONTAINER)
}

fn terminated(status: &PodStatus) -> Option<&ContainerStateTerminated> {
    work(status)?.state.as_ref()?.terminated.as_ref()
}

/// When the work ended; for a Pod that lost its node or its place, when that was noticed.
fn ended(status: &PodStatus, terminated: Option<&ContainerStateTerminated>) -> Option<Timestamp> {
    let finished = terminated.and_then(|end| end.finished_at.as_ref()).map(|time| time.0);
    // A container that was lost with its node has the zero time, which is no time.
    finished.filter(|time| *time > Timestamp::UNIX_EPOCH).or_else(|| {
        let changes = status.conditions.iter().flatten();
        changes.filter_map(|condition| condition.last_transition_time.as_ref()).map(|t| t.0).max()
    })
}

fn exit(end: &ContainerStateTerminated) -> Exit {
    let words = [&end.reason, &end.message];
    let message = words.into_iter().flatten().map(|text| text.trim()).filter(|t| !t.is_empty());
    Exit { code: end.exit_code, message: message.collect::<Vec<_>>().join(": ") }
}

fn endpoint(pod: &Pod, status: &PodStatus) -> Option<String> {
    let ip = status.pod_ip.as_deref().filter(|ip| !ip.is_empty())?;
    let spec = pod.spec.as_ref()?;
    let ports = spec.containers.iter().find(|c| c.name == CONTAINER)?.ports.iter().flatten();
    let port = ports.into_iter().find(|port| port.name.as_deref() == Some(AGENT_PORT))?;
    let port = port.container_port;
    Some(if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") })
}

/// What keeps it from running, or what took it away.
fn trouble(pod: &Pod, status: &PodStatus) -> Option<Trouble> {
    let trouble = |reason, words: [Option<&str>; 2]| {
        let message = words.into_iter().flatten().filter(|text| !text.is_empty());
        Some(Trouble { reason, message: message.collect::<Vec<_>>().join(": ") })
    };
    let condition = |kind: &str, value: &str| {
        let mut all = status.conditions.iter().flatten();
        all.find(|condition| condition.type_ == kind && condition.status == value)
    };
    // Evicted by its node, preempted by another, ended by the taint of a lost node.
    if let Some(end) = condition("DisruptionTarget", "True") {
        return trouble(Reason::SpotInterrupted, [end.reason.as_deref(), end.message.as_deref()]);
    }
    let said = [status.reason.as_deref(), status.message.as_deref()];
    match status.reason.as_deref() {
        Some(
            "Evicted" | "Preempting" | "Shutdown" | "NodeShutdown" | "Terminated" | "NodeLost",
        ) => {
            return trouble(Reason::SpotInterrupted, said);
        }
        // Bound to a node that then would not have it: its devices or memory were gone.
        Some(_) if status.phase.as_deref() == Some("Failed") && terminated(status).is_none() => {
            return trouble(Reason::InsufficientCapacity, said);
        }
        _ => {}
    }
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses);
    for container in containers.flatten() {
        let Some(waiting) = container.state.as_ref().and_then(|state| state.waiting.as_ref())
        else {
            continue;
        };
        let why = [waiting.reason.as_deref(), waiting.message.as_deref()];
        match waiting.reason.as_deref() {
            Some(
                "ImagePullBackOff"
                | "ErrImagePull"
                | "ErrImageNeverPull"
                | "InvalidImageName"
                | "ImageInspectError"
                | "RegistryUnavailable",
            ) => return trouble(Reason::ImagePullFailed, why),
            Some(
                "CreateContainerConfigError"
                | "CreateContainerError"
                | "RunContainerError"
                | "CrashLoopBackOff",
            ) => return trouble(Reason::InvalidSpec, why),
            _ => {}
        }
    }
    let unscheduled = condition("PodScheduled", "False").filter(|_| !bound(pod));
    unscheduled.and_then(|c| {
        trouble(Reason::InsufficientCapacity, [c.reason.as_deref(), c.message.as_deref()])
    })
}

fn bound(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|n| !n.is_empty())
}
