//! Whether buying a machine pays, beside renting one for the same work.

use petaflop_arbiter::decide::explain;
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::Offer;
use petaflop_arbiter::own_or_rent::{OwnOrRent, Purchase};
use petaflop_arbiter::workload::Placement;

use crate::worlds::{host, machine, now, training, usd, world};

fn compared(offers: Vec<Offer>, dollars: &str, years: u32) -> Option<OwnOrRent> {
    let world = world(offers, vec![training("job")]);
    let explained = explain(&world, now(), &world.workloads[0].id).expect("it is there");
    OwnOrRent::of(&explained, Purchase { usd: usd(dollars), years })
}

#[test]
fn buying_pays_after_as_many_hours_as_save_what_it_cost() {
    let both =
        compared(vec![host("0.02"), machine("m", "1.00")], "2500", 4).expect("there are two");
    assert_eq!((both.own.0.as_str(), both.lifetime_hours), (host("0.02").id.0.as_str(), 35_064));
    let micros = |usd: Usd| i128::from(usd.micros());
    // What was saved after so many hours of the machine, times the milliseconds of one run.
    let saved =
        |hours: u64| (micros(both.rent) - micros(both.marginal)) * i128::from(hours) * 3_600_000;
    let cost = micros(usd("2500")) * i128::from(both.own_millis);
    let hours = both.pays_after_hours.expect("it pays once");
    assert!(saved(hours) >= cost && saved(hours - 1) < cost, "{both:?}");
    // 2,500 $ over 35,064 hours, by the hours of a run.
    let share = micros(both.full) - micros(both.marginal);
    let exact = cost as f64 / (35_064.0 * 3_600_000.0);
    assert!((share as f64 - exact).abs() <= 1.0, "{share} {exact}");
}

#[test]
fn what_costs_less_rented_than_its_own_power_never_pays() {
    let both = compared(vec![host("5.00"), machine("m", "0.01")], "1", 4).expect("there are two");
    assert_eq!(both.pays_after_hours, None);
    let free = compared(vec![host("0.02"), machine("m", "1.00")], "0", 4).expect("there are two");
    assert_eq!((free.pays_after_hours, free.full), (Some(0), free.marginal));
}

#[test]
fn only_what_would_do_is_compared() {
    assert_eq!(compared(vec![host("0.02")], "2500", 4), None);
    assert_eq!(compared(vec![machine("m", "1.00")], "2500", 4), None);
    let mut world = world(vec![host("0.02"), machine("m", "1.00")], vec![training("job")]);
    world.workloads[0].placement =
        Placement { providers: vec!["host".into()], ..Placement::default() };
    let explained = explain(&world, now(), &world.workloads[0].id).expect("it is there");
    let purchase = Purchase { usd: usd("2500"), years: 4 };
    assert_eq!(OwnOrRent::of(&explained, purchase), None);
}
