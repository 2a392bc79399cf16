//! Numbers of a tensor from and to its type.
//!
//! A q4_0 block: an f16 scale d, then 16 bytes; byte j holds number j in its lower half and
//! number j + 16 in its upper one, each q from 0 to 15 for d · (q − 8). Of what q4_0 keeps,
//! q8_0 with the same scale keeps every bit.

use half::{bf16, f16};
use petaflop_kernel::{Q8_0_BYTES, Q8_0_VALUES, Weight, dequantize, quantize_q8_0};

use super::TensorType;

const Q4_0_BYTES: usize = 18;

/// Writes numbers in a type: exact where it can be, otherwise rounded (bf16 and f16 to nearest,
/// ties to even; q8_0 and q4_0 as ggml does).
///
/// # Panics
/// `out` has another length than these numbers in this type.
pub fn encode(numbers: &[f32], dtype: TensorType, out: &mut [u8]) {
    assert_eq!(dtype.dtype().bytes(numbers.len() as u64), out.len() as u64, "{dtype:?}");
    match dtype {
        TensorType::F32 => {
            for (number, out) in numbers.iter().zip(out.as_chunks_mut().0) {
                *out = number.to_le_bytes();
            }
        }
        TensorType::F16 => {
            for (&number, out) in numbers.iter().zip(out.as_chunks_mut().0) {
                *out = f16::from_f32(number).to_le_bytes();
            }
        }
        TensorType::Bf16 => {
            for (&number, out) in numbers.iter().zip(out.as_chunks_mut().0) {
                *out = bf16::from_f32(number).to_le_bytes();
            }
        }
        TensorType::Q8_0 => quantize_q8_0(numbers, out),
        TensorType::Q4_0 => {
            let blocks = numbers.as_chunks().0.iter().zip(out.as_chunks_mut().0);
            blocks.for_each(|(numbers, out)| quantize_q4_0(numbers, out));
        }
    }
}

/// Reads numbers of a type, each as f32.
///
/// # Panics
/// `out` has another length than these bytes hold numbers.
pub fn decode(bytes: &[u8], dtype: TensorType, out: &mut [f32]) {
    assert_eq!(dtype.dtype().bytes(out.len() as u64), bytes.len() as u64, "{dtype:?}");
    match dtype {
        TensorType::F32 => {
            for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = f32::from_le_bytes(bytes);
            }
        }
        TensorType::F16 => {
            for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = f16::from_le_bytes(bytes).to_f32();
            }
        }
        TensorType::Bf16 => {
            for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = bf16::from_le_bytes(bytes).to_f32();
            }
        }
        TensorType::Q8_0 => dequantize(Weight::Q8_0(bytes), out),
        TensorType::Q4_0 => {
            let mut wide = [0; Q8_0_BYTES];
            for (out, block) in out.chunks_exact_mut(Q8_0_VALUES).zip(bytes.as_chunks().0) {
                widen(block, &mut wide);
                dequantize(Weight::Q8_0(&wide), out);
            }
        }
    }
}

/// Blocks of q4_0 as blocks of q8_0 of the same numbers.
///
/// # Panics
/// `out` has not as many blocks as `q4_0`.
pub fn q8_0_of_q4_0(q4_0: &[u8], out: &mut [u8]) {
    let (from, to) = (q4_0.as_chunks().0, out.as_chunks_mut().0);
    assert_eq!(from.len(), to.len(), "blocks of q4_0 and of q8_0");
    from.iter().zip(to).for_each(|(from, to)| widen(from, to));
}

fn widen(block: &[u8; Q4_0_BYTES], out: &mut [u8; Q8_0_BYTES]) {
    let half = Q8_0_VALUES / 2;
    out[..2].copy_from_slice(&block[..2]);
    for (j, byte) in block[2..].iter().enumerate() {
        out[2 + j] = (byte & 15).wrapping_sub(8);
        out[2 + half + j] = (byte >> 4).wrapping_sub(8);
    }
}

/// As ggml's `quantize_row_q4_0_ref`: the number of largest magnitude becomes −8 exactly (but
/// for the scale's rounding to f16); the others round to nearest, halves upwards, 7 at most.
fn quantize_q4_0(numbers: &[f32; Q8_0_VALUES], out: &mut [u8; Q4_0_BYTES]) {
    let largest = numbers.iter().fold(0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
    let scale = largest / -8.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let half = |number: f32| ((number * inverse + 8.5) as u8).min(15);
    out[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    for (j, byte) in out[2..].iter_mut().enumerate() {
        *byte = half(numbers[j]) | half(numbers[j + Q8_0_VALUES / 2]) << 4;
    }
}
