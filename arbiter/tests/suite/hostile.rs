//! What nobody should send, and what comes of it: a reason, never a panic.

use jiff::Timestamp;
use petaflop_arbiter::decide::{decide, explain};
use petaflop_arbiter::decision::{Decision, StoppedBy};
use petaflop_arbiter::market::Market;
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::{Accelerators, Capacity, Offer, OfferId};
use petaflop_arbiter::reason::Reason;
use petaflop_arbiter::workload::{Alternative, DeviceRequest, Work};
use petaflop_arbiter::world::{Budget, Unavailable, World};

use crate::worlds::{
    after, container, host, machine, now, only, placed, serving, taken, training, usd, world,
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
        work.checkpoint_interval_seconds = Some(u32::MAX);
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
        ..DeviceRequest::default()
    })];
    job.progress.placements = u32::MAX;
    let mut nothing = training("nothing");
    nothing.progress.placements = u32::MAX;
    if let Work::Training(work) = &mut nothing.work {
        work.steps = 0;
        work.flops_per_step = 0;
        work.traffic_bytes_per_step = 0;
        work.tokens_per_step = 0;
        work.checkpoint_interval_seconds = Some(0);
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
        assert_eq!((world.market.len(), world.market.doubles()), (1, 1));
        assert_eq!(world.market.offers().next().expect("one").price, crate::worlds::rate("0.7"));
    }
}

#[test]
fn a_provider_that_quotes_an_offer_twice_is_told_apart_from_one_that_does_not() {
    let late = |seconds: i64| Offer { quoted_at: after(-seconds), ..machine("m", "0.1") };
    let mut market = Market::default();
    assert_eq!(market.replace("cloud", &[late(3), machine("n", "1"), late(1), late(2)]), 2);
    assert_eq!(market.get(&late(1).id).expect("there").quoted_at, after(-1));
    // Few changes among many offers, and another provider that quotes the same id earlier.
    let many: Vec<Offer> = (0..64).map(|n| machine(&format!("m{n}"), "1")).collect();
    assert_eq!(market.replace("cloud", &many), 0);
    let twice: Vec<Offer> = many.iter().chain(&many[..2]).cloned().collect();
    assert_eq!(market.replace("cloud", &twice), 2);
    let other = Offer { provider: "other".into(), quoted_at: after(-900), ..many[0].clone() };
    assert_eq!((market.replace("other", &[other]), market.len()), (1, 64));
}

#[test]
fn a_recorded_world_with_an_offer_twice_is_refused() {
    let world = world(vec![machine("m", "0.7")], vec![container("box")]);
    let mut text = serde_json::to_value(&world).expect("it can be written");
    let offers = text["market"].as_array_mut().expect("a list");
    offers.push(offers[0].clone());
    let error = serde_json::from_value::<World>(text).expect_err("twice").to_string();
    assert!(error.contains("1 of the offers have the id of another"), "{error}");
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

/// How many offers a check stopped, by what the decision counts.
fn stopped_by(decision: &Decision, constraint: &str) -> u32 {
    let of = |stopped: &&StoppedBy| stopped.constraint == constraint;
    decision.stopped.iter().find(of).map_or(0, |stopped| stopped.offers)
}

#[test]
fn what_is_no_price_in_dollars_is_refused_as_it_stands_and_not_made_one() {
    let world = world(vec![machine("m", "0.7")], vec![container("box")]);
    let text = serde_json::to_string(&world).expect("it can be written");
    let priced = |price: &str| text.replace(r#""price":"0.7""#, &format!(r#""price":{price}"#));
    let read = |text: &str| serde_json::from_str::<World>(text);
    assert_eq!(read(&priced(r#""0.7""#)).expect("as written"), world);
    for wrong in [
        r#""-0.7""#,
        r#""0.7 EUR""#,
        r#""€0.7""#,
        r#""0,7""#,
        r#""7e-1""#,
        r#""NaN""#,
        r#""""#,
        r#""99999999999999999999""#,
        "-1",
        "null",
    ] {
        let text = priced(wrong);
        assert!(text.contains(wrong), "the text has another price now");
        let error = read(&text).expect_err(wrong).to_string();
        assert!(error.contains("line 1 column"), "{wrong}: {error}");
    }
}

#[test]
fn quotes_of_another_time_are_counted_whichever_way_the_clock_jumps() {
    let offers = (0..30).map(|n| machine(&format!("m{n}"), "0.7")).collect();
    let world = world(offers, vec![container("box")]);
    for (seconds, constraint, reason) in [
        (-86_400, "FutureQuote", "OffersStale"),
        (-181, "FutureQuote", "OffersStale"),
        (240, "StaleQuote", "OffersStale"),
        (86_400, "StaleQuote", "OffersStale"),
    ] {
        let plan = decide(&world, after(seconds));
        assert_eq!(stopped_by(only(&plan), constraint), 30, "{seconds} s");
        assert_eq!(crate::worlds::waits(only(&plan)).0, reason);
    }
    for seconds in [-180, 0, 239] {
        assert_eq!(taken(&decide(&world, after(seconds))).len(), 1, "{seconds} s");
    }
}

#[test]
fn equal_offers_are_told_apart_by_id_however_they_came() {
    let tied = |n: usize| machine(&format!("m{n:02}"), "0.7");
    for shift in 0..40 {
        let offers = (0..40).map(|n| tied((n * 7 + shift) % 40)).collect();
        let plan = decide(&world(offers, vec![container("box")]), now());
        assert_eq!(taken(&plan), [tied(0).id.0]);
        let shown: Vec<_> = only(&plan).ranked.iter().map(|one| one.offer.id.clone()).collect();
        assert_eq!(shown, (0..10).map(|n| tied(n).id).collect::<Vec<_>>());
        assert_eq!(stopped_by(only(&plan), "Dearer"), 39);
    }
}

#[test]
fn who_says_available_and_never_is_is_tried_once_an_interval_and_keeps_nobody_waiting() {
    let liars = (0..3).map(|n| machine(&format!("liar-{n}"), "0.1"));
    let mut world = world(liars.chain([machine("m", "0.7")]).collect(), vec![container("box")]);
    let (mut tries, mut found) = (0, 0);
    for minute in 0..60 {
        let at = after(minute * 60);
        let quoted = |offer: &Offer| Offer { quoted_at: at, ..offer.clone() };
        let offers: Vec<Offer> = world.market.offers().map(quoted).collect();
        world.market = std::sync::Arc::new(Market::new(offers));
        // In a minute, whatever refuses is left alone for ten.
        loop {
            let plan = decide(&world, at);
            let id = OfferId(taken(&plan).remove(0));
            if !id.0.contains("liar") {
                found += 1;
                assert_eq!(stopped_by(only(&plan), "Unavailable"), 3, "counted while left alone");
                break;
            }
            tries += 1;
            let (until, reason) = (after(minute * 60 + 600), Reason::InsufficientCapacity);
            world.unavailable.push(Unavailable { offer: id, until, reason });
        }
    }
    assert_eq!((found, tries), (60, 3 * 6));
}

#[test]
fn an_offer_that_comes_and_goes_leaves_the_market_as_it_was() {
    let mut world = world(vec![machine("m", "0.7")], vec![container("box")]);
    let steady = decide(&world, now());
    let flapping = placed("cloud", "r9", "r9-z", "f", Capacity::Spot, crate::worlds::rate("0.1"));
    let market = std::sync::Arc::make_mut(&mut world.market);
    for _ in 0..1_000 {
        assert!(market.quote(flapping.clone()));
        assert_eq!((market.len(), market.classes()), (2, 2));
        assert!(market.withdraw(&flapping.id));
        assert_eq!((market.len(), market.classes()), (1, 1));
    }
    assert_eq!(decide(&world, now()), steady);
}

#[test]
fn a_budget_is_spent_to_the_last_micro_dollar_and_not_beyond() {
    let jobs = || vec![container("a"), container("b")];
    let mut world = world(vec![machine("m", "0.7")], jobs());
    for (limit, takes) in [("0.699999", 0), ("0.7", 1), ("1.399999", 1), ("1.4", 2)] {
        world.budgets = vec![Budget {
            namespace: "default".into(),
            name: "b".into(),
            limit: usd(limit),
            spent: Usd::ZERO,
            period_ends_at: after(7_200),
            workloads: None,
        }];
        let plan = decide(&world, now());
        assert_eq!(taken(&plan).len(), takes, "{limit}");
        for decision in &plan.decisions[takes..] {
            assert_eq!(crate::worlds::waits(decision).0, "BudgetExceeded");
            assert_eq!(stopped_by(decision, "Budget"), 1);
        }
    }
}
