//! Every field of a SkyPilot task, and what becomes of it: what the reader knows, what it says of
//! what it leaves out, and the table in `docs/skypilot.md`.

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is in the manifest: where, and what is different about it there.
    Becomes(&'static str),
    /// It has fields of its own.
    Holds,
    /// It is not in the manifest: what to do instead.
    Left(&'static str),
}

use Fate::{Becomes, Holds, Left};

/// Path and fate of every field of a task, as of SkyPilot 0.14. What stands under `resources`
/// stands in each alternative of `any_of` and `ordered` too.
pub const FIELDS: &[(&str, Fate)] = &[
    ("name", Becomes("metadata.name")),
    (
        "workdir",
        Becomes(
            "container.args: the command clones a Git repository (`url`, `ref`) first; a local folder is left out",
        ),
    ),
    (
        "num_nodes",
        Left(
            "a job has one machine: ask for more accelerators in it (resources.accelerators, up to 8 are common), or split the work into jobs",
        ),
    ),
    ("resources", Holds),
    ("resources.infra", Becomes("placement.providers, placement.regions")),
    ("resources.cloud", Becomes("placement.providers")),
    ("resources.region", Becomes("placement.regions")),
    (
        "resources.zone",
        Left(
            "zones go by their ids, because their names are another for each account: put placement.zones: [use1-az1]",
        ),
    ),
    (
        "resources.accelerators",
        Becomes("resources.accelerator, or resources.anyOf: the one that is cheapest to finish on"),
    ),
    ("resources.accelerator_args", Left("it is for TPUs, which petaflop does not rent")),
    ("resources.cpus", Becomes("resources.cpu: at least, with or without `+`")),
    ("resources.memory", Becomes("resources.memory: at least, with or without `+`")),
    (
        "resources.instance_type",
        Left("say what the machine must have (cpus, memory, accelerators), not what it is called"),
    ),
    (
        "resources.use_spot",
        Becomes(
            "placement.capacityType: Spot or OnDemand; Owned on own nodes; Auto where it varies",
        ),
    ),
    ("resources.disk_size", Becomes("resources.ephemeralStorage")),
    ("resources.disk_tier", Left("disks have the tier of the provider's settings")),
    ("resources.local_disk", Left("disks have the kind of the provider's settings")),
    ("resources.network_tier", Left("it is for jobs of several machines; a job has one")),
    ("resources.max_hourly_cost", Becomes("placement.maxHourlyPrice")),
    (
        "resources.ports",
        Left(
            "nobody outside the cluster reaches a job's spec.ports: let the command dial out, or serve with an InferenceService",
        ),
    ),
    (
        "resources.image_id",
        Becomes("container.image, where it is `docker:…`; images of machines are left out"),
    ),
    ("resources.labels", Becomes("metadata.labels")),
    ("resources.any_of", Becomes("resources.anyOf and placement, joined")),
    (
        "resources.ordered",
        Becomes(
            "resources.anyOf and placement, joined; the order is left out: what is cheapest to finish on comes first",
        ),
    ),
    (
        "resources.job_recovery",
        Becomes(
            "placement.interruption.policy: Fail for `none`; backoffLimit by `max_restarts_on_errors`, 0 without",
        ),
    ),
    ("resources.autostop", Left("nothing to do: a job's machine is ended with the job")),
    (
        "resources.hooks",
        Left("the command is told by SIGTERM before its machine goes, and has its grace"),
    ),
    (
        "resources.priority",
        Left("the cluster's PriorityClasses are not looked at: older jobs are placed first"),
    ),
    (
        "resources.priority_class",
        Left("the cluster's PriorityClasses are not looked at: older jobs are placed first"),
    ),
    (
        "resources.volumes",
        Left(
            "write spec.volumes with the PersistentVolumeClaim; that keeps the job on the cluster's own nodes",
        ),
    ),
    ("envs", Becomes("container.env; what is named like a secret goes where `secrets` go")),
    (
        "secrets",
        Becomes(
            "container.env from keys of a Secret, which is yours to make; values are not copied",
        ),
    ),
    ("managed_secrets", Left("make a Secret of it, and name that in spec.secrets")),
    (
        "volumes",
        Left(
            "write spec.volumes with the PersistentVolumeClaim; that keeps the job on the cluster's own nodes",
        ),
    ),
    (
        "volume_mounts",
        Left(
            "write spec.volumes with the PersistentVolumeClaim; that keeps the job on the cluster's own nodes",
        ),
    ),
    (
        "file_mounts",
        Left(
            "local files belong into the image or a repository; what is in a bucket, let the command fetch and put back",
        ),
    ),
    ("setup", Becomes("container.args, before `run`, on every machine that the job comes to")),
    ("run", Becomes("container.args")),
    ("service", Holds),
    (
        "service.readiness_probe",
        Becomes("probes.readiness; `post_data` and `headers` are left out"),
    ),
    ("service.replicas", Becomes("replicas")),
    (
        "service.replica_policy",
        Becomes("minReplicas, maxReplicas; a scaler of your own writes replicas"),
    ),
    ("service.ports", Becomes("port")),
    (
        "service.load_balancing_policy",
        Left("the gateway gives a request to the replica with the least work in flight"),
    ),
    ("service.load_balancer", Left("streams are not cut by time")),
    ("service.tls", Left("put an Ingress or HTTPRoute with the certificate before the Service")),
    ("service.pool", Left("submit each piece of work as a job of its own")),
    ("service.workers", Left("submit each piece of work as a job of its own")),
    ("pool", Left("submit each piece of work as a job of its own")),
    (
        "config",
        Left("what it sets is set for the installation: in its values and ComputeProviders"),
    ),
    ("event_callback", Left("watch the object's events and conditions")),
    ("inputs", Left("transfers are reckoned with by themselves")),
    ("outputs", Left("transfers are reckoned with by themselves")),
    ("file_mounts_mapping", Left("see file_mounts")),
    ("api_server_access", Left("machines have no access to the cluster")),
];

/// What becomes of the field at `path`.
pub(super) fn fate(path: &str) -> Option<Fate> {
    FIELDS.iter().find(|(known, _)| *known == path).map(|(_, fate)| *fate)
}

/// Names of the fields directly below `prefix`, which is empty or ends with a dot.
pub(super) fn below(prefix: &str) -> Vec<&'static str> {
    let names = FIELDS.iter().filter_map(|(path, _)| path.strip_prefix(prefix));
    names.filter(|name| !name.contains('.')).collect()
}

/// SkyPilot's names of accelerators that are not the beginning of one of ours: its plain A100 and
/// V100 are those with the least memory.
pub(super) const ACCELERATORS: &[(&str, &[&str])] = &[
    ("A100", &["A100-SXM-40", "A100-PCIe-40"]),
    ("A100-80GB", &["A100-SXM-80", "A100-PCIe-80"]),
    ("A100-80GB-SXM", &["A100-SXM-80"]),
    ("H100-80GB", &["H100"]),
    ("H100-MEGA-80GB", &["H100-SXM"]),
    ("H200-SXM", &["H200-SXM"]),
    ("V100", &["V100-SXM2-16", "V100-PCIe-16"]),
    ("V100-32GB", &["V100-SXM2-32"]),
    ("RTXA6000", &["A6000"]),
    ("RTXA5000", &["A5000"]),
    ("RTX6000-Ada", &["RTX6000-Ada"]),
    ("RTXPRO6000", &["RTX-PRO-6000"]),
    ("Trainium", &["Trainium1"]),
    ("Trainium2", &["Trainium2"]),
    ("Inferentia2", &["Inferentia2"]),
];
