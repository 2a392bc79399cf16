//! What a provider bills for a machine: its rules and the machine's life in, micro-dollars out.
//!
//! A bill has [`Line`]s, each rounded by itself: the machine, its disk, its address. Which there are,
//! and by what [`Billing`] each goes, a provider says; how they add up is here alone.

use std::time::Duration;

use jiff::Timestamp;

use crate::money::{MILLIS_PER_HOUR, Usd, UsdPerHour};

/// What is sold by the month is sold by the month of 730 hours.
const MILLIS_PER_MONTH: i64 = 730 * MILLIS_PER_HOUR;

/// How time becomes money.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Billing {
    /// Time is rounded up to this. None is rounded where it is zero.
    pub granularity: Duration,
    /// The least that is billed.
    pub minimum: Duration,
    /// Since when.
    pub begins: Begins,
    /// What the provider takes away before it was billed for so long costs nothing.
    pub free_if_taken_within: Duration,
}

/// What begins the bill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begins {
    /// The purchase.
    Bought,
    /// That the machine runs: while it comes up it costs nothing.
    Running,
}

impl Billing {
    /// From the purchase on, and nothing is free.
    pub const fn new(granularity: Duration, minimum: Duration) -> Self {
        Self { granularity, minimum, begins: Begins::Bought, free_if_taken_within: Duration::ZERO }
    }
}

/// By what a line is reckoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Price {
    /// This much an hour.
    Hourly(UsdPerHour),
    /// This much a month of 730 hours.
    Monthly(Usd),
    /// The market's price at the beginning of each of the line's hours: see [`Step`]; this, where
    /// the market is not known so far back.
    Market(UsdPerHour),
}

/// One line of a bill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// What time costs.
    pub price: Price,
    /// Which time.
    pub billing: Billing,
}

/// A machine's life, as far as a bill looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// When it was bought.
    pub bought: Timestamp,
    /// When it began to run; `None`: it never did, or does not yet.
    pub running: Option<Timestamp>,
    /// When it ended, or until when is reckoned.
    pub until: Timestamp,
    /// The provider took it away then.
    pub taken: bool,
}

/// From then on the market's price is this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// When.
    pub at: Timestamp,
    /// Which.
    pub price: UsdPerHour,
}

/// What all lines come to, each to the nearest micro-dollar, ties up. `market` is in order of time.
/// Held at [`Usd::MAX`].
pub fn total(lines: &[Line], life: &Life, market: &[Step]) -> Usd {
    lines.iter().fold(Usd::ZERO, |sum, line| sum.saturating_add(line.amount(life, market)))
}

impl Line {
    fn amount(&self, life: &Life, market: &[Step]) -> Usd {
        let Billing { granularity, minimum, begins, free_if_taken_within } = self.billing;
        let from = match begins {
            Begins::Bought => Some(life.bought),
            Begins::Running => life.running,
        };
        let Some(from) = from else { return Usd::ZERO };
        let lived = life.until.as_millisecond().saturating_sub(from.as_millisecond()).max(0);
        if life.taken && lived < millis(free_if_taken_within) {
            return Usd::ZERO;
        }
        let unit = millis(granularity).max(1);
        let units = lived / unit + i64::from(lived % unit > 0);
        let billed = units.saturating_mul(unit).max(millis(minimum));
        match self.price {
            Price::Hourly(price) => price.for_millis(billed),
            Price::Monthly(price) => {
                rounded(i128::from(price.micros()) * i128::from(billed), MILLIS_PER_MONTH)
            }
            Price::Market(unknown) => {
                let price = |at: i64| {
                    let past = market.partition_point(|step| step.at.as_millisecond() <= at);
                    past.checked_sub(1).map_or(unknown, |last| market[last].price)
                };
                let (mut sum, mut passed) = (0_i128, 0);
                while passed < billed {
                    let part = (billed - passed).min(MILLIS_PER_HOUR);
                    let price = price(from.as_millisecond().saturating_add(passed));
                    sum += i128::from(price.micros()) * i128::from(part);
                    passed += part;
                }
                rounded(sum, MILLIS_PER_HOUR)
            }
        }
    }
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

fn rounded(product: i128, by: i64) -> Usd {
    let by = i128::from(by);
    Usd::from_micros(i64::try_from((product + by / 2).div_euclid(by)).unwrap_or(i64::MAX))
}
