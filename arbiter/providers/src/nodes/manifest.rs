//! The Pod of a claim: complete before the purchase, the enrolment token aside.
//! It passes Pod security "restricted" and is bound to nothing by name: a required
//! node affinity leaves taints, resources and quota to the scheduler.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource,
    EnvVar, LocalObjectReference, NodeAffinity, NodeSelector, NodeSelectorRequirement,
    NodeSelectorTerm, PersistentVolumeClaimVolumeSource, Pod, PodSecurityContext, PodSpec,
    ResourceRequirements, SeccompProfile, SecurityContext, Toleration, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use petaflop_arbiter::claim::Identity;
use petaflop_arbiter::offer::Offer;

use super::offers::AGENT_MEMORY;
use super::slice::{Part, Slice};
use super::{NodesConfig, labels};
use crate::machine::{self, AgentSource, EnrolmentToken, Machine, VolumeSource, env};
use crate::provider::identity_text;

/// User and group of the job: no image's root, and the owner of its volumes.
const USER: i64 = 65_532;
/// Seconds that the agent has, after the job's own grace, to say how it ended.
const FAREWELL_SECONDS: i64 = 10;
/// Name of the agent's port.
pub(super) const AGENT_PORT: &str = "agent";
/// Name of the job's container.
pub(super) const CONTAINER: &str = "work";
/// The claims' kind.
const OWNER: (&str, &str) = ("petaflop.dev/v1alpha1", "ComputeClaim");

/// The Pod.
///
/// # Errors
/// What of the order cannot be had, in words.
pub(super) fn pod(
    config: &NodesConfig,
    identity: &Identity,
    offer: &Offer,
    machine: &Machine,
) -> Result<Pod, String> {
    let slice: Slice = offer.instance_type.parse().map_err(|_| {
        format!("offer {} is no slice of a node: {:?}", offer.id, offer.instance_type)
    })?;
    fits(offer, machine)?;
    let offered = serde_json::to_string(offer).map_err(|error| error.to_string())?;
    let mut own_labels = machine.labels.clone();
    for (key, value) in [
        (labels::INSTALLATION, &identity.installation),
        (labels::CLAIM_UID, &identity.claim_uid),
        (labels::PROVIDER, &config.name),
    ] {
        own_labels.insert(key.to_owned(), value.clone());
    }
    let annotations = BTreeMap::from([
        (labels::IDENTITY.to_owned(), identity_text(identity)),
        (labels::OFFER.to_owned(), offered),
        (labels::NODE.to_owned(), slice.node.clone()),
    ]);
    Ok(Pod {
        metadata: ObjectMeta {
            name: Some(identity.unique_name()),
            namespace: Some(identity.namespace.clone()),
            labels: Some(own_labels),
            annotations: Some(annotations),
            owner_references: Some(vec![owner(identity)]),
            ..ObjectMeta::default()
        },
        spec: Some(spec(config, identity, &slice, machine)),
        status: None,
    })
}

/// Adds the one secret to the job's environment.
pub(super) fn with_token(mut pod: Pod, token: &EnrolmentToken) -> Pod {
    let containers = pod.spec.iter_mut().flat_map(|spec| &mut spec.containers);
    for container in containers.filter(|container| container.name == CONTAINER) {
        let token = EnvVar {
            name: env::TOKEN.to_owned(),
            value: Some(token.expose().to_owned()),
            value_from: None,
        };
        container.env.get_or_insert_default().push(token);
    }
    pod
}

/// The claim owns its Pod: whoever deletes the claim deletes the Pod, even with us gone.
fn owner(identity: &Identity) -> OwnerReference {
    OwnerReference {
        api_version: OWNER.0.to_owned(),
        kind: OWNER.1.to_owned(),
        name: identity.claim.clone(),
        uid: identity.claim_uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

fn fits(offer: &Offer, machine: &Machine) -> Result<(), String> {
    let Offer { vcpu_milli, memory, .. } = offer;
    if machine.cpu_millis == 0 || machine.memory == 0 {
        return Err("a machine needs some processor and some memory".to_owned());
    }
    if let Some(has) = vcpu_milli.filter(|has| machine.cpu_millis > *has) {
        return Err(format!("{} has {has}m processors, not {}m", offer.id, machine.cpu_millis));
    }
    if let Some(has) = memory.filter(|has| machine.memory > *has) {
        return Err(format!("{} has {has} bytes of memory, not {}", offer.id, machine.memory));
    }
    Ok(())
}

fn spec(config: &NodesConfig, identity: &Identity, slice: &Slice, machine: &Machine) -> PodSpec {
    let devices = match &slice.part {
        Part::Devices { resource, count } => Some((resource.clone(), *count)),
        Part::Processors(_) | Part::Rest => None,
    };
    let mut tolerations = config.tolerations.clone();
    if let Some((resource, _)) = &devices {
        tolerations.push(Toleration {
            key: Some(resource.clone()),
            operator: Some("Exists".to_owned()),
            ..Toleration::default()
        });
    }
    let pull_secrets = machine
        .image_pull_secrets
        .iter()
        .map(|name| LocalObjectReference { name: name.clone() })
        .collect::<Vec<_>>();
    let grace = i64::try_from(machine.grace_seconds).unwrap_or(i64::MAX);
    PodSpec {
        affinity: Some(affinity(&slice.node)),
        // Rights in the cluster only where somebody named whose.
        automount_service_account_token: Some(machine.service_account.is_some()),
        service_account_name: machine.service_account.clone(),
        enable_service_links: Some(false),
        init_containers: Some(vec![installer(machine)]),
        containers: vec![work(identity, machine, devices)],
        image_pull_secrets: Some(pull_secrets).filter(|list| !list.is_empty()),
        restart_policy: Some("Never".to_owned()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            supplemental_groups: Some(config.groups.clone()).filter(|list| !list.is_empty()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..SeccompProfile::default()
            }),
            ..PodSecurityContext::default()
        }),
        termination_grace_period_seconds: Some(grace.saturating_add(FAREWELL_SECONDS)),
        tolerations: Some(tolerations).filter(|list| !list.is_empty()),
        volumes: Some(volumes(machine)),
        ..PodSpec::default()
    }
}

fn affinity(node: &str) -> Affinity {
    let by_name = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![by_name]), match_expressions: None };
    Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                node_selector_terms: vec![term],
            }),
            preferred_during_scheduling_ignored_during_execution: None,
        }),
        ..Affinity::default()
    }
}

/// Copies the agent to where the job's container finds it, whatever image that has.
fn installer(machine: &Machine) -> Container {
    let AgentSource::Image(image) = &machine.agent;
    let amounts = quantities([("cpu", "50m".to_owned()), ("memory", AGENT_MEMORY.to_string())]);
    Container {
        name: "install-agent".to_owned(),
        image: Some(image.clone()),
        command: Some(vec!["/petaflop-agent".to_owned()]),
        args: Some(vec!["install".to_owned(), machine::AGENT_FOLDER.to_owned()]),
        volume_mounts: Some(vec![mount("petaflop", machine::AGENT_FOLDER, false)]),
        resources: Some(ResourceRequirements {
            limits: Some(quantities([("memory", AGENT_MEMORY.to_string())])),
            requests: Some(amounts),
            claims: None,
        }),
        security_context: Some(locked_down()),
        ..Container::default()
    }
}

fn work(identity: &Identity, machine: &Machine, devices: Option<(String, u32)>) -> Container {
    let memory = machine.memory.saturating_add(AGENT_MEMORY).to_string();
    let mut limits = quantities([("memory", memory)]);
    if let Some(ephemeral) = machine.ephemeral {
        limits.insert("ephemeral-storage".to_owned(), Quantity(ephemeral.to_string()));
    }
    if let Some((resource, count)) = devices {
        limits.insert(resource, Quantity(count.to_string()));
    }
    // No limit of processors: what nobody else asked for may be used.
    let mut requests = limits.clone();
    requests.insert("cpu".to_owned(), Quantity(format!("{}m", machine.cpu_millis)));

    let mut environment = machine.bootstrap.environment();
    environment.insert(env::IDENTITY.to_owned(), identity_text(identity));
    let environment = environment
        .into_iter()
        .map(|(name, value)| EnvVar { name, value: Some(value), value_from: None })
        .collect();

    let agent = machine.bootstrap.port;
    let port = |number: u16, name: Option<&str>| ContainerPort {
        container_port: i32::from(number),
        name: name.map(str::to_owned),
        ..ContainerPort::default()
    };
    let others = machine.ports.iter().filter(|number| **number != agent);
    let ports = std::iter::once(port(agent, Some(AGENT_PORT)))
        .chain(others.map(|number| port(*number, None)))
        .collect();

    let own = [
        mount("petaflop", machine::AGENT_FOLDER, true),
        mount("work", machine::WORK_FOLDER, false),
        mount("tmp", "/tmp", false),
    ];
    let mounts = own
        .into_iter()
        .chain(
            machine
                .volumes
                .iter()
                .map(|v| mount(&volume_name(&v.name), &v.mount_path, v.read_only)),
        )
        .collect();
    Container {
        name: CONTAINER.to_owned(),
        image: Some(machine.image.clone()),
        command: Some(vec![machine::AGENT.to_owned(), "supervise".to_owned()]),
        env: Some(environment),
        ports: Some(ports),
        resources: Some(ResourceRequirements {
            limits: Some(limits),
            requests: Some(requests),
            claims: None,
        }),
        security_context: Some(locked_down()),
        // The last words of a job that left none in the agent's report.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

fn locked_down() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { add: None, drop: Some(vec!["ALL".to_owned()]) }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

fn volumes(machine: &Machine) -> Vec<Volume> {
    let empty = |name: &str, source: EmptyDirVolumeSource| Volume {
        name: name.to_owned(),
        empty_dir: Some(source),
        ..Volume::default()
    };
    let folder = |name: &str, size_limit: Option<u64>| {
        let size_limit = size_limit.map(|bytes| Quantity(bytes.to_string()));
        empty(name, EmptyDirVolumeSource { size_limit, medium: None })
    };
    let mut list =
        vec![folder("petaflop", None), folder("work", machine.ephemeral), folder("tmp", None)];
    for volume in &machine.volumes {
        let name = volume_name(&volume.name);
        list.push(match &volume.source {
            VolumeSource::EmptyDir { size_limit } => folder(&name, *size_limit),
            VolumeSource::Memory => {
                let medium = Some("Memory".to_owned());
                empty(&name, EmptyDirVolumeSource { size_limit: None, medium })
            }
            VolumeSource::PersistentVolumeClaim(claim) => Volume {
                name,
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim.clone(),
                    read_only: Some(volume.read_only),
                }),
                ..Volume::default()
            },
            VolumeSource::ConfigMap(map) => Volume {
                name,
                config_map: Some(ConfigMapVolumeSource {
                    name: map.clone(),
                    ..ConfigMapVolumeSource::default()
                }),
                ..Volume::default()
            },
        });
    }
    list
}

/// Volumes of the job have names of their own, so that none is taken for one of ours.
fn volume_name(name: &str) -> String {
    format!("v-{name}")
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(read_only),
        ..VolumeMount::default()
    }
}

fn quantities<const N: usize>(list: [(&str, String); N]) -> BTreeMap<String, Quantity> {
    list.into_iter().map(|(name, amount)| (name.to_owned(), Quantity(amount))).collect()
}
