//! Recorded availability and prices: `{"metadata":{"gap_seconds":N},"data":[…]}`.
//!
//! Nothing is repaired: what is not a number, is missing or is no price, is an error that names the point.

use std::fmt;

use serde::de::{self, DeserializeSeed, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::money::UsdPerHour;

/// A recording: one value every so many seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Seconds between points; above 0.
    pub gap: i64,
    /// The points; at least one, all finite.
    pub points: Vec<f64>,
}

/// Why a text is no trace. The file's name is the caller's to add.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// Not the form.
    #[error("is not a trace ({{\"metadata\":{{\"gap_seconds\":N}},\"data\":[…]}}): {0}")]
    Form(String),
    /// No time between points.
    #[error("has \"gap_seconds\" {0}; it must be a whole number of seconds above 0")]
    Gap(String),
    /// Nothing in it.
    #[error("has no points in \"data\"")]
    Empty,
    /// More ticks than can be held.
    #[error("covers {seconds} s, more than {MOST_TICKS} ticks of {tick} s; take longer ticks")]
    TooLong {
        /// What it covers.
        seconds: i64,
        /// Seconds of a tick.
        tick: i64,
    },
    /// Not a number of machines.
    #[error("has {value} at point {point}; give whole machines, 0 to 4294967295")]
    Machines {
        /// Which point, from 0.
        point: usize,
        /// What was found.
        value: String,
    },
    /// Not a price.
    #[error("has {value} at point {point}; a price is 0 to 999999999 dollars an hour")]
    Price {
        /// Which point, from 0.
        point: usize,
        /// What was found.
        value: String,
    },
}

/// Most ticks that a recording is sampled at: a gap of years takes no memory in the file.
pub const MOST_TICKS: i64 = 1 << 25;

/// Which values mean "spot is there".
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Means {
    /// At least so many machines; `data ≥ n`.
    AtLeast(f64),
    /// More than none; `data > 0`.
    Positive,
    /// Everything but this value, which means that there is none.
    AllBut(f64),
}

impl Means {
    /// Whether a value means "there".
    pub fn there(self, value: f64) -> bool {
        match self {
            Means::AtLeast(least) => value >= least,
            Means::Positive => value > 0.0,
            Means::AllBut(none) => value != none,
        }
    }
}

#[derive(Deserialize)]
struct Form {
    metadata: Metadata,
    data: Points,
}

#[derive(Deserialize)]
struct Metadata {
    gap_seconds: serde_json::Number,
}

struct Points(Vec<f64>);

impl<'de> Deserialize<'de> for Points {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(PointsVisitor).map(Points)
    }
}

struct PointsVisitor;

impl<'de> Visitor<'de> for PointsVisitor {
    type Value = Vec<f64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut points = Vec::new();
        loop {
            let place = points.len();
            let next = seq.next_element_seed(Point);
            match next.map_err(|error| de::Error::custom(format!("point {place}: {error}")))? {
                Some(value) => points.push(value),
                None => return Ok(points),
            }
        }
    }
}

struct Point;

impl<'de> DeserializeSeed<'de> for Point {
    type Value = f64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<f64, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Point {
    type Value = f64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<f64, E> {
        match value.is_finite() {
            true => Ok(value),
            false => Err(E::custom("not a finite number")),
        }
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<f64, E> {
        Ok(value as f64)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<f64, E> {
        Ok(value as f64)
    }
}

impl Trace {
    /// Reads a trace.
    ///
    /// # Errors
    /// Whatever is not exactly the form, with the point where it is.
    pub fn parse(bytes: &[u8]) -> Result<Trace, TraceError> {
        let form: Form =
            serde_json::from_slice(bytes).map_err(|error| TraceError::Form(error.to_string()))?;
        let Form { metadata: Metadata { gap_seconds }, data: Points(points) } = form;
        let whole = gap_seconds.as_f64().filter(|gap| gap.fract() == 0.0 && *gap < 1e9);
        let gap = whole.map_or(0, |gap| gap as i64);
        if gap <= 0 {
            return Err(TraceError::Gap(gap_seconds.to_string()));
        }
        if points.is_empty() {
            return Err(TraceError::Empty);
        }
        Ok(Trace { gap, points })
    }

    /// Seconds that it covers.
    pub fn seconds(&self) -> i64 {
        self.gap.saturating_mul(self.points.len() as i64)
    }

    /// Sampled at the start of each tick that starts within it, and held for the tick.
    fn sampled(&self, tick: i64) -> Result<impl Iterator<Item = (usize, f64)>, TraceError> {
        let seconds = self.seconds();
        let count = seconds.saturating_add(tick - 1) / tick;
        if count > MOST_TICKS {
            return Err(TraceError::TooLong { seconds, tick });
        }
        Ok((0..count).filter_map(move |index| {
            let point = usize::try_from(index.saturating_mul(tick) / self.gap).ok()?;
            Some((point, *self.points.get(point)?))
        }))
    }

    /// Whether there was spot, by tick of so many seconds, more than 0.
    ///
    /// # Errors
    /// [`TraceError::TooLong`].
    pub fn available(&self, tick: i64, means: Means) -> Result<Vec<bool>, TraceError> {
        Ok(self.sampled(tick)?.map(|(_, value)| means.there(value)).collect())
    }

    /// Machines, by tick.
    ///
    /// # Errors
    /// [`TraceError::TooLong`], or a point that is no number of machines.
    pub fn machines(&self, tick: i64) -> Result<Vec<u32>, TraceError> {
        let machines = |(point, value): (usize, f64)| match value.fract() == 0.0
            && (0.0..=f64::from(u32::MAX)).contains(&value)
        {
            true => Ok(value as u32),
            false => Err(TraceError::Machines { point, value: value.to_string() }),
        };
        self.sampled(tick)?.map(machines).collect()
    }

    /// Dollars an hour, by tick.
    ///
    /// # Errors
    /// [`TraceError::TooLong`], or a point that is no price.
    pub fn prices(&self, tick: i64) -> Result<Vec<UsdPerHour>, TraceError> {
        let price = |(point, value): (usize, f64)| {
            let refused = || TraceError::Price { point, value: value.to_string() };
            if !(0.0..1e9).contains(&value) {
                return Err(refused());
            }
            UsdPerHour::from_micros((value * 1e6).round() as i64).map_err(|_| refused())
        };
        self.sampled(tick)?.map(price).collect()
    }
}
