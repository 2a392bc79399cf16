//! Spot under a deadline: the safety set against a game tree, the optimum against all plans, every policy against every future.

use std::sync::Arc;

use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::spot::law::Shape;
use petaflop_arbiter::spot::model::{
    Choice, Kind, Machine, Place, Policy, Quote, Sight, Terms, View, Zone,
};
use petaflop_arbiter::spot::optimum::optimum;
use petaflop_arbiter::spot::policies::Name;
use petaflop_arbiter::spot::replay::{Manner, Observe, Price, Recorded, Run, run};
use petaflop_arbiter::spot::safety;
use petaflop_arbiter::spot::table::{Spec, Tables};
use petaflop_arbiter::spot::trace::{Means, Trace, TraceError};
use proptest::prelude::*;

const TICK: i64 = 300;

fn price(micros: i64) -> UsdPerHour {
    UsdPerHour::from_micros(micros).expect("not negative")
}

fn terms(work: i64, ticks: i64, restarts: &[i64]) -> Terms {
    let zone = |restart: &i64| Zone { restart: *restart, probe: Usd::from_micros(1_000) };
    let zones = restarts.iter().map(zone).collect();
    Terms { tick: TICK, work, deadline: ticks * TICK + 17, zones, egress: Vec::new() }
}

fn recorded(available: Vec<bool>, spot: Price) -> Recorded {
    Recorded { available, spot, on_demand: price(3_060_000) }
}

fn play(name: Name, terms: &Terms, market: &[Recorded], manner: Manner) -> Run {
    let spec = Spec::of(terms, market, 0);
    let tables = Arc::new(Tables::made_when_needed(spec, Shape::default()));
    run(terms, market, 0, manner, name.policy(terms, Some(&tables)).as_mut())
}

fn never(ticks: usize) -> Vec<Recorded> {
    vec![recorded(vec![false; ticks], Price::Fixed(price(973_100)))]
}

#[test]
fn on_demand_pays_every_started_tick_and_its_restart() {
    let run = play(Name::OnDemand, &terms(48 * 3600, 624, &[180]), &never(624), Manner::default());
    assert_eq!((run.paid.usd(), run.moves, run.missed), (Usd::from_micros(147_135_000), 0, false));
}

#[test]
fn a_deadline_that_cannot_be_met_is_a_miss_and_costs_what_on_demand_costs() {
    for name in Name::ALL {
        let run = play(name, &terms(10 * TICK, 10, &[180]), &never(10), Manner::default());
        assert!(run.missed, "{name}");
        assert_eq!(run.paid.usd(), Usd::from_micros(11 * 255_000), "{name}");
    }
    let best = optimum(&terms(10 * TICK, 10, &[180]), &never(10), 0, Observe::All);
    assert_eq!((best.missed, best.paid.usd()), (true, Usd::from_micros(11 * 255_000)));
}

#[test]
fn spot_that_is_always_there_is_bought_once() {
    let market = vec![recorded(vec![true; 100], Price::Fixed(price(973_100)))];
    for name in [Name::Greedy, Name::UniformProgress, Name::Alpha10, Name::R1, Name::P1] {
        let run = play(name, &terms(50 * TICK, 100, &[180]), &market, Manner::default());
        assert_eq!((run.moves, run.missed), (0, false), "{name}");
        assert_eq!(run.paid.usd(), Usd::from_micros(4_135_675), "{name}");
    }
}

#[test]
fn who_must_ask_pays_for_every_answer() {
    let market = vec![recorded(vec![false, false, true, true, true, true], Price::Fixed(price(0)))];
    let probed = Manner { observe: Observe::Probed, history: false };
    let run = play(Name::Greedy, &terms(3 * TICK, 20, &[0]), &market, probed);
    // Two refusals and the launch; a machine that is held shows its zone for free.
    assert_eq!(run.paid.usd(), Usd::from_micros(3_000));
    let held = Manner { observe: Observe::Held, history: false };
    assert_eq!(play(Name::Greedy, &terms(3 * TICK, 20, &[0]), &market, held).paid.usd(), Usd::ZERO);
}

#[test]
fn egress_is_paid_between_zones_and_not_for_the_first_launch() {
    let free = |available| recorded(available, Price::Fixed(price(0)));
    let market = vec![
        free(vec![true, true, false, false, false]),
        free(vec![false, false, true, true, true]),
    ];
    let mut terms = terms(4 * TICK, 20, &[0, 0]);
    let cost = Usd::from_micros(40_000);
    terms.egress = vec![vec![Usd::ZERO, cost], vec![cost, Usd::ZERO]];
    let run = play(Name::Greedy, &terms, &market, Manner::default());
    assert_eq!((run.paid.usd(), run.moves), (cost, 1));
    assert_eq!(optimum(&terms, &market, 0, Observe::All).paid.usd(), cost);
}

/// Whether a policy exists that ends in time for every future: the game tree, without the formula.
fn winnable(terms: &Terms, left: i64, work: i64, machine: Option<Machine>) -> bool {
    if work <= 0 {
        return true;
    }
    if left <= 0 {
        return false;
    }
    let zones: Vec<Quote> = quotes(terms, Sight::Gone);
    // The worst future: no spot any more.
    let view = view(terms, left, work, machine, &zones);
    choices(terms)
        .filter(|choice| is_on(*choice, Kind::Spot).is_none())
        .any(|choice| after_wins(&view, choice))
}

fn is_on(choice: Choice, kind: Kind) -> Option<Place> {
    match choice {
        Choice::Run(place) if place.kind == kind => Some(place),
        _ => None,
    }
}

fn choices(terms: &Terms) -> impl Iterator<Item = Choice> + use<> {
    let places =
        (0..terms.zones.len()).flat_map(|zone| [Choice::spot(zone), Choice::on_demand(zone)]);
    std::iter::once(Choice::Nothing).chain(places)
}

fn quotes(terms: &Terms, spot: Sight) -> Vec<Quote> {
    vec![Quote { spot, spot_price: price(1), on_demand_price: price(2) }; terms.zones.len()]
}

fn view<'a>(
    terms: &'a Terms,
    left: i64,
    work: i64,
    machine: Option<Machine>,
    zones: &'a [Quote],
) -> View<'a> {
    let tick = terms.ticks() - left;
    View { terms, tick, work_left: work, machine, home: None, zones }
}

/// Whether the tick of a choice leads to where the game is still won, if spot goes for ever.
fn after_wins(view: &View<'_>, choice: Choice) -> bool {
    let left = view.time_left() / TICK - 1;
    match choice {
        Choice::Nothing => winnable(view.terms, left, view.work_left, None),
        Choice::Run(place) => {
            let pending = view.pending(place);
            let used = pending.min(TICK);
            let machine = Machine { place, pending: pending - used };
            let machine = Some(machine).filter(|_| place.kind == Kind::OnDemand);
            winnable(view.terms, left, view.work_left - (TICK - used), machine)
        }
    }
}

#[test]
fn the_safety_set_is_exactly_what_the_game_tree_allows() {
    let mut forbidden = 0;
    for restarts in [&[0][..], &[120], &[300], &[420], &[720, 300]] {
        for (left, work) in (1..7).flat_map(|left| (1..2_000).step_by(140).map(move |w| (left, w)))
        {
            let terms = terms(2_000, 9, restarts);
            let zones = quotes(&terms, Sight::There);
            let places = (0..restarts.len())
                .flat_map(|zone| [Kind::Spot, Kind::OnDemand].map(|kind| Place { zone, kind }));
            let machines = places.flat_map(|place| {
                let possible = move |pending: &i64| *pending <= restarts[place.zone];
                let pendings = [0, 120, 420].into_iter().filter(possible);
                pendings.map(move |pending| Some(Machine { place, pending }))
            });
            for machine in machines.chain([None]) {
                let view = view(&terms, left, work, machine, &zones);
                for choice in choices(&terms) {
                    let wins = after_wins(&view, choice);
                    assert_eq!(safety::allows(&view, choice), wins, "{view:?} {choice:?}");
                    forbidden += u32::from(!wins);
                }
            }
        }
    }
    assert!(forbidden > 100, "the tree forbids next to nothing: {forbidden}");
}

/// Wishes whatever it likes.
struct Whim(u64);

impl Policy for Whim {
    fn choose(&self, view: &View<'_>) -> Choice {
        let mut z = self.0.wrapping_add(view.tick as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^= z >> 31;
        let zone = (z >> 8) as usize % view.zones.len();
        match z % 3 {
            0 => Choice::Nothing,
            1 => Choice::spot(zone),
            _ => Choice::on_demand(zone),
        }
    }
}

fn market() -> impl Strategy<Value = (Terms, Vec<Recorded>)> {
    let zone = (
        prop::collection::vec(any::<bool>(), 60),
        prop::collection::vec(1_u8..40, 1..30),
        0..14_i64,
        prop::collection::vec(100_000..4_000_000_i64, 1..60),
        any::<bool>(),
    );
    let zones = prop::collection::vec(zone, 1..4);
    (zones, 100..9_000_i64, 0..25_i64, 0..3_i64).prop_map(|(zones, work, spare, egress)| {
        let mut restarts = Vec::new();
        let market = zones.into_iter().map(|(flaps, runs, restart, prices, flapping)| {
            restarts.push(restart * 60);
            let lasting = runs.iter().enumerate().flat_map(|(index, length)| {
                std::iter::repeat_n(index % 2 == 0, usize::from(*length))
            });
            let available = if flapping { flaps } else { lasting.collect() };
            recorded(available, Price::PerTick(prices.into_iter().map(price).collect()))
        });
        let market: Vec<Recorded> = market.collect();
        let shortest = restarts.iter().min().copied().unwrap_or(0);
        let ticks = (work + shortest + TICK - 1) / TICK + spare;
        let mut terms = terms(work, ticks, &restarts);
        let cost =
            |from: usize, to: usize| Usd::from_micros(if from == to { 0 } else { egress * 20_000 });
        let count = restarts.len();
        terms.egress =
            (0..count).map(|from| (0..count).map(|to| cost(from, to)).collect()).collect();
        (terms, market)
    })
}

/// The cheapest of all plans that end in time, tried one by one, by a second reckoning of the model.
fn cheapest_plan(
    terms: &Terms,
    market: &[Recorded],
    (tick, work): (usize, i64),
    machine: Option<Machine>,
    home: Option<usize>,
) -> Option<i64> {
    if work <= 0 {
        return Some(0);
    }
    if tick as i64 >= terms.ticks() {
        return None;
    }
    let machine = machine.filter(|machine| {
        machine.place.kind == Kind::OnDemand || market[machine.place.zone].has_spot(tick)
    });
    let after = |choice: Choice| match choice {
        Choice::Nothing => cheapest_plan(terms, market, (tick + 1, work), None, home),
        Choice::Run(place) => {
            let zone = &market[place.zone];
            if place.kind == Kind::Spot && !zone.has_spot(tick) {
                return None;
            }
            let alive = machine.filter(|machine| machine.place == place);
            let pending = alive.map_or(terms.zones[place.zone].restart, |machine| machine.pending);
            let moves = home.is_some_and(|home| home != place.zone) && alive.is_none();
            let egress = if moves { terms.egress[0][1].micros() * 12 } else { 0 };
            let rate = if place.kind == Kind::Spot { zone.spot.at(tick) } else { zone.on_demand };
            let used = pending.min(TICK);
            let machine = Some(Machine { place, pending: pending - used });
            let rest = (tick + 1, work - (TICK - used));
            Some(
                egress
                    + rate.micros()
                    + cheapest_plan(terms, market, rest, machine, Some(place.zone))?,
            )
        }
    };
    choices(terms).filter_map(after).min()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_policy_misses_what_on_demand_could_meet_and_none_beats_the_optimum((terms, market) in market(), whim in any::<u64>()) {
        for observe in [Observe::All, Observe::Held, Observe::Probed] {
            let manner = Manner { observe, history: false };
            let best = optimum(&terms, &market, 0, observe);
            prop_assert!(!best.missed);
            for name in Name::ALL {
                let run = play(name, &terms, &market, manner);
                prop_assert!(!run.missed, "{} missed", name);
                prop_assert!(best.paid <= run.paid, "{} paid {:?}, the optimum {:?}", name, run.paid, best.paid);
                prop_assert_eq!(run, play(name, &terms, &market, manner));
            }
            let wild = run(&terms, &market, 0, manner, &mut Whim(whim));
            prop_assert!(!wild.missed && best.paid <= wild.paid);
            // Each launch uses up slack: so many, and no more, whatever is wanted.
            let uses = terms.shortest_restart().min(terms.tick);
            let slack = terms.ticks() * terms.tick - terms.work;
            prop_assert!(i64::from(wild.moves + 1) * uses <= slack, "{} moves", wild.moves);
        }
    }

    #[test]
    fn the_optimum_is_the_cheapest_of_all_plans(
        available in prop::collection::vec(prop::collection::vec(any::<bool>(), 5), 1..3),
        prices in prop::collection::vec(100_000..4_000_000_i64, 10), work in 100..1_200_i64, egress in 0..3_i64,
    ) {
        let restarts = &[120, 420][..available.len()];
        let ticks = (work + 120 + TICK - 1) / TICK + 1;
        let mut terms = terms(work, ticks, restarts);
        let cost = Usd::from_micros(egress * 50_000);
        terms.egress = vec![vec![Usd::ZERO, cost], vec![cost, Usd::ZERO]];
        let market: Vec<Recorded> = available.into_iter().enumerate().map(|(zone, available)| {
            recorded(available, Price::PerTick(prices[zone * 5..][..5].iter().map(|micros| price(*micros)).collect()))
        }).collect();
        let best = optimum(&terms, &market, 0, Observe::All);
        // Twelve ticks are an hour.
        let twelfths = cheapest_plan(&terms, &market, (0, work), None, None).expect("on-demand meets it");
        prop_assert_eq!(best.paid.usd().micros(), (twelfths + 6).div_euclid(12));
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Trace::parse(&bytes);
    }

    #[test]
    fn no_damage_to_a_trace_makes_the_parser_panic(at in 0..70_usize, with in any::<u8>(), length in 0..90_usize) {
        let mut bytes = br#"{"metadata":{"gap_seconds":195},"data":[0,1,1.5,2e3,-1,0,1,1,1,0,0,0]}"#.to_vec();
        bytes[at] = with;
        bytes.truncate(length);
        if let Ok(trace) = Trace::parse(&bytes) {
            prop_assert!(trace.gap > 0 && trace.points.iter().all(|point| point.is_finite()));
            let _ = (trace.available(300, Means::Positive), trace.prices(7));
        }
    }
}

#[test]
fn a_shape_is_fitted_to_what_flipped_at_each_age() {
    // Spot lasts two ticks and stays away for one: every second age of two ends it, every age of one brings it back.
    let recording: Vec<bool> = (0..3_000).map(|tick| tick % 3 != 0).collect();
    let shape = Shape::fitted(&[recording.clone(), recording.clone()]).expect("it flips");
    assert!(shape.down[0] < 0.01 && shape.down[1] > 0.9, "{shape:?}");
    assert!(shape.up[0] > 0.9, "{shape:?}");
    // What was never seen has the rate over all ages.
    assert!((shape.down[9] - 0.5).abs() < 0.01, "{shape:?}");
    let other = vec![false; 500];
    let one = Shape::fitted(&[recording.clone(), other.clone()]);
    assert_eq!(one, Shape::fitted(&[other.clone(), recording]), "the order of files is no matter");
    assert_eq!(Shape::fitted(&[other]), None, "nothing flips");
    assert_eq!(Shape::fitted(&[]), None);
}

#[test]
fn a_bad_trace_names_the_point() {
    let of = |data: &str| {
        Trace::parse(format!(r#"{{"metadata":{{"gap_seconds":300}},"data":[{data}]}}"#).as_bytes())
    };
    for (data, point) in [
        ("1,null,0", 1),
        ("1,0,\"yes\"", 2),
        ("NaN", 0),
        ("1,1e999", 1),
        ("0,[]", 1),
        ("1,true", 1),
    ] {
        match of(data) {
            Err(TraceError::Form(text)) => {
                assert!(text.contains(&format!("point {point}")), "{data}: {text}")
            }
            other => panic!("{data}: {other:?}"),
        }
    }
    assert_eq!(of(""), Err(TraceError::Empty));
    let refused = of("1,2,-0.5").expect("a trace").prices(300);
    assert_eq!(refused, Err(TraceError::Price { point: 2, value: "-0.5".to_owned() }));
    for gap in ["0", "-5", "1.5", "1e30"] {
        let text = format!(r#"{{"metadata":{{"gap_seconds":{gap}}},"data":[1]}}"#);
        assert!(matches!(Trace::parse(text.as_bytes()), Err(TraceError::Gap(_))), "{gap}");
    }
}

#[test]
fn ten_million_points_are_read() {
    let data = vec!["1"; 10_000_000].join(",");
    let text = format!(r#"{{"metadata":{{"gap_seconds":60}},"data":[{data}]}}"#);
    let trace = Trace::parse(text.as_bytes()).expect("a trace");
    assert_eq!(trace.available(300, Means::AllBut(1.0)).map(|ticks| ticks.len()), Ok(2_000_000));
}

#[test]
fn a_gap_of_years_is_refused_before_it_takes_any_memory() {
    let text = br#"{"metadata":{"gap_seconds":999999999},"data":[1,0,1,0,1,0,1,0,1,0,1]}"#;
    let trace = Trace::parse(text).expect("a trace");
    assert_eq!(trace.available(86_400, Means::Positive).map(|ticks| ticks.len()), Ok(127_315));
    let refused = TraceError::TooLong { seconds: 10_999_999_989, tick: 300 };
    assert_eq!(trace.available(300, Means::Positive), Err(refused.clone()));
    assert_eq!(trace.prices(300), Err(refused));
}

#[test]
fn sampled_and_held() {
    let trace = Trace { gap: 195, points: vec![0.0, 1.0, 2.0, 3.0] };
    // Ticks start at 0, 300 and 600 s: points 0, 1 and 3.
    assert_eq!(trace.available(300, Means::AtLeast(1.0)), Ok(vec![false, true, true]));
    assert_eq!(trace.available(300, Means::AtLeast(2.0)), Ok(vec![false, false, true]));
    assert_eq!(trace.available(300, Means::AllBut(3.0)), Ok(vec![true, true, false]));
}
