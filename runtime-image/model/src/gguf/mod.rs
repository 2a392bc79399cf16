//! GGUF, version 3: one little-endian file with a model's metadata and tensors, as
//! llama.cpp and its relatives read it.
//!
//! ```text
//! "GGUF" · u32 version · u64 tensors · u64 entries
//! entries: string key · u32 kind · value          string: u64 length · UTF-8
//! tensors: string name · u32 dimensions · u64 each, the fastest first · u32 type · u64 offset
//! padding · the tensors' bytes, each at a multiple of general.alignment (32)
//! ```
//!
//! Sources: ggml's `docs/gguf.md` (the layout, the names of keys), ggml's `ggml-common.h` and
//! `ggml-quants.c` (blocks of [`q8_0`](petaflop_kernel::quantize_q8_0) and [`block`]).
//!
//! | module | holds |
//! |---|---|
//! | [`value`] | [`value::Value`]: what an entry of the metadata is |
//! | [`read`] | [`read::Gguf`]: a file, checked, whose tensors are parts of its mapping |
//! | [`write`] | [`write::write`]: metadata and tensors to a file |
//! | [`block`] | numbers of a tensor from and to its type |
//! | [`model`] | [`model::GgufModel`]: a file as a model's weights |
//! | [`mod@export`] | [`export::export`]: weights as a file |
//! | `metadata`, `names` | a model's form as entries; what tensors and their rows are called |
//! | [`vocabulary`] | a tokenizer as metadata, and back |

pub mod block;
pub mod export;
mod metadata;
pub mod model;
mod names;
pub mod read;
pub mod value;
pub mod vocabulary;
pub mod write;

use petaflop_plan::dtype::Dtype;

pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
pub(crate) const VERSION: u32 = 3;
/// Key of the alignment of tensors, where it is not [`DEFAULT_ALIGNMENT`].
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";
pub(crate) const DEFAULT_ALIGNMENT: u64 = 32;
/// Dimensions of a tensor at most (`GGML_MAX_DIMS`).
pub(crate) const MAX_DIMENSIONS: usize = 4;
/// Bytes of a tensor's name at most, its end included (`GGML_MAX_NAME`).
pub(crate) const MAX_NAME: usize = 64;

/// How the numbers of a tensor are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TensorType {
    /// 32-bit floats.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper halves of 32-bit floats.
    Bf16,
    /// Blocks of 32 along a row: an f16 scale, 32 signed bytes.
    Q8_0,
    /// Blocks of 32 along a row: an f16 scale, 16 bytes of two numbers each.
    Q4_0,
}

impl TensorType {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Q8_0, Self::Q4_0];

    /// Its number in a file (`enum ggml_type`).
    pub const fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 8,
            Self::Bf16 => 30,
        }
    }

    /// The type of this number, where it is one that we know.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.id() == id)
    }

    /// The planner's word for it, which knows the sizes of blocks.
    pub const fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::Bf16,
            Self::Q8_0 => Dtype::Q8_0,
            Self::Q4_0 => Dtype::Q4_0,
        }
    }

    /// The type that keeps numbers so.
    ///
    /// # Panics
    /// For whole numbers there is none.
    pub fn of(dtype: Dtype) -> Self {
        let found = Self::ALL.into_iter().find(|t| t.dtype() == dtype);
        found.unwrap_or_else(|| panic!("{dtype} is none of the types that files have"))
    }
}
