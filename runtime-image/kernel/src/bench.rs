//! Rates of this machine, measured: the roofline that benchmarks print beside
//! their figures.

use crate::isa::{Lanes, on_every_isa};
use crate::{
    AttentionDims, Cpu, Dims, Epilogue, PackedWeight, Weight, attention_forward,
    cross_entropy_loss, linear, linear_dw, linear_dx, linear_packed, rms_norm, sum_squares,
};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// What a kernel did, and the least time that it took for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Floating-point operations; a fused multiply-add counts two. 0 where they are not what counts.
    pub flops: f64,
    /// Bytes that must be read and written, each once.
    pub bytes: f64,
    /// Seconds of the best repetition.
    pub seconds: f64,
}

impl Rate {
    /// 10⁹ operations a second.
    pub fn gflops(&self) -> f64 {
        self.flops / self.seconds / 1e9
    }

    /// 10⁹ bytes a second.
    pub fn gb_s(&self) -> f64 {
        self.bytes / self.seconds / 1e9
    }
}

/// Bytes of so many floats.
fn floats(count: usize) -> f64 {
    4.0 * count as f64
}

/// f32 matrix product `[m,k]·[n,k]ᵀ`, packing included, within about `millis`.
pub fn gemm(cpu: &Cpu, m: usize, n: usize, k: usize, millis: u64) -> Rate {
    let (x, w) = (vec![0.5f32; m * k], vec![0.25f32; n * k]);
    let mut y = vec![0f32; m * n];
    let seconds = best(cpu, millis, || {
        linear(cpu, &x, Weight::F32(&w), &mut y, Dims { t: m, k, n }, Epilogue::NONE)
    });
    Rate { flops: 2.0 * (m * n * k) as f64, bytes: floats(m * k + n * k + m * n), seconds }
}

/// One row times a packed weight: what decoding one sequence is made of.
pub fn gemv(cpu: &Cpu, weight: &PackedWeight, millis: u64) -> Rate {
    let (n, k) = (weight.n(), weight.k());
    let (x, mut y) = (vec![0.5f32; k], vec![0f32; n]);
    let seconds = best(cpu, millis, || linear_packed(cpu, &x, weight, &mut y, 1, Epilogue::NONE));
    Rate { flops: 2.0 * (n * k) as f64, bytes: weight.bytes() as f64 + floats(n + k), seconds }
}

/// A linear layer in training: its product, and the gradients of its input and its weight.
pub fn linear_step(cpu: &Cpu, dims: Dims, millis: u64) -> Rate {
    let Dims { t, k, n } = dims;
    let (x, w, mut y) = (vec![0.5f32; t * k], vec![0.25f32; n * k], vec![0f32; t * n]);
    let [mut dx, mut dw] = [&x, &w].map(|like| vec![0f32; like.len()]);
    let seconds = best(cpu, millis, || {
        linear(cpu, &x, Weight::F32(&w), &mut y, dims, Epilogue::NONE);
        linear_dx(cpu, &y, Weight::F32(&w), &mut dx, dims, false);
        linear_dw(cpu, &y, &x, &mut dw, dims, false);
    });
    Rate { flops: 6.0 * (t * k * n) as f64, bytes: 0.0, seconds }
}

/// Causal attention, forward: half of the squares of queries and keys, two products each.
pub fn attention(cpu: &Cpu, dims: AttentionDims, millis: u64) -> Rate {
    let AttentionDims { batch, seq, heads, kv_heads, head_dim } = dims;
    let rows = batch * seq;
    let (wide, narrow) = (rows * heads * head_dim, rows * kv_heads * head_dim);
    let (q, k, v) = (vec![0.5f32; wide], vec![0.25f32; narrow], vec![0.125f32; narrow]);
    let (mut out, mut lse) = (vec![0f32; wide], vec![0f32; rows * heads]);
    let seconds = best(cpu, millis, || {
        attention_forward(cpu, &q, &k, &v, &mut out, &mut lse, dims, 0.125);
    });
    let flops = 2.0 * (wide * (seq + 1)) as f64;
    Rate { flops, bytes: floats(2 * wide + 2 * narrow + rows * heads), seconds }
}

/// RMSNorm, forward: a fused multiply-add and two products an element.
pub fn norm(cpu: &Cpu, rows: usize, width: usize, millis: u64) -> Rate {
    let (x, gain) = (vec![0.5f32; rows * width], vec![1f32; width]);
    let (mut y, mut rstd) = (vec![0f32; rows * width], vec![0f32; rows]);
    let seconds = best(cpu, millis, || rms_norm(cpu, &x, &gain, &mut y, &mut rstd, 1e-5));
    Rate { flops: 4.0 * (rows * width) as f64, bytes: floats(2 * rows * width), seconds }
}

/// Cross-entropy, the losses alone: each logit is read once.
pub fn loss(cpu: &Cpu, rows: usize, vocab: usize, millis: u64) -> Rate {
    let (logits, targets) = (vec![0.5f32; rows * vocab], vec![0; rows]);
    let mut nll = vec![0f32; rows];
    let seconds = best(cpu, millis, || cross_entropy_loss(cpu, &logits, &targets, &mut nll));
    Rate { flops: 0.0, bytes: floats(rows * vocab), seconds }
}

/// Copying `bytes` of memory: read once, written once.
pub fn copy(cpu: &Cpu, bytes: usize, millis: u64) -> Rate {
    const PART: usize = 1 << 18;
    let (from, mut to) = (vec![1f32; bytes / 4], vec![0f32; bytes / 4]);
    let seconds = best(cpu, millis, || {
        let parts = from.chunks(PART).zip(to.chunks_mut(PART));
        cpu.each(usize::MAX, parts, |(from, to)| to.copy_from_slice(black_box(from)));
    });
    Rate { flops: 0.0, bytes: 2.0 * floats(bytes / 4), seconds }
}

/// Reading `bytes` of memory once a repetition. Take several times the last cache's size.
pub fn read(cpu: &Cpu, bytes: usize, millis: u64) -> Rate {
    let x = vec![1f32; bytes / 4];
    let seconds = best(cpu, millis, || {
        black_box(sum_squares(cpu, &x));
    });
    Rate { flops: 0.0, bytes: floats(bytes / 4), seconds }
}

/// Fused multiply-adds on registers alone, on all threads: the peak of all else.
pub fn fma(cpu: &Cpu, millis: u64) -> Rate {
    const STEPS: usize = 1 << 16;
    let mut results = vec![0.0; cpu.threads()];
    let seconds = best(cpu, millis, || {
        cpu.each(usize::MAX, results.iter_mut(), |result| {
            *result = chains(cpu.isa(), black_box(STEPS))
        });
    });
    black_box(&results);
    let flops = 2.0 * (cpu.threads() * CHAINS * register(cpu.isa()) * STEPS) as f64;
    Rate { flops, bytes: 0.0, seconds }
}

/// Independent chains: enough to hide a multiply-add's latency, few enough for 16 registers.
const CHAINS: usize = 12;

#[inline(always)]
fn chains_lanes<V: Lanes>(steps: usize) -> f32 {
    let (a, b) = (V::splat(black_box(0.999)), V::splat(black_box(1e-3)));
    let mut acc = [a; CHAINS];
    for _ in 0..steps {
        for x in &mut acc {
            *x = x.fma(a, b);
        }
    }
    let mut sum = 0.0;
    for x in acc {
        sum += x.fold_sum();
    }
    sum
}
on_every_isa! { fn chains = chains_lanes(steps: usize) -> f32 }

#[inline(always)]
fn register_lanes<V: Lanes>() -> usize {
    V::N
}
on_every_isa! {
    /// Floats in a register.
    fn register = register_lanes() -> usize
}

/// Least seconds of one call of `f`, repeated on the CPU's threads for about `millis`.
fn best(cpu: &Cpu, millis: u64, mut f: impl FnMut() + Send) -> f64 {
    cpu.install(|| {
        let end = Instant::now() + Duration::from_millis(millis);
        f();
        let mut best = f64::MAX;
        loop {
            let t = Instant::now();
            f();
            best = best.min(t.elapsed().as_secs_f64());
            if Instant::now() >= end {
                return best;
            }
        }
    })
}
