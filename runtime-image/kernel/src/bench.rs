//! Rates of this machine, measured: the roofline that benchmarks print beside
//! their figures.

use crate::isa::{Lanes, on_every_isa};
use crate::{Cpu, Dims, Epilogue, Weight, linear, sum_squares};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// f32 matrix product `[m,k]·[n,k]ᵀ`, packing included, 10⁹ operations a second (a
/// fused multiply-add counts two): the best repetition within about `millis`.
pub fn gemm_gflops(cpu: &Cpu, m: usize, n: usize, k: usize, millis: u64) -> f64 {
    let (x, w) = (vec![0.5f32; m * k], vec![0.25f32; n * k]);
    let mut y = vec![0f32; m * n];
    let seconds = best(cpu, millis, || {
        linear(cpu, &x, Weight::F32(&w), &mut y, Dims { t: m, k, n }, Epilogue::NONE)
    });
    2.0 * (m * n * k) as f64 / seconds / 1e9
}

/// Reading `bytes` of memory once a repetition, 10⁹ bytes a second. Take several times
/// the last cache's size.
pub fn read_gb_s(cpu: &Cpu, bytes: usize, millis: u64) -> f64 {
    let x = vec![1f32; bytes / 4];
    let seconds = best(cpu, millis, || {
        black_box(sum_squares(cpu, &x));
    });
    bytes as f64 / seconds / 1e9
}

/// Fused multiply-adds on registers alone, on all threads, 10⁹ operations a second.
pub fn fma_peak_gflops(cpu: &Cpu, millis: u64) -> f64 {
    const STEPS: usize = 1 << 16;
    let mut results = vec![0.0; cpu.threads()];
    let seconds = best(cpu, millis, || {
        cpu.each(usize::MAX, results.iter_mut(), |result| {
            *result = chains(cpu.isa(), black_box(STEPS))
        });
    });
    black_box(&results);
    2.0 * (cpu.threads() * CHAINS * register(cpu.isa()) * STEPS) as f64 / seconds / 1e9
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
