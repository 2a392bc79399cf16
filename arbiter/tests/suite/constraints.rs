//! Every constraint, and what is said where none of the offers meets them.

use petaflop_arbiter::catalogue::Vendor;
use petaflop_arbiter::decide::decide;
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::obstacle::{Check, Obstacle};
use petaflop_arbiter::offer::{Arch, Capacity, HostOwner, Offer, Share};
use petaflop_arbiter::reason::Reason;
use petaflop_arbiter::workload::{Alternative, DeviceRequest, Work, Workload};
use petaflop_arbiter::world::{Budget, MonthlyLimit, Switch, Unavailable, World};

use crate::worlds::{
    GIB, after, container, dated, explained, machine, now, only, placed, rate, taken, training,
    usd, waits, with_devices, world, written,
};

type Change = fn(&mut World);

/// Every constraint, one at a time, against an offer that otherwise would do.
#[test]
fn each_constraint_stops_an_offer_and_says_so_with_numbers() {
    fn job(world: &mut World) -> &mut Workload {
        &mut world.workloads[0]
    }
    fn devices(world: &mut World, request: DeviceRequest) {
        job(world).accelerators = vec![Alternative::Devices(request)];
    }
    fn offer(world: &mut World, change: fn(&mut Offer)) {
        let mut offers: Vec<Offer> = world.market.offers().cloned().collect();
        change(&mut offers[0]);
        world.market = std::sync::Arc::new(petaflop_arbiter::market::Market::new(offers));
    }
    const ANY: DeviceRequest = DeviceRequest {
        vendor: None,
        models: Vec::new(),
        count: 1,
        min_memory: None,
        min_compute_capability: None,
        max_count: None,
        stack: None,
        linked: false,
    };
    let table: &[(Check, &str, &str, Change)] = &[
        (Check::ProviderUnknown, "ProviderNotFound", "no provider cloud", |w| w.providers.clear()),
        (Check::ProviderNotListed, "NoMatchingOffer", "cloud is not in placement.providers", |w| {
            job(w).placement.providers = vec!["host".into()];
        }),
        (
            Check::NamespaceNotAllowed,
            "NamespaceNotAllowed",
            "cloud does not serve namespace default",
            |w| {
                w.providers[1].allowed_namespaces = Some(vec!["ml".into()]);
            },
        ),
        (Check::ProviderOff, "ProviderUnavailable", "cloud takes nothing new", |w| {
            w.providers[1].state = Switch::Cordoned;
        }),
        (Check::AcceleratorNotAllowed, "NoMatchingOffer", "cloud does not allow L4", |w| {
            offer(w, |o| *o = with_devices(o.clone(), "L4", 1));
            w.providers[1].accelerators.deny = vec!["l4".into()];
        }),
        (Check::CapacityType, "NoMatchingOffer", "is OnDemand, needs Spot", |w| {
            job(w).placement.capacity = Some(Capacity::Spot);
        }),
        (Check::UntrustedHost, "NoMatchingOffer", "unknown owner", |w| {
            offer(w, |o| o.owner = HostOwner::Unknown);
        }),
        (
            Check::OutOfReach,
            "NoMatchingOffer",
            "machines of cloud cannot reach the store /data and spec.serviceAccountName",
            |w| {
                w.providers[1].remote = true;
                job(w).tied = vec!["the store /data".into(), "spec.serviceAccountName".into()];
            },
        ),
        (Check::Disk, "NoMatchingOffer", "needs 200.0 GiB of disk, has 93.2 GiB", |w| {
            w.providers[1].disk = Some(100_000_000_000);
            job(w).resources.disk = 200 * GIB;
        }),
        (
            Check::AcceleratorModel,
            "NoMatchingOffer",
            "needs H100 or MI300X, has no accelerator",
            |w| {
                devices(w, DeviceRequest { models: vec!["H100".into(), "MI300X".into()], ..ANY });
            },
        ),
        (Check::AcceleratorModel, "NoMatchingOffer", "needs an accelerator of amd, has L4", |w| {
            offer(w, |o| *o = with_devices(o.clone(), "L4", 1));
            devices(w, DeviceRequest { vendor: Some(Vendor::Amd), ..ANY });
        }),
        (Check::AcceleratorCount, "NoMatchingOffer", "needs 4 devices, has 2", |w| {
            offer(w, |o| *o = with_devices(o.clone(), "L4", 2));
            devices(w, DeviceRequest { count: 4, ..ANY });
        }),
        (
            Check::AcceleratorMemory,
            "NoMatchingOffer",
            "needs 40.0 GiB a device, has 24.0 GiB",
            |w| {
                offer(w, |o| *o = with_devices(o.clone(), "L4", 1));
                devices(w, DeviceRequest { min_memory: Some(40 * GIB), ..ANY });
            },
        ),
        (
            Check::ComputeCapability,
            "NoMatchingOffer",
            "needs compute capability 9.0, has 8.9",
            |w| {
                offer(w, |o| *o = with_devices(o.clone(), "L4", 1));
                devices(w, DeviceRequest { min_compute_capability: Some((9, 0)), ..ANY });
            },
        ),
        (Check::AcceleratorCount, "NoMatchingOffer", "needs 1 devices, has 2", |w| {
            offer(w, |o| *o = with_devices(o.clone(), "L4", 2));
            devices(w, DeviceRequest { max_count: Some(1), ..ANY });
        }),
        (
            Check::AcceleratorStack,
            "NoMatchingOffer",
            "needs devices that rocm drives, has such of cuda, vulkan",
            |w| {
                offer(w, |o| *o = with_devices(o.clone(), "L4", 1));
                devices(w, DeviceRequest { stack: Some("rocm".into()), ..ANY });
            },
        ),
        (
            Check::Interconnect,
            "NoMatchingOffer",
            "needs devices linked by more than PCIe, has PCIe",
            |w| {
                offer(w, |o| *o = with_devices(o.clone(), "H100-PCIe", 2));
                devices(w, DeviceRequest { linked: true, ..ANY });
            },
        ),
        (Check::Vcpus, "NoMatchingOffer", "needs 32 processors, has 16", |w| {
            job(w).resources.vcpu_milli = 32_000;
        }),
        (Check::Memory, "NoMatchingOffer", "needs 100.0 GiB of memory, has 64.0 GiB", |w| {
            job(w).resources.memory = 100 * GIB;
        }),
        (Check::Memory, "NoMatchingOffer", "needs 64.2 GiB of memory, has 64.0 GiB", |w| {
            // The floor is met; the plan needs more.
            job(w).resources.memory = GIB;
            if let Work::Training(work) = &mut job(w).work {
                work.arena_bytes = 64 * GIB;
            }
        }),
        (Check::Memory, "NoMatchingOffer", "has an unknown amount", |w| {
            offer(w, |o| o.memory = None)
        }),
        (Check::Vcpus, "NoMatchingOffer", "has an unknown number", |w| {
            offer(w, |o| o.vcpu_milli = None)
        }),
        (Check::Engine, "NoMatchingOffer", "the runtime was never run on cpu aarch64", |w| {
            offer(w, |o| o.arch = Arch::Aarch64);
        }),
        (Check::Engine, "NoMatchingOffer", "the runtime does not run on cuda sm_89", |w| {
            offer(w, |o| *o = with_devices(o.clone(), "L4", 1));
            devices(w, ANY);
        }),
        (Check::Deadline, "DeadlineAtRisk", "after the deadline", |w| {
            job(w).finish_by = Some(after(60))
        }),
        (Check::Region, "NoMatchingOffer", "region r1 is excluded", |w| {
            job(w).placement.exclude_regions = vec!["r1".into()];
        }),
        (Check::Region, "NoMatchingOffer", "region r1 is not in placement.regions", |w| {
            job(w).placement.regions = vec!["r2".into()];
        }),
        (Check::Zone, "NoMatchingOffer", "zone r1-a is not in placement.zones", |w| {
            job(w).placement.zones = vec!["r1-b".into()];
        }),
        (Check::HourlyPrice, "PriceAboveLimit", "costs 0.7 $/h, limit 0.5 $/h", |w| {
            job(w).placement.max_hourly_price = Some(rate("0.5"));
        }),
        (Check::TotalCost, "CostLimitExceeded", "maxTotalCost leaves 0.01 $", |w| {
            job(w).max_total_cost = Some(usd("1"));
            job(w).progress.spent = usd("0.99");
        }),
        (Check::NotForSale, "NoMatchingOffer", "prices of 2026-07-20, not for sale", |w| {
            offer(w, |o| *o = dated(o.clone()));
        }),
        (Check::StaleQuote, "OffersStale", "expired at 2026-11-21T11:59:59Z", |w| {
            offer(w, |o| o.ttl_seconds = 59);
        }),
        (Check::FutureQuote, "OffersStale", "from the future", |w| {
            offer(w, |o| o.quoted_at = after(600))
        }),
        (
            Check::Unavailable,
            "InsufficientCapacity",
            "InsufficientCapacity; again at 2026-11-21T12:00:10Z",
            |w| {
                let id = w.market.offers().next().expect("an offer").id.clone();
                w.unavailable.push(Unavailable {
                    offer: id,
                    until: after(10),
                    reason: Reason::InsufficientCapacity,
                });
            },
        ),
        (Check::NoSlot, "InsufficientCapacity", "all 0 slots are taken", |w| {
            offer(w, |o| o.slots = Some(0))
        }),
        (Check::NoRoom, "InsufficientCapacity", "takes 5 of node/cpu, and 4 are left", |w| {
            offer(w, |o| o.shares = vec![Share { of: "node/cpu".into(), amount: 5, all: 4 }])
        }),
        (Check::ProviderMachines, "QuotaExceeded", "all 0 machines", |w| {
            w.providers[1].max_machines = Some(0)
        }),
        (Check::ProviderHourly, "QuotaExceeded", "limit leaves 0.5 $/h", |w| {
            w.providers[1].max_hourly = Some(rate("0.5"));
        }),
        (Check::ProviderMonthly, "QuotaExceeded", "monthly limit leaves 0.001 $", |w| {
            w.providers[1].monthly = Some(MonthlyLimit {
                limit: usd("10"),
                spent: usd("9.999"),
                ends_at: after(864_000),
            });
        }),
        (Check::Budget, "BudgetExceeded", "budget team has 0.001 $ left", |w| {
            w.budgets.push(Budget {
                namespace: "default".into(),
                name: "team".into(),
                limit: usd("10"),
                spent: usd("9.999"),
                period_ends_at: after(864_000),
                workloads: None,
            });
        }),
    ];
    for (check, reason, says, change) in table {
        let mut world = world(vec![machine("m", "0.7")], vec![training("job")]);
        assert_eq!(taken(&decide(&world, now())).len(), 1, "it would do");
        change(&mut world);
        let plan = decide(&world, now());
        let decision = only(&plan);
        let (found, message) = waits(decision);
        assert_eq!(found, *reason, "{}: {message}", check.name());
        assert!(message.contains(says), "{}: {message}", check.name());
        assert_eq!(decision.misses[0].obstacles[0].check(), *check);
        assert_eq!(decision.stopped.len(), 1);
        assert_eq!(decision.stopped[0].constraint, check.name());
        let explained = explained(&world);
        assert_eq!(explained.offers[0].obstacles[0].check(), *check);
        assert_eq!(&explained.decision, decision, "explaining decides the same");
        assert!(plan.actions.is_empty());
    }
}

#[test]
fn nearest_misses_name_what_would_have_to_give_and_by_how_much() {
    let mut job = training("job");
    job.placement.max_hourly_price = Some(rate("0.5"));
    job.placement.regions = vec!["r1".into()];
    let offers = vec![
        placed("cloud", "r1", "a", "near", Capacity::OnDemand, rate("0.6")),
        placed("cloud", "r1", "a", "far", Capacity::OnDemand, rate("5")),
        placed("cloud", "r2", "a", "elsewhere", Capacity::OnDemand, rate("0.4")),
        placed("cloud", "r2", "a", "both", Capacity::OnDemand, rate("0.55")),
        dated(machine("dated", "0.1")),
    ];
    let plan = decide(&world(offers, vec![job]), now());
    let misses: Vec<(&str, Vec<Option<String>>)> = only(&plan)
        .misses
        .iter()
        .map(|miss| {
            let give = miss.obstacles.iter().map(Obstacle::would_have_to_give);
            (miss.offer.instance_type.as_str(), give.collect())
        })
        .collect();
    let gives = |text: &str| Some(text.to_owned());
    assert_eq!(
        misses,
        [
            ("near", vec![gives("placement.maxHourlyPrice: 0.6, which is 0.1 more")]),
            ("elsewhere", vec![gives("placement.regions: add r2")]),
            ("far", vec![gives("placement.maxHourlyPrice: 5, which is 4.5 more")]),
            ("dated", vec![None]),
            (
                "both",
                vec![
                    gives("placement.regions: add r2"),
                    gives("placement.maxHourlyPrice: 0.55, which is 0.05 more")
                ]
            ),
        ]
    );
    let ranked: Vec<&str> =
        only(&plan).ranked.iter().map(|place| place.offer.instance_type.as_str()).collect();
    assert_eq!(ranked, ["dated"], "for comparison");
}

/// Giving exactly what a miss says makes the offer do.
#[test]
fn giving_what_a_miss_asks_for_is_enough() {
    let mut job = training("job");
    job.finish_by = Some(after(120));
    job.max_total_cost = Some(usd("0.001"));
    let mut world = world(vec![machine("m", "0.7")], vec![job]);
    let plan = decide(&world, now());
    for obstacle in &only(&plan).misses[0].obstacles {
        match obstacle {
            Obstacle::TotalCost { needs, .. } => world.workloads[0].max_total_cost = Some(*needs),
            Obstacle::Deadline { finish_by, late_millis } => {
                let later = jiff::SignedDuration::from_millis(*late_millis);
                world.workloads[0].finish_by = Some(*finish_by + later);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(taken(&decide(&world, now())).len(), 1);
    let exact = world.workloads[0].max_total_cost.expect("set");
    world.workloads[0].max_total_cost = exact.checked_sub(Usd::from_micros(1));
    assert_eq!(taken(&decide(&world, now())).len(), 0);
}

#[test]
fn a_long_reservation_holds_of_a_short_period_only_what_falls_into_it() {
    let mut world = world(vec![machine("m", "1")], vec![training("long"), container("next")]);
    // Until the hour ends each can cost at most half a dollar, however long it will run.
    world.budgets = vec![Budget {
        namespace: "default".into(),
        name: "hourly".into(),
        limit: usd("1"),
        spent: Usd::ZERO,
        period_ends_at: after(1800),
        workloads: None,
    }];
    let plan = decide(&world, now());
    let mut claims = written(&plan);
    assert_eq!(claims.len(), 2, "{plan:#?}");
    // What was thought to cost a thousand dollars in all costs half a dollar in this half hour.
    claims.truncate(1);
    claims[0].spec.reserved = usd("1000");
    world.claims = claims;
    assert_eq!(written(&decide(&world, now())).len(), 1);
    world.budgets[0].limit = usd("0.9");
    assert_eq!(written(&decide(&world, now())).len(), 0);
}

#[test]
fn providers_that_are_not_there_are_named_and_silent_ones_are_waited_for() {
    let mut nowhere = training("job");
    nowhere.placement.providers = vec!["moon-base".into()];
    let (reason, said) = {
        let plan = decide(&world(vec![machine("m", "1")], vec![nowhere.clone()]), now());
        let (reason, said) = waits(only(&plan));
        (reason, said.to_owned())
    };
    assert_eq!(reason, "ProviderNotFound");
    assert!(said.contains("moon-base") && said.contains("there are cloud, host, other"), "{said}");
    // One of two is there.
    nowhere.placement.providers.push("cloud".into());
    let plan = decide(&world(vec![machine("m", "1")], vec![nowhere]), now());
    assert_eq!(taken(&plan).len(), 1);

    let mut silent = world(Vec::new(), vec![training("job")]);
    silent.providers[1].state = Switch::Disabled;
    let plan = decide(&silent, now());
    let (reason, said) = waits(only(&plan));
    assert!(reason == "ProviderUnavailable" && said.contains("asked now of cloud,"), "{said}");
    // Of those that it may have anything from.
    silent.workloads[0].placement.providers = vec!["other".into()];
    assert_eq!(waits(only(&decide(&silent, now()))).0, "NoMatchingOffer");
    silent.providers[2].state = Switch::Disabled;
    let plan = decide(&silent, now());
    let (reason, said) = waits(only(&plan));
    assert!(reason == "ProviderUnavailable" && said.contains("asked now of other,"), "{said}");
}

#[test]
fn ten_thousand_jobs_with_their_machines_in_two_thousand_namespaces_are_settled_in_one_pass() {
    let job = |n: usize| {
        let mut job = container(&format!("job-{n}"));
        job.id.namespace = format!("ns-{}", n % 2000);
        job
    };
    let mut world = world(vec![machine("m", "1")], (0..10_000).map(job).collect());
    world.budgets = (0..2000)
        .map(|n| Budget {
            namespace: format!("ns-{n}"),
            name: "team".into(),
            limit: usd("1000"),
            spent: Usd::ZERO,
            period_ends_at: after(3600),
            // One of them counts by uid.
            workloads: (n == 0)
                .then(|| world.workloads.iter().map(|job| job.id.uid.clone()).collect()),
        })
        .collect();
    let first = decide(&world, now());
    world.claims = written(&first);
    assert_eq!(world.claims.len(), 10_000);
    let began = std::time::Instant::now();
    assert_eq!(decide(&world, now()).actions, []);
    eprintln!("10,000 settled jobs, 2,000 budgets: {:?}", began.elapsed());
}
