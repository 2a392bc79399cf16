//! Known cases of placing, one table or promise each.

use std::sync::Arc;

use petaflop_arbiter::claim::{Device, Phase};
use petaflop_arbiter::decide::decide;
use petaflop_arbiter::decision::{Action, Outcome, Term};
use petaflop_arbiter::market::Market;
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::obstacle::Obstacle;
use petaflop_arbiter::offer::{Capacity, HostOwner, Offer, Share};
use petaflop_arbiter::reason::Reason;
use petaflop_arbiter::workload::{Alternative, DeviceRequest, InterruptionPolicy, Work, Workload};
use petaflop_arbiter::world::{Budget, Recorded, Switch, World};

use crate::worlds::{
    GIB, after, claim, container, dated, host, machine, now, only, placed, provider, rate, serving,
    taken, training, usd, waits, with_devices, world, written,
};

#[test]
fn parts_of_one_machine_are_not_taken_beyond_it_neither_in_one_pass_nor_beside_its_claims() {
    let part = |kind: &str, amount| Offer {
        slots: Some(1),
        shares: vec![Share { of: "node/cpu".into(), amount, all: 8000 }],
        ..machine(kind, "0.7")
    };
    // Each is more than half of the node.
    let parts = vec![part("node:cpu=5", 5000), part("node:cpu=6", 6000)];
    let mut world = world(parts, vec![training("a"), training("b")]);
    let plan = decide(&world, now());
    assert_eq!(taken(&plan), ["cloud/r1/r1-a/node:cpu=5/on-demand"]);
    let (reason, message) = waits(&plan.decisions[1]);
    assert_eq!(reason, "InsufficientCapacity", "{message}");
    assert!(message.contains("takes 6000 of node/cpu, and 3000 are left"), "{message}");
    world.claims = written(&plan);
    assert_eq!(taken(&decide(&world, now())), [""; 0]);
    // Another provider's node of the same name is another node.
    let other = placed("host", "", "", "node:cpu=6", Capacity::Owned, rate("0.9"));
    let offers = world.market.offers().cloned();
    let all: Vec<Offer> =
        offers.chain([Offer { shares: part("", 6000).shares, ..other }]).collect();
    world.market = Arc::new(Market::new(all));
    assert_eq!(taken(&decide(&world, now())), ["host/-/-/node:cpu=6/owned"]);
}

#[test]
fn the_cheapest_place_that_can_be_used_is_taken_and_dated_prices_only_compare() {
    let spot = placed("cloud", "r1", "r1-a", "s", Capacity::Spot, rate("0.001"));
    let world = world(
        vec![
            host("0.02"),
            dated(machine("m", "0.7")),
            dated(Offer { owner: HostOwner::Known, ..spot }),
        ],
        vec![training("job")],
    );
    let plan = decide(&world, now());
    assert_eq!(taken(&plan), ["host/-/-/this/owned"]);
    let decision = only(&plan);
    assert_eq!(decision.considered, 3);
    assert_eq!(
        decision.outcome,
        Outcome::Placed { claims: vec!["trj-job-006a6f62-1-0".into()], lacking: 0 }
    );
    let ranked: Vec<(&str, Option<String>)> = decision
        .ranked
        .iter()
        .map(|place| {
            let why = place.obstacle.as_ref().map(Obstacle::to_string);
            (place.offer.id.0.as_str(), why)
        })
        .collect();
    let note = Some("prices of 2026-07-20, not for sale".to_owned());
    assert_eq!(
        ranked,
        [
            ("host/-/-/this/owned", None),
            ("cloud/r1/r1-a/s/spot", note.clone()),
            ("cloud/r1/r1-a/m/on-demand", note.clone()),
        ]
    );
    let saving = decision.saving.as_ref().expect("there is an on-demand price");
    assert_eq!(saving.against.0, "cloud/r1/r1-a/m/on-demand");
    assert_eq!(saving.note, note);
    assert_eq!(saving.would_cost, decision.ranked[2].cost.total);
    assert_eq!(saving.costs, decision.ranked[0].cost.total);
    assert_eq!(saving.saved, saving.would_cost.checked_sub(saving.costs).expect("fits"));
}

#[test]
fn a_breakdown_adds_up_and_names_every_term() {
    let world = world(vec![machine("m", "0.7")], vec![training("job")]);
    let plan = decide(&world, now());
    let cost = &only(&plan).ranked[0].cost;
    let sum = cost.terms.iter().map(|term| term.usd).sum::<Usd>();
    assert_eq!(sum, cost.total);
    assert_eq!(cost.terms.iter().map(|term| term.millis).sum::<i64>(), cost.millis);
    let terms: Vec<Term> = cost.terms.iter().map(|term| term.what).collect();
    use Term::{Egress, Image, Inputs, Rework, StartUp, Upload};
    assert_eq!(terms, [StartUp, Image, Inputs, Term::Work, Rework, Upload, Egress]);
    assert_eq!(cost.terms[0].millis, 60_000);
    assert_eq!(cost.terms[1].millis, 3_000, "300 MB at 100 MB/s");
    let (best, worst) = cost.millis_range;
    assert!(best < cost.millis && cost.millis < worst);
    let (least, most) = cost.usd_range.expect("it ends");
    assert!(least < cost.total && cost.total < most);
    assert_eq!(written(&plan)[0].spec.reserved, cost.total);
}

#[test]
fn a_claim_remembers_what_it_was_preferred_to() {
    let machines = ["a", "b", "c", "d", "e"].iter().zip(["0.7", "0.8", "0.9", "1.0", "1.1"]);
    let offers = machines.map(|(name, price)| machine(name, price)).collect();
    let plan = decide(&world(offers, vec![training("job")]), now());
    let ranked = &only(&plan).ranked;
    let taken = written(&plan)[0].spec.clone();
    assert_eq!(taken.offer.id, ranked[0].offer.id);
    let next = ranked[1..4].iter().map(|place| (&place.offer.id, place.cost.total));
    assert!(taken.runners_up.iter().map(|one| (&one.offer, one.total)).eq(next));
    assert!(taken.runners_up.iter().all(|one| one.total > taken.reserved));
    let alone = decide(&world(vec![machine("a", "0.7")], vec![training("job")]), now());
    assert_eq!(written(&alone)[0].spec.runners_up, []);
}

#[test]
fn what_leaves_a_place_is_paid_for_by_the_byte() {
    let egress = |price: &str, seconds: u32| {
        let mut world = world(vec![machine("m", "0.7")], vec![training("job")]);
        world.providers.iter_mut().for_each(|one| one.egress_usd_per_gb = usd(price));
        let Work::Training(work) = &mut world.workloads[0].work else { unreachable!("a job") };
        work.checkpoint_interval_seconds = Some(seconds);
        let work = work.clone();
        let cost = only(&decide(&world, now())).ranked[0].cost.clone();
        let of = |what| cost.terms.iter().find(|term| term.what == what);
        (
            of(Term::Egress).map_or(Usd::ZERO, |term| term.usd),
            of(Term::Work).expect("work").millis,
            work,
        )
    };
    assert_eq!(egress("0", 30).0, Usd::ZERO);
    let (cost, millis, work) = egress("0.09", 30);
    let checkpoints = u64::try_from(millis / 30_000).expect("not negative");
    let bytes = checkpoints * work.checkpoint_bytes + work.artifact_bytes;
    assert_eq!(cost.micros(), (bytes * 9).div_ceil(100_000) as i64);
    assert!(egress("0.09", 60).0 < cost && egress("0.18", 30).0 > cost);
}

#[test]
fn a_spot_machine_costs_what_its_losses_cost() {
    let spot = |losses| Offer {
        interruptions_per_hour: Some(losses),
        ..placed("cloud", "r1", "r1-a", "s", Capacity::Spot, rate("0.7"))
    };
    let total = |offer: Offer| {
        let plan = decide(&world(vec![offer], vec![training("job")]), now());
        only(&plan).ranked[0].cost.total
    };
    assert!(total(spot(0.0)) < total(spot(1.0)));
    assert!(total(spot(1.0)) < total(spot(10.0)));
}

#[test]
fn the_latency_target_stops_what_is_too_slow() {
    let mut service = serving("svc", 1);
    if let Work::Serving(work) = &mut service.work {
        work.max_millis_per_token = Some(1);
        work.flops_per_token = 16_000_000_000;
    }
    let plan = decide(&world(vec![machine("m", "0.7")], vec![service]), now());
    let (_, message) = waits(only(&plan));
    assert!(message.contains("ms a token, target 1 ms"), "{message}");
}

#[test]
fn a_machine_with_devices_counts_as_its_processor_where_no_device_is_asked_for() {
    let offers = vec![with_devices(machine("gpu", "0.5"), "H100-SXM", 1), machine("m", "0.7")];
    let plan = decide(&world(offers, vec![training("job")]), now());
    let claims = written(&plan);
    assert_eq!(claims[0].spec.offer.instance_type, "gpu");
    assert_eq!(claims[0].spec.device, Device::Cpu);
}

#[test]
fn a_container_is_taken_at_its_word_about_devices() {
    let mut job = container("job");
    job.accelerators = vec![
        Alternative::Devices(DeviceRequest {
            vendor: None,
            models: vec!["H100".into()],
            count: 1,
            min_memory: Some(80 * GIB),
            min_compute_capability: None,
            ..DeviceRequest::default()
        }),
        Alternative::Cpu,
    ];
    for (price, kind, device) in [("3", "h100", Device::Accelerators), ("9", "m", Device::Cpu)] {
        let offers = vec![
            with_devices(machine("h100", price), "H100-SXM", 8),
            with_devices(machine("a100", "0.1"), "A100-SXM-40", 8),
            machine("m", "4"),
        ];
        let offers = offers.into_iter().map(|offer| match offer.instance_type.as_str() {
            // A machine with the wrong devices still has a processor, but must not win by it here.
            "a100" => Offer { price: rate("99"), ..offer },
            _ => offer,
        });
        let plan = decide(&world(offers.collect(), vec![job.clone()]), now());
        let spec = &written(&plan)[0].spec;
        assert_eq!((spec.offer.instance_type.as_str(), spec.device), (kind, device));
    }
}

#[test]
fn two_jobs_and_one_slot_the_older_gets_it() {
    let older = Workload { created_at: after(-7200), ..training("z") };
    let world = world(vec![host("0.02")], vec![training("a"), older]);
    let plan = decide(&world, now());
    assert_eq!(written(&plan)[0].spec.owner.name, "z");
    assert_eq!(plan.decisions[0].workload.name, "z");
    let (reason, message) = waits(&plan.decisions[1]);
    assert_eq!(reason, "InsufficientCapacity", "{message}");
    assert!(plan.requeue_at.is_some());
}

#[test]
fn a_hundred_jobs_race_for_a_few_slots_and_have_them_by_age_whatever_their_order() {
    let job = |minutes: i64| Workload {
        created_at: after(-60 * minutes),
        ..training(&format!("j{minutes}"))
    };
    for slots in [0_u32, 1, 7] {
        let slot = Offer { slots: Some(slots), ..machine("m", "0.7") };
        let mut jobs: Vec<Workload> = (0..100).map(job).collect();
        jobs.rotate_left(37);
        jobs.swap(3, 71);
        let mut world = world(vec![slot], jobs);
        let mut oldest = (0..100).rev();
        // Those that have one end, and the next have theirs.
        loop {
            let plan = decide(&world, now());
            let claims = written(&plan);
            let placed: Vec<String> = claims.iter().map(|c| c.spec.owner.name.clone()).collect();
            let next = oldest.by_ref().take(slots as usize);
            assert_eq!(placed, next.map(|minutes| format!("j{minutes}")).collect::<Vec<_>>());
            for waiting in plan.decisions.iter().skip(placed.len()) {
                assert_eq!(waits(waiting).0, "InsufficientCapacity", "{waiting:?}");
            }
            world.claims = claims;
            assert!(decide(&world, now()).actions.is_empty(), "settled");
            if placed.is_empty() {
                break;
            }
            world.claims.clear();
            world.workloads.retain(|job| !placed.contains(&job.id.name));
        }
        assert_eq!(world.workloads.len(), if slots == 0 { 100 } else { 0 });
    }
}

#[test]
fn two_jobs_racing_for_the_last_dollar_one_gets_it() {
    let mut world = world(vec![machine("m", "0.7")], vec![training("a"), training("b")]);
    let cost = only(&decide(&World { workloads: vec![training("a")], ..world.clone() }, now()))
        .ranked[0]
        .cost
        .total;
    let twice = cost.checked_add(cost).expect("fits");
    for (limit, placed) in [
        (twice, 2),
        (twice.checked_sub(Usd::from_micros(1)).expect("fits"), 1),
        (cost, 1),
        (Usd::ZERO, 0),
    ] {
        world.budgets = vec![Budget {
            namespace: "default".into(),
            name: "team".into(),
            limit,
            spent: Usd::ZERO,
            period_ends_at: after(864_000),
            workloads: None,
        }];
        assert_eq!(taken(&decide(&world, now())).len(), placed, "limit {limit}");
    }
}

#[test]
fn deciding_again_on_what_was_written_plans_nothing_more() {
    let mut world = world(
        vec![host("0.02"), machine("m", "0.7")],
        vec![training("a"), serving("svc", 3), training("b")],
    );
    let plan = decide(&world, now());
    assert_eq!(plan.actions.len(), 5);
    world.claims = written(&plan);
    let again = decide(&world, now());
    assert_eq!(again.actions, []);
    assert_eq!(again.requeue_at, None);
    // Half of it written, then a crash: the rest is planned, under other names.
    world.claims.truncate(3);
    let rest = decide(&world, now());
    assert_eq!(rest.actions.len(), 2);
    for claim in written(&rest) {
        assert!(world.claims.iter().all(|old| old.spec.name != claim.spec.name));
    }
}

#[test]
fn what_is_no_longer_wanted_is_ended_the_dearest_first() {
    let mut world = world(vec![machine("m", "0.7"), machine("n", "0.9")], vec![serving("svc", 3)]);
    world.claims = written(&decide(&world, now()));
    for claim in &mut world.claims {
        claim.phase = Phase::Launched { instance: "i".into(), at: now() };
    }
    world.claims[1].spec.offer = machine("n", "0.9");
    let ended = |world: &World| -> Vec<(String, Reason)> {
        decide(world, now())
            .actions
            .into_iter()
            .map(|action| match action {
                Action::EndClaim { uid, reason } => (uid, reason),
                Action::CreateClaim(spec) => panic!("{spec:?}"),
            })
            .collect()
    };
    world.workloads = vec![serving("svc", 2)];
    assert_eq!(ended(&world), [(world.claims[1].uid.clone(), Reason::ScaledDown)]);
    world.workloads = vec![serving("svc", 0)];
    assert_eq!(ended(&world).len(), 3);
    assert_eq!(ended(&world)[0].1, Reason::ScaledToZero);
    world.workloads = vec![Workload { suspended: true, ..serving("svc", 3) }];
    assert_eq!(ended(&world)[2].1, Reason::Suspended);
}

#[test]
fn a_job_waits_until_its_old_machine_is_gone() {
    let mut world = world(vec![machine("m", "0.7")], vec![training("job")]);
    world.claims = written(&decide(&world, now()));
    world.claims[0].phase =
        Phase::Ending { instance: Some("i".into()), reason: Reason::SpotInterrupted };
    let plan = decide(&world, now());
    assert_eq!(waits(only(&plan)), ("SpotInterrupted", "waits until trj-job-006a6f62-1-0 is gone"));
    world.claims[0].phase = Phase::Ended { reason: Reason::SpotInterrupted };
    let plan = decide(&world, now());
    assert_eq!(written(&plan)[0].spec.name, "trj-job-006a6f62-2-0");
}

#[test]
fn a_job_that_lost_too_many_machines_gives_up() {
    let mut job = training("job");
    job.progress.interruptions = 11;
    let plan = decide(&world(vec![host("0.02")], vec![job.clone()]), now());
    assert_eq!(
        waits(only(&plan)),
        ("SpotInterrupted", "lost 11 machines; at most 10 losses are allowed")
    );
    job.progress.interruptions = 1;
    job.interruption.policy = InterruptionPolicy::Fail;
    let plan = decide(&world(vec![host("0.02")], vec![job]), now());
    assert_eq!(waits(only(&plan)).0, "SpotInterrupted");
}

#[test]
fn a_place_that_keeps_the_deadline_for_sure_goes_before_a_cheaper_one_that_may_not() {
    // At a rented machine's uncertainty the work takes between a third and three times what is expected.
    let slow = Offer { vcpu_milli: Some(4_000), ..machine("slow", "0.01") };
    let fast = Offer { vcpu_milli: Some(64_000), ..machine("fast", "2") };
    let job = |seconds, placements| {
        let mut job = training("job");
        job.finish_by = Some(after(seconds));
        job.progress.placements = placements;
        job
    };
    let decide_for =
        |job: Workload| decide(&world(vec![slow.clone(), fast.clone()], vec![job]), now());
    let expected = |kind: &str| {
        let mut ask = training("job");
        ask.placement.max_hourly_price = None;
        let plan = decide(&world(vec![slow.clone(), fast.clone()], vec![ask]), now());
        let place = only(&plan).ranked.iter().find(|place| place.offer.instance_type == kind);
        place.expect("ranked").cost.millis / 1000
    };
    let (slow_seconds, fast_seconds) = (expected("slow"), expected("fast"));
    for (seconds, placements, kind, warning) in [
        (slow_seconds * 10, 0, "slow", None),
        (slow_seconds + 60, 0, "fast", None),
        (fast_seconds + 5, 0, "fast", Some(Reason::DeadlineAtRisk)),
        // Begun before: the best is made of what is left.
        (10, 1, "fast", Some(Reason::DeadlineAtRisk)),
    ] {
        let plan = decide_for(job(seconds, placements));
        assert_eq!(written(&plan)[0].spec.offer.instance_type, kind, "{seconds} s");
        assert_eq!(only(&plan).warning, warning, "{seconds} s");
    }
    assert_eq!(waits(only(&decide_for(job(10, 0)))).0, "DeadlineAtRisk");
}

#[test]
fn a_service_is_compared_by_its_hour_and_shows_dollars_for_a_million_tokens() {
    let plan = decide(
        &world(vec![machine("m", "0.7"), machine("n", "0.6")], vec![serving("svc", 2)]),
        now(),
    );
    assert_eq!(taken(&plan), ["cloud/r1/r1-a/n/on-demand"; 2]);
    let cost = &only(&plan).ranked[0].cost;
    assert_eq!(cost.total, usd("0.6"));
    let tokens = cost.tokens_per_second.expect("known").expected;
    let dollars = cost.usd_per_million_tokens.expect("known").as_f64();
    assert!((dollars - 0.6 / 3600.0 * 1e6 / tokens).abs() < 1e-5);
}

#[test]
fn a_saving_is_against_on_demand_even_where_spot_is_asked_for() {
    let mut job = training("job");
    job.placement.capacity = Some(Capacity::Spot);
    job.placement.regions = vec!["r1".into()];
    let offers = vec![
        placed("cloud", "r1", "a", "m", Capacity::Spot, rate("0.2")),
        placed("cloud", "r1", "a", "m", Capacity::OnDemand, rate("0.7")),
        placed("cloud", "r2", "a", "m", Capacity::OnDemand, rate("0.3")),
    ];
    let plan = decide(&world(offers, vec![job]), now());
    let saving = only(&plan).saving.as_ref().expect("there is one");
    assert_eq!(saving.against.0, "cloud/r1/a/m/on-demand", "the same constraints");
    assert!(saving.saved > Usd::ZERO);
}

#[test]
fn a_recorded_world_decides_the_same_when_it_is_read_back() {
    let mut world = world(
        vec![
            host("0.02"),
            machine("m", "0.7"),
            with_devices(dated(machine("p5.48xlarge", "55.04")), "H100-SXM", 8),
        ],
        vec![training("job"), serving("svc", 2)],
    );
    world.corrections.record("cpu-x86_64/train", 3.0, 4.0);
    world.claims = vec![claim(written(&decide(&world, now()))[0].spec.clone())];
    let recorded = Recorded { now: now(), world };
    let text = serde_json::to_string(&recorded).expect("it is written");
    let read: Recorded = serde_json::from_str(&text).expect("it is read");
    assert_eq!(read, recorded);
    assert_eq!(decide(&read.world, read.now), decide(&recorded.world, recorded.now));
    assert_eq!(serde_json::to_string(&read).expect("written"), text);
    assert!(
        serde_json::from_str::<Recorded>(&text.replacen("\"claims\"", "\"clams\"", 1)).is_err()
    );
}

#[test]
fn a_provider_that_is_switched_off_still_compares() {
    let mut world = world(vec![host("0.02"), dated(machine("m", "0.7"))], vec![training("job")]);
    world.providers[1] =
        petaflop_arbiter::world::ProviderState { state: Switch::Disabled, ..provider("cloud") };
    assert!(only(&decide(&world, now())).saving.is_some());
}

#[test]
fn the_reasons_are_the_words_of_the_api() {
    let words: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    for word in "NoMatchingOffer OffersStale PriceAboveLimit BudgetExceeded BudgetWarning ProviderUnavailable \
        InsufficientCapacity QuotaExceeded Launching LaunchTimedOut ImagePullFailed SpotInterrupted \
        CheaperOfferMigration BackoffLimitExceeded DeadlineExceeded CostLimitExceeded Suspended Resumed Succeeded \
        InvalidSpec CredentialsMissing MinimumReplicasUnavailable NewReplicaLaunching ScaledToZero \
        BlockedByFailedLoad LaunchAttempted LaunchAmbiguous AdoptedExisting HeartbeatLost TerminateRetrying \
        Unauthorized RateLimited Unreachable Stale Ok WarningThreshold LimitReached ProviderNotFound \
        NamespaceNotAllowed DeadlineAtRisk ImageNotEnterable AcceleratorProbeFailed PriceChanged SecretNotFound \
        BalanceTooLow ApiRetired Releasing ResultRefused OwnerGone"
        .split_whitespace()
    {
        assert!(words.contains(&word), "{word}");
        let json = serde_json::to_string(word).expect("a string");
        assert_eq!(
            serde_json::from_str::<Reason>(&json).expect(word).to_string(),
            word
        );
    }
}
