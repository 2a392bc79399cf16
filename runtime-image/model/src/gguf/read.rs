//! A file, read. Everything it says of itself is checked before any of it is used: counts
//! against the file's length, names against each other, tensors against their neighbours.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use petaflop_device::MappedFile;

use super::value::{Bytes, Malformed, Value};
use super::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_DIMENSIONS, MAX_NAME, TensorType, VERSION,
};
use crate::error::WeightsError;

/// A file whose metadata was read and whose tensors lie in its mapping.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    file: MappedFile,
    contents: Contents,
}

/// What a file says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// Metadata by key.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Dimensions, the slowest first; matrices are `[out, in]`. (In the file it is the other way round.)
    pub shape: Vec<u64>,
    /// How its numbers are kept.
    pub dtype: TensorType,
    /// Where they are in the file.
    pub bytes: Range<usize>,
}

impl Gguf {
    /// Maps a file and checks it.
    ///
    /// # Errors
    /// What the system says; what is wrong with the file, and at which byte.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let file = MappedFile::open(path)
            .map_err(|source| WeightsError::Io { path: path.to_owned(), source })?;
        let contents = parse(&file).map_err(|malformed| WeightsError::Malformed {
            path: path.to_owned(),
            what: format!("not a whole GGUF file ({malformed}); fetch or export it again"),
        })?;
        Ok(Self { path: path.to_owned(), file, contents })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of itself.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The bytes of a tensor, as they lie in the mapping.
    pub fn bytes(&self, tensor: &Tensor) -> &[u8] {
        &self.file[tensor.bytes.clone()]
    }
}

/// Reads what a file says of itself.
///
/// # Errors
/// The first thing that is wrong, and at which byte. Never panics, and takes memory in
/// proportion to the file.
pub fn parse(file: &[u8]) -> Result<Contents, Malformed> {
    let mut from = Bytes { all: file, at: 0 };
    let magic: [u8; 4] = from.array()?;
    if magic != MAGIC {
        return Err(Malformed { at: 0, what: format!("expected \"GGUF\", found {magic:02x?}") });
    }
    match from.u32()? {
        // 2 has the same layout.
        2 | VERSION => {}
        other => return Err(from.wrong("version 2 or 3", other)),
    }
    // Name, dimensions, type and offset; key and kind.
    let tensors = from.u64()?;
    let entries = from.count(8 + 4)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..entries {
        let at = from.at;
        let key = from.string()?;
        let kind = from.u32()?;
        let value = Value::read(kind, &mut from)
            .map_err(|Malformed { at, what }| Malformed { at, what: format!("{key:?}: {what}") })?;
        if metadata.contains_key(&key) {
            return Err(Malformed { at, what: format!("the key {key:?} is there twice") });
        }
        metadata.insert(key, value);
    }
    let alignment = alignment(&metadata, from.at)?;
    let headers = headers(&mut from, tensors)?;
    let start = from.at.next_multiple_of(alignment);
    let tensors = place(headers, start, alignment, file.len())?;
    Ok(Contents { metadata, tensors })
}

fn alignment(metadata: &BTreeMap<String, Value>, at: usize) -> Result<usize, Malformed> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else {
        return Ok(DEFAULT_ALIGNMENT as usize);
    };
    let fits = |n: &u64| n.is_power_of_two() && (8..=1 << 20).contains(n);
    value.as_u64().filter(fits).map(|n| n as usize).ok_or_else(|| Malformed {
        at,
        what: format!(
            "{ALIGNMENT_KEY}: expected a power of two from 8 to 2²⁰, found {}",
            value.shown()
        ),
    })
}

/// A tensor as the directory has it.
struct Header {
    /// Where in the directory.
    at: usize,
    name: String,
    shape: Vec<u64>,
    dtype: TensorType,
    offset: u64,
}

fn headers(from: &mut Bytes<'_>, count: u64) -> Result<Vec<Header>, Malformed> {
    let room = (from.all.len() - from.at) / (8 + 4 + 8 + 4 + 8);
    if count > room as u64 {
        let expected = format!("at most {room} tensors, for which the file has room");
        return Err(Malformed { at: 8, what: format!("expected {expected}, found {count}") });
    }
    (0..count).map(|_| header(from)).collect()
}

fn header(from: &mut Bytes<'_>) -> Result<Header, Malformed> {
    let at = from.at;
    let name = from.string()?;
    if name.is_empty() || name.len() >= MAX_NAME {
        let what = format!(
            "expected a tensor's name of 1 to {} bytes, found {}",
            MAX_NAME - 1,
            name.len()
        );
        return Err(Malformed { at, what });
    }
    let dimensions = from.u32()?;
    if !(1..=MAX_DIMENSIONS as u32).contains(&dimensions) {
        let expected = format!("1 to {MAX_DIMENSIONS} dimensions of tensor {name:?}");
        return Err(from.wrong(&expected, dimensions));
    }
    let mut shape = (0..dimensions).map(|_| from.u64()).collect::<Result<Vec<_>, _>>()?;
    shape.reverse();
    let id = from.u32()?;
    let dtype = TensorType::from_id(id).ok_or_else(|| {
        let known = TensorType::ALL.map(|t| format!("{} ({})", t.dtype(), t.id())).join(", ");
        from.wrong(&format!("one of {known} for the type of tensor {name:?}"), id)
    })?;
    Ok(Header { at, name, shape, dtype, offset: from.u64()? })
}

/// Finds every tensor's bytes. They lie one after another, in any order, none over another,
/// and the file ends with the last (but for padding).
fn place(
    mut headers: Vec<Header>,
    start: usize,
    alignment: usize,
    length: usize,
) -> Result<BTreeMap<String, Tensor>, Malformed> {
    headers.sort_by_key(|header| header.offset);
    let mut tensors = BTreeMap::new();
    let mut end = start.min(length);
    let mut before = "the directory".to_owned();
    for Header { at, name, shape, dtype, offset } in headers {
        let wrong = |what: String| Malformed { at, what: format!("tensor {name:?}: {what}") };
        let bytes = bytes_of(&shape, dtype).ok_or_else(|| {
            wrong(format!("{shape:?} is no shape of {} that a file can hold", dtype.dtype()))
        })?;
        if !offset.is_multiple_of(alignment as u64) {
            return Err(wrong(format!(
                "expected an offset of whole {alignment} bytes, found {offset}"
            )));
        }
        let from = usize::try_from(offset).ok().and_then(|offset| start.checked_add(offset));
        let to = from.and_then(|from| from.checked_add(bytes)).filter(|&to| to <= length);
        let (Some(from), Some(to)) = (from, to) else {
            return Err(wrong(format!(
                "{bytes} bytes at offset {offset} lie beyond the file's {length}"
            )));
        };
        if from < end {
            return Err(wrong(format!("its bytes lie over those of {before}")));
        }
        (end, before) = (to, format!("tensor {name:?}"));
        let tensor = Tensor { shape, dtype, bytes: from..to };
        if tensors.contains_key(&name) {
            return Err(wrong("it is there twice".to_owned()));
        }
        tensors.insert(name, tensor);
    }
    if length > end.next_multiple_of(alignment) {
        let what = format!("expected the file's end, found {} more bytes", length - end);
        return Err(Malformed { at: end, what });
    }
    Ok(tensors)
}

/// Bytes of a tensor of whole blocks; `None` where there is no such tensor.
fn bytes_of(shape: &[u64], dtype: TensorType) -> Option<usize> {
    let dtype = dtype.dtype();
    let count = shape.iter().try_fold(1_u64, |count, &n| count.checked_mul(n))?;
    if count == 0 || !shape.last()?.is_multiple_of(dtype.block_len()) {
        return None;
    }
    usize::try_from((count / dtype.block_len()).checked_mul(dtype.block_bytes())?).ok()
}
