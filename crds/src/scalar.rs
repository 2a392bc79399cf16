//! Strings that stand for exact values: money, quantities, spans and points of time.
//!
//! They stay strings in the API, because a float would be re-formatted by the
//! next tool and show as a difference; they parse exactly or not at all.

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use petaflop_arbiter::money::{Usd, UsdPerHour};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// Pattern of [`Money`]: at most nine digits of dollars and six of a dollar.
pub const MONEY_PATTERN: &str = "^[0-9]{1,9}([.][0-9]{1,6})?$";
/// Pattern of [`Quantity`], as Kubernetes writes it, without sign and exponent.
pub const QUANTITY_PATTERN: &str = "^[0-9]{1,15}([.][0-9]{1,9})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$";
/// Pattern of [`Span`]: days, hours, minutes, seconds, the largest first.
pub const SPAN_PATTERN: &str = "^([0-9]{1,6}d)?([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,8}s)?$";

/// Pattern of [`Decimal`]: as Rust writes an `f64`, with an exponent where it is far from 1.
pub const DECIMAL_PATTERN: &str = "^[0-9]{1,17}([.][0-9]{1,22})?(e-?[0-9]{1,3})?$";

/// Why a scalar does not stand for a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {found:?}")]
pub struct ScalarError {
    /// The form it should have, with an example.
    pub expected: &'static str,
    /// What stands there.
    pub found: String,
}

/// An amount of US dollars as a decimal string: `"2.50"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Money(pub String);

impl Money {
    const EXPECTED: &'static str = "dollars as a decimal string such as \"2.50\" (at most 9 digits before the point and 6 after)";

    /// The amount in micro-dollars, exactly.
    pub fn micro_dollars(&self) -> Result<i64, ScalarError> {
        self.0
            .parse()
            .map(Usd::micros)
            .map_err(|_| ScalarError { expected: Self::EXPECTED, found: self.0.clone() })
    }
}

impl From<Usd> for Money {
    /// The shortest form. What is negative or has more than nine digits is not money to the API,
    /// and a server refuses it.
    fn from(amount: Usd) -> Money {
        Money(amount.to_string())
    }
}

impl From<UsdPerHour> for Money {
    fn from(price: UsdPerHour) -> Money {
        Money(price.to_string())
    }
}

/// At most `most` ASCII digits, and nothing else.
fn digits(text: &str, most: usize) -> Option<i64> {
    let fine = !text.is_empty() && text.len() <= most && text.bytes().all(|b| b.is_ascii_digit());
    fine.then(|| text.parse().ok()).flatten()
}

/// An amount of something in Kubernetes' notation: `8`, `500m`, `64Gi`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Quantity(pub String);

impl Quantity {
    const EXPECTED: &'static str = "a quantity such as 8, 500m, 0.5 or 64Gi";

    /// The value in thousandths, exactly: `500m` is 500, `2` is 2000.
    pub fn milli(&self) -> Result<u128, ScalarError> {
        let error = || ScalarError { expected: Self::EXPECTED, found: self.0.clone() };
        let end = self.0.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(self.0.len());
        let (number, unit) = self.0.split_at(end);
        let factor: u128 = match unit {
            "m" => 1,
            "" => 1_000,
            "k" => 1_000_000,
            "M" => 1_000_000_000,
            "G" => 1_000_000_000_000,
            "T" => 1_000_000_000_000_000,
            "P" => 1_000_000_000_000_000_000,
            "Ki" => 1_000 << 10,
            "Mi" => 1_000 << 20,
            "Gi" => 1_000 << 30,
            "Ti" => 1_000 << 40,
            "Pi" => 1_000 << 50,
            _ => return Err(error()),
        };
        let (whole, fraction) = match number.split_once('.') {
            Some((_, "")) => return Err(error()),
            Some((whole, fraction)) => (whole, fraction),
            None => (number, ""),
        };
        let whole = digits(whole, 15).ok_or_else(error)? as u128 * factor;
        if fraction.is_empty() {
            return Ok(whole);
        }
        let scale = 10_u128.pow(fraction.len().min(9) as u32);
        let part = digits(fraction, 9).ok_or_else(error)? as u128 * factor;
        if !part.is_multiple_of(scale) {
            return Err(ScalarError {
                expected: "a quantity that is a whole number of thousandths",
                found: self.0.clone(),
            });
        }
        Ok(whole + part / scale)
    }

    /// The value in whole units (bytes, for memory), exactly.
    pub fn units(&self) -> Result<u64, ScalarError> {
        let milli = self.milli()?;
        let whole =
            milli.is_multiple_of(1_000).then(|| u64::try_from(milli / 1_000).ok()).flatten();
        whole.ok_or_else(|| ScalarError {
            expected: "a quantity that is a whole number below 2^64",
            found: self.0.clone(),
        })
    }
}

/// Manifests write `cpu: 8` as often as `cpu: "8"`.
impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Quantity;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(Quantity::EXPECTED)
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Quantity, E> {
                Ok(Quantity(text.to_owned()))
            }
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Quantity, E> {
                Ok(Quantity(number.to_string()))
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Quantity, E> {
                Ok(Quantity(number.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A span of time: `90s`, `45m`, `52h`, `2d12h`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Span(pub String);

impl Span {
    const EXPECTED: &'static str = "a span of time such as 90s, 45m, 52h or 2d12h";

    /// The span in seconds; a day is 24 hours.
    pub fn seconds(&self) -> Result<u64, ScalarError> {
        let error = || ScalarError { expected: Self::EXPECTED, found: self.0.clone() };
        let mut rest = self.0.as_str();
        let mut total: u64 = 0;
        for (unit, length) in [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)] {
            if let Some((number, after)) = rest.split_once(unit) {
                total += digits(number, 8).ok_or_else(error)? as u64 * length;
                rest = after;
            }
        }
        if !rest.is_empty() || total == 0 {
            return Err(error());
        }
        Ok(total)
    }
}

/// A measured number of 0 or more, as text: `"0.05"`. It reads back as the same `f64`; as a JSON
/// number it would be written anew by every tool on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Decimal(pub String);

impl Decimal {
    const EXPECTED: &'static str = "a number of 0 or more, as text, such as \"0.05\" or \"1.5e3\"";

    /// The shortest text that stands for this number; none for what is negative or no number.
    pub fn of(number: f64) -> Option<Decimal> {
        if !number.is_finite() || number < 0.0 {
            return None;
        }
        // No negative zero.
        let number = number.abs();
        let plain = number == 0.0 || (1e-5..1e15).contains(&number);
        Some(Decimal(if plain { format!("{number}") } else { format!("{number:e}") }))
    }

    /// The number.
    pub fn number(&self) -> Result<f64, ScalarError> {
        let plain = self.0.starts_with(|c: char| c.is_ascii_digit());
        let number = plain.then(|| self.0.parse::<f64>().ok()).flatten();
        number
            .filter(|number| number.is_finite())
            .ok_or_else(|| ScalarError { expected: Self::EXPECTED, found: self.0.clone() })
    }
}

impl JsonSchema for Decimal {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Decimal".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 48, "pattern": DECIMAL_PATTERN })
    }
}

/// A point in time to the nanosecond: RFC 3339 in UTC. Kubernetes' own `Time` has whole seconds,
/// which is too coarse for what a ledger is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub Timestamp);

impl From<Timestamp> for Moment {
    fn from(at: Timestamp) -> Moment {
        Moment(at)
    }
}

impl JsonSchema for Moment {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Moment".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time", "maxLength": 40 })
    }
}

impl JsonSchema for Money {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Money".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 16, "pattern": MONEY_PATTERN })
    }
}

impl JsonSchema for Quantity {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-int-or-string": true, "pattern": QUANTITY_PATTERN, "minimum": 0 })
    }
}

impl JsonSchema for Span {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 2, "maxLength": 32, "pattern": SPAN_PATTERN })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_parses_exactly_or_not_at_all() {
        for (text, micro) in [
            ("0", 0),
            ("2.50", 2_500_000),
            ("0.000001", 1),
            ("999999999.999999", 999_999_999_999_999),
            ("007", 7_000_000),
        ] {
            assert_eq!(Money(text.into()).micro_dollars(), Ok(micro), "{text}");
        }
        for text in [
            "",
            ".",
            "1.",
            ".5",
            "-1",
            "+1",
            "1e3",
            "1,5",
            "1.0000001",
            "1000000000",
            " 1",
            "١",
            "NaN",
            "$5",
        ] {
            assert!(Money(text.into()).micro_dollars().is_err(), "{text}");
        }
    }

    #[test]
    fn quantities_parse_exactly_or_not_at_all() {
        for (text, milli) in [
            ("8", 8_000),
            ("500m", 500),
            ("0.5", 500),
            ("1.5Gi", 1_610_612_736_000),
            ("64Gi", 64 * (1 << 30) * 1_000),
            ("100G", 100_000_000_000_000),
        ] {
            assert_eq!(Quantity(text.into()).milli(), Ok(milli), "{text}");
        }
        for text in
            ["", "Gi", "1.", "1.0001m", "64gb", "64 Gi", "-1", "1e3", "1..2", "9999999999999999"]
        {
            assert!(Quantity(text.into()).milli().is_err(), "{text}");
        }
        assert_eq!(Quantity("64Gi".into()).units(), Ok(64 << 30));
        assert!(Quantity("500m".into()).units().is_err(), "half a byte");
        assert!(Quantity("999999999999999Pi".into()).units().is_err(), "beyond 2^64");
    }

    #[test]
    fn spans_parse_exactly_or_not_at_all() {
        for (text, seconds) in [
            ("90s", 90),
            ("45m", 2_700),
            ("52h", 187_200),
            ("2d12h", 216_000),
            ("1d2h3m4s", 93_784),
        ] {
            assert_eq!(Span(text.into()).seconds(), Ok(seconds), "{text}");
        }
        for text in ["", "0s", "5", "h", "1.5h", "12h2d", "1w", "-1h", "1 h", "999999999d"] {
            assert!(Span(text.into()).seconds().is_err(), "{text}");
        }
    }
}
