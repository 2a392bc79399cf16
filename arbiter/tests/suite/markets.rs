//! The index answers what a scan of every offer answers, over random markets and requests; the scan
//! shares no code with the arbiter. And a market stays the same whichever way it came to be.

use std::collections::BTreeMap;
use std::sync::Arc;

use petaflop_arbiter::catalogue::{Catalogue, Vendor};
use petaflop_arbiter::decide::{decide, explain};
use petaflop_arbiter::decision::Plan;
use petaflop_arbiter::gang::{MOST_MACHINES, gang};
use petaflop_arbiter::market::Market;
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::obstacle::Obstacle;
use petaflop_arbiter::offer::{Accelerators, Arch, Capacity, HostOwner, Offer, Sale};
use petaflop_arbiter::workload::{Alternative, DeviceRequest, Work, Workload};
use petaflop_arbiter::world::World;
use proptest::prelude::*;

use crate::worlds::{
    GIB, after, container, machine, now, only, placed, rate, taken, training, world,
};

const MODELS: [&str; 6] = ["L4", "H100-SXM", "H100-PCIe", "A100-SXM-80", "MI300X", "Unheard-of"];
const CAPACITIES: [Capacity; 3] = [Capacity::Spot, Capacity::OnDemand, Capacity::Owned];

fn offer() -> impl Strategy<Value = Offer> {
    (
        (0..3_usize, 0..4_usize, 0..3_usize, 0..60_usize, 0..3_usize),
        (0..40_i64, 0..8_usize, 1..9_u32, 1..5_u32, 0..4_u64),
        (0..12_u32, 0..20_i64, 0..5_u32, prop::option::of(0..3_u32), any::<bool>()),
    )
        .prop_map(|(place, hardware, state)| {
            let (provider, region, zone, kind, capacity) = place;
            let (price, model, count, vcpus, memory) = hardware;
            let (sale, age, owner, slots, smaller) = state;
            let offer = placed(
                ["cloud", "other", "host"][provider],
                &format!("r{region}"),
                &format!("r{region}-{zone}"),
                &format!("t{kind}"),
                CAPACITIES[capacity],
                // Few prices, so that there are ties.
                UsdPerHour::from_micros(price * 50_000).expect("not negative"),
            );
            Offer {
                accelerators: MODELS.get(model).map(|model| Accelerators {
                    model: (*model).into(),
                    count,
                    memory: smaller.then_some(20 * GIB),
                }),
                vcpu_milli: (vcpus > 1).then_some(vcpus * 4000),
                memory: (memory > 0).then_some(memory * 16 * GIB),
                arch: if kind % 7 == 0 { Arch::Aarch64 } else { Arch::X86_64 },
                sale: if sale == 0 { Sale::Snapshot { observed_on: None } } else { Sale::Buyable },
                quoted_at: if age == 0 { after(600) } else { after(-16 * age) },
                owner: if owner == 0 { HostOwner::Unknown } else { HostOwner::Known },
                slots,
                ..offer
            }
        })
}

fn request() -> impl Strategy<Value = DeviceRequest> {
    (
        prop::option::of(any::<bool>()),
        prop::collection::vec(0..5_usize, 0..3),
        1..9_u32,
        prop::option::of(1..5_u64),
        prop::option::of(0..3_usize),
        (prop::option::of(1..9_u32), prop::option::weighted(0.2, any::<bool>()), 0..8_u32),
    )
        .prop_map(|(vendor, names, count, memory, capability, (most, stack, linked))| {
            DeviceRequest {
                vendor: vendor.map(|nvidia| if nvidia { Vendor::Nvidia } else { Vendor::Amd }),
                models: names
                    .into_iter()
                    .map(|name| ["h100", "L4", "A100-SXM", "MI300X", "unheard-of"][name].into())
                    .collect(),
                count,
                min_memory: memory.map(|memory| memory * 20 * GIB),
                min_compute_capability: capability.map(|index| [(8, 0), (8, 9), (9, 0)][index]),
                max_count: most.filter(|most| *most >= count),
                stack: stack.map(|cuda| if cuda { "cuda" } else { "rocm" }.into()),
                linked: linked == 0,
            }
        })
}

fn job() -> impl Strategy<Value = Workload> {
    (
        prop::collection::vec(request().prop_map(Alternative::Devices), 0..3),
        (any::<bool>(), 0..5_u32, 0..4_u64),
        (
            prop::collection::vec(0..4_usize, 0..3),
            prop::collection::vec(0..4_usize, 0..2),
            prop::collection::vec((0..4_usize, 0..3_usize), 0..4),
        ),
        (prop::option::of(0..4_usize), prop::option::of(0..3_usize), any::<bool>()),
        prop::option::of(0..60_i64),
    )
        .prop_map(|(accelerators, floors, places, from, price)| {
            let mut job = container("job");
            let (or_cpu, vcpus, memory) = floors;
            let (regions, excluded, zones) = places;
            let (provider, capacity, untrusted) = from;
            job.accelerators = accelerators;
            if or_cpu && !job.accelerators.is_empty() {
                job.accelerators.push(Alternative::Cpu);
            }
            job.resources.vcpu_milli = vcpus * 3000;
            job.resources.memory = memory * 12 * GIB;
            let p = &mut job.placement;
            p.regions = regions.into_iter().map(|region| format!("r{region}")).collect();
            p.exclude_regions = excluded.into_iter().map(|region| format!("r{region}")).collect();
            p.zones = zones.into_iter().map(|(region, zone)| format!("r{region}-{zone}")).collect();
            p.providers = provider
                .and_then(|provider| ["cloud", "other", "host"].get(provider))
                .map(|name| (*name).into())
                .into_iter()
                .collect();
            p.capacity = capacity.map(|index| CAPACITIES[index]);
            p.allow_untrusted_hosts = untrusted;
            p.max_hourly_price =
                price.map(|price| UsdPerHour::from_micros(price * 50_000).expect("not negative"));
            job
        })
}

fn a_world() -> impl Strategy<Value = World> {
    (prop::collection::vec(offer(), 0..300), job())
        .prop_map(|(offers, job)| world(offers, vec![job]))
}

/// Whether devices are what is asked for, from the catalogue's plain columns.
fn devices_do(request: &DeviceRequest, has: &Accelerators) -> bool {
    let row = Catalogue::embedded().rows().iter().find(|row| row.key == has.model);
    let named = |name: &String| {
        let (key, name) = (has.model.to_lowercase(), name.to_lowercase());
        key == name || (row.is_some() && key.starts_with(&format!("{name}-")))
    };
    // 20 GiB is a slice of all of these but the L4, which has 24.
    let memory = match (has.memory, row) {
        (Some(_), _) => 20.0,
        (None, Some(row)) => row.memory_gb,
        (None, None) => 0.0,
    };
    let capability = match has.model.as_str() {
        "L4" => (8, 9),
        "H100-SXM" | "H100-PCIe" => (9, 0),
        "A100-SXM-80" => (8, 0),
        _ => (0, 0),
    };
    request.vendor.is_none_or(|vendor| row.is_some_and(|row| row.vendor == vendor))
        && (request.models.is_empty() || request.models.iter().any(named))
        && has.count >= request.count
        && request.max_count.is_none_or(|most| has.count <= most)
        && request.stack.as_deref().is_none_or(|stack| match has.model.as_str() {
            "MI300X" => stack == "rocm",
            "Unheard-of" => false,
            _ => stack == "cuda",
        })
        && (!request.linked || ["H100-SXM", "A100-SXM-80", "MI300X"].contains(&&*has.model))
        && request.min_memory.is_none_or(|needs| memory * 1.08 >= (needs / GIB) as f64)
        && request.min_compute_capability.is_none_or(|needs| capability >= needs)
}

/// Whether a container may go to an offer at all, for sale or not.
fn suits(job: &Workload, offer: &Offer) -> bool {
    let p = &job.placement;
    let devices = job.accelerators.is_empty()
        || job.accelerators.iter().any(|alternative| match (alternative, &offer.accelerators) {
            (Alternative::Cpu, _) => true,
            (Alternative::Devices(request), Some(has)) => devices_do(request, has),
            (Alternative::Devices(_), None) => false,
        });
    devices
        && job.resources.vcpu_milli <= offer.vcpu_milli.unwrap_or(0)
        && job.resources.memory <= offer.memory.unwrap_or(0)
        && (p.providers.is_empty() || p.providers.contains(&offer.provider))
        && (p.regions.is_empty() || p.regions.contains(&offer.region))
        && (p.zones.is_empty() || p.zones.contains(&offer.zone))
        && !p.exclude_regions.contains(&offer.region)
        && (p.allow_untrusted_hosts || offer.owner == HostOwner::Known)
        && p.max_hourly_price.is_none_or(|limit| offer.price <= limit)
}

fn wanted(job: &Workload, offer: &Offer) -> bool {
    job.placement.capacity.is_none_or(|capacity| capacity == offer.capacity)
}

fn now_to_be_had(offer: &Offer) -> bool {
    offer.sale == Sale::Buyable
        && offer.slots != Some(0)
        && offer.quoted_at <= after(120)
        && offer.quoted_at > after(-300)
}

/// Ids of the offers that pass, from the cheapest on.
fn scan(world: &World, passes: impl Fn(&Offer) -> bool) -> Vec<String> {
    let mut found: Vec<&Offer> = world.market.offers().filter(|offer| passes(offer)).collect();
    found.sort_by(|a, b| (a.price, &a.id).cmp(&(b.price, &b.id)));
    found.into_iter().map(|offer| offer.id.0.clone()).collect()
}

fn shown(plan: &Plan) -> Vec<String> {
    only(plan)
        .ranked
        .iter()
        .filter(|one| !matches!(one.obstacle, Some(Obstacle::NotForSale { .. })))
        .map(|one| one.offer.id.0.clone())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn the_index_answers_what_a_scan_answers(world in a_world()) {
        let plan = decide(&world, now());
        let job = &world.workloads[0];
        let scanned = scan(&world, |o| suits(job, o) && wanted(job, o) && now_to_be_had(o));
        let shown = shown(&plan);
        prop_assert_eq!(taken(&plan).first().cloned(), scanned.first().cloned());
        prop_assert_eq!(&shown[..], &scanned[..shown.len()], "the runners-up are those of the scan, in order");
        let dated = only(&plan).ranked.len() - shown.len();
        let enough = scanned.is_empty() || shown.len() + dated == (scanned.len() + dated).min(10);
        prop_assert!(enough, "{} shown of {}", shown.len(), scanned.len());
        let on_demand = scan(&world, |o| suits(job, o) && o.capacity == Capacity::OnDemand);
        let saving = only(&plan).saving.as_ref().map(|saving| &saving.against.0);
        prop_assert_eq!(saving, on_demand.first().filter(|_| !scanned.is_empty()));
        let stopped: u32 = only(&plan).stopped.iter().map(|stopped| stopped.offers).sum();
        let chosen = u32::from(!scanned.is_empty());
        prop_assert_eq!(stopped + chosen, only(&plan).considered, "each is counted once");
    }

    /// With estimates, deadlines and two devices a machine: nothing that may be taken is better.
    #[test]
    fn nothing_that_may_be_taken_is_better_than_what_is(world in a_world(), steps in 1..400_u64) {
        let mut job = training("job");
        if let Work::Training(work) = &mut job.work {
            work.steps = steps * 500;
        }
        job.placement = world.workloads[0].placement.clone();
        let world = World { workloads: vec![job], ..world };
        let explanation = explain(&world, now(), &world.workloads[0].id).expect("it is there");
        let (best, rest) = match explanation.offers.split_first() {
            Some((best, rest)) if best.obstacles.is_empty() => (best, rest),
            _ => {
                prop_assert!(explanation.offers.iter().all(|one| !one.obstacles.is_empty()));
                return Ok(());
            }
        };
        let cost = |one: &petaflop_arbiter::decide::Explained| {
            (one.cost.as_ref().expect("it may be taken").total, one.offer.price, one.offer.id.clone())
        };
        for one in rest {
            prop_assert!(!one.obstacles.is_empty(), "one is chosen");
            if let [Obstacle::Dearer { .. } | Obstacle::NotPreferred { .. }] = one.obstacles[..] {
                prop_assert!(cost(best) < cost(one), "{:?} and not {:?}", best, one);
            }
        }
    }

    /// "What would make this one win?": at that price it does, and for a micro-dollar more it does not.
    #[test]
    fn an_offer_wins_up_to_the_price_that_is_said_and_not_beyond(
        world in a_world(), which in any::<prop::sample::Index>(), trains: bool,
    ) {
        let workloads = if trains { vec![training("job")] } else { world.workloads.clone() };
        let world = World { workloads, ..world };
        let explanation = explain(&world, now(), &world.workloads[0].id).expect("it is there");
        let beaten: Vec<_> = explanation.offers.iter().filter(|one| {
            matches!(one.obstacles[..], [Obstacle::Dearer { .. } | Obstacle::NotPreferred { .. }])
        }).collect();
        prop_assume!(!beaten.is_empty());
        let one = beaten[which.index(beaten.len())];
        let at = |price: UsdPerHour| {
            let mut market = Market::clone(&world.market);
            market.quote(Offer { price, ..one.offer.clone() });
            taken(&decide(&World { market: Arc::new(market), ..world.clone() }, now()))
        };
        match one.wins_at {
            None => prop_assert!(at(UsdPerHour::ZERO)[0] != one.offer.id.0),
            Some(price) => {
                prop_assert!(price < one.offer.price || price.micros() == 0);
                prop_assert_eq!(&at(price)[0], &one.offer.id.0);
                let more = UsdPerHour::from_micros(price.micros() + 1).expect("not negative");
                prop_assert!(at(more)[0] != one.offer.id.0);
            }
        }
    }

    /// All of one hardware, provider and zone, the cheapest such; slots are not taken twice.
    #[test]
    fn a_gang_goes_where_a_scan_finds_so_many_equal_machines_for_least(
        world in a_world(), size in 1..5_u32,
    ) {
        let job = &world.workloads[0];
        let mut zones: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for offer in world.market.offers() {
            if suits(job, offer) && wanted(job, offer) && now_to_be_had(offer) {
                let Offer { provider, zone, capacity, accelerators, arch, vcpu_milli, memory, owner, .. } = offer;
                let same = format!("{provider} {zone} {capacity} {accelerators:?} {arch} {vcpu_milli:?} {memory:?} {owner:?}");
                let slots = offer.slots.unwrap_or(size).min(size);
                zones.entry(same).or_default().extend((0..slots).map(|_| offer.price.micros()));
            }
        }
        let sums = zones.into_values().filter(|prices| prices.len() >= size as usize).map(|mut prices| {
            prices.sort_unstable();
            prices[..size as usize].iter().sum::<i64>()
        });
        let least = sums.min();
        let found = gang(&world, now(), &job.id, size);
        prop_assert_eq!(found.as_ref().map(|gang| gang.total.micros()), least);
        if let Some(gang) = found {
            let first = &gang.machines[0];
            prop_assert_eq!(gang.machines.len(), size as usize);
            for one in &gang.machines {
                prop_assert_eq!((&one.provider, &one.zone, &one.accelerators), (&first.provider, &first.zone, &first.accelerators));
                let held = gang.machines.iter().filter(|other| other.id == one.id).count();
                prop_assert!(one.slots.is_none_or(|slots| held <= slots as usize));
            }
        }
    }

    #[test]
    fn how_a_market_came_to_be_changes_nothing(
        (world, offers) in a_world().prop_flat_map(|world| {
            let offers: Vec<Offer> = world.market.offers().cloned().collect();
            (Just(world), Just(offers).prop_shuffle())
        }),
        half in any::<prop::sample::Index>(),
    ) {
        let plan = decide(&world, now());
        let of = |market: Market| decide(&World { market: Arc::new(market), ..world.clone() }, now());
        prop_assert_eq!(&of(Market::new(offers.clone())), &plan, "in another order");
        let mut quoted = Market::default();
        for offer in &offers {
            let moved = Offer { price: rate("7"), memory: None, zone: "z".into(), ..offer.clone() };
            quoted.quote(moved);
        }
        let before = quoted.clone();
        let kept: Vec<Offer> = before.offers().cloned().collect();
        for (index, offer) in offers.iter().enumerate() {
            if index % 3 == 0 {
                prop_assert!(quoted.withdraw(&offer.id));
            }
            prop_assert!(quoted.quote(offer.clone()));
        }
        prop_assert_eq!(quoted.len(), offers.len());
        prop_assert_eq!(&of(quoted), &plan, "quoted one by one");
        prop_assert_eq!(before.offers().cloned().collect::<Vec<_>>(), kept, "a snapshot stays");
        // Provider by provider, from a market that held half of it and what is gone by now.
        let half = half.index(offers.len().max(1)).min(offers.len());
        let gone = Offer { price: rate("0.000001"), ..machine("gone", "1") };
        let mut replaced = Market::new(offers[..half].iter().cloned().chain([gone]));
        for provider in ["cloud", "host", "other"] {
            let all = offers.iter().filter(|offer| offer.provider == provider).cloned();
            replaced.replace(provider, &all.collect::<Vec<_>>());
        }
        prop_assert_eq!(&of(replaced), &plan, "replaced provider by provider");
    }
}

#[test]
fn a_quote_that_comes_late_does_not_undo_a_later_one() {
    let mut market = Market::new([machine("m", "0.7")]);
    let late = Offer { quoted_at: after(-200), ..machine("m", "0.1") };
    assert!(!market.quote(late.clone()));
    assert_eq!(market.get(&late.id).expect("there").price, rate("0.7"));
    assert!(market.quote(Offer { quoted_at: after(-10), ..late.clone() }));
    assert_eq!(market.get(&late.id).expect("there").price, rate("0.1"));
    assert!(market.withdraw(&late.id) && !market.withdraw(&late.id));
    assert!(market.is_empty() && market.offers().next().is_none());
    assert!(!market.withdraw(&machine("never", "1").id));
}

#[test]
fn a_gang_is_all_or_none_within_the_limits_and_takes_nothing_by_being_looked_for() {
    let slots = |n| Offer { slots: Some(n), ..machine("m", "0.7") };
    let mut world = world(vec![slots(3)], vec![container("box")]);
    let id = world.workloads[0].id.clone();
    let size = |world: &World, size| gang(world, now(), &id, size).map(|gang| gang.machines.len());
    assert_eq!([1, 3, 4].map(|n| size(&world, n)), [Some(1), Some(3), None]);
    world.providers[1].max_machines = Some(2);
    assert_eq!([2, 3, 2].map(|n| size(&world, n)), [Some(2), None, Some(2)]);
    world.workloads[0].max_total_cost = Some(crate::worlds::usd("1.399999"));
    assert_eq!([1, 2, 0].map(|n| size(&world, n)), [Some(1), None, None]);
    assert_eq!(size(&world, u32::MAX), None);
}

#[test]
fn a_gang_of_a_machine_that_never_runs_out_is_bounded() {
    let world = world(vec![machine("m", "0.7")], vec![container("box")]);
    let id = &world.workloads[0].id;
    let size = |size| gang(&world, now(), id, size).map(|gang| gang.machines.len());
    assert_eq!(size(MOST_MACHINES), Some(MOST_MACHINES as usize));
    assert_eq!([MOST_MACHINES + 1, u32::MAX].map(size), [None, None]);
}

#[test]
fn places_and_classes_that_come_and_go_leave_nothing_behind() {
    let mut market = Market::new([machine("m", "0.7")]);
    for n in 0..5_000 {
        let mut offer = placed("cloud", "r", &format!("z{n}"), "t", Capacity::Spot, rate("1"));
        offer.id = machine("t", "1").id;
        offer.memory = Some(n);
        assert!(market.quote(offer));
        assert_eq!((market.len(), market.classes()), (2, 2));
    }
    let world = World { market: Arc::new(market), ..world(Vec::new(), vec![container("box")]) };
    assert_eq!(taken(&decide(&world, now())), [machine("m", "1").id.0]);
}
