//! The engine's books hold whatever is done to it: random orders, stops, evictions, prices and
//! deadlines by seed, looked at after each step; by the rules of each provider.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use petaflop_cloud_box::engine::bill::{Item, Rules};
use petaflop_cloud_box::engine::chance::Chance;
use petaflop_cloud_box::engine::machine::{AtEnd, Life, Order, Outcome, Why};
use petaflop_cloud_box::engine::product::{Product, ProductId, Sale};
use petaflop_cloud_box::engine::series::{Series, Walk};
use petaflop_cloud_box::engine::{Engine, Pace, Setup};
use petaflop_cloud_box::host::{Boot, StateOnly};
use petaflop_cloud_box::{ec2, runpod};

const START: &str = "2026-11-20T10:00:00Z";

fn engine(rules: Rules, pace: Pace, deposit: Option<i64>, seed: u64) -> Engine {
    let start: Timestamp = START.parse().unwrap();
    let walk = Walk {
        seed,
        start: 500_000,
        low: 100_000,
        high: 900_000,
        step_permille: 100,
        every: Duration::from_secs(600),
    };
    let product = |zone: &str, capacity| Product {
        kind: "kind".to_owned(),
        pool: "pool".to_owned(),
        region: "region".to_owned(),
        zone: Some(zone.to_owned()),
        capacity,
        largest: 4,
        on_demand: 1_000_000,
        spot: Some(Series::made(walk, start, 1000)),
    };
    let setup = Setup {
        products: vec![product("a", 5), product("b", 3)],
        rules,
        pace,
        deposit,
        spend_limit: 6_000_000,
        seed,
        name: |chance| chance.word(14),
        host: Box::new(StateOnly::default().ending(&["ends"])),
    };
    Engine::new(setup, start)
}

/// One thing that somebody does. Being refused is an answer.
fn step(engine: &mut Engine, chance: &mut Chance) {
    let ids: Vec<String> = engine.machines().iter().map(|machine| machine.id.clone()).collect();
    let any = |chance: &mut Chance| {
        let place = chance.below(ids.len() as u64) as usize;
        ids.get(place).cloned().unwrap_or_default()
    };
    let deadline = |engine: &Engine, chance: &mut Chance| {
        let seconds = chance.below(7200) as i64;
        (chance.below(4) == 0).then(|| engine.now() + SignedDuration::from_secs(seconds))
    };
    // Refused or not, the books are looked at.
    let _ = match chance.below(9) {
        0..3 => {
            let sale = match chance.below(2) {
                0 => Sale::OnDemand,
                _ => Sale::Spot { bid: chance.below(1_000_000) as i64 },
            };
            let image = if chance.below(5) == 0 { "ends" } else { "runs" };
            let order = Order {
                name: "name".to_owned(),
                product: ProductId(chance.below(2) as usize),
                units: chance.below(6) as u32,
                sale,
                disk: chance.below(3) as u32 * 40,
                volume: chance.below(3) as u32 * 50,
                boot: Boot { image: image.to_owned(), ..Boot::default() },
                stop_after: deadline(engine, chance),
                end_after: deadline(engine, chance),
                at_end: AtEnd::KEPT,
            };
            engine.buy(order).map(drop)
        }
        3 => engine.halt(&any(chance), Why::User),
        4 => engine.resume(&any(chance), None),
        5 => engine.end(&any(chance), Why::User),
        6 => engine.evict(&any(chance), None),
        7 => engine.evict(&any(chance), Some(Duration::from_secs(chance.below(300)))),
        _ => {
            let passed = SignedDuration::from_secs(chance.below(3000) as i64);
            engine.advance(engine.now() + passed);
            Ok(())
        }
    };
}

fn check(engine: &Engine, before: i64) {
    for (id, product) in engine.products() {
        let rented = engine.machines().iter().filter(|m| m.order.product == id && m.holds_units());
        assert!(rented.map(|machine| machine.order.units).sum::<u32>() <= product.capacity);
    }
    let invoice = engine.invoice();
    assert!(invoice.total() >= before, "a bill never shrinks");
    assert_eq!(invoice.total(), invoice.by_machine().values().sum::<i64>());
    let open: Vec<_> = invoice.lines().iter().filter(|line| line.until.is_none()).collect();
    for machine in engine.machines() {
        let items: Vec<Item> =
            open.iter().filter(|line| line.machine == machine.id).map(|line| line.item).collect();
        let distinct: BTreeSet<Item> = items.iter().copied().collect();
        assert_eq!(items.len(), distinct.len(), "nothing bills twice: {items:?}");
        assert_eq!(distinct.contains(&Item::Compute), machine.holds_units(), "{machine:?}");
        match machine.life {
            Life::Terminated => assert!(items.is_empty(), "{machine:?}"),
            Life::Exited => assert!(items.iter().all(|item| *item == Item::VolumeStopped)),
            _ => assert!(!distinct.contains(&Item::VolumeStopped)),
        }
        if machine.life == Life::Terminated {
            assert!(machine.ended.is_some() && machine.stopped.is_some());
        }
    }
}

#[test]
fn nothing_is_rented_twice_and_nothing_bills_that_is_gone() {
    let mut evicted = 0;
    for seed in 0..60 {
        let mut engine = engine(Rules::RUNPOD, runpod::PACE, Some(40_000_000), seed);
        let mut chance = Chance::new(seed);
        let mut spent = 0;
        for _ in 0..150 {
            step(&mut engine, &mut chance);
            check(&engine, spent);
            spent = engine.invoice().total();
        }
        let stopped = engine.machines().iter().filter_map(|machine| machine.stopped);
        evicted += stopped.filter(|(_, why)| *why == Why::Evicted).count();
        let ids: BTreeSet<&str> = engine.machines().iter().map(|m| m.id.as_str()).collect();
        assert_eq!(ids.len(), engine.machines().len());
    }
    assert!(evicted > 50, "the steps reach what they shall: {evicted}");
}

#[test]
fn how_often_one_looks_changes_nothing() {
    for seed in 0..20 {
        let run = |looks: i64| {
            let mut engine = engine(Rules::RUNPOD, runpod::PACE, Some(4_000_000), seed);
            let mut chance = Chance::new(seed);
            for _ in 0..60 {
                step(&mut engine, &mut chance);
                let from = engine.now();
                for look in 1..=looks {
                    engine.advance(from + SignedDuration::from_secs(600 * look / looks));
                }
            }
            engine.invoice().by_machine()
        };
        assert_eq!(run(1), run(7), "seed {seed}");
    }
}

/// One thing that somebody, or the market, does in EC2: what is taken or ends by itself is
/// terminated, which takes a while, and has a disk that may stay.
fn step_ec2(engine: &mut Engine, chance: &mut Chance) {
    let ids: Vec<String> = engine.machines().iter().map(|machine| machine.id.clone()).collect();
    let place = chance.below(ids.len() as u64) as usize;
    let any = ids.get(place).cloned().unwrap_or_default();
    // Refused or not, the books are looked at.
    let _ = match chance.below(9) {
        0..3 => {
            let sale = match chance.below(3) {
                0 => Sale::OnDemand,
                _ => Sale::Spot { bid: chance.below(1_000_000) as i64 },
            };
            let image = if chance.below(5) == 0 { "ends" } else { "runs" };
            let program = if chance.below(2) == 0 { Outcome::Stops } else { Outcome::Ends };
            let order = Order {
                name: String::new(),
                product: ProductId(chance.below(2) as usize),
                units: 1,
                sale,
                disk: 0,
                volume: 0,
                boot: Boot { image: image.to_owned(), ..Boot::default() },
                stop_after: None,
                end_after: None,
                at_end: AtEnd { program, eviction: Outcome::Ends },
            };
            engine.buy(order).map(|id| {
                let dies = chance.below(2) == 0;
                engine.attach(&format!("disk of {id}"), &id, 73, dies, 80_000);
            })
        }
        3 => engine.end(&any, Why::User),
        4 => engine.evict(&any, None),
        5 => engine.evict(&any, Some(Duration::from_secs(120))),
        6 => {
            engine.set_spot(ProductId(chance.below(2) as usize), chance.below(1_000_000) as i64);
            Ok(())
        }
        7 => engine.delete_disk(&format!("disk of {any}")),
        _ => {
            let passed = SignedDuration::from_secs(chance.below(3000) as i64);
            engine.advance(engine.now() + passed);
            Ok(())
        }
    };
    // What the step set off at once.
    engine.advance(engine.now());
}

fn check_ec2(engine: &Engine, before: &[i64]) -> Vec<i64> {
    let invoice = engine.invoice();
    let open = |id: &str| invoice.lines().iter().any(|l| l.machine == id && l.until.is_none());
    for machine in engine.machines() {
        assert_eq!(open(&machine.id), machine.life == Life::Running, "{machine:?}");
        assert_eq!(machine.ended.is_some(), machine.life == Life::Terminated);
        if let (Sale::Spot { bid }, true) = (machine.order.sale, machine.holds_units()) {
            let price = engine.spot_price(machine.order.product).unwrap();
            assert!(bid >= price || machine.noticed.is_some(), "{machine:?} at {price}");
        }
    }
    for disk in engine.disks() {
        assert_eq!(open(&disk.id), disk.deleted.is_none(), "{disk:?}");
        let machine = disk.machine.as_ref().and_then(|id| engine.machine(id));
        assert!(machine.is_none_or(|machine| machine.life != Life::Terminated), "{disk:?}");
    }
    let now: Vec<i64> = invoice.lines().iter().map(|line| line.micros(engine.now())).collect();
    for (line, (now, before)) in invoice.lines().iter().zip(now.iter().zip(before)) {
        assert!(now >= before || line.waived, "nothing shrinks but what was interrupted: {line:?}");
        let spot = |id: &str| {
            let machine = engine.machine(id).unwrap();
            matches!(machine.leaving, Some((_, Why::Evicted | Why::Price)))
        };
        assert!(!line.waived || (line.item == Item::Compute && spot(&line.machine)), "{line:?}");
    }
    now
}

#[test]
fn by_ec2s_rules_too_only_what_runs_bills_and_every_disk_that_is_left() {
    let (mut outbid, mut left) = (0, 0);
    for seed in 0..60 {
        let mut engine = engine(Rules::EC2_LINUX, ec2::PACE, None, seed);
        let mut chance = Chance::new(seed);
        let mut lines = Vec::new();
        for _ in 0..150 {
            step_ec2(&mut engine, &mut chance);
            lines = check_ec2(&engine, &lines);
        }
        let whys = engine.machines().iter().filter_map(|machine| machine.leaving);
        outbid += whys.filter(|(_, why)| *why == Why::Price).count();
        left +=
            engine.disks().iter().filter(|d| d.machine.is_none() && d.deleted.is_none()).count();
    }
    assert!(outbid > 50 && left > 50, "the steps reach what they shall: {outbid}, {left}");
}

#[test]
fn how_often_one_looks_changes_nothing_by_ec2s_rules() {
    for seed in 0..20 {
        let run = |looks: i64| {
            let mut engine = engine(Rules::EC2_LINUX, ec2::PACE, None, seed);
            let mut chance = Chance::new(seed);
            for _ in 0..60 {
                step_ec2(&mut engine, &mut chance);
                let from = engine.now();
                for look in 1..=looks {
                    engine.advance(from + SignedDuration::from_secs(600 * look / looks));
                }
            }
            engine.invoice().by_machine()
        };
        assert_eq!(run(1), run(7), "seed {seed}");
    }
}
