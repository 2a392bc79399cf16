//! What of nodes and Pods a cache may forget: everything that neither offers nor
//! instances are made of, environments and the secrets in them first. For the
//! `modify` step of the operator's shared watches.

use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, Node, NodeSpec, NodeStatus, NodeSystemInfo, Pod, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::labels;

/// Keeps of a node what offers are made of.
pub fn node(node: &mut Node) {
    forget(&mut node.metadata);
    node.metadata.annotations = None;
    if let Some(spec) = node.spec.take() {
        node.spec = Some(NodeSpec {
            taints: spec.taints,
            unschedulable: spec.unschedulable,
            ..NodeSpec::default()
        });
    }
    if let Some(status) = node.status.take() {
        let mut conditions = status.conditions;
        if let Some(list) = &mut conditions {
            list.retain(|condition| condition.type_ == "Ready");
        }
        node.status = Some(NodeStatus {
            allocatable: status.allocatable,
            conditions,
            node_info: status.node_info.map(|info| NodeSystemInfo {
                architecture: info.architecture,
                ..NodeSystemInfo::default()
            }),
            ..NodeStatus::default()
        });
    }
}

/// Keeps of a Pod what it takes of its node, and of a claim's Pod what an instance is made of.
pub fn pod(pod: &mut Pod) {
    let ours = pod.metadata.labels.as_ref().is_some_and(|l| l.contains_key(labels::INSTALLATION));
    forget(&mut pod.metadata);
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.retain(|key, _| key.starts_with("petaflop.dev/"));
    }
    if !ours {
        pod.metadata.labels = None;
        pod.metadata.owner_references = None;
    }
    if let Some(spec) = pod.spec.take() {
        pod.spec = Some(PodSpec {
            containers: spec.containers.into_iter().map(container).collect(),
            init_containers: spec
                .init_containers
                .map(|list| list.into_iter().map(container).collect()),
            node_name: spec.node_name,
            overhead: spec.overhead,
            resources: spec.resources,
            ..PodSpec::default()
        });
    }
    if let Some(status) = pod.status.take() {
        pod.status = Some(match ours {
            false => PodStatus { phase: status.phase, ..PodStatus::default() },
            true => PodStatus {
                phase: status.phase,
                reason: status.reason,
                message: status.message,
                start_time: status.start_time,
                pod_ip: status.pod_ip,
                conditions: status.conditions,
                container_statuses: status.container_statuses.map(states),
                init_container_statuses: status.init_container_statuses.map(states),
                ..PodStatus::default()
            },
        });
    }
}

fn forget(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    meta.finalizers = None;
}

fn container(container: Container) -> Container {
    Container {
        name: container.name,
        ports: container.ports,
        resources: container.resources,
        restart_policy: container.restart_policy,
        ..Container::default()
    }
}

fn states(list: Vec<ContainerStatus>) -> Vec<ContainerStatus> {
    let keep = |status: ContainerStatus| ContainerStatus {
        name: status.name,
        state: status.state,
        ..ContainerStatus::default()
    };
    list.into_iter().map(keep).collect()
}
