//! Numbers written down by their bits, so that they are read back as they were.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Writes a number as the integer of its bits.
pub(super) fn serialize<S: Serializer>(number: &f64, to: S) -> Result<S::Ok, S::Error> {
    number.to_bits().serialize(to)
}

/// Reads it back; what is no number that can be counted with is refused.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    let number = f64::from_bits(u64::deserialize(from)?);
    let counts = number.is_finite() && number >= 0.0;
    counts.then_some(number).ok_or_else(|| serde::de::Error::custom("bits of no number from 0 on"))
}
