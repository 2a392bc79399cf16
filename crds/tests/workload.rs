//! Each kind as one of the arbiter's workloads.

use std::path::Path;

use jiff::Timestamp;
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::Capacity;
use petaflop_arbiter::workload::{
    Alternative, InterruptionPolicy, OwnerKind, Precision, Progress, ServingWork, TrainingWork,
    Work, Workload,
};
use petaflop_crds::workload::Observed;
use petaflop_crds::{FieldError, InferenceServiceSpec, Object, TrainingJobSpec, manifest};

fn at(text: &str) -> Timestamp {
    text.parse().expect("a point in time")
}

fn observed() -> Observed {
    Observed {
        namespace: "default".into(),
        name: "one".into(),
        uid: "5d2f".into(),
        created_at: at("2026-11-01T00:00:00Z"),
        admitted_at: at("2026-11-02T00:00:00Z"),
        progress: Progress::default(),
        measured: None,
    }
}

fn training_work() -> TrainingWork {
    TrainingWork {
        steps: 10,
        tokens_per_step: 2048,
        flops_per_step: 1,
        traffic_bytes_per_step: 1,
        arena_bytes: 1,
        host_bytes: 1,
        checkpoint_bytes: 1,
        artifact_bytes: 1,
        input_bytes: 1,
        checkpoint_interval_seconds: Some(600),
        precision: Precision::F32,
    }
}

fn job(fields: &str) -> TrainingJobSpec {
    let text = format!(
        "{{apiVersion: petaflop.dev/v1alpha1, kind: TrainingJob, metadata: {{name: one}}, spec: {{{fields}
        recipe: {{model: {{dim: 128, layers: 4, heads: 4, vocab: 512}}, datasets: [{{path: builtin:petaflop}}], max_steps: 10, learning_rate: 0.001}}}}}}"
    );
    let documents = manifest::parse(text.as_bytes(), "job", Path::new("/"))
        .unwrap_or_else(|errors| panic!("{errors}"));
    let Object::TrainingJob(job) = &documents[0].object else { panic!("a job") };
    job.spec.clone()
}

fn service(fields: &str) -> InferenceServiceSpec {
    let text = format!(
        "{{apiVersion: petaflop.dev/v1alpha1, kind: InferenceService, metadata: {{name: one}}, spec: {{{fields} model: {{trainingJob: one}}}}}}"
    );
    let documents = manifest::parse(text.as_bytes(), "job", Path::new("/"))
        .unwrap_or_else(|errors| panic!("{errors}"));
    let Object::InferenceService(service) = &documents[0].object else { panic!("a service") };
    service.spec.clone()
}

fn workload(fields: &str) -> Result<Workload, Vec<FieldError>> {
    job(fields).workload(&observed(), Some(training_work()))
}

fn fine(fields: &str) -> Workload {
    workload(fields).unwrap_or_else(|errors| panic!("{errors:?}"))
}

#[test]
fn a_bare_job_asks_for_nothing_in_particular() {
    let workload = fine("");
    assert_eq!(workload.id.kind, OwnerKind::TrainingJob);
    assert_eq!(workload.accelerators, []);
    assert_eq!((workload.resources.vcpu_milli, workload.resources.memory), (0, 0));
    assert_eq!((workload.placement.capacity, workload.placement.max_hourly_price), (None, None));
    assert_eq!(
        (workload.finish_by, workload.max_total_cost, workload.suspended),
        (None, None, false)
    );
    assert_eq!(workload.interruption, petaflop_arbiter::workload::Interruption::default());
}

#[test]
fn every_constraint_reaches_the_arbiter_exactly() {
    let workload = fine(
        r#"
        resources: {cpu: 1500m, memory: 64Gi, accelerator: {vendor: NVIDIA, models: [H100, A100-SXM-80], count: 2, minMemory: 40Gi, minComputeCapability: "8.0"}},
        placement: {providers: [aws-prod], regions: [eu-west-1], zones: [eu-west-1a], excludeRegions: [us-east-1],
          capacityType: Spot, maxHourlyPrice: "2.50", allowUntrustedHosts: true, allowUnverified: true,
          interruption: {policy: Fail, maxInterruptions: 3, switchIfSavingsPercent: 5, minHoldSeconds: 60}},
        maxTotalCost: "50", suspend: true,"#,
    );
    assert_eq!((workload.resources.vcpu_milli, workload.resources.memory), (1500, 64 << 30));
    let [Alternative::Devices(device)] = &workload.accelerators[..] else {
        panic!("one alternative")
    };
    assert_eq!(
        (device.count, device.min_memory, device.min_compute_capability),
        (2, Some(40 << 30), Some((8, 0)))
    );
    assert_eq!(device.models, ["H100", "A100-SXM-80"]);
    assert_eq!(device.vendor, Some(petaflop_arbiter::catalogue::Vendor::Nvidia));
    assert_eq!(workload.placement.capacity, Some(Capacity::Spot));
    assert_eq!(workload.placement.max_hourly_price.map(UsdPerHour::micros), Some(2_500_000));
    assert_eq!(workload.max_total_cost.map(Usd::micros), Some(50_000_000));
    assert!(
        workload.placement.allow_untrusted_hosts
            && workload.placement.allow_unverified
            && workload.suspended
    );
    assert_eq!(workload.placement.exclude_regions, ["us-east-1"]);
    assert_eq!(workload.placement.providers, ["aws-prod"]);
    assert_eq!(
        (&workload.placement.regions[..], &workload.placement.zones[..]),
        (&["eu-west-1".to_owned()][..], &["eu-west-1a".to_owned()][..])
    );
    let moves = workload.interruption;
    assert_eq!((moves.switch_if_savings_percent, moves.min_hold_seconds), (5, 60));
    assert_eq!(
        (workload.interruption.policy, workload.interruption.max_interruptions),
        (InterruptionPolicy::Fail, 3)
    );
}

#[test]
fn what_only_the_cluster_has_ties_a_job_to_it() {
    assert_eq!(fine("").tied, Vec::<String>::new());
    let workload = fine(
        r#"
        inputs: [{name: text, uri: "file:///data/text"}],
        serviceAccountName: trainer, imagePullSecrets: [{name: pull}], secrets: [{name: keys, env: true}],"#,
    );
    assert_eq!(
        workload.tied,
        ["file:///data/text", "ServiceAccount trainer", "image pull Secret pull"]
    );
    let volume = "volumes: [{name: corpus, mountPath: /corpus, persistentVolumeClaim: {name: c}}],";
    assert_eq!(fine(volume).tied, ["volume corpus"]);
    let mut own = service("");
    own.volumes = job(volume).volumes;
    assert_eq!(own.workload(&observed(), None).expect("a workload").tied, ["volume corpus"]);
    assert_eq!(fine("ports: [{name: http, port: 8000}],").tied, ["port 8000"]);
    let of = |base: &str, data: &str| {
        let mut spec = job("");
        let recipe = spec.recipe.as_mut().expect("a recipe");
        recipe.base_model = Some(base.to_owned());
        data.clone_into(&mut recipe.datasets[0].path);
        spec.workload(&observed(), Some(training_work())).expect("a workload").tied
    };
    let artifact = format!("artifact:{}", "a".repeat(64));
    assert_eq!(of(&artifact, "builtin:petaflop"), Vec::<String>::new());
    assert_eq!(of("/inputs/base", "s3://bucket/text"), Vec::<String>::new());
    assert_eq!(of("./base", "text.txt"), ["text.txt", "./base"]);
    let tied = |fields: &str| served(fields).tied;
    assert_eq!(tied(""), Vec::<String>::new());
    assert_eq!(tied("serviceAccountName: server,"), ["ServiceAccount server"]);
}

#[test]
fn what_a_machine_must_have_is_read_from_quantities() {
    let workload = fine("resources: {cpu: 1500m, memory: 2Gi, ephemeralStorage: 3G},");
    let petaflop_arbiter::workload::Resources { vcpu_milli, memory, disk } = workload.resources;
    assert_eq!((vcpu_milli, memory, disk), (1_500, 2 << 30, 3_000_000_000));
}

#[test]
fn alternatives_keep_their_order_and_none_is_the_processor() {
    let workload = fine("resources: {anyOf: [{models: [MI300X]}, {vendor: None}]},");
    assert!(matches!(&workload.accelerators[..], [Alternative::Devices(_), Alternative::Cpu]));
}

#[test]
fn deadlines_are_points_in_time_from_admission() {
    assert_eq!(fine("deadline: {within: 2d12h},").finish_by, Some(at("2026-11-04T12:00:00Z")));
    assert_eq!(
        fine("deadline: {finishBy: \"2027-01-31T18:00:00+01:00\"},").finish_by,
        Some(at("2027-01-31T17:00:00Z"))
    );
}

#[test]
fn what_passes_the_schema_and_stands_for_nothing_is_named() {
    for (fields, path, words) in [
        (
            "resources: {accelerator: {models: [H1000]}},",
            "spec.resources.accelerator.models[0]",
            "did you mean H100",
        ),
        (
            "resources: {anyOf: [{models: [MI300X]}, {models: [Blackbird]}]},",
            "spec.resources.anyOf[1].models[0]",
            "no accelerator is called",
        ),
        ("resources: {cpu: 0.0001k},", "spec.resources.cpu", ""),
        ("resources: {memory: 500m},", "spec.resources.memory", "whole number"),
        (
            "resources: {cpu: 99999999999},",
            "spec.resources.cpu",
            "no machine has 99999999999 processors",
        ),
        ("deadline: {within: 0s},", "spec.deadline.within", "a span of time"),
    ] {
        if path == "spec.resources.cpu" && words.is_empty() {
            assert_eq!(fine(fields).resources.vcpu_milli, 100);
            continue;
        }
        let errors = workload(fields).expect_err(fields);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].path == path && errors[0].message.contains(words), "{}", errors[0]);
    }
}

fn served(fields: &str) -> Workload {
    let work = ServingWork {
        replicas: 1,
        arena_bytes: 1,
        host_bytes: 1,
        flops_per_token: 1,
        weight_bytes_per_step: 1,
        cache_bytes_per_sequence: 1,
        max_sequences: 1,
        max_millis_per_token: None,
        precision: Precision::F32,
    };
    service(fields).workload(&observed(), Some(work)).unwrap_or_else(|errors| panic!("{errors:?}"))
}

#[test]
fn a_service_asks_for_its_replicas() {
    let workload = served("replicas: 3, latencyTarget: {tpotMs: 50},");
    assert_eq!(workload.id.kind, OwnerKind::InferenceService);
    let Work::Serving(work) = workload.work else { panic!("serving") };
    assert_eq!((work.replicas, work.max_millis_per_token), (3, Some(50)));
}

#[test]
fn fields_that_matter_only_in_a_cluster_are_named() {
    assert_eq!(job("").ignored_outside_cluster(), [""; 0]);
    assert_eq!(service("").ignored_outside_cluster(), [""; 0]);
    let fields = "volumes: [{name: v, mountPath: /v, emptyDir: {}}], ports: [{name: http, port: 80}], serviceAccountName: a, imagePullSecrets: [{name: a}], secrets: [{name: a, env: true}], budgetRef: {name: a}, ttlSecondsAfterFinished: 0, managedBy: example.com/other,";
    assert_eq!(
        job(fields).ignored_outside_cluster(),
        [
            "volumes",
            "ports",
            "serviceAccountName",
            "imagePullSecrets",
            "secrets",
            "budgetRef",
            "ttlSecondsAfterFinished",
            "managedBy"
        ]
        .map(|field| format!("spec.{field}"))
    );
    let fields = "replicas: 2, minReplicas: 1, maxReplicas: 3, rollout: {maxSurge: 2}, idle: {scaleToZeroAfterSeconds: 60},";
    assert_eq!(
        service(fields).ignored_outside_cluster(),
        ["replicas", "minReplicas", "maxReplicas", "rollout", "idle"]
            .map(|field| format!("spec.{field}"))
    );
}
