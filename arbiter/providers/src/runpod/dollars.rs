//! RunPod's prices: JSON numbers in dollars an hour, turned into whole micro-dollars once, here.

use petaflop_arbiter::money::{MICROS_PER_USD, Usd, UsdPerHour};
use serde_json::Value;

/// Container disk of a running pod: micro-dollars for a GB and month of 730 hours (0.10 $).
const DISK_MICROS_PER_GB_MONTH: i64 = 100_000;
const HOURS_PER_MONTH: i64 = 730;

/// Dearer than any machine: what says so is no price.
const MOST: f64 = 1e6;

/// A price; `None` for null, 0 and whatever else is none. 0 means "not offered here", never "free".
pub(super) fn hourly(value: &Value) -> Option<UsdPerHour> {
    let dollars = match value {
        Value::Number(number) => number.as_f64()?,
        // Some answers write amounts as text.
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    if !(dollars > 0.0 && dollars < MOST) {
        return None;
    }
    // Below 10^12 and so exact in both types; rounding is what decimal prices need.
    let micros = (dollars * MICROS_PER_USD as f64).round() as i64;
    UsdPerHour::from_micros(micros.max(1)).ok()
}

/// So many of it.
pub(super) fn times(price: UsdPerHour, count: u32) -> UsdPerHour {
    let micros = price.micros().saturating_mul(i64::from(count));
    UsdPerHour::from_micros(micros).unwrap_or(price)
}

/// A month of container disk of so many GB.
pub(super) fn disk_monthly(gb: u32) -> Usd {
    Usd::from_micros(i64::from(gb) * DISK_MICROS_PER_GB_MONTH)
}

/// Container disk of so many GB, rounded up.
pub(super) fn disk(gb: u32) -> UsdPerHour {
    let micros = disk_monthly(gb).micros();
    let hourly = (micros + HOURS_PER_MONTH - 1) / HOURS_PER_MONTH;
    UsdPerHour::from_micros(hourly).unwrap_or_default()
}

/// As a JSON number of dollars.
pub(super) fn number(price: UsdPerHour) -> f64 {
    price.as_f64()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn micros(value: &Value) -> Option<i64> {
        hourly(value).map(UsdPerHour::micros)
    }

    #[test]
    fn a_price_is_whole_micro_dollars_and_nothing_is_free() {
        assert_eq!(micros(&json!(0.34)), Some(340_000));
        assert_eq!(micros(&json!(2)), Some(2_000_000));
        assert_eq!(micros(&json!("0.0459999")), Some(46_000));
        for none in [json!(0), json!(0.0), json!(null), json!(-1), json!("NaN"), json!("inf")] {
            assert_eq!(micros(&none), None, "{none}");
        }
        assert_eq!(micros(&json!(1e300)), None);
        assert_eq!(micros(&json!({"usd": 1})), None);
        assert_eq!(micros(&json!(1e-9)), Some(1));
    }

    #[test]
    fn disk_costs_a_tenth_of_a_dollar_a_month() {
        assert_eq!(disk(40).micros(), 5_480);
        assert_eq!(disk(73).micros(), 10_000);
        assert_eq!(disk(730).micros(), 100_000);
        assert_eq!(times(disk(730), 3).micros(), 300_000);
    }
}
