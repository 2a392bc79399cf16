//! What every kernel test needs: inputs, the CPUs to run on, and the two verdicts —
//! near an independent f64 loop, and equal to the bit among variants and threads.
#![allow(dead_code, unreachable_pub)] // each test binary uses a part

pub mod cases;

use petaflop_kernel::{Cpu, Isa};

/// Deterministic values in (−1, 1), a different stream for each `seed`.
pub fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Every variant this processor can run, on one thread, and the best one on 2 and 3.
pub fn cpus() -> Vec<Cpu> {
    let mut cpus: Vec<Cpu> = Isa::available()
        .into_iter()
        .map(|isa| Cpu::new(Some(isa), 1).expect("it is available"))
        .collect();
    cpus.extend([2, 3].map(|threads| Cpu::new(None, threads).expect("the best is available")));
    cpus
}

/// Runs `f` on all of [`cpus`], asserts that the results are equal to the bit, and returns one.
pub fn everywhere(what: &str, f: impl Fn(&Cpu) -> Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let mut first: Option<Vec<Vec<f32>>> = None;
    for cpu in cpus() {
        let result = f(&cpu);
        match &first {
            None => first = Some(result),
            Some(first) => {
                for (o, (a, b)) in first.iter().zip(&result).enumerate() {
                    same_bits(&format!("{what}, output {o}, {cpu:?}"), a, b);
                }
            }
        }
    }
    first.expect("at least the portable variant ran")
}

/// Asserts that two results are equal to the bit (NaNs equal each other).
pub fn same_bits(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}: lengths");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(
            a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()),
            "{what}: element {i} is {a:e} and {b:e}, different bits"
        );
    }
}

/// Asserts |got − want| ≤ tolerance · (1 + |want|) everywhere.
pub fn near(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(g) - w).abs() / (1.0 + w.abs());
        assert!(
            error <= tolerance,
            "{what}: element {i} is {g}, expected {w}, error {error:e} > {tolerance:e}"
        );
    }
}

/// As f64.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}
