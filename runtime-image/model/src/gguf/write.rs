//! Metadata and tensors to a file. Equal contents give equal bytes.

use std::io::{self, Write};

use super::value::{Value, write_string};
use super::{DEFAULT_ALIGNMENT, MAGIC, TensorType, VERSION};

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its name: below 64 bytes.
    pub name: String,
    /// Dimensions, the slowest first: one to four, a row of whole blocks.
    pub shape: Vec<u64>,
    /// How its numbers are kept.
    pub dtype: TensorType,
}

impl Header {
    /// Bytes of its numbers.
    pub fn bytes(&self) -> u64 {
        self.dtype.dtype().bytes(self.shape.iter().product())
    }
}

/// Writes a file. `fill` is asked for the bytes of each tensor in turn, so that only one
/// of them is in memory; it gets a buffer of exactly [`Header::bytes`].
///
/// # Errors
/// What `out` or `fill` says.
pub fn write<E: From<io::Error>>(
    out: &mut impl Write,
    metadata: &[(String, Value)],
    tensors: &[Header],
    mut fill: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut head = Vec::from(MAGIC);
    head.extend(VERSION.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        write_string(key, &mut head);
        head.extend(value.kind().to_le_bytes());
        value.write(&mut head);
    }
    let mut offset = 0;
    for tensor in tensors {
        write_string(&tensor.name, &mut head);
        head.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|n| head.extend(n.to_le_bytes()));
        head.extend(tensor.dtype.id().to_le_bytes());
        head.extend(u64::to_le_bytes(offset));
        offset += tensor.bytes().next_multiple_of(DEFAULT_ALIGNMENT);
    }
    pad(&mut head);
    out.write_all(&head)?;
    let mut bytes = Vec::new();
    for (index, tensor) in tensors.iter().enumerate() {
        bytes.clear();
        bytes.resize(tensor.bytes() as usize, 0);
        fill(index, &mut bytes)?;
        pad(&mut bytes);
        out.write_all(&bytes)?;
    }
    Ok(())
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
}
