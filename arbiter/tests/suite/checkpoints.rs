//! How often a job saves its state: by what that costs, and by the place it is at.

use petaflop_arbiter::checkpoint::{LONGEST_SECONDS, SHORTEST_SECONDS, interval_seconds, on};
use petaflop_arbiter::claim::ClaimSpec;
use petaflop_arbiter::decide::decide;
use petaflop_arbiter::offer::{Capacity, Offer};
use petaflop_arbiter::workload::{Work, Workload};

use crate::worlds::{host, now, placed, rate, training, world, written};

#[test]
fn the_interval_is_the_root_of_twice_the_cost_times_the_time_between_losses() {
    let table = [
        // Milliseconds that one takes, losses an hour, seconds.
        (1_000, 0.05, 379),
        (10_000, 0.05, 1_200),
        (10_000, 0.2, 600),
        (40_000, 0.2, 1_200),
        (1_000, 1.0, 85),
        (90_000, 2.0, 569),
        // Held within bounds.
        (1, 1.0, SHORTEST_SECONDS),
        (0, 0.05, SHORTEST_SECONDS),
        (-1, 0.05, SHORTEST_SECONDS),
        (1_000, f64::INFINITY, SHORTEST_SECONDS),
        (600_000, 0.05, LONGEST_SECONDS),
        (10_000, 0.0007, LONGEST_SECONDS),
        (i64::MAX, 1e-300, LONGEST_SECONDS),
        // Where nothing is lost, or nobody knows.
        (0, 0.0, LONGEST_SECONDS),
        (10_000, 0.0, LONGEST_SECONDS),
        (10_000, -1.0, LONGEST_SECONDS),
        (10_000, f64::NAN, LONGEST_SECONDS),
    ];
    for (cost, losses, seconds) in table {
        assert_eq!(interval_seconds(cost, losses), seconds, "{cost} ms, {losses} losses an hour");
    }
}

/// A job whose owner leaves the interval to us, and what its last checkpoint took.
fn job(asked: Option<u32>, took_millis: Option<i64>) -> Workload {
    let mut job = training("job");
    if let Work::Training(work) = &mut job.work {
        work.checkpoint_interval_seconds = asked;
    }
    job.progress.checkpoint_millis = took_millis;
    job
}

fn claim(offer: Offer, job: Workload) -> ClaimSpec {
    let plan = decide(&world(vec![offer], vec![job]), now());
    written(&plan)[0].spec.clone()
}

#[test]
fn each_place_has_its_own_interval_and_what_the_owner_says_wins() {
    let machine = |capacity, losses| Offer {
        interruptions_per_hour: losses,
        ..placed("cloud", "r1", "r1-a", "s", capacity, rate("0.7"))
    };
    let decided =
        |capacity, losses, job| claim(machine(capacity, losses), job).checkpoint_interval_seconds;
    use Capacity::{OnDemand, Spot};
    // 10 MiB at 100 MB/s, as long as nobody has measured.
    assert_eq!(decided(Spot, None, job(None, None)), Some(interval_seconds(105, 0.05)));
    assert_eq!(decided(Spot, None, job(None, Some(5_000))), Some(849));
    assert_eq!(decided(Spot, Some(0.2), job(None, Some(5_000))), Some(424));
    assert_eq!(decided(OnDemand, None, job(None, Some(500))), Some(2_268));
    assert_eq!(decided(OnDemand, None, job(None, Some(5_000))), Some(LONGEST_SECONDS));
    assert_eq!(decided(Spot, None, job(Some(7), Some(5_000))), Some(7));
    let owned = claim(Offer { interruptions_per_hour: Some(0.0), ..host("0.02") }, job(None, None));
    assert_eq!(owned.checkpoint_interval_seconds, Some(LONGEST_SECONDS));

    // What the owner says later, or said before such decisions were written, holds all the same.
    assert_eq!(on(&owned, Some(30)), 30);
    assert_eq!(on(&owned, None), u64::from(LONGEST_SECONDS));
    let older = ClaimSpec { checkpoint_interval_seconds: None, ..owned };
    assert_eq!((on(&older, Some(600)), on(&older, None)), (600, u64::from(LONGEST_SECONDS)));
}
