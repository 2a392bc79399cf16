//! A claim becomes a `ComputeClaim` and a `ComputeClaim` a claim, and nothing is lost on the way.

use jiff::Timestamp;
use petaflop_arbiter::claim::{
    Claim, ClaimSpec, Device, FrozenRequest, Phase, RUNNERS_UP, RunnerUp, claim_name,
};
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::{
    Accelerators, Arch, Capacity, HostOwner, MeasuredRates, Offer, OfferId, Sale, Share,
};
use petaflop_arbiter::reason::Reason;
use petaflop_arbiter::workload::{OwnerKind, WorkloadId};
use petaflop_crds::compute_claim::{AgentStatus, FINALIZER};
use petaflop_crds::{ComputeClaim, ComputeClaimStatus, crds, manifest};
use proptest::prelude::*;

/// Any point in time that RFC 3339 can write.
fn moment() -> impl Strategy<Value = Timestamp> {
    (0_i64..253_402_207_200, 0_i32..1_000_000_000)
        .prop_map(|(second, nano)| Timestamp::new(second, nano).expect("before the year 9999"))
}

fn rate() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), 0.0..1e6_f64, 0.0..1e-6_f64, any::<f64>()]
        .prop_filter("a rate", |rate| rate.is_finite() && rate.is_sign_positive())
}

const MOST_MONEY: i64 = 999_999_999_999_999;
const MOST_BYTES: u64 = (1 << 53) - 1;

prop_compose! {
    fn accelerators()(
        model in "[A-Z][A-Z0-9-]{0,20}",
        count in 1_u32..=1024,
        memory in proptest::option::of(0..=MOST_BYTES),
    ) -> Accelerators {
        Accelerators { model, count, memory }
    }
}

prop_compose! {
    fn share()(
        of in "[a-z0-9./-]{1,40}",
        amount in 0..=MOST_BYTES,
        all in 0..=MOST_BYTES,
    ) -> Share {
        Share { of, amount, all }
    }
}

prop_compose! {
    fn offer()(
        (region, zone, instance_type) in ("|[a-z]{2}-[a-z]{4}-[0-9]", "|[a-z0-9-]{1,20}", "[a-z0-9.]{1,30}"),
        accelerators in proptest::option::of(accelerators()),
        arch in prop_oneof![Just(Arch::X86_64), Just(Arch::Aarch64)],
        vcpu_milli in proptest::option::of(any::<u32>()),
        memory in proptest::option::of(0..=MOST_BYTES),
        capacity in prop_oneof![Just(Capacity::Spot), Just(Capacity::OnDemand), Just(Capacity::Owned)],
        price in 0..=MOST_MONEY,
        (quoted_at, ttl_seconds) in (moment(), any::<u32>()),
        owner in prop_oneof![Just(HostOwner::Known), Just(HostOwner::Unknown)],
        measured in proptest::option::of((rate(), rate())),
        slots in proptest::option::of(any::<u32>()),
        shares in proptest::collection::vec(share(), 0..4),
        interruptions_per_hour in proptest::option::of(rate()),
    ) -> Offer {
        Offer {
            id: Offer::id_of("cloud-1", &region, &zone, &instance_type, capacity),
            provider: "cloud-1".to_owned(),
            region, zone, instance_type, accelerators, arch, vcpu_milli, memory, capacity,
            price: UsdPerHour::from_micros(price).expect("not negative"),
            quoted_at, ttl_seconds, owner,
            sale: Sale::Buyable,
            measured: measured.map(|(gemm_gflops, read_gb_s)| MeasuredRates { gemm_gflops, read_gb_s }),
            slots, shares, interruptions_per_hour,
        }
    }
}

fn phase() -> impl Strategy<Value = Phase> {
    let request = || ".{0,200}".prop_map(|body| FrozenRequest { body });
    let reason = || proptest::sample::select(Reason::ALL);
    prop_oneof![
        Just(Phase::Planned),
        (request(), moment()).prop_map(|(request, at)| Phase::Attempted { request, at }),
        (request(), moment()).prop_map(|(request, since)| Phase::Ambiguous { request, since }),
        ("[a-z0-9-]{1,40}", moment()).prop_map(|(instance, at)| Phase::Launched { instance, at }),
        (proptest::option::of("[a-z0-9-]{1,40}"), reason())
            .prop_map(|(instance, reason)| Phase::Ending { instance, reason }),
        reason().prop_map(|reason| Phase::Ended { reason }),
    ]
}

prop_compose! {
    fn runner_up()(offer in "[a-z0-9/.-]{1,60}", total in 0..=MOST_MONEY) -> RunnerUp {
        RunnerUp { offer: OfferId(offer), total: Usd::from_micros(total) }
    }
}

prop_compose! {
    fn claim()(
        kind in prop_oneof![Just(OwnerKind::TrainingJob), Just(OwnerKind::InferenceService)],
        name in "[a-z][a-z0-9-]{0,38}[a-z0-9]",
        uid in "[0-9a-f]{8}-[0-9a-f]{4}",
        (placement, index) in (1_u32.., any::<u32>()),
        offer in offer(),
        reserved in 0..=MOST_MONEY,
        decided_at in moment(),
        phase in phase(),
        attempt in 1_u32..,
        spent in 0..=MOST_MONEY,
        revision in proptest::option::of("[0-9a-f]{64}"),
        checkpoint_interval_seconds in proptest::option::of(any::<u32>()),
        runners_up in proptest::collection::vec(runner_up(), 0..=RUNNERS_UP),
    ) -> Claim {
        let owner = WorkloadId { kind, namespace: "team-a".to_owned(), name, uid };
        let device = if offer.accelerators.is_some() { Device::Accelerators } else { Device::Cpu };
        Claim {
            spec: ClaimSpec {
                name: claim_name(&owner, placement, index),
                owner, placement, index, offer, device,
                reserved: Usd::from_micros(reserved),
                decided_at,
                revision,
                checkpoint_interval_seconds,
                runners_up,
            },
            uid: "a-uid".to_owned(),
            phase,
            attempt,
            spent: Usd::from_micros(spent),
        }
    }
}

/// The object as a server would have it: created, then its status written.
fn stored(claim: &Claim) -> ComputeClaim {
    let mut object = ComputeClaim::planned(&claim.spec).expect("the API can hold it");
    object.metadata.uid = Some(claim.uid.clone());
    let mut status = ComputeClaimStatus::default();
    status.record(claim).expect("the API can hold it");
    object.status = Some(status);
    object
}

/// Through the bytes that travel.
fn sent(object: &ComputeClaim) -> ComputeClaim {
    let bytes = serde_json::to_vec(object).expect("plain JSON");
    serde_json::from_slice(&bytes).expect("what we write can be read")
}

proptest! {
    #[test]
    fn a_claim_comes_back_as_it_was(claim in claim()) {
        let object = sent(&stored(&claim));
        prop_assert_eq!(ClaimSpec::try_from(&object), Ok(claim.spec.clone()));
        prop_assert_eq!(Claim::try_from(&object), Ok(claim));
    }

    #[test]
    fn an_object_comes_back_as_it_was(claim in claim(), endpoint in "[a-z]{1,9}:[0-9]{2,4}", began in moment()) {
        let mut object = stored(&claim);
        let status = object.status.as_mut().expect("it was written");
        status.endpoint = Some(endpoint);
        status.billed_from = Some(began.into());
        status.observed_generation = Some(1);
        status.agent = Some(AgentStatus {
            public_key: "a2V5".to_owned(),
            enrolled_at: Timestamp::from_second(began.as_second()).expect("whole seconds").into(),
        });
        let object = sent(&object);
        let mut again = object.clone();
        let read = Claim::try_from(&object).expect("it can be read");
        again.status.as_mut().expect("it has one").record(&read).expect("the API can hold it");
        again.spec = (&read.spec).try_into().expect("the API can hold it");
        prop_assert_eq!(again, object);
    }

    #[test]
    fn every_claim_meets_its_own_schema_and_rules(claim in claim()) {
        let object = stored(&claim);
        let mut json = serde_json::to_value(&object).expect("plain JSON");
        prop_assert_eq!(crds::kind("ComputeClaim").expect("a kind").violations(&json, None), vec![]);
        // A manifest is YAML, which has no raw control characters.
        json.as_object_mut().expect("an object").remove("status");
        if let Err(errors) = manifest::judge(json.to_string().as_bytes(), "claim") {
            prop_assert!(false, "{errors}");
        }
    }

    #[test]
    fn nothing_that_a_server_accepts_panics(mut claim in claim(), text in ".{0,40}") {
        claim.phase = Phase::Planned;
        let mut object = stored(&claim);
        object.spec.reserved.0.clone_from(&text);
        object.spec.offer.price.0.clone_from(&text);
        object.status.as_mut().expect("it has one").reason = Some(text);
        let _ = Claim::try_from(&object);
    }
}

fn example() -> Claim {
    let owner = WorkloadId {
        kind: OwnerKind::TrainingJob,
        namespace: "default".to_owned(),
        name: "quickstart".to_owned(),
        uid: "6a6f6200-0000".to_owned(),
    };
    Claim {
        spec: ClaimSpec {
            name: claim_name(&owner, 1, 0),
            owner,
            placement: 1,
            index: 0,
            offer: Offer {
                id: OfferId("nodes/-/-/worker-1/owned".to_owned()),
                provider: "nodes".to_owned(),
                region: String::new(),
                zone: String::new(),
                instance_type: "worker-1".to_owned(),
                accelerators: None,
                arch: Arch::X86_64,
                vcpu_milli: Some(4000),
                memory: Some(16 << 30),
                capacity: Capacity::Owned,
                price: "0.0308".parse().expect("a price"),
                quoted_at: "2026-11-21T10:00:00Z".parse().expect("a time"),
                ttl_seconds: 120,
                owner: HostOwner::Known,
                sale: Sale::Buyable,
                measured: None,
                slots: Some(2),
                shares: vec![Share { of: "worker-1/cpu".to_owned(), amount: 4000, all: 8000 }],
                interruptions_per_hour: None,
            },
            device: Device::Cpu,
            reserved: "0.0154".parse().expect("an amount"),
            decided_at: "2026-11-21T10:00:01.5Z".parse().expect("a time"),
            revision: None,
            checkpoint_interval_seconds: None,
            runners_up: Vec::new(),
        },
        uid: "a-uid".to_owned(),
        phase: Phase::Planned,
        attempt: 1,
        spent: Usd::ZERO,
    }
}

#[test]
fn a_new_object_carries_finalizer_and_owner_in_its_create_body() {
    let object = ComputeClaim::planned(&example().spec).expect("the API can hold it");
    assert_eq!(object.metadata.name.as_deref(), Some("trj-quickstart-6a6f6200-1-0"));
    assert_eq!(object.metadata.namespace.as_deref(), Some("default"));
    assert_eq!(object.metadata.finalizers, Some(vec![FINALIZER.to_owned()]));
    let labels = serde_json::to_value(&object.metadata.labels).expect("plain JSON");
    let expected = serde_json::json!({
        "petaflop.dev/owner-kind": "TrainingJob", "petaflop.dev/owner": "quickstart",
        "petaflop.dev/provider": "nodes"
    });
    assert_eq!(labels, expected);
    let owner = &object.metadata.owner_references.as_ref().expect("an owner")[0];
    assert_eq!(
        (owner.kind.as_str(), owner.uid.as_str(), owner.controller),
        ("TrainingJob", "6a6f6200-0000", Some(true))
    );
    assert_eq!(object.status, None, "a server takes no status when an object is made");
}

#[test]
fn an_object_without_status_is_planned_and_in_its_first_attempt() {
    let claim = example();
    let mut object = ComputeClaim::planned(&claim.spec).expect("the API can hold it");
    object.metadata.uid = Some(claim.uid.clone());
    assert_eq!(Claim::try_from(&object), Ok(claim));
}

#[test]
fn a_frozen_request_is_kept_no_longer_than_it_may_be_needed() {
    let request = FrozenRequest { body: "{}".to_owned() };
    let at: Timestamp = "2026-11-21T10:00:02Z".parse().expect("a time");
    let mut status = ComputeClaimStatus::default();
    let mut step = |phase| {
        status.record(&Claim { phase, ..example() }).expect("the API can hold it");
        status.clone()
    };
    let attempted = step(Phase::Attempted { request: request.clone(), at });
    assert_eq!(attempted.request.as_deref(), Some("{}"));
    let ambiguous = step(Phase::Ambiguous { request, since: at });
    assert_eq!((ambiguous.request.as_deref(), ambiguous.attempted_at), (Some("{}"), None));
    let launched = step(Phase::Launched { instance: "i-1".to_owned(), at });
    assert_eq!((launched.request, launched.provider_id.as_deref()), (None, Some("i-1")));
    let ended = step(Phase::Ended { reason: Reason::Succeeded });
    assert_eq!(
        (ended.provider_id.as_deref(), ended.launched_at, ended.reason.as_deref()),
        (Some("i-1"), Some(at.into()), Some("Succeeded")),
        "an ended claim still says what it was"
    );
}

#[test]
fn what_the_api_cannot_hold_names_the_field() {
    let refused = |change: fn(&mut ClaimSpec), path: &str| {
        let mut spec = example().spec;
        change(&mut spec);
        let errors = ComputeClaim::planned(&spec).expect_err(path);
        assert_eq!(
            errors.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(),
            [path],
            "{errors:?}"
        );
    };
    refused(|spec| spec.offer.sale = Sale::Snapshot { observed_on: None }, "spec.offer");
    refused(|spec| spec.reserved = Usd::MAX, "spec.reserved");
    refused(|spec| spec.reserved = Usd::from_micros(-1), "spec.reserved");
    refused(|spec| spec.offer.memory = Some(u64::MAX), "spec.offer.memory");
    refused(
        |spec| spec.offer.interruptions_per_hour = Some(f64::NAN),
        "spec.offer.interruptionsPerHour",
    );
    refused(
        |spec| spec.offer.measured = Some(MeasuredRates { gemm_gflops: 1.0, read_gb_s: -1.0 }),
        "spec.offer.measured.readGbS",
    );
    let overdrawn = Claim { spent: Usd::from_micros(-1), ..example() };
    let errors = ComputeClaimStatus::default().record(&overdrawn).expect_err("a negative cost");
    assert_eq!(errors[0].path, "status.cost.total");
}

#[test]
fn what_the_arbiter_cannot_hold_names_the_field() {
    let refused = |change: fn(&mut ComputeClaim), path: &str| {
        let mut object = stored(&example());
        change(&mut object);
        let errors = Claim::try_from(&object).expect_err(path);
        assert!(errors.iter().any(|error| error.path == path), "{path}: {errors:?}");
    };
    fn status(object: &mut ComputeClaim, json: serde_json::Value) {
        object.status = Some(serde_json::from_value(json).expect("a status"));
    }
    refused(|o| o.metadata.uid = None, "metadata.uid");
    refused(|o| o.metadata.namespace = None, "metadata.namespace");
    refused(|o| o.spec.offer.price.0 = "free".to_owned(), "spec.offer.price");
    refused(|o| o.spec.reserved.0 = "1e3".to_owned(), "spec.reserved");
    refused(|o| status(o, serde_json::json!({"phase": "Attempted"})), "status.request");
    refused(
        |o| status(o, serde_json::json!({"phase": "Attempted", "request": ""})),
        "status.attemptedAt",
    );
    refused(|o| status(o, serde_json::json!({"phase": "Ambiguous"})), "status.ambiguousSince");
    refused(|o| status(o, serde_json::json!({"phase": "Launched"})), "status.providerID");
    refused(|o| status(o, serde_json::json!({"phase": "Ending"})), "status.reason");
    refused(
        |o| status(o, serde_json::json!({"phase": "Ended", "reason": "Because"})),
        "status.reason",
    );
    refused(|o| status(o, serde_json::json!({"cost": {"total": "much"}})), "status.cost.total");
}
