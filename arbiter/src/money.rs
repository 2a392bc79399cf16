//! Money: whole micro-dollars in 64-bit integers, decimal strings outside.
//!
//! No float ever holds an amount. Every operation that can overflow says so.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Micro-dollars in a dollar.
pub const MICROS_PER_USD: i64 = 1_000_000;

/// Milliseconds in an hour.
pub const MILLIS_PER_HOUR: i64 = 3_600_000;

/// An amount of US dollars, in micro-dollars. Differences and corrections may be negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Usd(i64);

/// A price in US dollars an hour, in micro-dollars an hour. Never negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UsdPerHour(i64);

/// Why a text or a number is not money.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// Not the decimal form.
    #[error(
        "{text:?} is not an amount in dollars: expected up to 9 digits, optionally a point and up to 6 more (like \"2.50\"), without sign, unit or exponent"
    )]
    Form {
        /// What was found.
        text: String,
    },
    /// A price below zero.
    #[error("a price of {micros} micro-dollars an hour is below zero; prices are 0 or more")]
    Negative {
        /// What was found.
        micros: i64,
    },
}

impl Usd {
    /// Nothing.
    pub const ZERO: Usd = Usd(0);
    /// The largest amount; stands for "no limit" nowhere, only for saturated sums.
    pub const MAX: Usd = Usd(i64::MAX);

    /// From micro-dollars.
    pub const fn from_micros(micros: i64) -> Usd {
        Usd(micros)
    }

    /// In micro-dollars.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// The sum, or `None` where it does not fit in 64 bits.
    pub const fn checked_add(self, other: Usd) -> Option<Usd> {
        match self.0.checked_add(other.0) {
            Some(micros) => Some(Usd(micros)),
            None => None,
        }
    }

    /// The difference, or `None` where it does not fit in 64 bits.
    pub const fn checked_sub(self, other: Usd) -> Option<Usd> {
        match self.0.checked_sub(other.0) {
            Some(micros) => Some(Usd(micros)),
            None => None,
        }
    }

    /// The sum, held at the largest amount: right for comparisons against a limit, wrong for a ledger.
    pub const fn saturating_add(self, other: Usd) -> Usd {
        Usd(self.0.saturating_add(other.0))
    }

    /// The difference, held at the ends: right for comparisons against a limit, wrong for a ledger.
    pub const fn saturating_sub(self, other: Usd) -> Usd {
        Usd(self.0.saturating_sub(other.0))
    }

    /// The amount as a float, for ratios and charts; never to compute with money.
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / MICROS_PER_USD as f64
    }
}

impl UsdPerHour {
    /// Free of charge.
    pub const ZERO: UsdPerHour = UsdPerHour(0);

    /// From micro-dollars an hour.
    ///
    /// # Errors
    /// A negative price.
    pub const fn from_micros(micros: i64) -> Result<UsdPerHour, MoneyError> {
        if micros < 0 {
            return Err(MoneyError::Negative { micros });
        }
        Ok(UsdPerHour(micros))
    }

    /// In micro-dollars an hour.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// What this rate costs over a span: rate × millis ÷ 3 600 000, to the nearest micro-dollar, ties up.
    /// A negative span costs nothing; a result beyond 64 bits is held at [`Usd::MAX`].
    pub fn for_millis(self, millis: i64) -> Usd {
        let product = i128::from(self.0) * i128::from(millis.max(0));
        let hour = i128::from(MILLIS_PER_HOUR);
        Usd(i64::try_from((product + hour / 2) / hour).unwrap_or(i64::MAX))
    }

    /// The sum of two rates, held at the largest: for comparisons against a limit.
    pub const fn saturating_add(self, other: UsdPerHour) -> UsdPerHour {
        UsdPerHour(self.0.saturating_add(other.0))
    }

    /// What is left of a rate without another: nothing, where that one is larger.
    pub const fn saturating_sub(self, other: UsdPerHour) -> UsdPerHour {
        UsdPerHour(if self.0 > other.0 { self.0 - other.0 } else { 0 })
    }

    /// The amount that one hour costs.
    pub const fn one_hour(self) -> Usd {
        Usd(self.0)
    }

    /// As a float, for ratios and charts; never to compute with money.
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / MICROS_PER_USD as f64
    }
}

/// Reads `^\d{1,9}(\.\d{1,6})?$`, the pattern of the API.
fn parse_unsigned(text: &str, most_digits: usize) -> Option<i64> {
    let (whole, fraction) = match text.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (text, None),
    };
    let digits = |part: &str, most: usize| {
        (1..=most).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit())
    };
    if !digits(whole, most_digits) {
        return None;
    }
    let mut micros = whole.parse::<i64>().ok()?.checked_mul(MICROS_PER_USD)?;
    if let Some(fraction) = fraction {
        if !digits(fraction, 6) {
            return None;
        }
        let scale = 10_i64.pow(6 - fraction.len() as u32);
        micros = micros.checked_add(fraction.parse::<i64>().ok()? * scale)?;
    }
    Some(micros)
}

/// Writes the shortest decimal form: "2", "2.5", "0.000001", "-0.25".
fn write_micros(f: &mut fmt::Formatter<'_>, micros: i64) -> fmt::Result {
    let size = micros.unsigned_abs();
    let (whole, fraction) = (size / 1_000_000, size % 1_000_000);
    let mut text = whole.to_string();
    if fraction > 0 {
        let digits = format!("{fraction:06}");
        text.push('.');
        text.push_str(digits.trim_end_matches('0'));
    }
    f.pad_integral(micros >= 0, "", &text)
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_micros(f, self.0)
    }
}

impl fmt::Display for UsdPerHour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_micros(f, self.0)
    }
}

impl FromStr for Usd {
    type Err = MoneyError;

    /// Reads the API's form: unsigned, at most 9 digits and 6 decimals.
    fn from_str(text: &str) -> Result<Usd, MoneyError> {
        parse_unsigned(text, 9).map(Usd).ok_or_else(|| MoneyError::Form { text: text.into() })
    }
}

impl FromStr for UsdPerHour {
    type Err = MoneyError;

    /// Reads the API's form: unsigned, at most 9 digits and 6 decimals.
    fn from_str(text: &str) -> Result<UsdPerHour, MoneyError> {
        parse_unsigned(text, 9)
            .map(UsdPerHour)
            .ok_or_else(|| MoneyError::Form { text: text.into() })
    }
}

impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for UsdPerHour {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Usd {
    /// Takes whatever `Display` writes: sums and corrections may be longer than the API allows, or negative.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Usd, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.as_str()),
        };
        parse_unsigned(digits, 13)
            .map(|micros| Usd(if negative { -micros } else { micros }))
            .ok_or_else(|| serde::de::Error::custom(MoneyError::Form { text }))
    }
}

impl<'de> Deserialize<'de> for UsdPerHour {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<UsdPerHour, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_unsigned(&text, 13)
            .map(UsdPerHour)
            .ok_or_else(|| serde::de::Error::custom(MoneyError::Form { text }))
    }
}

impl std::iter::Sum for Usd {
    /// Held at the largest amount: for comparisons against a limit.
    fn sum<I: Iterator<Item = Usd>>(iter: I) -> Usd {
        iter.fold(Usd::ZERO, Usd::saturating_add)
    }
}
