//! The machines of one zone are taken away together: replicas on spot are spread so that half of them are left.

use std::collections::HashMap;

use petaflop_arbiter::decide::decide;
use petaflop_arbiter::decision::Outcome;
use petaflop_arbiter::offer::{Capacity, Offer};
use petaflop_arbiter::world::World;
use proptest::prelude::*;

use crate::worlds::{now, only, placed, rate, serving, taken, training, world, written};

fn spot(zone: &str, price: &str) -> Offer {
    placed("cloud", "r1", zone, "m", Capacity::Spot, rate(price))
}

fn on_demand(price: &str) -> Offer {
    placed("cloud", "r1", "r1-a", "m", Capacity::OnDemand, rate(price))
}

fn replicas(wanted: u32, offers: Vec<Offer>) -> World {
    world(offers, vec![serving("chat", wanted)])
}

/// Machines by zone and capacity type.
fn where_they_are(world: &World) -> Vec<(String, Capacity)> {
    let claims = written(&decide(world, now()));
    claims.into_iter().map(|one| (one.spec.offer.zone, one.spec.offer.capacity)).collect()
}

#[test]
fn half_of_the_replicas_are_left_whichever_zone_loses_its_spot() {
    let count = |world: &World, zone: &str, capacity| {
        where_they_are(world).iter().filter(|one| **one == (zone.to_owned(), capacity)).count()
    };
    // The cheapest zone to its half, the rest in the next.
    let two = replicas(4, vec![spot("r1-a", "0.20"), spot("r1-b", "0.30"), on_demand("1.00")]);
    let there = |zone| count(&two, zone, Capacity::Spot);
    assert_eq!((there("r1-a"), there("r1-b"), count(&two, "r1-a", Capacity::OnDemand)), (2, 2, 0));
    // One zone alone: on-demand for what must not be lost with it, and for no more.
    let one = replicas(5, vec![spot("r1-a", "0.20"), on_demand("1.00")]);
    assert_eq!(count(&one, "r1-a", Capacity::Spot), 2);
    assert_eq!(count(&one, "r1-a", Capacity::OnDemand), 3);
    // On-demand that costs no more than the next zone is as good.
    let near = replicas(2, vec![spot("r1-a", "0.20"), spot("r1-b", "0.30"), on_demand("0.25")]);
    assert_eq!(count(&near, "r1-a", Capacity::OnDemand), 1);
    // One replica has nothing to be spread from, and a job is none.
    let alone = replicas(1, vec![spot("r1-a", "0.20"), on_demand("1.00")]);
    assert_eq!(count(&alone, "r1-a", Capacity::Spot), 1);
    let job = world(vec![spot("r1-a", "0.20"), on_demand("1.00")], vec![training("a")]);
    assert_eq!(count(&job, "r1-a", Capacity::Spot), 1);
}

#[test]
fn a_crowded_zone_is_better_than_no_replica_and_is_named_otherwise() {
    let crowded = replicas(3, vec![spot("r1-a", "0.20")]);
    assert_eq!(where_they_are(&crowded).len(), 3);
    // What runs counts: the one that is missing goes elsewhere, and is told why.
    let mut running = replicas(2, vec![spot("r1-a", "0.20"), spot("r1-b", "0.30")]);
    running.claims = written(&decide(&running, now()));
    running.claims.retain(|claim| claim.spec.offer.zone == "r1-a");
    let plan = decide(&running, now());
    assert_eq!(taken(&plan), ["cloud/r1/r1-b/m/spot"]);
    let stopped = &only(&plan).stopped;
    assert!(stopped.iter().any(|one| (one.constraint.as_str(), one.offers) == ("Crowded", 1)));
    assert!(matches!(only(&plan).outcome, Outcome::Placed { lacking: 0, .. }));
}

proptest! {
    /// Whatever is for sale: no zone has more than its share on spot while anything else is to be had, and all replicas are there.
    #[test]
    fn no_zone_has_more_than_half_where_anything_else_is_for_sale(
        zones in prop::collection::vec(1..100_i64, 1..5),
        sure in prop::option::of(1..200_i64),
        wanted in 2..12_u32,
    ) {
        let price = |cents: i64| format!("{}.{:02}", cents / 100, cents % 100);
        let mut offers: Vec<Offer> = (zones.iter().enumerate())
            .map(|(zone, cents)| spot(&format!("r1-{zone}"), &price(*cents)))
            .collect();
        offers.extend(sure.map(|cents| on_demand(&price(cents))));
        let there = where_they_are(&replicas(wanted, offers));
        prop_assert_eq!(there.len(), wanted as usize);
        let mut on_spot: HashMap<&str, u32> = HashMap::new();
        for (zone, _) in there.iter().filter(|(_, capacity)| *capacity == Capacity::Spot) {
            *on_spot.entry(zone).or_default() += 1;
        }
        let most = on_spot.values().max().copied().unwrap_or(0);
        let others = sure.is_some() || zones.len() as u32 * (wanted / 2) >= wanted;
        prop_assert!(!others || most <= wanted / 2, "{:?}", there);
    }
}
