//! What a claimed machine is: the image, the agent's bootstrap, and, once the agent has
//! enrolled, what it is told to run. The same claim gives the same machine and the same task.

use std::collections::BTreeMap;

use kube::ResourceExt;
use petaflop_agent_api::task::{LogSink, PROGRESS_FILE, Task, TaskFile};
use petaflop_crds::compute_claim::{OWNER_KIND_LABEL, OWNER_LABEL};
use petaflop_crds::training_job::Cache;
use petaflop_crds::{InferenceService, TrainingJob};
use petaflop_plan::recipe::JobSpec;
use petaflop_providers::Machine;
use petaflop_providers::machine::{AgentSource, Bootstrap};

use crate::claims::StoredClaim;
use crate::cluster::admit::admit;
use crate::cluster::{Operator, inference_service};

/// Where an agent listens.
pub const AGENT_PORT: u16 = 7443;

/// Variable in which a server finds what it asks of whoever sends it requests.
const REPLICA_KEY: &str = "PETAFLOP_REPLICA_KEY";

/// What is asked for where nothing else is known: one processor, and 1 GiB.
const CPU_MILLIS: u32 = 1000;
const MEMORY: u64 = 1 << 30;

/// The machine of a claim. An offer of an owned machine is a slice: all of it is asked for.
pub fn of(operator: &Operator, job: &TrainingJob, stored: &StoredClaim) -> Machine {
    let spec = &job.spec;
    Machine {
        service_account: spec.service_account_name.clone(),
        image_pull_secrets: spec.image_pull_secrets.iter().map(|s| s.name.clone()).collect(),
        grace_seconds: u64::from(spec.checkpoint.grace_seconds),
        ..bare(operator, stored)
    }
}

/// What all machines have in common.
fn bare(operator: &Operator, stored: &StoredClaim) -> Machine {
    let offer = &stored.claim.spec.offer;
    Machine {
        image: operator.settings.runtime_image.clone(),
        agent: AgentSource::Image(operator.settings.agent_image.clone()),
        bootstrap: Bootstrap {
            operator_key: operator.installation.root.noise().public().to_string(),
            endpoint: None,
            port: AGENT_PORT,
        },
        cpu_millis: offer.vcpu_milli.unwrap_or(CPU_MILLIS),
        memory: offer.memory.unwrap_or(MEMORY),
        ephemeral: None,
        ports: Vec::new(),
        service_account: None,
        image_pull_secrets: Vec::new(),
        volumes: Vec::new(),
        grace_seconds: 0,
        labels: stored_labels(stored),
    }
}

/// What its agent is told to run; `None` where the job can no longer be read, which its own
/// status says.
pub fn task(operator: &Operator, job: &TrainingJob, stored: &StoredClaim) -> Option<Task> {
    let admitted = admit(job).ok()?;
    let mut secrets = operator.settings.store.credentials.clone();
    if !job.spec.secrets.is_empty() {
        match operator.secrets.of(job.metadata.uid.as_deref()?) {
            Some(own) => secrets.extend(own),
            // It has its task already; only its agent is met again.
            None if stored.agent_key.is_some() => {}
            // Not read yet by this process: its controller does that first.
            None => return None,
        }
    }
    let spec = &job.spec;
    let settings = &operator.settings;
    let owner = &stored.claim.spec.owner;
    let job_spec = JobSpec {
        recipe: admitted.recipe,
        inputs: admitted.inputs,
        store: settings.store.uri.clone(),
        // Of this object alone: another of the same name and key must not take them over, for its
        // data may have been looked at under other rights.
        checkpoints: format!("{}/checkpoints/{}", settings.store.uri, owner.uid),
        checkpoint_interval_seconds: u64::from(spec.checkpoint.interval_seconds),
        keep_checkpoints: spec.output.keep_checkpoints,
    };
    let job_file = serde_json::to_vec_pretty(&job_spec).ok()?;
    let mut argv: Vec<String> =
        [&settings.runtime, "train", "--job", "job.json", "--progress", PROGRESS_FILE]
            .map(str::to_owned)
            .into();
    if spec.cache == Cache::Never {
        argv.push("--fresh".to_owned());
    }
    Some(Task {
        argv,
        env: BTreeMap::new(),
        secrets,
        files: vec![TaskFile { path: "job.json".to_owned(), bytes: job_file }],
        dir: None,
        progress: PROGRESS_FILE.to_owned(),
        log_sink: Some(log_sink(operator, stored)),
        grace_seconds: u64::from(spec.checkpoint.grace_seconds),
        ready: None,
    })
}

/// The machine of a service's replica.
pub fn replica(operator: &Operator, service: &InferenceService, stored: &StoredClaim) -> Machine {
    let spec = &service.spec;
    Machine {
        ports: vec![inference_service::PORT],
        service_account: spec.service_account_name.clone(),
        image_pull_secrets: spec.image_pull_secrets.iter().map(|s| s.name.clone()).collect(),
        grace_seconds: inference_service::GRACE_SECONDS,
        ..bare(operator, stored)
    }
}

/// What a replica's agent is told to run: our server, on this port of all addresses of the machine;
/// 0: any that is free. `None` while nobody knows what the service is to serve.
pub fn serve(
    operator: &Operator,
    service: &InferenceService,
    stored: &StoredClaim,
    port: u16,
) -> Option<Task> {
    let settings = &operator.settings;
    let known = operator.memories.wants(&stored.claim.spec.owner.uid);
    // A new leader meets replicas that run before it has looked for the model itself.
    let artifact = known
        .map(|(_, served)| served.artifact.clone())
        .or_else(|| service.status.as_ref()?.artifact.clone())?;
    let mut secrets = settings.store.credentials.clone();
    let key = operator.installation.root.replica_key(&stored.claim.uid);
    secrets.insert(REPLICA_KEY.to_owned(), key);
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
        "0.0.0.0",
        "--port",
        &port,
        "--progress",
        PROGRESS_FILE,
    ];
    Some(Task {
        argv: argv.map(str::to_owned).into(),
        env: BTreeMap::new(),
        secrets,
        files: Vec::new(),
        dir: None,
        progress: PROGRESS_FILE.to_owned(),
        log_sink: Some(log_sink(operator, stored)),
        grace_seconds: inference_service::GRACE_SECONDS,
        ready: None,
    })
}

fn log_sink(operator: &Operator, stored: &StoredClaim) -> LogSink {
    let store = &operator.settings.store;
    let owner = &stored.claim.spec.owner;
    LogSink {
        uri: store.uri.clone(),
        prefix: format!("logs/{}/{}/{}", owner.namespace, owner.name, stored.claim.spec.name),
        credentials: store.credentials.clone(),
    }
}

fn stored_labels(stored: &StoredClaim) -> BTreeMap<String, String> {
    let owner = &stored.claim.spec.owner;
    let kind = petaflop_crds::compute_claim::OwnerKind::from(owner.kind).as_str().to_owned();
    [(OWNER_KIND_LABEL, kind), (OWNER_LABEL, owner.name.clone())]
        .map(|(label, value)| (label.to_owned(), value))
        .into()
}
