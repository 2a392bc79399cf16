//! Kernels by themselves.

use petaflop_kernel::{
    AttentionDims, Cpu, PackedWeight, Weight, bench, quantize_q4_0, quantize_q8_0,
};
use petaflop_plan::dtype::Dtype;

use super::Measured;
use crate::exit::Failure;

#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct Gemm {
    /// Rows, columns and depth
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=16384))]
    size: u32,
}

impl Gemm {
    pub(super) fn measure(&self, cpu: &Cpu, millis: u64) -> Measured {
        let n = self.size as usize;
        Measured::new(format!("gemm f32 {n}³"), bench::gemm(cpu, n, n, n, millis))
            .with("size", self.size)
    }
}

#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct Gemv {
    /// Features out [default: as many as make the weights eight times the last cache]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    rows: Option<u32>,
    /// Features in, a multiple of 32
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = width)]
    width: u32,
    /// Format of the weights: f32, q8_0 or q4_0
    #[arg(long, value_name = "FORMAT", default_value = "q8_0", value_parser = format)]
    weights: Dtype,
}

fn width(text: &str) -> Result<u32, String> {
    let width = text.parse().ok().filter(|width| (32..=1 << 16).contains(width));
    width
        .filter(|width: &u32| width.is_multiple_of(32))
        .ok_or_else(|| "expected a multiple of 32 up to 65536".to_owned())
}

/// A format of weights that benchmarks make up.
pub(super) fn format(text: &str) -> Result<Dtype, String> {
    let known = |dtype: &Dtype| matches!(dtype, Dtype::F32 | Dtype::Q8_0 | Dtype::Q4_0);
    text.parse().ok().filter(known).ok_or_else(|| "expected f32, q8_0 or q4_0".to_owned())
}

impl Gemv {
    /// `bytes`: of the weights, where no number of rows was given.
    pub(super) fn measure(&self, cpu: &Cpu, bytes: usize, millis: u64) -> Measured {
        let Self { rows, width, weights } = *self;
        let k = width as usize;
        let mut row = vec![0; weights.bytes(width.into()) as usize];
        let n = rows.map_or(bytes.div_ceil(row.len()), |rows| rows as usize);
        let number = 0.25f32;
        match weights {
            Dtype::Q8_0 => quantize_q8_0(&vec![number; k], &mut row),
            Dtype::Q4_0 => quantize_q4_0(&vec![number; k], &mut row),
            _ => {}
        }
        let (numbers, blocks) = match weights {
            Dtype::F32 => (vec![number; n * k], Vec::new()),
            _ => (Vec::new(), row.repeat(n)),
        };
        let weight = match weights {
            Dtype::Q8_0 => Weight::Q8_0(&blocks),
            Dtype::Q4_0 => Weight::Q4_0(&blocks),
            _ => Weight::F32(&numbers),
        };
        let packed = PackedWeight::new(cpu, weight, n, k);
        drop(blocks);
        drop(numbers);
        Measured::new(format!("gemv {weights} {n}·{k}"), bench::gemv(cpu, &packed, millis))
            .with("weight_bytes", packed.bytes())
    }
}

#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct Attention {
    /// Tokens
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    seq: u32,
    /// Query heads
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    heads: u32,
    /// Key/value heads, a divisor of the query heads
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    kv_heads: u32,
    /// Width of a head, even
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..=512))]
    head_dim: u32,
}

impl Attention {
    pub(super) fn measure(&self, cpu: &Cpu, millis: u64) -> Result<Measured, Failure> {
        let Self { seq, heads, kv_heads, head_dim } = *self;
        if !heads.is_multiple_of(kv_heads) || !head_dim.is_multiple_of(2) {
            return Err(Failure::bad_input(format!(
                "expected heads that are a multiple of kv-heads and an even head-dim, found {heads}, {kv_heads}, {head_dim}"
            )));
        }
        let dims = AttentionDims {
            batch: 1,
            seq: seq as usize,
            heads: heads as usize,
            kv_heads: kv_heads as usize,
            head_dim: head_dim as usize,
        };
        let what = format!("attention f32 T{seq} H{heads}/{kv_heads} d{head_dim}");
        Ok(Measured::new(what, bench::attention(cpu, dims, millis)))
    }
}

#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct Rows {
    /// Rows
    #[arg(long, value_name = "N", default_value_t = 16384, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    rows: u32,
    /// Numbers in a row
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1 << 18))]
    width: u32,
}

impl Rows {
    pub(super) fn norm(&self, cpu: &Cpu, millis: u64) -> Measured {
        let (rows, width) = (self.rows as usize, self.width as usize);
        Measured::new(format!("norm f32 {rows}·{width}"), bench::norm(cpu, rows, width, millis))
    }

    pub(super) fn loss(&self, cpu: &Cpu, millis: u64) -> Measured {
        let (rows, width) = (self.rows as usize, self.width as usize);
        Measured::new(format!("loss f32 {rows}·{width}"), bench::loss(cpu, rows, width, millis))
    }
}

/// Each at its default size.
pub(super) fn all(cpu: &Cpu, stream: usize, millis: u64) -> Result<Vec<Measured>, Failure> {
    let rows = Rows { rows: 16384, width: 4096 };
    let gemv = |weights| Gemv { rows: None, width: 4096, weights }.measure(cpu, stream, millis);
    Ok(vec![
        Gemm { size: 1024 }.measure(cpu, millis),
        Gemm { size: 1536 }.measure(cpu, millis),
        Gemm { size: 2048 }.measure(cpu, millis),
        gemv(Dtype::F32),
        gemv(Dtype::Q8_0),
        gemv(Dtype::Q4_0),
        Attention { seq: 1024, heads: 8, kv_heads: 8, head_dim: 64 }.measure(cpu, millis)?,
        rows.norm(cpu, millis),
        rows.loss(cpu, millis),
    ])
}
