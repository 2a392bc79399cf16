//! Numbers of a tensor from and to its type.
//! Of what q4_0 keeps, q8_0 with the same scale keeps every bit.

use half::{bf16, f16};
use petaflop_kernel::{
    Q4_0_BYTES, Q8_0_BYTES, Weight, dequantize, q4_0_numbers, quantize_q4_0, quantize_q8_0,
};

use super::TensorType;

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
        TensorType::Q4_0 => quantize_q4_0(numbers, out),
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
        TensorType::Q4_0 => dequantize(Weight::Q4_0(bytes), out),
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
    out[..2].copy_from_slice(&block[..2]);
    for (out, number) in out[2..].iter_mut().zip(q4_0_numbers(block)) {
        *out = number as u8;
    }
}
