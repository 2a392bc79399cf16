//! What providers bill: tables for the rules as they are published, properties for all others.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::bill::{Begins, Billing, Life, Line, Price, Step, total};
use petaflop_arbiter::money::Usd;
use proptest::prelude::*;

use crate::worlds::{now, rate};

const SECOND: Duration = Duration::from_secs(1);

/// EC2's for Linux.
const EC2: Billing = Billing {
    granularity: SECOND,
    minimum: Duration::from_secs(60),
    begins: Begins::Running,
    free_if_taken_within: Duration::from_secs(3600),
};

fn at(millis: i64) -> Timestamp {
    now() + SignedDuration::from_millis(millis)
}

/// Bought at nought, seen to run and to end after so many milliseconds.
fn life(running: Option<i64>, until: i64, taken: bool) -> Life {
    Life { bought: now(), running: running.map(at), until: at(until), taken }
}

fn micros(billing: Billing, price: Price, life: Life) -> i64 {
    total(&[Line { price, billing }], &life, &[]).micros()
}

#[test]
fn begun_seconds_count_in_full_and_half_a_micro_dollar_is_rounded_up() {
    let by_the_second = Billing::new(SECOND, Duration::ZERO);
    for (price, millis, billed) in [
        ("0.0036", 0, 0),
        ("0.0036", 1, 1),
        ("0.0036", 1000, 1),
        ("0.0036", 1001, 2),
        ("0.0018", 1000, 1),
        ("0.001799", 1000, 0),
        ("0.0036", -5000, 0),
    ] {
        let price = Price::Hourly(rate(price));
        let life = life(Some(0), millis, false);
        assert_eq!(micros(by_the_second, price, life), billed, "{millis}");
        // What is taken away is free only where a provider says so.
        assert_eq!(micros(by_the_second, price, Life { taken: true, ..life }), billed);
    }
    let by_the_minute = Billing::new(Duration::from_secs(60), Duration::ZERO);
    let price = Price::Hourly(rate("3.6"));
    assert_eq!(micros(by_the_minute, price, life(Some(0), 60_001, false)), 120_000);
    let exact = Billing::new(Duration::ZERO, Duration::ZERO);
    assert_eq!(micros(exact, price, life(Some(0), 1_500, false)), 1_500);
}

#[test]
fn ec2_bills_from_running_on_a_minute_at_least_and_no_first_hour_that_it_cut_short() {
    for (running, until, taken, billed) in [
        (None, 90_000, false, 0),
        (Some(10_000), 15_000, false, 60_000),
        (Some(10_000), 70_000, false, 60_000),
        (Some(10_000), 71_000, false, 61_000),
        (Some(10_000), 3_609_999, true, 0),
        (Some(10_000), 3_610_000, true, 3_600_000),
        (Some(10_000), 3_609_999, false, 3_600_000),
    ] {
        let price = Price::Hourly(rate("3.6"));
        assert_eq!(micros(EC2, price, life(running, until, taken)), billed, "{running:?} {until}");
    }
}

#[test]
fn spot_costs_the_markets_price_at_the_beginning_of_each_of_its_hours() {
    let step = |millis, price| Step { at: at(millis), price: rate(price) };
    // The second change is none to this machine: its hour has begun.
    let market = [step(-90_000, "1"), step(1_800_000, "3"), step(3_610_000, "7")];
    let line = Line { price: Price::Market(rate("9")), billing: EC2 };
    let billed = |life: Life, market: &[Step]| total(&[line], &life, market).micros();
    assert_eq!(billed(life(Some(0), 3_600_000, false), &market), 1_000_000);
    assert_eq!(billed(life(Some(0), 5_400_000, false), &market), 1_000_000 + 1_500_000);
    assert_eq!(billed(life(Some(10_000), 5_410_000, false), &market), 1_000_000 + 3_500_000);
    assert_eq!(billed(life(Some(0), 3_600_000, false), &[]), 9_000_000, "as it was decided");
    assert_eq!(billed(life(Some(0), 3_600_000, false), &market[1..]), 9_000_000);
}

#[test]
fn a_month_has_seven_hundred_and_thirty_hours_and_each_line_is_rounded_by_itself() {
    let billing = Billing::new(SECOND, Duration::ZERO);
    let disk = Price::Monthly(Usd::from_micros(4_000_000));
    assert_eq!(micros(billing, disk, life(None, 730 * 3_600_000, false)), 4_000_000);
    let half = Line { price: Price::Hourly(rate("0.0018")), billing };
    assert_eq!(total(&[half, half], &life(None, 1000, false), &[]).micros(), 2);
}

prop_compose! {
    fn lives()(up in 0..400_000_i64, ran in 0..20_000_000_i64, taken in any::<bool>()) -> Life {
        life(Some(up), up + ran, taken)
    }
}

prop_compose! {
    fn markets()(steps in prop::collection::vec((0..20_000_000_i64, 0..9_000_000_i64), 0..9)) -> Vec<Step> {
        let mut steps: Vec<Step> = steps
            .into_iter()
            .map(|(after, price)| Step {
                at: at(after),
                price: petaflop_arbiter::money::UsdPerHour::from_micros(price).expect("a price"),
            })
            .collect();
        steps.sort_by_key(|step| step.at);
        steps
    }
}

proptest! {
    /// So rows in between can be written as time goes on, and the last one is never a loss.
    #[test]
    fn a_bill_only_grows_while_a_machine_lives(
        life in lives(), market in markets(), more in 0..8_000_000_i64, second in 0..2_i64,
    ) {
        let life = Life { taken: false, ..life };
        let longer = Life { until: life.until + SignedDuration::from_millis(more), ..life };
        let billing = Billing { granularity: Duration::from_secs(second.unsigned_abs()), ..EC2 };
        let line = Line { price: Price::Market(rate("0.5")), billing };
        prop_assert!(total(&[line], &longer, &market) >= total(&[line], &life, &market));
    }

    /// The market's price and the price that never changes are one arithmetic.
    #[test]
    fn a_market_that_does_not_move_is_a_price_by_the_hour(life in lives(), price in 0..9_000_000_i64) {
        let price = petaflop_arbiter::money::UsdPerHour::from_micros(price).expect("a price");
        let [market, hourly] = [Price::Market(price), Price::Hourly(price)]
            .map(|price| total(&[Line { price, billing: EC2 }], &life, &[]));
        prop_assert_eq!(market, hourly);
        let still = [Step { at: now(), price }];
        let other = Line { price: Price::Market(rate("7")), billing: EC2 };
        prop_assert_eq!(total(&[other], &life, &still), hourly);
    }

    /// Nobody pays for less than he used, nor for more than the unit and the minimum add.
    #[test]
    fn rounding_adds_less_than_a_unit_beyond_the_minimum(life in lives(), unit in 1..120_u64) {
        let life = Life { taken: false, ..life };
        let billing = Billing { granularity: Duration::from_secs(unit), ..EC2 };
        let billed = micros(billing, Price::Hourly(rate("3.6")), life);
        let used = life.until.as_millisecond() - life.running.expect("it ran").as_millisecond();
        prop_assert!(billed >= used);
        let unit = i64::try_from(unit).expect("small") * 1000;
        prop_assert!(billed < (used + unit).max(60_001), "{billed} for {used}");
    }
}
