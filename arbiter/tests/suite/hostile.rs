//! What nobody should send, and what comes of it: a reason, never a panic.

use jiff::Timestamp;
use petaflop_arbiter::decide::{decide, explain};
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::{Accelerators, Offer};
use petaflop_arbiter::workload::{Alternative, DeviceRequest, Work};
use petaflop_arbiter::world::Budget;

use crate::worlds::{
    after, container, host, machine, now, only, serving, taken, training, usd, world,
};

#[test]
fn a_price_of_nothing_is_taken_and_an_absurd_one_is_not() {
    let free = Offer { price: UsdPerHour::ZERO, ..machine("free", "1") };
    let absurd = Offer {
        price: UsdPerHour::from_micros(i64::MAX).expect("not negative"),
        ..machine("absurd", "1")
    };
    for job in [training("job"), serving("svc", 2), container("box")] {
        let all = world(vec![absurd.clone(), free.clone(), machine("m", "0.7")], vec![job.clone()]);
        let plan = decide(&all, now());
        assert!(taken(&plan)[0].contains("/free/"));
        assert_eq!(
            only(&plan).ranked[0].cost.total,
            usd("0").saturating_add(only(&plan).ranked[0].cost.terms.iter().map(|t| t.usd).sum())
        );
        let alone = world(vec![absurd.clone()], vec![job]);
        // There is no limit, so it is taken; nothing overflows on the way.
        assert!(!taken(&decide(&alone, now())).is_empty());
        assert!(explain(&alone, now(), &alone.workloads[0].id).is_some());
    }
}

#[test]
fn absurd_numbers_in_offers_and_workloads_do_not_overflow() {
    let mut offer = machine("m", "0.7");
    offer.ttl_seconds = u32::MAX;
    offer.quoted_at = Timestamp::MAX;
    offer.memory = Some(u64::MAX);
    offer.vcpu_milli = Some(u32::MAX);
    offer.accelerators =
        Some(Accelerators { model: "🦀".into(), count: u32::MAX, memory: Some(u64::MAX) });
    offer.interruptions_per_hour = Some(f64::INFINITY);
    let old = Offer { quoted_at: Timestamp::MIN, ..machine("old", "0.7") };
    let mut job = training("job");
    if let Work::Training(work) = &mut job.work {
        work.steps = u64::MAX;
        work.tokens_per_step = u64::MAX;
        work.flops_per_step = u64::MAX;
        work.arena_bytes = u64::MAX;
        work.host_bytes = u64::MAX;
        work.checkpoint_interval_seconds = u64::MAX;
        work.artifact_bytes = u64::MAX;
    }
    job.finish_by = Some(Timestamp::MIN);
    job.max_total_cost = Some(Usd::from_micros(i64::MIN));
    job.progress.spent = Usd::MAX;
    job.resources.memory = u64::MAX;
    job.accelerators = vec![Alternative::Devices(DeviceRequest {
        vendor: None,
        models: vec![String::new()],
        count: u32::MAX,
        min_memory: Some(u64::MAX),
        min_compute_capability: Some((u32::MAX, u32::MAX)),
    })];
    job.progress.placements = u32::MAX;
    let mut nothing = training("nothing");
    nothing.progress.placements = u32::MAX;
    if let Work::Training(work) = &mut nothing.work {
        work.steps = 0;
        work.flops_per_step = 0;
        work.traffic_bytes_per_step = 0;
        work.tokens_per_step = 0;
        work.checkpoint_interval_seconds = 0;
    }
    let mut world = world(
        vec![offer, old, host("0.02"), machine("many", "0.1")],
        vec![job, nothing, serving("svc", u32::MAX)],
    );
    world.budgets = vec![Budget {
        namespace: "default".into(),
        name: "b".into(),
        limit: Usd::MAX,
        spent: Usd::from_micros(i64::MIN),
        period_ends_at: Timestamp::MIN,
        workloads: None,
    }];
    world.providers[1].startup_millis = i64::MIN;
    world.providers[1].fetch_bytes_per_second = Some(0);
    world.assumptions.spot_losses_per_hour = f64::NAN;
    for when in [now(), Timestamp::MIN, Timestamp::MAX] {
        let plan = decide(&world, when);
        assert_eq!(plan.decisions.len(), 3);
        for workload in &world.workloads {
            assert!(explain(&world, when, &workload.id).is_some());
        }
    }
}

#[test]
fn the_same_offer_quoted_twice_counts_once_the_later_quote() {
    let old = Offer { quoted_at: after(-200), ..machine("m", "0.1") };
    for offers in [vec![old.clone(), machine("m", "0.7")], vec![machine("m", "0.7"), old]] {
        let world = world(offers, vec![training("job")]);
        assert_eq!(world.market.len(), 1);
        assert_eq!(world.market.offers().next().expect("one").price, crate::worlds::rate("0.7"));
    }
}

#[test]
fn a_world_without_anything_waits() {
    let world = world(Vec::new(), vec![training("job")]);
    let plan = decide(&world, now());
    assert_eq!(crate::worlds::waits(only(&plan)), ("NoMatchingOffer", "there are no offers"));
    assert!(explain(&world, now(), &training("other").id).is_none());
}

#[test]
fn a_budget_exactly_spent_takes_nothing_but_what_is_free() {
    let mut world = world(vec![machine("m", "0.7")], vec![container("box")]);
    world.budgets = vec![Budget {
        namespace: "default".into(),
        name: "b".into(),
        limit: usd("5"),
        spent: usd("5"),
        period_ends_at: after(3600),
        workloads: None,
    }];
    assert!(taken(&decide(&world, now())).is_empty());
    world.budgets[0].workloads = Some(["another".into()].into());
    assert_eq!(taken(&decide(&world, now())).len(), 1, "it does not count this one");
}
