//! Quantised numbers in blocks of 32 along a row, as GGUF files have them, each with an f16 scale d.
//!
//! * q8_0: d, then 32 signed bytes q, for d · q.
//! * q4_0: d, then 16 bytes; byte j holds number j in its lower half and number j + 16 in its upper
//!   one, each q from 0 to 15 for d · (q − 8).

use half::f16;

/// Values in one block.
pub const BLOCK_VALUES: usize = 32;
/// Bytes of one q8_0 block.
pub const Q8_0_BYTES: usize = 34;
/// Bytes of one q4_0 block.
pub const Q4_0_BYTES: usize = 18;

/// The scale of a block of either kind.
pub(crate) fn scale_of(block: &[u8]) -> f32 {
    f16::from_le_bytes([block[0], block[1]]).to_f32()
}

/// Quantises to q8_0 as ggml does: scale = largest magnitude / 127 (stored as f16),
/// bytes = value / scale rounded, ties away from zero.
///
/// # Panics
/// `x` is not a multiple of 32 long, or `out` is not 34 bytes for each 32 values.
pub fn quantize_q8_0(x: &[f32], out: &mut [u8]) {
    assert!(
        x.len().is_multiple_of(BLOCK_VALUES) && out.len() == x.len() / BLOCK_VALUES * Q8_0_BYTES,
        "quantize_q8_0: {} values into {} bytes",
        x.len(),
        out.len()
    );
    for (x, block) in x.chunks_exact(BLOCK_VALUES).zip(out.chunks_exact_mut(Q8_0_BYTES)) {
        let scale = x.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        for (byte, x) in block[2..].iter_mut().zip(x) {
            *byte = (x * inverse).round() as i8 as u8;
        }
    }
}

/// Quantises to q4_0 as ggml's `quantize_row_q4_0_ref`: the number of largest magnitude becomes
/// −8 exactly (but for the scale's rounding to f16); the others round to nearest, halves upwards,
/// 7 at most.
///
/// # Panics
/// `x` is not a multiple of 32 long, or `out` is not 18 bytes for each 32 values.
pub fn quantize_q4_0(x: &[f32], out: &mut [u8]) {
    assert!(
        x.len().is_multiple_of(BLOCK_VALUES) && out.len() == x.len() / BLOCK_VALUES * Q4_0_BYTES,
        "quantize_q4_0: {} values into {} bytes",
        x.len(),
        out.len()
    );
    for (x, block) in x.chunks_exact(BLOCK_VALUES).zip(out.chunks_exact_mut(Q4_0_BYTES)) {
        let largest = x.iter().fold(0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
        let scale = largest / -8.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let half = |number: f32| ((number * inverse + 8.5) as u8).min(15);
        block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        let (low, high) = x.split_at(BLOCK_VALUES / 2);
        for ((byte, &low), &high) in block[2..].iter_mut().zip(low).zip(high) {
            *byte = half(low) | half(high) << 4;
        }
    }
}

/// The 32 whole numbers of a q4_0 block, in order, each from −8 to 7.
pub fn q4_0_numbers(block: &[u8; Q4_0_BYTES]) -> [i8; BLOCK_VALUES] {
    std::array::from_fn(|i| {
        let byte = block[2 + i % (BLOCK_VALUES / 2)];
        (if i < BLOCK_VALUES / 2 { byte & 15 } else { byte >> 4 }) as i8 - 8
    })
}

/// q8_0 as devices keep it: the signed bytes in order, four in a word, and apart from them
/// a float scale for each 32. (In a file a block's 34 bytes are never aligned.)
///
/// # Panics
/// `blocks` ends inside a block.
pub fn q8_0_for_devices(blocks: &[u8]) -> (Vec<u32>, Vec<f32>) {
    assert!(blocks.len().is_multiple_of(Q8_0_BYTES), "{} bytes of q8_0", blocks.len());
    let words = blocks
        .chunks_exact(Q8_0_BYTES)
        .flat_map(|block| block[2..].as_chunks().0)
        .map(|&bytes| u32::from_le_bytes(bytes))
        .collect();
    (words, blocks.chunks_exact(Q8_0_BYTES).map(scale_of).collect())
}
