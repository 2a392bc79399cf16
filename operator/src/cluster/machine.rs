//! What a claimed machine is: the image, the agent's bootstrap, and, once the agent has
//! enrolled, what it is told to run. The same claim gives the same machine and the same task.

use std::collections::BTreeMap;

use petaflop_agent_api::task::{LogSink, PROGRESS_FILE, Task, TaskFile};
use petaflop_crds::TrainingJob;
use petaflop_crds::compute_claim::{OWNER_KIND_LABEL, OWNER_LABEL};
use petaflop_crds::training_job::Cache;
use petaflop_plan::recipe::JobSpec;
use petaflop_providers::Machine;
use petaflop_providers::machine::{AgentSource, Bootstrap};

use crate::claims::StoredClaim;
use crate::cluster::Operator;

/// Where an agent listens.
pub const AGENT_PORT: u16 = 7443;

/// What is asked for where nothing else is known: one processor, and 1 GiB.
const CPU_MILLIS: u32 = 1000;
const MEMORY: u64 = 1 << 30;

/// The machine of a claim. An offer of an owned machine is a slice: all of it is asked for.
pub fn of(operator: &Operator, job: &TrainingJob, stored: &StoredClaim) -> Machine {
    let offer = &stored.claim.spec.offer;
    let spec = &job.spec;
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
        service_account: spec.service_account_name.clone(),
        image_pull_secrets: spec.image_pull_secrets.iter().map(|s| s.name.clone()).collect(),
        volumes: Vec::new(),
        grace_seconds: u64::from(spec.checkpoint.grace_seconds),
        labels: stored_labels(stored),
    }
}

/// What its agent is told to run; `None` where the job can no longer be read, which its own
/// status says.
pub fn task(operator: &Operator, job: &TrainingJob, stored: &StoredClaim) -> Option<Task> {
    let admitted = operator.admissions.of(job).ok()?;
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
        recipe: admitted.recipe.clone(),
        inputs: admitted.inputs.clone(),
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
    let prefix = format!("logs/{}/{}/{}", owner.namespace, owner.name, stored.claim.spec.name);
    Some(Task {
        argv,
        env: BTreeMap::new(),
        secrets,
        files: vec![TaskFile { path: "job.json".to_owned(), bytes: job_file }],
        dir: None,
        progress: PROGRESS_FILE.to_owned(),
        log_sink: Some(LogSink {
            uri: settings.store.uri.clone(),
            prefix,
            credentials: settings.store.credentials.clone(),
        }),
        grace_seconds: u64::from(spec.checkpoint.grace_seconds),
        ready: None,
    })
}

fn stored_labels(stored: &StoredClaim) -> BTreeMap<String, String> {
    let owner = &stored.claim.spec.owner;
    let kind = petaflop_crds::compute_claim::OwnerKind::from(owner.kind).as_str().to_owned();
    [(OWNER_KIND_LABEL, kind), (OWNER_LABEL, owner.name.clone())]
        .map(|(label, value)| (label.to_owned(), value))
        .into()
}
