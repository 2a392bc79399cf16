//! Weight matrices: the types they are kept in, and the packed form that products read.

use crate::Cpu;
use crate::blocks::{BLOCK_VALUES, Q4_0_BYTES, Q8_0_BYTES, q4_0_numbers, scale_of};
use crate::gemm::{Operand, Panels, panel_width};
use crate::product::transpose;
use crate::scratch::{Line, floats, lines, scratch};
use half::bf16;

/// Rows that a packed weight is filled up to a multiple of: every instruction set's
/// panels divide it, so its bytes can be planned without knowing the machine.
pub(crate) const PACKED_ROWS: usize = 48;

/// A weight matrix `[N, K]`, row-major, in the type it is kept in.
#[derive(Clone, Copy, Debug)]
pub enum Weight<'a> {
    /// N·K floats.
    F32(&'a [f32]),
    /// N·K bfloat16 values, as bits.
    Bf16(&'a [u16]),
    /// N·K/32 blocks of 34 bytes (f16 scale, 32 × i8) along K; K is a multiple of 32.
    Q8_0(&'a [u8]),
    /// N·K/32 blocks of 18 bytes (f16 scale, 32 numbers of four bits) along K; K is a multiple of 32.
    Q4_0(&'a [u8]),
}

impl<'a> Weight<'a> {
    /// Values it holds.
    pub fn values(&self) -> usize {
        match self {
            Weight::F32(w) => w.len(),
            Weight::Bf16(w) => w.len(),
            Weight::Q8_0(w) => w.len() / Q8_0_BYTES * BLOCK_VALUES,
            Weight::Q4_0(w) => w.len() / Q4_0_BYTES * BLOCK_VALUES,
        }
    }

    /// Rows `first..end` of a matrix `k` wide.
    pub(crate) fn rows(self, k: usize, first: usize, end: usize) -> Weight<'a> {
        match self {
            Weight::F32(w) => Weight::F32(&w[first * k..end * k]),
            Weight::Bf16(w) => Weight::Bf16(&w[first * k..end * k]),
            Weight::Q8_0(w) => {
                let bytes = k / BLOCK_VALUES * Q8_0_BYTES;
                Weight::Q8_0(&w[first * bytes..end * bytes])
            }
            Weight::Q4_0(w) => {
                let bytes = k / BLOCK_VALUES * Q4_0_BYTES;
                Weight::Q4_0(&w[first * bytes..end * bytes])
            }
        }
    }

    /// Panics unless this is an `[n, k]` matrix.
    pub(crate) fn check(&self, n: usize, k: usize) {
        assert_eq!(self.values(), n * k, "a weight [{n}, {k}] has {} values", self.values());
        let (name, block, data) = match self {
            Weight::F32(_) | Weight::Bf16(_) => return,
            Weight::Q8_0(data) => ("q8_0", Q8_0_BYTES, data),
            Weight::Q4_0(data) => ("q4_0", Q4_0_BYTES, data),
        };
        assert!(
            k.is_multiple_of(BLOCK_VALUES),
            "{name} needs rows of whole blocks, not {k} values"
        );
        assert!(
            data.len().is_multiple_of(block),
            "{name} data of {} bytes ends inside a block",
            data.len()
        );
    }
}

/// Every value of `w` as f32, in the same order. Exact, but for one rounding of
/// scale · number where it is quantised.
///
/// # Panics
/// `out` holds another number of values than `w`.
pub fn dequantize(w: Weight<'_>, out: &mut [f32]) {
    assert_eq!(w.values(), out.len(), "dequantize: {} values into {}", w.values(), out.len());
    match w {
        Weight::F32(w) => out.copy_from_slice(w),
        Weight::Bf16(w) => {
            for (out, &bits) in out.iter_mut().zip(w) {
                *out = bf16::from_bits(bits).to_f32();
            }
        }
        Weight::Q8_0(w) => {
            for (out, block) in out.chunks_exact_mut(BLOCK_VALUES).zip(w.chunks_exact(Q8_0_BYTES)) {
                let scale = scale_of(block);
                for (out, &byte) in out.iter_mut().zip(&block[2..]) {
                    *out = scale * f32::from(byte as i8);
                }
            }
        }
        Weight::Q4_0(w) => {
            for (out, block) in out.chunks_exact_mut(BLOCK_VALUES).zip(w.as_chunks().0) {
                let scale = scale_of(block);
                for (out, number) in out.iter_mut().zip(q4_0_numbers(block)) {
                    *out = scale * f32::from(number);
                }
            }
        }
    }
}

/// A weight laid out for fast products on one kind of CPU: built once for serving.
/// Products with it have the same bits as with the weight it was made of.
pub struct PackedWeight {
    n: usize,
    k: usize,
    width: usize,
    panels: Packed,
}

enum Packed {
    F32(Vec<Line>),
    Bf16(Vec<u16>),
    Q8_0 {
        bytes: Vec<i8>,
        scales: Vec<f32>,
    },
    /// See [`crate::int8`].
    Int8 {
        bytes: Vec<u8>,
        scales: Vec<f32>,
    },
    /// Of each two steps of k, the first in the lower half of a byte.
    Q4_0 {
        halves: Vec<u8>,
        scales: Vec<f32>,
    },
}

impl PackedWeight {
    /// Packs `w[n, k]`, keeping its type.
    ///
    /// # Panics
    /// `w` does not hold n·k values.
    pub fn new(cpu: &Cpu, w: Weight<'_>, n: usize, k: usize) -> PackedWeight {
        w.check(n, k);
        let width = panel_width(cpu.isa());
        let padded = n.next_multiple_of(PACKED_ROWS);
        let blocks = k / BLOCK_VALUES;
        // Rows of each panel.
        let rows = |j: usize| j * width..((j + 1) * width).min(n);
        let panel = (width * k).max(1);
        let panels = match w {
            Weight::F32(_) => {
                let mut to = lines(padded * k);
                pack(cpu, w, n, k, floats(&mut to));
                Packed::F32(to)
            }
            Weight::Bf16(w) => {
                let mut to = vec![0; padded * k];
                let panels = to.chunks_mut(panel).take(n.div_ceil(width)).enumerate();
                cpu.each(n * k, panels, |(j, to)| {
                    for (i, row) in rows(j).enumerate() {
                        for (to, &bits) in to[i..].iter_mut().step_by(width).zip(&w[row * k..][..k])
                        {
                            *to = bits;
                        }
                    }
                });
                Packed::Bf16(to)
            }
            Weight::Q8_0(w) => {
                let (bytes, scales) = pack_q8_0(cpu, w, n, k, |bytes: &mut [i8], i, block| {
                    let column = bytes[i..].iter_mut().step_by(width);
                    column.zip(block).for_each(|(to, &byte)| *to = byte as i8);
                });
                Packed::Q8_0 { bytes, scales }
            }
            Weight::Q4_0(w) => {
                let (mut halves, mut scales) =
                    (vec![0; padded * k / 2], vec![0.0; padded * blocks]);
                let (w, panel) = (w.as_chunks().0, (panel / 2).max(1));
                let panels =
                    halves.chunks_mut(panel).zip(scales.chunks_mut((width * blocks).max(1)));
                cpu.each(
                    n * k,
                    panels.take(n.div_ceil(width)).enumerate(),
                    |(j, (halves, scales))| {
                        let halves = halves.chunks_exact_mut(width * BLOCK_VALUES / 2);
                        for (p, (halves, scales)) in
                            halves.zip(scales.chunks_exact_mut(width)).enumerate()
                        {
                            for ((i, row), to) in rows(j).enumerate().zip(scales) {
                                let block = &w[row * blocks + p];
                                *to = scale_of(block);
                                let column = halves[i..].iter_mut().step_by(width);
                                for (to, pair) in column.zip(q4_0_numbers(block).as_chunks().0) {
                                    let [low, high] = pair.map(|number: i8| (number + 8) as u8);
                                    *to = low | high << 4;
                                }
                            }
                        }
                    },
                );
                Packed::Q4_0 { halves, scales }
            }
        };
        PackedWeight { n, k, width, panels }
    }

    /// Packs q8_0 `w[n, k]` for products that round activations to 8 bits: the numerics mode
    /// `int8-activations`, whose results differ from [`PackedWeight::new`]'s by up to half a
    /// 127th of a block's largest activation, for each weight.
    ///
    /// # Panics
    /// `w` does not hold n·k values.
    pub fn for_int8(cpu: &Cpu, w: &[u8], n: usize, k: usize) -> PackedWeight {
        Weight::Q8_0(w).check(n, k);
        let width = panel_width(cpu.isa());
        let (bytes, scales) = pack_q8_0(cpu, w, n, k, |bytes: &mut [u8], i, block| {
            let column = bytes.as_chunks_mut::<4>().0[i..].iter_mut().step_by(width);
            // 128 added to the signed number.
            column.zip(block.as_chunks::<4>().0).for_each(|(to, four)| *to = four.map(|b| b ^ 128));
        });
        PackedWeight { n, k, width, panels: Packed::Int8 { bytes, scales } }
    }

    pub(crate) fn is_for_int8(&self) -> bool {
        matches!(self.panels, Packed::Int8 { .. })
    }

    /// Features out.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Features in.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes it occupies.
    pub fn bytes(&self) -> usize {
        match &self.panels {
            Packed::F32(p) => size_of_val(p.as_slice()),
            Packed::Bf16(p) => size_of_val(p.as_slice()),
            Packed::Q8_0 { bytes, scales } => {
                size_of_val(bytes.as_slice()) + size_of_val(scales.as_slice())
            }
            Packed::Int8 { bytes, scales } => {
                size_of_val(bytes.as_slice()) + size_of_val(scales.as_slice())
            }
            Packed::Q4_0 { halves, scales } => {
                size_of_val(halves.as_slice()) + size_of_val(scales.as_slice())
            }
        }
    }

    /// Row `row` as f32: the values of [`dequantize`].
    ///
    /// # Panics
    /// There is no such row, or `out` does not hold `k` values.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(
            row < self.n && out.len() == self.k,
            "row {row} of [{}, {}] into {} values",
            self.n,
            self.k,
            out.len()
        );
        let place = |col: usize, depth: usize| {
            (row / self.width * depth + col) * self.width + row % self.width
        };
        for (col, out) in out.iter_mut().enumerate() {
            let at = place(col, self.k);
            *out = match &self.panels {
                Packed::F32(lines) => lines[at / 16].0[at % 16],
                Packed::Bf16(bits) => bf16::from_bits(bits[at]).to_f32(),
                Packed::Q8_0 { bytes, scales } => {
                    scales[place(col / BLOCK_VALUES, self.k / BLOCK_VALUES)] * f32::from(bytes[at])
                }
                Packed::Int8 { bytes, scales } => {
                    let byte = bytes[place(col / 4, self.k / 4) * 4 + col % 4] ^ 128;
                    scales[place(col / BLOCK_VALUES, self.k / BLOCK_VALUES)] * f32::from(byte as i8)
                }
                Packed::Q4_0 { halves, scales } => {
                    let byte = halves[place(col / 2, self.k / 2)];
                    let number = (byte >> (col % 2 * 4) & 15) as i8 - 8;
                    scales[place(col / BLOCK_VALUES, self.k / BLOCK_VALUES)] * f32::from(number)
                }
            };
        }
    }

    /// As the right operand of a product.
    pub(crate) fn operand(&self, cpu: &Cpu) -> Operand {
        assert_eq!(
            self.width,
            panel_width(cpu.isa()),
            "a weight packed for another instruction set"
        );
        let panels = match &self.panels {
            Packed::F32(p) => Panels::F32(p.as_ptr().cast()),
            Packed::Bf16(p) => Panels::Bf16(p.as_ptr()),
            Packed::Q8_0 { bytes, scales } => Panels::Q8_0(bytes.as_ptr(), scales.as_ptr()),
            Packed::Int8 { bytes, scales } => Panels::Int8(bytes.as_ptr(), scales.as_ptr()),
            Packed::Q4_0 { halves, scales } => Panels::Q4_0(halves.as_ptr(), scales.as_ptr()),
        };
        Operand { panels, k: self.k, n: self.n }
    }
}

/// q8_0 `w[n, k]` as panels of bytes, and their scales. `place` writes a block's bytes into those of
/// one block of k of a panel, for the panel's column with that number.
fn pack_q8_0<B: Default + Clone + Send>(
    cpu: &Cpu,
    w: &[u8],
    n: usize,
    k: usize,
    place: impl Fn(&mut [B], usize, &[u8]) + Sync,
) -> (Vec<B>, Vec<f32>) {
    let (width, padded) = (panel_width(cpu.isa()), n.next_multiple_of(PACKED_ROWS));
    let blocks = k / BLOCK_VALUES;
    let (mut bytes, mut scales) = (vec![B::default(); padded * k], vec![0.0; padded * blocks]);
    let panels =
        bytes.chunks_mut((width * k).max(1)).zip(scales.chunks_mut((width * blocks).max(1)));
    cpu.each(n * k, panels.take(n.div_ceil(width)).enumerate(), |(j, (bytes, scales))| {
        // Block after block, so that what is written stays in the first cache.
        let bytes = bytes.chunks_exact_mut(width * BLOCK_VALUES);
        for (p, (bytes, scales)) in bytes.zip(scales.chunks_exact_mut(width)).enumerate() {
            let rows = j * width..((j + 1) * width).min(n);
            for ((i, row), to) in rows.enumerate().zip(scales) {
                let block = &w[(row * blocks + p) * Q8_0_BYTES..][..Q8_0_BYTES];
                *to = scale_of(block);
                place(bytes, i, &block[2..]);
            }
        }
    });
    (bytes, scales)
}

/// Floats that [`pack`] writes.
pub(crate) fn packed_len(cpu: &Cpu, n: usize, k: usize) -> usize {
    n.next_multiple_of(panel_width(cpu.isa())) * k
}

/// `w[n, k]` transposed into f32 panels, the last padded with zeros.
pub(crate) fn pack(cpu: &Cpu, w: Weight<'_>, n: usize, k: usize, to: &mut [f32]) {
    let (isa, width) = (cpu.isa(), panel_width(cpu.isa()));
    let panels = to[..packed_len(cpu, n, k)].chunks_mut((width * k).max(1)).enumerate();
    cpu.each(n * k * 8, panels, |(j, to)| {
        let (first, end) = (j * width, ((j + 1) * width).min(n));
        if end - first < width {
            to.fill(0.0);
        }
        let mut turn =
            |w: &[f32]| transpose(isa, end - first, k, w.as_ptr(), k, to.as_mut_ptr(), width);
        match w.rows(k, first, end) {
            Weight::F32(w) => turn(w),
            w => scratch(w.values(), |space| {
                dequantize(w, space);
                turn(space);
            }),
        }
    });
}
