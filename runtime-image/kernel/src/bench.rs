//! Rates of this machine, measured: the roofline that benchmarks print beside
//! their figures.

use crate::{Cpu, Dims, Epilogue, Weight, linear};
use std::time::{Duration, Instant};

/// f32 matrix product `[m,k]·[n,k]ᵀ`, 10⁹ operations a second (a fused
/// multiply-add counts two), best repetition within about `millis`.
pub fn gemm_gflops(cpu: &Cpu, m: usize, n: usize, k: usize, millis: u64) -> f64 {
    let x = vec![0.5f32; m * k];
    let w = vec![0.25f32; n * k];
    let mut y = vec![0f32; m * n];
    let dims = Dims { t: m, k, n };
    let s = best(millis, || {
        linear(cpu, &x, Weight::F32(&w), &mut y, dims, Epilogue::NONE)
    });
    2.0 * (m * n * k) as f64 / s / 1e9
}

/// Reading `bytes` of memory once per repetition, 10⁹ bytes a second. Take
/// several times the last-level cache.
pub fn read_gb_s(cpu: &Cpu, bytes: usize, millis: u64) -> f64 {
    let x = vec![1f32; bytes / 4];
    let s = best(millis, || {
        std::hint::black_box(crate::sum_squares(cpu, &x));
    });
    bytes as f64 / s / 1e9
}

/// Fused multiply-adds on registers alone, all threads, 10⁹ operations a second.
pub fn fma_peak_gflops(cpu: &Cpu, millis: u64) -> f64 {
    gemm_gflops(cpu, 96, 96, 96, millis)
}

/// Least seconds of one call of `f`, repeated for about `millis`.
fn best(millis: u64, mut f: impl FnMut()) -> f64 {
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
}
