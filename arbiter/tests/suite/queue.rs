//! Several jobs in one recorded market: who gets a machine, who loses one, and who may pay for it.

use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::spot::law::Shape;
use petaflop_arbiter::spot::model::{Terms, Zone};
use petaflop_arbiter::spot::optimum::optimum;
use petaflop_arbiter::spot::policies::Name;
use petaflop_arbiter::spot::queue::{self, End, Queued, Went};
use petaflop_arbiter::spot::replay::{self, Manner, Observe, Price, Recorded};
use petaflop_arbiter::spot::table::{LawIndex, Spec, Tables};
use proptest::prelude::*;

const TICK: i64 = 300;
/// Dollars an hour whose tick is a whole number of micro-dollars: 1 and 0.1 dollars.
const ON_DEMAND: i64 = 12_000_000;
const SPOT: i64 = 1_200_000;

fn price(micros: i64) -> UsdPerHour {
    UsdPerHour::from_micros(micros).expect("not negative")
}

/// A job of so many ticks of work that must end within so many.
fn job(arrives: usize, work: i64, within: i64, zones: usize) -> Queued {
    let zones = vec![Zone { restart: 0, probe: Usd::ZERO }; zones];
    let (work, deadline) = (work * TICK, within * TICK);
    Queued {
        arrives,
        terms: Terms { tick: TICK, work, deadline, zones, egress: Vec::new() },
        budget: None,
    }
}

fn market(capacity: &[Vec<u32>]) -> Vec<Recorded> {
    let zone = |machines: &Vec<u32>| Recorded {
        available: machines.iter().map(|machines| *machines > 0).collect(),
        spot: Price::Fixed(price(SPOT)),
        on_demand: price(ON_DEMAND),
    };
    capacity.iter().map(zone).collect()
}

fn play(name: Name, jobs: &[Queued], capacity: &[Vec<u32>]) -> Vec<Went> {
    queue::run(jobs, &market(capacity), capacity, |queued| name.policy(&queued.terms, None))
}

/// Ticks on spot are a tenth of a dollar each, others a whole one.
fn cents(went: &Went) -> i64 {
    went.paid.usd().micros() / 10_000
}

#[test]
fn the_older_job_has_the_one_machine_and_the_other_waits_for_it() {
    let jobs = [job(1, 3, 20, 1), job(0, 3, 20, 1)];
    let went = play(Name::Greedy, &jobs, &[vec![1; 40]]);
    assert_eq!((cents(&went[1]), went[1].waited), (30, 0));
    // It came a tick later and waited for the two that the other still needed.
    assert_eq!((cents(&went[0]), went[0].waited, went[0].end), (30, 2, End::InTime));
}

#[test]
fn who_cannot_wait_goes_on_demand() {
    let jobs = [job(0, 5, 20, 1), job(0, 5, 5, 1)];
    let went = play(Name::Greedy, &jobs, &[vec![1; 40]]);
    assert_eq!(went.iter().map(cents).collect::<Vec<_>>(), [50, 500]);
    assert!(went.iter().all(|went| went.end == End::InTime));
}

#[test]
fn where_there_are_fewer_machines_the_newest_is_lost() {
    let jobs = [job(0, 6, 20, 1), job(0, 6, 20, 1)];
    // Two for two ticks, then one for ever: that of the second job goes, and it waits.
    let mut capacity = vec![2, 2];
    capacity.resize(40, 1);
    let went = play(Name::Greedy, &jobs, &[capacity]);
    assert_eq!((cents(&went[0]), went[0].moves), (60, 0));
    assert_eq!((cents(&went[1]), went[1].moves, went[1].waited), (60, 1, 4));
}

#[test]
fn a_machine_that_a_job_has_done_with_is_anothers_in_the_next_tick() {
    let jobs = [job(0, 2, 20, 1), job(0, 2, 20, 1)];
    let went = play(Name::Greedy, &jobs, &[vec![1; 10]]);
    assert_eq!(went[1].waited, 2);
}

#[test]
fn a_budget_is_spent_to_its_last_tick_and_not_beyond() {
    for (cents_allowed, end, spent) in [(29, End::OutOfMoney, 20), (30, End::InTime, 30)] {
        let mut one = job(0, 3, 20, 1);
        one.budget = Some(Usd::from_micros(cents_allowed * 10_000));
        let went = play(Name::Greedy, &[one, job(0, 1, 40, 1)], &[vec![1; 40]]);
        assert_eq!((went[0].end, cents(&went[0])), (end, spent));
        assert_eq!(went[1].end, End::InTime, "what it held is free again");
    }
}

#[test]
fn tables_for_the_longest_job_decide_for_a_shorter_one_as_its_own_do() {
    let specs = |jobs: [Queued; 2], market: &[Recorded]| {
        jobs.map(|mut queued| {
            queued.terms.zones[0].restart = 180;
            Spec::of(&queued.terms, market, 0)
        })
    };
    let market = market(&[vec![1; 40]]);
    let [short, long] = specs([job(0, 9, 14, 1), job(3, 30, 47, 1)], &market);
    let all = short.joined(long).expect("they differ in length alone");
    assert_eq!(long.joined(short), Some(all));
    let tables = |spec| Tables::made_when_needed(spec, Shape::default());
    let (own, all) = (tables(short), tables(all));
    for law in [(1.0, 1.0, 0.0), (0.25, 4.0, 0.7), (4.0, 0.5, 0.97)] {
        let law = LawIndex::nearest(law.0, law.1, law.2);
        let (own, all) = (own.make(law), all.make(law));
        for (left, slack) in (0..=14).flat_map(|left| (0..=25).map(move |s| (left, s * 60))) {
            for (bucket, there) in (0..16).flat_map(|bucket| [(bucket, true), (bucket, false)]) {
                let said = own.idle(left, slack, there, bucket);
                assert_eq!(said, all.idle(left, slack, there, bucket), "{left} {slack}");
                for pending in [0, 180] {
                    let said = own.on_demand(left, slack, pending, there, bucket);
                    let also = all.on_demand(left, slack, pending, there, bucket);
                    assert_eq!(said, also, "{left} {slack} {pending}");
                }
            }
        }
    }
    let mut dearer = market.clone();
    dearer[0].spot = Price::Fixed(price(2 * SPOT));
    let [other, _] = specs([job(0, 9, 14, 1), job(0, 9, 14, 1)], &dearer);
    assert_eq!(short.joined(other), None, "at another price other tables");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_job_alone_goes_as_it_goes_without_a_queue(
        there in prop::collection::vec(prop::collection::vec(0..3_u32, 30), 1..3), work in 1..12_i64, spare in 0..12_i64,
    ) {
        let one = job(0, work, work + spare, there.len());
        let market = market(&there);
        for name in Name::ALL {
            let alone = replay::run(&one.terms, &market, 0, Manner::default(), name.policy(&one.terms, None).as_mut());
            let went = play(name, std::slice::from_ref(&one), &there)[0];
            prop_assert_eq!((went.paid, went.moves, went.end == End::Late), (alone.paid, alone.moves, alone.missed), "{}", name);
        }
    }

    #[test]
    fn no_deadline_is_missed_no_budget_overspent_and_no_optimum_beaten(
        there in prop::collection::vec(prop::collection::vec(0..4_u32, 40), 1..3),
        asked in prop::collection::vec((0..30_usize, 1..10_i64, 1..10_i64, prop::option::of(0..900_i64)), 1..6),
        restart in 0..=TICK,
    ) {
        let market = market(&there);
        let jobs: Vec<Queued> = asked.iter().map(|(arrives, work, spare, cents)| {
            let budget = cents.map(|cents| Usd::from_micros(cents * 10_000));
            let mut queued = Queued { budget, ..job(*arrives, *work, work + spare, there.len()) };
            queued.terms.zones.iter_mut().for_each(|zone| zone.restart = restart);
            queued
        }).collect();
        for name in Name::ALL {
            let went = play(name, &jobs, &there);
            prop_assert_eq!(&went, &play(name, &jobs, &there), "the same again");
            for (queued, went) in jobs.iter().zip(&went) {
                prop_assert!(went.end != End::Late, "{}: on-demand could have met it", name);
                if let Some(budget) = queued.budget {
                    prop_assert!(went.paid.usd() <= budget);
                    continue;
                }
                prop_assert_eq!(went.end, End::InTime);
                let best = optimum(&queued.terms, &market, queued.arrives, Observe::All);
                prop_assert!(went.paid >= best.paid, "{}", name);
            }
        }
    }
}
