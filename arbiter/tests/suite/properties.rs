//! Properties of every decision, over random worlds, against a checker that shares no code with the arbiter.

use petaflop_arbiter::claim::Claim;
use petaflop_arbiter::decide::{decide, explain};
use petaflop_arbiter::decision::{Advised, Outcome};
use petaflop_arbiter::market::Market;
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::{Capacity, HostOwner, Offer, Sale, Share};
use petaflop_arbiter::reason::Reason;
use petaflop_arbiter::workload::{Alternative, DeviceRequest, Workload};
use petaflop_arbiter::world::{Budget, Switch, Unavailable, World};
use proptest::prelude::*;

use crate::worlds::{
    GIB, after, container, now, placed, taken, training, usd, with_devices, world, written,
};

const MODELS: [&str; 3] = ["L4", "H100-SXM", "Unheard-of"];

fn offer() -> impl Strategy<Value = Offer> {
    (
        (0..2_usize, 0..3_usize, 0..2_usize, 0..6_usize, 0..3_usize),
        (0..2_000_i64, 0..4_usize, 1..4_u32, 1..5_u32, 0..5_u64),
        (0..8_u32, 0..9_i64, any::<bool>(), prop::option::of(0..3_u32)),
    )
        .prop_map(|(place, hardware, state)| {
            let (provider, region, zone, kind, capacity) = place;
            let (price, model, count, vcpus, memory) = hardware;
            let (sale, age, trusted, slots) = state;
            let capacity = [Capacity::Spot, Capacity::OnDemand, Capacity::Owned][capacity];
            let offer = placed(
                ["cloud", "other"][provider],
                &format!("r{region}"),
                &format!("r{region}-{zone}"),
                &format!("t{kind}"),
                capacity,
                UsdPerHour::from_micros(price * 500).expect("not negative"),
            );
            let offer = match MODELS.get(model) {
                Some(model) => with_devices(offer, model, count),
                None => offer,
            };
            Offer {
                vcpu_milli: (vcpus > 1).then_some(vcpus * 1000),
                memory: (memory > 0).then_some(memory * 4 * GIB),
                // Now and then a dated price, a stale quote, one from the future.
                sale: if sale == 0 { Sale::Snapshot { observed_on: None } } else { Sale::Buyable },
                quoted_at: if age == 0 { after(600) } else { after(-60 * age) },
                owner: if trusted { HostOwner::Known } else { HostOwner::Unknown },
                slots,
                // All of a region are parts of one thing, which holds some of them.
                shares: vec![Share { of: format!("r{region}"), amount: vcpus.into(), all: 6 }],
                ..offer
            }
        })
}

fn job(name: &'static str) -> impl Strategy<Value = Workload> {
    (
        (0..4_usize, prop::option::of(0..3_usize), prop::option::of(0..3_usize), any::<bool>()),
        (prop::option::of(0..1_000_i64), prop::option::of(0..2_000_i64), 0..4_u32, 0..4_u64),
        (0..4_usize, 1..4_u32, any::<bool>()),
    )
        .prop_map(move |(place, floors, devices)| {
            let mut job = container(name);
            let (provider, region, capacity, untrusted) = place;
            let (price, total, vcpus, memory) = floors;
            let (model, count, or_cpu) = devices;
            job.placement.providers = match provider {
                0 => vec!["cloud".into()],
                1 => vec!["host".into(), "other".into()],
                _ => Vec::new(),
            };
            match region {
                Some(2) => job.placement.exclude_regions = vec!["r1".into()],
                Some(index) => job.placement.regions = vec![format!("r{index}"), "r2".into()],
                None => {}
            }
            job.placement.capacity =
                capacity.map(|index| [Capacity::Spot, Capacity::OnDemand, Capacity::Owned][index]);
            job.placement.allow_untrusted_hosts = untrusted;
            job.placement.max_hourly_price =
                price.map(|price| UsdPerHour::from_micros(price * 1000).expect("not negative"));
            job.max_total_cost = total.map(|total| Usd::from_micros(total * 500));
            job.resources.vcpu_milli = vcpus * 1000;
            job.resources.memory = memory * 4 * GIB;
            if let Some(model) = MODELS.get(model) {
                job.accelerators = vec![Alternative::Devices(DeviceRequest {
                    vendor: None,
                    models: vec![(*model).into()],
                    count,
                    min_memory: None,
                    min_compute_capability: None,
                    ..DeviceRequest::default()
                })];
                if or_cpu {
                    job.accelerators.push(Alternative::Cpu);
                }
            }
            job
        })
}

fn a_world() -> impl Strategy<Value = World> {
    (
        prop::collection::vec(offer(), 0..40),
        job("a"),
        (
            any::<bool>(),
            prop::option::of(0..600_i64),
            prop::option::of(0..1_000_i64),
            any::<bool>(),
        ),
        prop::collection::vec((any::<prop::sample::Index>(), -1..2_i64), 0..3),
    )
        .prop_map(|(offers, job, (cordoned, hourly, budget, machines), unavailable)| {
            let refused = |index: prop::sample::Index, seconds: i64| {
                offers.get(index.index(offers.len().max(1))).map(|offer| Unavailable {
                    offer: offer.id.clone(),
                    until: after(seconds),
                    reason: Reason::InsufficientCapacity,
                })
            };
            let unavailable = unavailable.into_iter().filter_map(|(i, s)| refused(i, s)).collect();
            let mut world = world(offers.clone(), vec![job]);
            world.unavailable = unavailable;
            if cordoned {
                world.providers[2].state = Switch::Cordoned;
            }
            world.providers[1].max_hourly =
                hourly.map(|limit| UsdPerHour::from_micros(limit * 1000).expect("not negative"));
            world.providers[1].max_machines = machines.then_some(0);
            world.budgets = budget.map_or_else(Vec::new, |limit| {
                vec![Budget {
                    namespace: "default".into(),
                    name: "b".into(),
                    limit: Usd::from_micros(limit * 500).saturating_add(usd("1")),
                    spent: usd("1"),
                    period_ends_at: after(86_400),
                    workloads: None,
                }]
            });
            world
        })
}

/// Whether a container may go to an offer, worked out from the fields alone: no shared code.
fn allowed(world: &World, job: &Workload, offer: &Offer) -> bool {
    let state = world.providers.iter().find(|p| p.name == offer.provider).expect("known");
    let price = offer.price.micros();
    let devices_do = job.accelerators.is_empty()
        || job.accelerators.iter().any(|alternative| match alternative {
            Alternative::Cpu => true,
            Alternative::Devices(request) => offer
                .accelerators
                .as_ref()
                .is_some_and(|has| request.models[0] == has.model && has.count >= request.count),
        });
    let p = &job.placement;
    devices_do
        && (p.providers.is_empty() || p.providers.contains(&offer.provider))
        && (p.regions.is_empty() || p.regions.contains(&offer.region))
        && !p.exclude_regions.contains(&offer.region)
        && p.capacity.is_none_or(|capacity| capacity == offer.capacity)
        && (p.allow_untrusted_hosts || offer.owner == HostOwner::Known)
        && p.max_hourly_price.is_none_or(|limit| price <= limit.micros())
        && job.max_total_cost.is_none_or(|limit| price <= limit.micros())
        && job.resources.vcpu_milli <= offer.vcpu_milli.unwrap_or(0)
        && job.resources.memory <= offer.memory.unwrap_or(0)
        && offer.sale == Sale::Buyable
        && offer.quoted_at <= after(120)
        && offer.quoted_at > after(-300)
        && offer.slots != Some(0)
        && !world.unavailable.iter().any(|u| u.offer == offer.id && u.until > now())
        && state.state == Switch::Enabled
        && state.max_machines != Some(0)
        && state.max_hourly.is_none_or(|limit| price <= limit.micros())
        && world.budgets.iter().all(|b| price <= b.limit.micros() - b.spent.micros())
}

fn naive(world: &World) -> Option<String> {
    world
        .market
        .offers()
        .filter(|offer| allowed(world, &world.workloads[0], offer))
        .min_by(|a, b| (a.price, &a.id.0).cmp(&(b.price, &b.id.0)))
        .map(|offer| offer.id.0.clone())
}

fn with_offers(world: &World, offers: Vec<Offer>) -> World {
    World { market: std::sync::Arc::new(Market::new(offers)), ..world.clone() }
}

/// Dollars and tier of the choice: what must never get worse when a price falls.
/// How well the first workload fares; the lower the better.
#[derive(Clone, Copy, Debug)]
struct Fare {
    /// In time, or waiting for spot as long as it will be; at risk; without a place. That on-demand refused, at whatever
    /// price, is not counted.
    risk: u8,
    /// What it will cost, where no spot policy was asked.
    total: Option<Usd>,
}

fn fare(world: &World) -> Fare {
    let plan = decide(world, now());
    let decision = &plan.decisions[0];
    let advice = decision.advice.as_ref();
    let patient = advice.is_some_and(|advice| advice.says == Advised::Wait);
    let refused = advice.is_some_and(|advice| advice.refused > 0);
    let risk = match decision.outcome {
        Outcome::Placed { .. } => u8::from(decision.warning.is_some() && !refused),
        Outcome::Waiting { .. } if patient => 0,
        Outcome::Settled { .. } | Outcome::Moves { .. } | Outcome::Waiting { .. } => 2,
    };
    let unadvised = decision.ranked.first().filter(|_| decision.advice.is_none());
    Fare { risk, total: unadvised.map(|first| first.cost.total) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn the_choice_is_the_cheapest_that_a_naive_checker_allows(world in a_world()) {
        let plan = decide(&world, now());
        prop_assert_eq!(taken(&plan).first().cloned(), naive(&world));
    }

    #[test]
    fn every_rejected_offer_has_a_reason_and_the_chosen_one_has_none(world in a_world()) {
        let plan = decide(&world, now());
        let chosen = taken(&plan).first().cloned();
        let explanation = explain(&world, now(), &world.workloads[0].id).expect("it is there");
        prop_assert_eq!(&explanation.decision, &plan.decisions[0]);
        prop_assert_eq!(explanation.offers.len(), world.market.len());
        for one in &explanation.offers {
            let is_chosen = Some(&one.offer.id.0) == chosen.as_ref();
            prop_assert_eq!(one.obstacles.is_empty(), is_chosen);
            let free = one.obstacles.iter().all(|o| o.reason() == Reason::NoMatchingOffer
                && matches!(o.check().name(), "Dearer" | "NotPreferred"));
            prop_assert_eq!(free, allowed(&world, &world.workloads[0], &one.offer), "{:?}", one);
        }
        let decision = &plan.decisions[0];
        let stopped: u32 = decision.stopped.iter().map(|stopped| stopped.offers).sum();
        prop_assert_eq!(stopped + u32::from(chosen.is_some()), decision.considered, "each is counted once");
        if chosen.is_none() {
            prop_assert!(decision.misses.iter().all(|miss| !miss.obstacles.is_empty()));
            prop_assert_eq!(decision.misses.is_empty(), world.market.is_empty());
        }
    }

    #[test]
    fn the_order_in_which_offers_come_changes_nothing(
        (world, offers) in a_world().prop_flat_map(|world| {
            let offers: Vec<Offer> = world.market.offers().cloned().collect();
            (Just(world), Just(offers).prop_shuffle())
        }),
    ) {
        let shuffled = with_offers(&world, offers.clone());
        prop_assert_eq!(decide(&shuffled, now()), decide(&world, now()));
        // Quoted one by one into an old market, some of them withdrawn in between.
        let mut market = Market::new(offers.iter().map(|offer| Offer {
            price: UsdPerHour::from_micros(7).expect("not negative"),
            memory: None,
            ..offer.clone()
        }));
        for (index, offer) in offers.iter().enumerate() {
            if index % 3 == 0 {
                prop_assert!(market.withdraw(&offer.id));
            }
            market.quote(offer.clone());
        }
        prop_assert_eq!(&market, world.market.as_ref());
        let quoted = World { market: std::sync::Arc::new(market), ..world.clone() };
        prop_assert_eq!(decide(&quoted, now()), decide(&world, now()));
    }

    #[test]
    fn raising_a_price_never_makes_an_offer_win(
        world in a_world(), which: prop::sample::Index, by in 1..2_000_000_i64, trains: bool,
    ) {
        let mut world = world;
        if trains {
            world.workloads = vec![training("job")];
        }
        let mut offers: Vec<Offer> = world.market.offers().cloned().collect();
        prop_assume!(!offers.is_empty());
        let before = taken(&decide(&world, now()));
        let raised = which.index(offers.len());
        let id = offers[raised].id.0.clone();
        offers[raised].price = UsdPerHour::from_micros(offers[raised].price.micros() + by).expect("not negative");
        let after = taken(&decide(&with_offers(&world, offers), now()));
        prop_assert!(before.contains(&id) || !after.contains(&id));
    }

    #[test]
    fn lowering_a_price_never_makes_the_choice_worse(
        world in a_world(), which: prop::sample::Index, percent in 0..100_i64, trains: bool, hours in prop::option::of(0..20_i64),
    ) {
        let mut world = world;
        if trains {
            let mut job = training("job");
            job.finish_by = hours.map(|hours| after(hours * 360));
            job.max_total_cost = world.workloads[0].max_total_cost;
            world.workloads = vec![job];
        }
        let mut offers: Vec<Offer> = world.market.offers().cloned().collect();
        prop_assume!(!offers.is_empty());
        let before = fare(&world);
        let lowered = which.index(offers.len());
        offers[lowered].price =
            UsdPerHour::from_micros(offers[lowered].price.micros() * percent / 100).expect("not negative");
        let after = fare(&with_offers(&world, offers));
        prop_assert!(after.risk <= before.risk, "{:?} after {:?}", after, before);
        // A policy counts what a tick of work costs with all that may happen, not dollars if all goes well; and a budget
        // that can pay for on-demand only now has it asked only now.
        if let (Some(was), Some(is)) = (before.total, after.total) && before.risk == after.risk {
            prop_assert!(is <= was, "{:?} after {:?}", after, before);
        }
    }

    /// Many workloads, limited slots, machines and dollars: never more is taken than there is.
    #[test]
    fn limits_hold_for_all_workloads_together(
        world in a_world(), jobs in prop::collection::vec(job("x"), 1..8), limit in 0..4_000_i64,
    ) {
        let mut world = world;
        world.workloads = jobs.into_iter().enumerate().map(|(index, mut job)| {
            job.id.name = format!("j{index}");
            job.id.uid = format!("uid-{index}");
            job
        }).collect();
        world.budgets = vec![Budget {
            namespace: "default".into(),
            name: "b".into(),
            limit: Usd::from_micros(limit * 500),
            spent: Usd::ZERO,
            period_ends_at: after(86_400),
            workloads: None,
        }];
        world.providers[1].max_machines = Some(3);
        let plan = decide(&world, now());
        let claims = written(&plan);
        let spent: i64 = claims.iter().map(|claim| claim.spec.offer.price.micros()).sum();
        prop_assert!(spent <= limit * 500);
        let cloud: Vec<i64> = claims.iter().filter(|c| c.spec.offer.provider == "cloud")
            .map(|c| c.spec.offer.price.micros()).collect();
        prop_assert!(cloud.len() <= 3);
        if let Some(hourly) = world.providers[1].max_hourly {
            prop_assert!(cloud.iter().sum::<i64>() <= hourly.micros());
        }
        for offer in world.market.offers() {
            let held = claims.iter().filter(|c| c.spec.offer.id == offer.id).count();
            prop_assert!(offer.slots.is_none_or(|slots| held <= slots as usize));
            for share in &offer.shares {
                let same = |c: &&Claim| c.spec.offer.provider == offer.provider;
                let held = claims.iter().filter(same).flat_map(|c| &c.spec.offer.shares);
                let held: u64 = held.filter(|s| s.of == share.of).map(|s| s.amount).sum();
                prop_assert!(held <= share.all, "{} of {}", held, share.of);
            }
        }
        for claim in &claims {
            let job = world.workloads.iter().find(|w| w.id == claim.spec.owner).expect("known");
            let mut alone = world.clone();
            alone.budgets.clear();
            alone.providers[1].max_hourly = None;
            prop_assert!(allowed(&alone, job, &claim.spec.offer));
        }
        world.claims = claims;
        prop_assert!(decide(&world, now()).actions.is_empty(), "settled");
    }
}
