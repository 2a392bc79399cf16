//! Number formats of stored matrices, and how many bytes a count of numbers takes in each.

use std::fmt;

use serde::Serialize;

/// How numbers of matrices are stored. Vectors (gains, biases) stay in 4 bytes where matrices are
/// quantised, as in GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// bfloat16, or f16.
    Bf16,
    /// GGML: 32 signed bytes and a scale.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// GGML: 6 bits, in blocks of 256.
    Q6K,
    /// GGML: 5 bits, in blocks of 256.
    Q5K,
    /// GGML: 4 bits, in blocks of 256.
    Q4K,
    /// GGML: 32 numbers of 4 bits and a scale.
    #[serde(rename = "q4_0")]
    Q4_0,
    /// QLoRA's: 4 bits, a byte for each 64, and four bytes for each 256 of those bytes.
    Nf4,
}

impl Format {
    /// Numbers of a block, and its bytes.
    const fn block(self) -> (u64, u64) {
        match self {
            Self::F32 => (1, 4),
            Self::Bf16 => (1, 2),
            Self::Q8_0 => (32, 34),
            Self::Q6K => (256, 210),
            Self::Q5K => (256, 176),
            Self::Q4K => (256, 144),
            Self::Q4_0 => (32, 18),
            Self::Nf4 => (64 * 256, 64 * 256 / 2 + 256 + 4),
        }
    }

    /// Bytes of this many numbers, the last block filled up.
    pub const fn bytes(self, count: u64) -> u64 {
        let (numbers, bytes) = self.block();
        count.div_ceil(numbers).saturating_mul(bytes)
    }

    /// Bytes of a number that is computed with, where matrices are stored like this.
    pub const fn computed(self) -> u64 {
        match self {
            Self::F32 => 4,
            _ => 2,
        }
    }

    /// Bytes of a number of a vector.
    pub const fn vector(self) -> u64 {
        match self {
            Self::Bf16 => 2,
            _ => 4,
        }
    }

    /// As in flags and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q6K => "q6_k",
            Self::Q5K => "q5_k",
            Self::Q4K => "q4_k",
            Self::Q4_0 => "q4_0",
            Self::Nf4 => "nf4",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
