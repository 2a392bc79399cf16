use petaflop_agent_api::keys::NoisePublic;
use petaflop_arbiter::claim::{Claim, ClaimSpec, Device, claim_name};
use petaflop_arbiter::workload::{OwnerKind, Precision, WorkloadId};
use serde_json::{Value, json};

use super::*;
use crate::cluster::status::time;
use crate::cluster::testing::offer;
use crate::run::{End, Serving};

mod containers;

const MODEL: &str = "aaaa";
const IMAGE: &str = "runtime:1";

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).expect("a plain time")
}

fn service(spec: Value) -> InferenceService {
    let mut spec = spec;
    spec["model"] = json!({ "artifact": MODEL });
    let mut service = InferenceService::new("chat", serde_json::from_value(spec).expect("a spec"));
    service.metadata.uid = Some("owner".into());
    service.metadata.namespace = Some("ns".into());
    service.metadata.generation = Some(1);
    service
}

fn known() -> Model {
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
    Model::Known(Arc::new(Served::Artifact { hash: MODEL.into(), work }))
}

/// A claim's replica: of this placement, in this phase, answering with this model.
fn replica(placement: u32, phase: ClaimPhase, model: Option<&str>) -> Replica {
    let owner = WorkloadId {
        kind: OwnerKind::InferenceService,
        namespace: "ns".into(),
        name: "chat".into(),
        uid: "owner".into(),
    };
    let stored = StoredClaim {
        version: "1".into(),
        deleting: false,
        billed_from: None,
        running_from: None,
        endpoint: Some(format!("10.0.0.{placement}:7443")),
        agent_key: model.map(|_| NoisePublic([1; 32]).to_string()),
        claim: Claim {
            spec: ClaimSpec {
                name: claim_name(&owner, placement, 0),
                owner,
                placement,
                index: 0,
                offer: offer("m", "0.5"),
                device: Device::Cpu,
                reserved: Usd::ZERO,
                decided_at: at(0),
                revision: None,
                checkpoint_interval_seconds: None,
                runners_up: Vec::new(),
            },
            uid: format!("c{placement}"),
            phase,
            attempt: 1,
            spent: Usd::ZERO,
        },
    };
    let serving = model.map(|model| Serving { port: 8080, model: model.into() });
    let mut run = Run::default();
    (run.heard, run.started, run.serving) = (true, serving.is_some(), serving);
    Replica { stored, run: Some(run), key: Secret::new(format!("key {placement}")), near: true }
}

fn answers(placement: u32, model: &str) -> Replica {
    let launched = ClaimPhase::Launched { instance: "i".into(), at: at(0) };
    replica(placement, launched, Some(model))
}

fn linked() -> Route {
    Route { linked: 1, ..Route::default() }
}

fn look<'a>(
    service: &'a InferenceService,
    replicas: &'a [Replica],
    model: &'a Model,
    route: &'a Route,
) -> Seen<'a> {
    Seen {
        service,
        replicas,
        model,
        route,
        spent: Usd::from_micros(1_000),
        waits: None,
        stopped_by_budget: None,
        image: IMAGE,
        all_heard: false,
        now: at(100),
    }
}

fn condition<'a>(next: &'a Next, type_: &str) -> (&'a str, &'a str) {
    let found = next.status.conditions.iter().find(|c| c.type_ == type_);
    found.map_or(("", ""), |c| (c.status.as_str(), c.reason.as_str()))
}

fn draining(next: &Next) -> Vec<(&str, bool)> {
    let told = next.told.as_ref().expect("something is told");
    told.replicas.iter().map(|r| (r.address.as_str(), r.draining)).collect()
}

#[test]
fn a_replica_is_asked_for_and_is_ready_when_it_answers_and_a_gateway_knows() {
    let (service, model) = (service(json!({})), known());
    let first = next(&look(&service, &[], &model, &Route::default()));
    assert_eq!(first.wants, Some(Wants { count: 1, others: BTreeSet::new() }));
    assert_eq!(condition(&first, "Ready"), ("Unknown", "NewReplicaLaunching"));
    assert_eq!(first.status.phase, Some(Phase::Pending));

    let one = [answers(1, MODEL)];
    let unknown = next(&look(&service, &one, &model, &Route::default()));
    assert_eq!(condition(&unknown, "Reconciling"), ("True", "MinimumReplicasUnavailable"));
    let seen = next(&look(&service, &one, &model, &linked()));
    assert_eq!(condition(&seen, "Ready"), ("True", "Ok"));
    assert_eq!(draining(&seen), [("10.0.0.1:8080", false)]);
    assert_eq!(seen.status.phase, Some(Phase::Available));
    assert!(seen.unwanted.is_empty());
    let told = seen.told.as_ref().expect("something is told");
    assert_eq!((&told.replicas[0].key, told.replicas[0].agent), (&Secret::new("key 1"), None));
    assert_eq!(
        seen.status.selector.as_deref(),
        Some("petaflop.dev/owner-kind=InferenceService,petaflop.dev/owner=chat")
    );
    let mut same = service.clone();
    same.status = Some(seen.status.clone());
    assert_eq!(next(&look(&same, &one, &model, &linked())).status, seen.status, "idle");
}

#[test]
fn a_replica_elsewhere_is_reached_through_its_agent_alone() {
    let (service, model) = (service(json!({})), known());
    let far = Replica { near: false, ..answers(1, MODEL) };
    let seen = next(&look(&service, std::slice::from_ref(&far), &model, &linked()));
    assert_eq!(draining(&seen), [("10.0.0.1:7443", false)]);
    let told = seen.told.expect("something is told");
    assert_eq!(told.replicas[0].agent, Some(NoisePublic([1; 32])));
    // Never by another way: whom nobody enrolled, nobody is sent to.
    let stored = StoredClaim { agent_key: None, ..far.stored.clone() };
    let seen = next(&look(&service, &[Replica { stored, ..far }], &model, &linked()));
    assert_eq!(draining(&seen), []);
}

#[test]
fn a_replica_that_answers_goes_only_when_no_gateway_has_a_request_on_it() {
    let (service, model) = (service(json!({})), known());
    let two = [answers(1, "old"), answers(2, MODEL)];
    let route = linked();
    let waits = next(&look(&service, &two, &model, &route));
    assert_eq!(draining(&waits), [("10.0.0.1:8080", true), ("10.0.0.2:8080", false)]);
    assert!(waits.unwanted.is_empty());
    let name = two[0].stored.claim.spec.name.clone();
    assert_eq!(waits.wants, Some(Wants { count: 1, others: [name.clone()].into() }));
    let drained = Route { drained: [name.clone()].into(), ..linked() };
    assert_eq!(next(&look(&service, &two, &model, &drained)).unwanted, [name]);
}

#[test]
fn a_lost_replica_is_counted_once_and_replaced() {
    let model = known();
    let mut service = service(json!({}));
    let lost = [replica(1, ClaimPhase::Ended { reason: Reason::SpotInterrupted }, None)];
    let route = linked();
    let first = next(&look(&service, &lost, &model, &route));
    assert_eq!((first.status.interruptions, first.status.counted.len()), (1, 1));
    assert_eq!(first.unwanted.len(), 1);
    assert_eq!(first.wants.as_ref().map(|wants| wants.count), Some(1));
    service.status = Some(first.status);
    let again = next(&look(&service, &lost, &model, &route));
    assert_eq!(again.status.interruptions, 1);
    service.status = Some(again.status);
    let gone = next(&look(&service, &[], &model, &route));
    assert!(gone.status.counted.is_empty());
    assert_eq!(gone.status.placement.and_then(|p| p.number), Some(1), "no name comes twice");
}

/// A replica whose server ended so.
#[test]
fn a_replica_that_its_provider_takes_away_is_replaced_before_it_is_gone() {
    let (service, model) = (service(json!({})), known());
    let mut going = answers(1, MODEL);
    going.run.as_mut().expect("a run").taken = true;
    let alone = [going.clone()];
    let noticed = next(&look(&service, &alone, &model, &linked()));
    assert_eq!(noticed.wants.as_ref().map(|wants| wants.count), Some(2), "one more");
    assert_eq!(draining(&noticed), [("10.0.0.1:8080", false)], "nobody else answers yet");
    assert!(noticed.unwanted.is_empty());

    let both = [going, answers(2, MODEL)];
    let replaced = next(&look(&service, &both, &model, &linked()));
    assert_eq!(draining(&replaced), [("10.0.0.1:8080", true), ("10.0.0.2:8080", false)]);
    assert_eq!(replaced.wants.as_ref().map(|wants| wants.count), Some(1));
}

fn failed(message: &str, retry: bool) -> [Replica; 1] {
    let mut failed = [answers(1, MODEL)];
    let end = End::Failed { message: message.into(), retry };
    failed[0].run.as_mut().expect("a run").end = Some(end);
    failed
}

fn bought(next: &Next) -> Option<u32> {
    next.wants.as_ref().map(|wants| wants.count)
}

#[test]
fn a_model_that_cannot_be_loaded_is_not_bought_for_again_whoever_looks() {
    let (mut service, model, route) = (service(json!({})), known(), linked());
    let first = next(&look(&service, &failed("no tokenizer", false), &model, &route));
    assert_eq!((bought(&first), first.status.restarts), (Some(0), 1));
    assert_eq!(condition(&first, "Stalled"), ("True", "BlockedByFailedLoad"));
    assert_eq!(first.status.phase, Some(Phase::Failed));

    // Whoever looks next has nothing but the status.
    service.status = Some(first.status.clone());
    let later = Seen { now: at(10_000), ..look(&service, &[], &model, &route) };
    let later = next(&later);
    assert_eq!(bought(&later), Some(0));
    let said = later.status.conditions.iter().find(|c| c.type_ == "Stalled").expect("it is said");
    assert_eq!((said.status.as_str(), said.message.as_str()), ("True", "no tokenizer"));
    service.status = Some(later.status);

    // A store that is silent for a while does not unblock it; another image does, and so does a change.
    let waits = Waits { reason: Reason::Unreachable, message: "silent".into() };
    let silent = next(&look(&service, &[], &Model::Waits(waits), &route));
    assert_eq!(condition(&silent, "ModelLoaded"), ("False", "BlockedByFailedLoad"));
    let image = next(&Seen { image: "runtime:2", ..look(&service, &[], &model, &route) });
    assert_eq!(bought(&image), Some(1));
    service.metadata.generation = Some(2);
    let changed = Seen { now: at(102), ..look(&service, &[], &model, &route) };
    assert_eq!(bought(&next(&changed)), Some(1));
}

#[test]
fn each_failure_in_a_row_waits_longer_and_none_is_forgotten_by_whoever_looks_next() {
    let (mut service, model, route) = (service(json!({})), known(), linked());
    for (failures, seconds) in [(1, 1), (2, 2), (3, 4)] {
        let status = next(&look(&service, &failed("killed", true), &model, &route)).status;
        assert_eq!((status.failures, status.restarts), (failures, failures));
        service.status = Some(status);
        let soon = next(&look(&service, &[], &model, &route));
        assert_eq!((bought(&soon), soon.again), (Some(0), Some(Duration::from_secs(seconds))));
        let seconds = i64::try_from(seconds).expect("few");
        let then = Seen { now: at(100 + seconds), ..look(&service, &[], &model, &route) };
        assert_eq!(bought(&next(&then)), Some(1));
        service.status.as_mut().expect("a status").counted.clear();
    }
    let well = next(&look(&service, &[answers(2, MODEL)], &model, &route));
    assert_eq!((well.status.failures, &well.status.last_failure_time), (0, &None));
}

#[test]
fn a_replica_is_replaced_when_what_it_was_made_of_is_no_longer_wanted() {
    let (model, route) = (known(), linked());
    let before = json!({ "resources": { "cpu": "1" }, "placement": { "zones": ["z-1", "z-2"] } });
    let revision = Revision::of(&service(before.clone()).spec, IMAGE);
    let mut one = [answers(1, MODEL)];
    let spec = &mut one[0].stored.claim.spec;
    spec.revision = Some(revision.text().to_owned());
    spec.offer.zone = "z-1".into();
    let with = |path: &str, value: Value| {
        let mut spec = before.clone();
        *spec.pointer_mut(path).expect("it is there") = value;
        spec
    };
    for (spec, image, is_new) in [
        (before.clone(), IMAGE, true),
        (before.clone(), "runtime:2", false),
        (with("/resources/cpu", json!("2")), IMAGE, false),
        // Its place will still do.
        (with("/placement/zones", json!(["z-1"])), IMAGE, true),
        (with("/placement/zones", json!([])), IMAGE, true),
        (with("/placement", json!({ "maxHourlyPrice": "0.5" })), IMAGE, true),
        // It will not.
        (with("/placement/zones", json!(["z-2"])), IMAGE, false),
        (with("/placement", json!({ "maxHourlyPrice": "0.4" })), IMAGE, false),
        (with("/placement", json!({ "capacityType": "Spot" })), IMAGE, false),
    ] {
        let service = service(spec);
        let next = next(&Seen { image, ..look(&service, &one, &model, &route) });
        let as_wanted = (next.status.updated_replicas, bought(&next));
        assert_eq!(as_wanted, if is_new { (1, Some(1)) } else { (0, Some(2)) }, "{service:?}");
        assert!(next.unwanted.is_empty(), "it answers as long as no other does");
    }
    // What was bought for the very wish is what was wanted, whatever is thought of its place.
    let elsewhere = service(with("/placement/zones", json!(["z-2"])));
    let wish = Revision::of(&elsewhere.spec, IMAGE).text().to_owned();
    one[0].stored.claim.spec.revision = Some(wish);
    assert_eq!(bought(&next(&look(&elsewhere, &one, &model, &route))), Some(1));
    // An earlier operator did not say.
    one[0].stored.claim.spec.revision = None;
    assert_eq!(bought(&next(&look(&elsewhere, &one, &model, &route))), Some(1));
}

#[test]
fn nothing_is_said_of_replicas_that_a_new_leader_has_not_heard_yet() {
    let (service, model, route) = (service(json!({})), known(), linked());
    let mut silent = [answers(1, MODEL)];
    silent[0].run = None;
    let seen = look(&service, &silent, &model, &route);
    let quiet = next(&seen);
    assert_eq!((quiet.told, quiet.wants, quiet.unwanted.len()), (None, None, 0));
    let over = next(&Seen { all_heard: true, ..seen });
    assert_eq!(draining(&over), []);
    let mut suspended = service.clone();
    suspended.spec.suspend = true;
    let stops = next(&look(&suspended, &silent, &model, &route));
    assert_eq!(stops.unwanted.len(), 1, "paying does not wait");
}

#[test]
fn it_falls_asleep_and_wakes_by_what_its_gateways_say() {
    let model = known();
    let mut service = service(json!({ "idle": { "scaleToZeroAfterSeconds": 60 } }));
    let one = [answers(1, MODEL)];
    let idle = |seconds: u64| Route { idle: Some(Duration::from_secs(seconds)), ..linked() };
    service.status = Some(next(&look(&service, &one, &model, &idle(0))).status);
    let awake = next(&look(&service, &one, &model, &idle(59)));
    assert_eq!(awake.status.phase, Some(Phase::Available));
    let sleeps = next(&look(&service, &one, &model, &idle(60)));
    assert_eq!(sleeps.status.phase, Some(Phase::Idle));
    assert_eq!(draining(&sleeps), [("10.0.0.1:8080", true)]);
    service.status = Some(sleeps.status);
    let asleep = next(&look(&service, &[], &model, &linked()));
    assert_eq!(condition(&asleep, "Ready"), ("True", "ScaledToZero"));
    assert!(asleep.told.as_ref().expect("a list").hold, "the next request is held");
    assert_eq!(asleep.wants.as_ref().map(|wants| wants.count), Some(0));
    service.status = Some(asleep.status);
    let knocks = Route { wakes: true, ..linked() };
    let wakes = next(&look(&service, &[], &model, &knocks));
    assert_eq!(wakes.wants.as_ref().map(|wants| wants.count), Some(1));
    assert_ne!(wakes.status.phase, Some(Phase::Idle));
}

#[test]
fn suspended_or_deleted_it_keeps_nothing() {
    let model = known();
    let mut service = service(json!({ "suspend": true, "replicas": 2 }));
    let two = [answers(1, MODEL), answers(2, MODEL)];
    let route = linked();
    let stops = next(&look(&service, &two, &model, &route));
    assert_eq!(stops.unwanted.len(), 2);
    assert!(!stops.told.as_ref().expect("a list").hold, "nobody waits in vain");
    assert_eq!(condition(&stops, "Reconciling"), ("True", "Suspended"));
    let stopped = next(&look(&service, &[], &model, &route));
    assert_eq!(condition(&stopped, "Suspended"), ("True", "Suspended"));
    assert_eq!(condition(&stopped, "Ready"), ("True", "Suspended"));
    assert!(!wants(&service, &two[0].stored));
    service.metadata.deletion_timestamp = Some(time(at(0)));
    let goes = next(&look(&service, &two, &model, &route));
    assert_eq!((goes.unwanted.len(), goes.finalizer), (2, true));
    assert!(!next(&look(&service, &[], &model, &route)).finalizer);
}
