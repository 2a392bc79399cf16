//! What a claimed machine is: the image, the agent's bootstrap, and, once the agent has
//! enrolled, what it is told to run. The same claim gives the same machine and the same task.

use std::collections::BTreeMap;

use kube::ResourceExt;
use petaflop_agent_api::task::{self, PROGRESS_FILE, Task};
use petaflop_arbiter::checkpoint;
use petaflop_crds::inference_service::{Probe, Probes};
use petaflop_crds::shared::{self, Container, SecretRef};
use petaflop_crds::training_job::{Cache, TrainingJobSpec};
use petaflop_crds::{InferenceService, TrainingJob};
use petaflop_providers::Machine;
use petaflop_providers::machine::{Bootstrap, INPUTS, Volume, VolumeSource};

use crate::accelerators::promised;
use crate::agents::Told;
use crate::claims::StoredClaim;
use crate::cluster::admit::{Admitted, admit};
use crate::cluster::secrets::{self, Named};
use crate::cluster::{Operator, inference_service};
use crate::fleet::{Command, Training};

/// Variable in which a server finds what it asks of whoever sends it requests.
const REPLICA_KEY: &str = "PETAFLOP_REPLICA_KEY";

/// The machine of a claim. An offer of an owned machine is a slice: all of it is asked for.
pub fn of(operator: &Operator, job: &TrainingJob, stored: &StoredClaim) -> Machine {
    let spec = &job.spec;
    let machine = operator.fleet().machine(&stored.claim.spec);
    let image = spec.container.as_ref().map(|container| container.image.clone());
    let near = operator.is_near(&stored.claim.spec);
    Machine {
        image: image.unwrap_or(machine.image),
        ephemeral: disk(&spec.resources),
        ports: spec.ports.iter().map(|port| port.port).filter(|_| near).collect(),
        service_account: spec.service_account_name.clone(),
        image_pull_secrets: spec.image_pull_secrets.iter().map(|s| s.name.clone()).collect(),
        grace_seconds: u64::from(spec.checkpoint.grace_seconds),
        volumes: if near { volumes(spec) } else { Vec::new() },
        bootstrap: Bootstrap {
            endpoint: operator.call_at(&stored.claim.spec).map(str::to_owned),
            ..machine.bootstrap
        },
        ..machine
    }
}

/// Bytes of disk that its Pod is limited to; providers that have less were passed over.
fn disk(resources: &shared::Resources) -> Option<u64> {
    resources.ephemeral_storage.as_ref()?.units().ok()
}

/// Volumes of a job's Pod, and where its agent, whose root may not be written to, puts what it brings. On rented
/// machines it makes the folders itself.
fn volumes(spec: &TrainingJobSpec) -> Vec<Volume> {
    let fetched = spec.container.is_some() && !spec.inputs.is_empty();
    let inputs = fetched.then(|| Volume {
        name: "inputs".to_owned(),
        mount_path: INPUTS.to_owned(),
        read_only: false,
        source: VolumeSource::EmptyDir { size_limit: None },
    });
    of_the_cluster(&spec.volumes).chain(in_memory(&spec.secrets)).chain(inputs).collect()
}

/// Those that a user names.
fn of_the_cluster(volumes: &[shared::Volume]) -> impl Iterator<Item = Volume> {
    volumes.iter().enumerate().filter_map(|(at, volume)| {
        Some(Volume {
            name: format!("volume-{at}"),
            mount_path: volume.mount_path.clone(),
            read_only: volume.read_only,
            source: source(volume)?,
        })
    })
}

/// What a volume is; the rules of the kind let it be one thing.
fn source(volume: &shared::Volume) -> Option<VolumeSource> {
    let shared::Volume { persistent_volume_claim, config_map, empty_dir, .. } = volume;
    let claim = persistent_volume_claim.as_ref();
    let claim = claim.map(|claim| VolumeSource::PersistentVolumeClaim(claim.name.clone()));
    let map = config_map.as_ref().map(|map| VolumeSource::ConfigMap(map.name.clone()));
    let empty = empty_dir.as_ref().map(|empty| VolumeSource::EmptyDir {
        size_limit: empty.size_limit.as_ref().and_then(|limit| limit.units().ok()),
    });
    claim.or(map).or(empty)
}

/// One for each Secret that becomes files.
fn in_memory(secrets: &[SecretRef]) -> impl Iterator<Item = Volume> {
    let paths = secrets.iter().filter_map(|secret| secret.mount_path.clone()).enumerate();
    paths.map(|(at, mount_path)| Volume {
        name: format!("secret-{at}"),
        mount_path,
        read_only: false,
        source: VolumeSource::Memory,
    })
}

/// What Secrets and ConfigMaps hold for the owner of a claim. `None`: they were not read yet by this
/// process, whose controller does that first.
fn named(
    operator: &Operator,
    names: secrets::Names<'_>,
    uid: &str,
    stored: &StoredClaim,
) -> Option<Named> {
    match operator.secrets.of(uid) {
        _ if !names.any() => Some(Named::default()),
        Some(named) => Some(named),
        // It has its task already; only its agent is met again.
        None => stored.agent_key.is_some().then(Named::default),
    }
}

/// What its agent is told; `None` where the job can no longer be read, which its own
/// status says.
pub fn task(operator: &Operator, job: &TrainingJob, stored: &StoredClaim) -> Option<Told> {
    let admitted = admit(job).ok()?;
    let uid = job.metadata.uid.as_deref()?;
    let mut named = named(operator, (&job.spec).into(), uid, stored)?;
    let spec = &job.spec;
    let grace_seconds = u64::from(spec.checkpoint.grace_seconds);
    let accelerators = promised(&stored.claim.spec, spec.resources.asks_for_accelerators());
    let admitted = match admitted {
        Admitted::Recipe(recipe) => *recipe,
        Admitted::Command(mut command) => {
            let claim = &stored.claim.spec;
            let fleet = operator.fleet();
            for input in &mut command.inputs {
                input.files = named.inputs.remove(&input.name);
                input.credentials = named.keys.remove(&input.name).unwrap_or_default();
            }
            let rights = fleet.rights_of_command(claim, &command.inputs);
            let task = fleet.command(
                claim,
                command,
                (named.env, named.folders),
                grace_seconds,
                accelerators,
            );
            return Some(Told { task, rights });
        }
    };
    let training = Training {
        recipe: admitted.recipe,
        inputs: admitted.inputs,
        checkpoint_interval_seconds: checkpoint::on(
            &stored.claim.spec,
            spec.checkpoint.interval_seconds,
        ),
        keep_checkpoints: spec.output.keep_checkpoints,
        fresh: spec.cache == Cache::Never,
        grace_seconds,
        secrets: named.env,
        folders: named.folders,
        delivery: spec.output.uri.clone().map(|to| (to, named.output)),
        accelerators,
    };
    let rights = operator.fleet().rights_of_job(&stored.claim.spec, &training.inputs);
    let task = operator.fleet().training(&stored.claim.spec, training).ok()?;
    Some(Told { task, rights })
}

/// The machine of a service's replica.
pub fn replica(operator: &Operator, service: &InferenceService, stored: &StoredClaim) -> Machine {
    let spec = &service.spec;
    let near = operator.is_near(&stored.claim.spec);
    let machine = operator.fleet().machine(&stored.claim.spec);
    let (image, port, volumes) = match &spec.container {
        None => (machine.image, inference_service::PORT, Vec::new()),
        Some(container) => {
            let port = inference_service::port(service);
            let volumes = of_the_cluster(&spec.volumes).chain(in_memory(&spec.secrets));
            (container.image.clone(), port, volumes.collect())
        }
    };
    Machine {
        image,
        ephemeral: disk(&spec.resources),
        ports: near.then_some(port).into_iter().collect(),
        volumes: if near { volumes } else { Vec::new() },
        service_account: spec.service_account_name.clone(),
        image_pull_secrets: spec.image_pull_secrets.iter().map(|s| s.name.clone()).collect(),
        grace_seconds: inference_service::GRACE_SECONDS,
        ..machine
    }
}

/// What the agent of a container's replica is told: the user's command, and how to ask it how it is.
fn serve_container(
    operator: &Operator,
    service: &InferenceService,
    container: &Container,
    stored: &StoredClaim,
) -> Option<Told> {
    let (spec, claim) = (&service.spec, &stored.claim.spec);
    let uid = service.metadata.uid.as_deref()?;
    let Named { env, folders, .. } = named(operator, spec.into(), uid, stored)?;
    let port = inference_service::port(service);
    let ours = [
        ("PETAFLOP_NAMESPACE", service.namespace().unwrap_or_default()),
        ("PETAFLOP_SERVICE", service.name_any()),
        ("PORT", port.to_string()),
    ];
    let command = Command::of(container, ours).ok()?;
    let fleet = operator.fleet();
    let rights = fleet.rights_of_command(claim, &command.inputs);
    let grace = inference_service::GRACE_SECONDS;
    let accelerators = promised(claim, spec.resources.asks_for_accelerators());
    let task = Task {
        server: Some(server(&spec.probes, port)),
        relay: Some(operator.installation.root.replica_key(&stored.claim.uid)),
        ..fleet.command(claim, command, (env, folders), grace, accelerators)
    };
    Some(Told { task, rights })
}

fn server(probes: &Probes, port: u16) -> task::Server {
    let Probes { startup, readiness, liveness } = probes;
    let probe = |probe: &Probe| task::Probe {
        port: probe.port.unwrap_or(port),
        path: Some(probe.path.clone()),
        initial_delay_seconds: probe.initial_delay_seconds,
        period_seconds: probe.period_seconds,
        timeout_seconds: probe.timeout_seconds,
        failure_threshold: probe.failure_threshold,
    };
    // It costs next to nothing, and who waits for a machine waits no longer for this.
    let connects = task::Probe {
        port,
        path: None,
        initial_delay_seconds: 0,
        period_seconds: 1,
        timeout_seconds: 1,
        failure_threshold: 3,
    };
    task::Server {
        port,
        startup: startup.as_ref().map(probe),
        readiness: readiness.as_ref().map_or(connects, probe),
        liveness: liveness.as_ref().map(probe),
    }
}

/// What a replica's agent is told: the user's command, or our server, on this port; 0: any that is free. Where its
/// machine is on the cluster's own network it takes requests from there, elsewhere from its agent alone.
/// `None` while nobody knows what the service is to serve.
pub fn serve(
    operator: &Operator,
    service: &InferenceService,
    stored: &StoredClaim,
    port: u16,
) -> Option<Told> {
    if let Some(container) = &service.spec.container {
        return serve_container(operator, service, container, stored);
    }
    let (host, port) = match operator.is_near(&stored.claim.spec) {
        true => ("0.0.0.0", port),
        false => ("127.0.0.1", 0),
    };
    let settings = &operator.settings;
    let known = operator.memories.wants(&stored.claim.spec.owner.uid);
    // A new leader meets replicas that run before it has looked for the model itself.
    let artifact = known
        .and_then(|(_, served)| served.artifact().map(str::to_owned))
        .or_else(|| service.status.as_ref()?.artifact.clone())?;
    let rights = operator.fleet().rights_of_replica(&stored.claim.spec, &artifact);
    let mut secrets = settings.store.handed_on();
    let key = operator.installation.root.replica_key(&stored.claim.uid);
    secrets.insert(REPLICA_KEY.to_owned(), key.clone());
    let port = port.to_string();
    let argv = [
        settings.runtime.as_str(),
        "serve",
        "--artifact",
        &artifact,
        "--store",
        &settings.store.uri,
        "--name",
        &service.name_any(),
        "--host",
        host,
        "--port",
        &port,
        "--progress",
        PROGRESS_FILE,
    ];
    let task = Task {
        argv: argv.map(str::to_owned).into(),
        env: BTreeMap::new(),
        secrets,
        files: Vec::new(),
        folders: Vec::new(),
        inputs: Vec::new(),
        delivery: None,
        dir: None,
        progress: PROGRESS_FILE.to_owned(),
        log_sink: Some(operator.fleet().log_sink(&stored.claim.spec)),
        grace_seconds: inference_service::GRACE_SECONDS,
        server: None,
        relay: Some(key),
        pass: None,
        accelerators: promised(&stored.claim.spec, service.spec.resources.asks_for_accelerators()),
    };
    Some(Told { task, rights })
}
