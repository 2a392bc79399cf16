//! Number formats of buffers, and how many bytes a count of them takes.

use serde::{Deserialize, Serialize};

/// Rows that a packed matrix is filled up to a multiple of.
pub const PACKED_ROWS: u64 = 48;

/// A number format. Quantised formats hold blocks of 32 numbers along a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// 32-bit unsigned integer (indices).
    U32,
    /// The upper half of an [`Dtype::F32`].
    Bf16,
    /// IEEE 754 half precision.
    F16,
    /// 32 signed bytes and one f16 scale (GGML `q8_0`).
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 32 four-bit numbers and one f16 scale (GGML `q4_0`).
    #[serde(rename = "q4_0")]
    Q4_0,
}

impl Dtype {
    /// Numbers in one block: 1 unless quantised.
    pub const fn block_len(self) -> u64 {
        match self {
            Self::F32 | Self::U32 | Self::Bf16 | Self::F16 => 1,
            Self::Q8_0 | Self::Q4_0 => 32,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> u64 {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
        }
    }

    /// Bytes of `count` numbers, the last block filled up.
    pub const fn bytes(self, count: u64) -> u64 {
        count.div_ceil(self.block_len()) * self.block_bytes()
    }

    /// Bytes of a matrix of `rows` of `width` numbers in the layout that products
    /// read: rows filled up to a multiple of [`PACKED_ROWS`], and scales as f32.
    pub const fn packed_bytes(self, rows: u64, width: u64) -> u64 {
        let padded = rows.next_multiple_of(PACKED_ROWS);
        match self {
            Self::Q8_0 => padded * (width + width / 32 * 4),
            Self::Q4_0 => padded * (width / 2 + width / 32 * 4),
            other => padded * other.bytes(width),
        }
    }

    /// The name in recipes, flags and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::U32 => "u32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Dtype {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Self::F32, Self::U32, Self::Bf16, Self::F16, Self::Q8_0, Self::Q4_0]
            .into_iter()
            .find(|dtype| dtype.name() == name)
            .ok_or_else(|| {
                format!("unknown number format {name:?}: expected f32, bf16, f16, q8_0 or q4_0")
            })
    }
}

#[cfg(test)]
mod tests {
    use super::Dtype;

    #[test]
    fn a_partly_filled_block_takes_a_whole_one() {
        assert_eq!(Dtype::Q8_0.bytes(32), 34);
        assert_eq!(Dtype::Q8_0.bytes(33), 68);
        assert_eq!(Dtype::Q4_0.bytes(64), 36);
        assert_eq!(Dtype::F32.bytes(3), 12);
        assert_eq!("q8_0".parse(), Ok(Dtype::Q8_0));
    }
}
