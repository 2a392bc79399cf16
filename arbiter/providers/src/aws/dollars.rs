//! AWS's prices: decimal texts with any number of digits, turned into whole micro-dollars once,
//! here, rounded up.

use petaflop_arbiter::money::{MICROS_PER_USD, UsdPerHour};

/// A price; `None` for 0 and whatever else is none.
pub(super) fn hourly(text: &str) -> Option<UsdPerHour> {
    let text = text.trim();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.chars().all(|c| c.is_ascii_digit());
    if whole.is_empty() || whole.len() > 6 || !digits(whole) || !digits(fraction) {
        return None;
    }
    let (kept, rest) = fraction.split_at(fraction.len().min(6));
    let more = i64::from(rest.chars().any(|c| c != '0'));
    let kept: i64 = format!("{kept:0<6}").parse().ok()?;
    let micros = whole.parse::<i64>().ok()? * MICROS_PER_USD + kept + more;
    UsdPerHour::from_micros(micros).ok().filter(|price| *price > UsdPerHour::ZERO)
}

/// So many micro-dollars more.
pub(super) fn plus(price: UsdPerHour, micros: i64) -> UsdPerHour {
    UsdPerHour::from_micros(price.micros().saturating_add(micros)).unwrap_or(price)
}

/// So many micro-dollars less.
pub(super) fn less(price: UsdPerHour, micros: i64) -> UsdPerHour {
    UsdPerHour::from_micros(price.micros().saturating_sub(micros).max(0)).unwrap_or(price)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_rounded_up_to_micro_dollars_and_nothing_is_free() {
        let micros = |text: &str| hourly(text).map(UsdPerHour::micros);
        assert_eq!(micros("0.5260000000"), Some(526_000));
        assert_eq!(micros("21.957642"), Some(21_957_642));
        assert_eq!(micros("0.00001"), Some(10));
        assert_eq!(micros("0.0000001"), Some(1));
        assert_eq!(micros("3"), Some(3_000_000));
        for none in ["", "0", "0.000", "-1", "1e3", "1,5", ".5", "x", "99999999"] {
            assert_eq!(micros(none), None, "{none}");
        }
    }
}
