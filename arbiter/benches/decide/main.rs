//! Time of one placement decision over thousands of offers, beside SkyPilot's optimizer and gpuhunt's
//! catalogue where their answers are given (`bench/market.py` asks them and gives the files), and
//! beside a scan of all offers. Everything asked of two is asked of the same market, and both must
//! find the same price.
//!
//! One thread, and its own processor time, so that others who work on the machine make nothing look
//! slow. In microseconds: median and p99. Whatever is not ours is `beside`.
#![allow(clippy::print_stdout)]

mod heap;
mod planted;

use std::path::Path;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::claim::{Claim, Phase};
use petaflop_arbiter::decide::decide;
use petaflop_arbiter::decision::{Action, Outcome, Plan};
use petaflop_arbiter::market::Market;
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::{Capacity, Offer};
use petaflop_arbiter::workload::Workload;
use petaflop_arbiter::world::{Assumptions, Budget, ProviderState, World};
use rustix::time::{ClockId, clock_gettime};

use planted::{COUNTS, Dice, MODELS, Peer, by_the_hour, micro_dollars, offers, provider, scan};

#[global_allocator]
static HEAP: heap::Counted = heap::Counted;

const ROUNDS: usize = 400;

/// Median and p99 of some times.
struct Spread(f64, f64);

impl Spread {
    fn of(mut micros: Vec<f64>) -> Spread {
        micros.sort_unstable_by(f64::total_cmp);
        Spread(micros[micros.len() / 2], micros[micros.len() * 99 / 100])
    }
}

/// Processor time of this thread so far, in microseconds.
fn worked() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// How long something takes, and what came of it.
fn timed<T>(run: impl FnOnce() -> T) -> (f64, T) {
    let begin = worked();
    let found = run();
    (worked() - begin, found)
}

fn row(offers: usize, what: &str, ours: &Spread, beside: &str, others: Option<&Spread>) {
    let other = others.map_or_else(String::new, |Spread(median, p99)| {
        format!(
            "{beside:<18} {median:>11.1} {p99:>11.1} {:>9.0} x",
            median / ours.0.max(f64::MIN_POSITIVE)
        )
    });
    println!("{offers:>7} {what:<34} {:>9.1} {:>9.1}   {other}", ours.0, ours.1);
}

fn world(market: Market, providers: Vec<ProviderState>) -> World {
    World {
        installation: "bench".into(),
        market: Arc::new(market),
        providers,
        unavailable: Vec::new(),
        workloads: Vec::new(),
        claims: Vec::new(),
        budgets: Vec::new(),
        corrections: Default::default(),
        support: Default::default(),
        assumptions: Assumptions::default(),
        watched: Vec::new(),
        tables: Default::default(),
    }
}

fn chosen(plan: &Plan) -> Option<&Offer> {
    plan.actions.iter().find_map(|action| match action {
        Action::CreateClaim(spec) => Some(&spec.offer),
        Action::EndClaim { .. } => None,
    })
}

fn main() {
    let now: Timestamp = "2026-11-21T12:00:00Z".parse().expect("a time");
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown processor", |rest| rest.trim_start_matches([' ', '\t', ':']));
    println!(
        "placement decisions, one thread, {cpu}, petaflop-arbiter {}",
        env!("CARGO_PKG_VERSION")
    );
    println!(
        "{:>7} {:<34} {:>9} {:>9}   {:<18} {:>11} {:>11} {:>11}",
        "offers", "microseconds", "median", "p99", "beside", "median", "p99", "ratio"
    );
    let files = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let mut peers = 0;
    for file in files {
        beside_a_peer(Path::new(&file), now);
        peers += 1;
    }
    for count in [2_500, 12_000, 50_000] {
        by_ourselves(count, now);
    }
    if peers == 0 {
        println!(
            "no peer measured: make bench-arbiter PEERS=folder asks SkyPilot and gpuhunt the same"
        );
    }
}

/// A peer's market, its questions, and our answers beside its own.
fn beside_a_peer(file: &Path, now: Timestamp) {
    let peer = match Peer::read(file) {
        Ok(peer) => peer,
        Err(error) => panic!("{}: {error}", file.display()),
    };
    let market = Market::new(peer.offers(now));
    let offers = market.len();
    let mut world = world(market, peer.providers());
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let ask = |world: &mut World, answer: &planted::Answer| {
        let capacity = if answer.spot { Capacity::Spot } else { Capacity::OnDemand };
        // Both take a count at its word.
        let counts = (answer.count, Some(answer.count));
        world.workloads = vec![by_the_hour("bench", now, &answer.model, counts, capacity)];
        let (time, plan) = timed(|| decide(world, now));
        let price = chosen(&plan).map(|offer| offer.price);
        // One of them rounds to the hundredth of a cent.
        let near = |a: UsdPerHour, b: UsdPerHour| a.micros().abs_diff(b.micros()) <= 100;
        match (price, answer.price.map(micro_dollars)) {
            (None, None) => {}
            (Some(a), Some(b)) if near(a, b) => {}
            (a, b) => {
                panic!("{} x {}: {a:?}, and {} says {b:?}", answer.count, answer.model, peer.peer)
            }
        }
        time
    };
    for answer in &peer.answers {
        theirs.push(answer.micros);
        (0..ROUNDS / peer.answers.len().max(1)).for_each(|_| ours.push(ask(&mut world, answer)));
    }
    let what = format!("model, count, 1 h: {} equal", peer.answers.len());
    row(offers, &what, &Spread::of(ours), &peer.peer, Some(&Spread::of(theirs)));
}

/// What there is no peer for, over a market of our own.
fn by_ourselves(count: u64, now: Timestamp) {
    let list = offers(count, now);
    let before = heap::held();
    let copies = list.clone();
    let (build, market) = timed(|| Market::new(copies));
    let bytes = heap::held() - before;
    let (size, classes) = (market.len(), market.classes());
    println!(
        "{size:>7} {classes} classes; index built in {:.1} ms, {:.1} MB, {} bytes an offer",
        build / 1e3,
        bytes as f64 / 1e6,
        bytes / size
    );
    let (quotes, snapshots) = updates(&market, &list);
    row(size, "one new quote", &quotes, "", None);
    row(size, "snapshot, and one new quote", &snapshots, "", None);
    let mut world = world(market, vec![provider("aws"), provider("runpod")]);
    let (cold, naive) = beside_a_scan(&mut world, &list, now);
    row(size, "model, count, 1 h, caches cold", &cold, "a scan", Some(&naive));
    row(size, "the same, warm", &questions(&mut world, now, |_| {}), "", None);
    let elsewhere = |one: &mut Workload| one.placement.regions = vec!["r3".into(), "r7".into()];
    row(size, "the same, in two regions", &questions(&mut world, now, elsewhere), "", None);
    let mut any = by_the_hour("any", now, "", (1, None), Capacity::Spot);
    any.accelerators.clear();
    any.resources.vcpu_milli = 24_000;
    row(size, "24 processors, 1 h", &repeated(&mut world, &any, now), "", None);
    let training = planted::training(now, "50");
    // A market that nobody has looked at yet.
    let mut fresh = World { market: Arc::new(Market::new(list.iter().cloned())), ..world.clone() };
    fresh.workloads = vec![training.clone()];
    let (cold, plan) = timed(|| decide(&fresh, now));
    assert!(chosen(&plan).is_some());
    row(size, "full objective and deadline, cold", &Spread(cold, cold), "", None);
    row(size, "full objective and deadline, warm", &repeated(&mut world, &training, now), "", None);
    row(size, "and whether to move", &moves(&mut world, &training, now), "", None);
    let unpaid = planted::training(now, "0.000001");
    row(size, "nothing will do: nearest misses", &repeated(&mut world, &unpaid, now), "", None);
    let together = together(&mut world, now);
    row(size, "1,000 jobs together, quotas", &together, "", None);
}

/// Time of one new quote: by itself, and where everything is shared with a snapshot.
fn updates(market: &Market, list: &[Offer]) -> (Spread, Spread) {
    let mut dice = Dice(11);
    let mut news = || {
        let offer = &list[dice.roll(list.len() as u64) as usize];
        let price = offer.price.micros() * (90 + dice.roll(20) as i64) / 100;
        Offer { price: UsdPerHour::from_micros(price).expect("not negative"), ..offer.clone() }
    };
    // Of its own, nothing shared.
    let mut market = Market::new(market.offers().cloned().collect::<Vec<_>>());
    let quotes = (0..4 * ROUNDS).map(|_| {
        let offer = news();
        timed(|| market.quote(offer)).0
    });
    let quotes = Spread::of(quotes.collect());
    let snapshots = (0..ROUNDS).map(|_| {
        let offer = news();
        let (time, snapshot) = timed(|| {
            let snapshot = market.clone();
            market.quote(offer);
            snapshot
        });
        assert_eq!(snapshot.len(), market.len());
        time
    });
    (quotes, Spread::of(snapshots.collect()))
}

fn a_question(dice: &mut Dice) -> (&'static str, u32, Capacity) {
    (
        MODELS[dice.roll(6) as usize],
        COUNTS[dice.roll(4) as usize],
        [Capacity::OnDemand, Capacity::Spot][dice.roll(2) as usize],
    )
}

/// The baselines' request: a model, a count and a capacity type, for an hour. The scan before each
/// decision has read every offer, so that the caches hold none of what is asked for.
fn beside_a_scan(world: &mut World, list: &[Offer], now: Timestamp) -> (Spread, Spread) {
    let mut dice = Dice(13);
    let (mut ours, mut naive) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (model, count, capacity) = a_question(&mut dice);
        world.workloads = vec![by_the_hour("bench", now, model, (count, None), capacity)];
        let (time, plan) = timed(|| decide(world, now));
        ours.push(time);
        let (time, scanned) = timed(|| scan(list, model, count, capacity));
        naive.push(time);
        assert_eq!(chosen(&plan).map(|offer| &offer.id), scanned, "both take the same offer");
    }
    (Spread::of(ours), Spread::of(naive))
}

fn questions(world: &mut World, now: Timestamp, change: impl Fn(&mut Workload)) -> Spread {
    let mut dice = Dice(17);
    let times = (0..ROUNDS).map(|_| {
        let (model, count, capacity) = a_question(&mut dice);
        let mut one = by_the_hour("bench", now, model, (count, None), capacity);
        change(&mut one);
        world.workloads = vec![one];
        timed(|| decide(world, now)).0
    });
    Spread::of(times.collect())
}

/// One workload, decided again and again.
fn repeated(world: &mut World, workload: &Workload, now: Timestamp) -> Spread {
    world.workloads = vec![workload.clone()];
    let times = (0..ROUNDS / 4).map(|_| {
        let (time, plan) = timed(|| decide(world, now));
        assert_ne!(plan.actions.is_empty(), plan.decisions[0].misses.is_empty());
        time
    });
    Spread::of(times.collect())
}

/// The same job where it has had a machine for an hour: every place is weighed against staying.
fn moves(world: &mut World, workload: &Workload, now: Timestamp) -> Spread {
    world.workloads = vec![workload.clone()];
    let plan = decide(world, now);
    let at = now.checked_sub(SignedDuration::from_hours(1)).expect("a time");
    let claims = plan.actions.into_iter().filter_map(|action| match action {
        Action::CreateClaim(mut spec) => {
            spec.offer.price = spec.offer.price.saturating_add(spec.offer.price);
            Some(Claim {
                uid: "claim".into(),
                spec,
                phase: Phase::Launched { instance: "i".into(), at },
                attempt: 1,
                spent: Usd::ZERO,
            })
        }
        Action::EndClaim { .. } => None,
    });
    world.claims = claims.collect();
    let times = (0..ROUNDS / 4).map(|_| {
        let (time, plan) = timed(|| decide(world, now));
        let outcome = &plan.decisions[0].outcome;
        assert!(matches!(outcome, Outcome::Settled { .. } | Outcome::Moves { .. }));
        time
    });
    let times = times.collect();
    world.claims.clear();
    Spread::of(times)
}

/// Jobs of ten namespaces, each with a budget, on offers with one slot, under the providers' limits.
fn together(world: &mut World, now: Timestamp) -> Spread {
    const JOBS: usize = 1_000;
    let one_slot = |offer: &Offer| Offer { slots: Some(1), ..offer.clone() };
    let market = Market::new(world.market.offers().map(one_slot).collect::<Vec<_>>());
    let mut dice = Dice(19);
    let workloads = (0..JOBS).map(|n| {
        let (model, count, capacity) = a_question(&mut dice);
        let mut one = by_the_hour(&format!("{n}"), now, model, (count, None), capacity);
        one.id.namespace = format!("ns-{}", n % 10);
        one
    });
    let mut world = World {
        market: Arc::new(market),
        workloads: workloads.collect(),
        budgets: (0..10)
            .map(|n| Budget {
                namespace: format!("ns-{n}"),
                name: "team".into(),
                limit: Usd::from_micros(300_000_000),
                spent: Usd::ZERO,
                period_ends_at: now.checked_add(SignedDuration::from_hours(24)).expect("a time"),
                workloads: None,
            })
            .collect(),
        ..world.clone()
    };
    for provider in &mut world.providers {
        provider.max_machines = Some(450);
    }
    let times = (0..3).map(|_| {
        let (time, plan) = timed(|| decide(&world, now));
        let placed = plan.actions.len();
        assert!(
            (100..JOBS).contains(&placed),
            "{placed} of {JOBS} are placed, the rest waits for quota"
        );
        time
    });
    Spread::of(times.collect())
}
