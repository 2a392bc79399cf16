//! Weights as a file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use petaflop_plan::recipe::Quantization;
use petaflop_plan::shape::ModelShape;

use super::names::{ROPE_FREQS, divisors, name_in_file, row_in_file, turned};
use super::value::Value;
use super::write::{Header, write};
use super::{TensorType, block, metadata};
use crate::error::WeightsError;

/// `general.file_type` (`enum llama_ftype`).
fn file_type(quantization: Quantization) -> u32 {
    match quantization {
        Quantization::None => 0,
        Quantization::Q4_0 => 2,
        Quantization::Q8_0 => 7,
    }
}

/// Writes a model to a file: its form, `more` metadata (see [`super::vocabulary`]), and each
/// tensor, whose numbers `values` gives by our name. Equal models give equal bytes.
///
/// # Errors
/// What the system says of the file.
pub fn export<'a>(
    path: &Path,
    shape: &ModelShape,
    quantization: Quantization,
    more: Vec<(String, Value)>,
    values: impl Fn(&str) -> &'a [f32],
) -> Result<(), WeightsError> {
    let mut metadata = metadata::entries(shape);
    metadata.push(("general.file_type".to_owned(), Value::U32(file_type(quantization))));
    if quantization != Quantization::None {
        // Of the layout of blocks (`GGML_QNT_VERSION`).
        metadata.push(("general.quantization_version".to_owned(), Value::U32(2)));
    }
    metadata.extend(more);
    let tensors = shape.tensors();
    let divisors = divisors(shape);
    let mut headers: Vec<Header> = tensors
        .iter()
        .map(|info| Header {
            name: name_in_file(&info.name),
            shape: info.shape.clone(),
            dtype: TensorType::of(quantization.keeps(info)),
        })
        .collect();
    headers.extend(divisors.iter().map(|divisors| Header {
        name: ROPE_FREQS.to_owned(),
        shape: vec![divisors.len() as u64],
        dtype: TensorType::F32,
    }));
    let fill = |index: usize, out: &mut [u8]| -> std::io::Result<()> {
        let Some(info) = tensors.get(index) else {
            block::encode(divisors.as_deref().unwrap_or_default(), TensorType::F32, out);
            return Ok(());
        };
        let (values, dtype) = (values(&info.name), headers[index].dtype);
        let width = info.shape.last().map_or(1, |&width| width as usize);
        let turned = turned(shape, &info.name);
        let step = dtype.dtype().bytes(width as u64) as usize;
        for (row, values) in values.chunks_exact(width).enumerate() {
            let row = turned.map_or(row, |head| row_in_file(row, head));
            block::encode(values, dtype, &mut out[row * step..][..step]);
        }
        Ok(())
    };
    let write_file = || {
        let mut out = BufWriter::new(File::create(path)?);
        write(&mut out, &metadata, &headers, fill)?;
        out.flush()
    };
    write_file().map_err(|source| WeightsError::Io { path: path.to_owned(), source })
}
