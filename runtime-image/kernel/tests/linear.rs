//! Linear layers against plain f64 loops. Tolerance: K rounding errors of an f32 chain.

mod common;
use common::{everywhere, near, same_bits, values, wide};
use petaflop_kernel::*;

const EPS: f64 = 1.2e-7;

/// c[m,n] = Σ_p a(i,p)·b(p,j)
fn product(
    m: usize,
    n: usize,
    k: usize,
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            for p in 0..k {
                c[i * n + j] += a(i, p) * b(p, j);
            }
        }
    }
    c
}

const SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (1, 3, 17),
    (3, 17, 1),
    (7, 63, 65),
    (8, 64, 48),
    (9, 65, 49),
    (17, 257, 63),
    (64, 129, 129),
    (33, 300, 65),
    (130, 64, 50),
    (2, 520, 1030),
    (5, 1030, 530),
];

#[test]
fn forward_with_every_epilogue() {
    for (t, k, n) in SHAPES {
        let (x, w, bias, y0) = (values(t * k, 1), values(n * k, 2), values(n, 3), values(t * n, 4));
        let dims = Dims { t, k, n };
        let plain = product(t, n, k, |i, p| x[i * k + p].into(), |p, j| w[j * k + p].into());
        for (bias, add) in
            [(None, false), (Some(&bias[..]), false), (None, true), (Some(&bias[..]), true)]
        {
            let what = format!("linear {t}×{k}×{n}, bias {}, add {add}", bias.is_some());
            let got = everywhere(&what, |cpu| {
                let (mut y, mut packed) = (y0.clone(), y0.clone());
                linear(cpu, &x, Weight::F32(&w), &mut y, dims, Epilogue { bias, add });
                let pw = PackedWeight::new(cpu, Weight::F32(&w), n, k);
                linear_packed(cpu, &x, &pw, &mut packed, t, Epilogue { bias, add });
                same_bits("packed", &y, &packed);
                vec![y]
            });
            let want: Vec<f64> = (0..t * n)
                .map(|i| {
                    plain[i]
                        + bias.map_or(0.0, |b| f64::from(b[i % n]))
                        + if add { f64::from(y0[i]) } else { 0.0 }
                })
                .collect();
            near(&what, &got[0], &want, EPS * (k as f64 + 2.0));
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_batch() {
    let (t, k, n) = (70, 300, 100);
    let (x, w) = (values(t * k, 1), values(n * k, 2));
    everywhere("rows of a batch", |cpu| {
        let mut all = vec![0.0; t * n];
        linear(cpu, &x, Weight::F32(&w), &mut all, Dims { t, k, n }, Epilogue::NONE);
        for rows in [1, 3, 8, 9] {
            for first in [0, 5, t - rows] {
                let mut y = vec![0.0; rows * n];
                let x = &x[first * k..][..rows * k];
                linear(cpu, x, Weight::F32(&w), &mut y, Dims { t: rows, k, n }, Epilogue::NONE);
                same_bits("a part of the batch", &y, &all[first * n..][..rows * n]);
            }
        }
        vec![all]
    });
}

#[test]
fn gradients_of_input_and_weight() {
    for (t, k, n) in SHAPES {
        let (x, w, dy) = (values(t * k, 1), values(n * k, 2), values(t * n, 3));
        let (dx0, dw0) = (values(t * k, 4), values(n * k, 5));
        let dims = Dims { t, k, n };
        let want_dx = product(t, k, n, |i, p| dy[i * n + p].into(), |p, j| w[p * k + j].into());
        let want_dw = product(n, k, t, |i, p| dy[p * n + i].into(), |p, j| x[p * k + j].into());
        for accumulate in [false, true] {
            let what = format!("gradients {t}×{k}×{n}, accumulate {accumulate}");
            let got = everywhere(&what, |cpu| {
                let (mut dx, mut dw) = (dx0.clone(), dw0.clone());
                linear_dx(cpu, &dy, Weight::F32(&w), &mut dx, dims, accumulate);
                linear_dw(cpu, &dy, &x, &mut dw, dims, accumulate);
                vec![dx, dw]
            });
            let plus = |want: &[f64], before: &[f32]| -> Vec<f64> {
                want.iter()
                    .zip(before)
                    .map(|(w, &b)| w + if accumulate { f64::from(b) } else { 0.0 })
                    .collect()
            };
            near(&what, &got[0], &plus(&want_dx, &dx0), EPS * (n as f64 + 2.0));
            near(&what, &got[1], &plus(&want_dw, &dw0), EPS * (t as f64 + 2.0));
        }
    }
}

#[test]
fn an_accumulated_gradient_is_the_chain_plus_what_was_there() {
    let (t, k, n) = (600, 30, 20);
    let (x, dy, before) = (values(t * k, 1), values(t * n, 2), values(n * k, 3));
    everywhere("accumulate", |cpu| {
        let (mut fresh, mut added) = (vec![0.0; n * k], before.clone());
        linear_dw(cpu, &dy, &x, &mut fresh, Dims { t, k, n }, false);
        linear_dw(cpu, &dy, &x, &mut added, Dims { t, k, n }, true);
        let sum: Vec<f32> = fresh.iter().zip(&before).map(|(a, b)| b + a).collect();
        same_bits("before + chain", &sum, &added);
        vec![added]
    });
}

#[test]
fn quantised_weights_multiply_as_their_values_do() {
    for (t, k, n) in [(1, 32, 1), (3, 64, 65), (8, 288, 49), (9, 320, 100), (40, 544, 63)] {
        let (x, w) = (values(t * k, 1), values(n * k, 2));
        let mut q = vec![0u8; n * k / BLOCK_VALUES * Q8_0_BYTES];
        quantize_q8_0(&w, &mut q);
        let bits: Vec<u16> = w.iter().map(|w| half::bf16::from_f32(*w).to_bits()).collect();
        let mut fours = vec![0u8; n * k / BLOCK_VALUES * Q4_0_BYTES];
        quantize_q4_0(&w, &mut fours);
        for weight in [Weight::Q8_0(&q), Weight::Q4_0(&fours), Weight::Bf16(&bits)] {
            let mut exact = vec![0.0; n * k];
            dequantize(weight, &mut exact);
            let dims = Dims { t, k, n };
            let dy = values(t * n, 7);
            let plain =
                product(t, n, k, |i, p| x[i * k + p].into(), |p, j| exact[j * k + p].into());
            let got = everywhere("quantised", |cpu| {
                let [mut want, mut plain, mut packed] =
                    [const { Vec::new() }; 3].map(|_: Vec<f32>| vec![0.0; t * n]);
                linear(cpu, &x, Weight::F32(&exact), &mut want, dims, Epilogue::NONE);
                linear(cpu, &x, weight, &mut plain, dims, Epilogue::NONE);
                let pw = PackedWeight::new(cpu, weight, n, k);
                linear_packed(cpu, &x, &pw, &mut packed, t, Epilogue::NONE);
                same_bits("plain", &want, &plain);
                same_bits("packed", &want, &packed);
                let (mut dx, mut want_dx) = (vec![0.0; t * k], vec![0.0; t * k]);
                linear_dx(cpu, &dy, weight, &mut dx, dims, false);
                linear_dx(cpu, &dy, Weight::F32(&exact), &mut want_dx, dims, false);
                same_bits("dx", &want_dx, &dx);
                let mut row = vec![0.0; k];
                for (j, exact) in exact.chunks_exact(k).enumerate() {
                    pw.row(j, &mut row);
                    same_bits("a row", exact, &row);
                }
                vec![packed, dx]
            });
            near("quantised", &got[0], &plain, EPS * (k as f64 + 2.0));
        }
    }
}

/// Sizes of products with rows of whole blocks: t, k, n.
const BLOCKS: [(usize, usize, usize); 7] =
    [(1, 32, 1), (3, 64, 65), (8, 288, 49), (9, 320, 100), (40, 544, 63), (130, 96, 48), (7, 0, 3)];

#[test]
fn int8_activations_that_bytes_hold_give_the_products_of_the_exact_ones() {
    for (t, k, n) in BLOCKS {
        // Whole numbers from −127 to 127, with 127 or −127 in each block, times a power of two: rounding loses nothing.
        let x: Vec<f32> = (values(t * k, 1).iter().enumerate())
            .map(|(i, x)| match i % 32 {
                5 => 127.0 * x.signum(),
                _ => (x * 127.0).round(),
            } * 0.125_f32.powi((i / 32 % 3) as i32))
            .collect();
        let mut q = vec![0u8; n * k / BLOCK_VALUES * Q8_0_BYTES];
        quantize_q8_0(&values(n * k, 2), &mut q);
        // No quantiser writes −128, but a file may hold it.
        q.chunks_mut(Q8_0_BYTES).for_each(|block| block[7] = 128);
        let mut w = vec![0.0; n * k];
        dequantize(Weight::Q8_0(&q), &mut w);
        let (bias, y0) = (values(n, 3), values(t * n, 4));
        let want: Vec<f64> =
            product(t, n, k, |i, p| x[i * k + p].into(), |p, j| w[j * k + p].into())
                .into_iter()
                .enumerate()
                .map(|(i, y)| y + f64::from(bias[i % n]) + f64::from(y0[i]))
                .collect();
        let size =
            product(t, n, k, |i, p| x[i * k + p].abs().into(), |p, j| w[j * k + p].abs().into());
        let got = everywhere("int8", |cpu| {
            let packed = PackedWeight::for_int8(cpu, &q, n, k);
            assert_eq!(packed.bytes(), PackedWeight::new(cpu, Weight::Q8_0(&q), n, k).bytes());
            let mut y = y0.clone();
            linear_packed(cpu, &x, &packed, &mut y, t, Epilogue { bias: Some(&bias), add: true });
            let mut row = vec![0.0; k];
            for (j, w) in (0..n).map(|j| (j, &w[j * k..][..k])) {
                packed.row(j, &mut row);
                same_bits("a row", w, &row);
            }
            // A row has the same bits alone.
            for i in 0..t {
                let mut alone = y0[i * n..][..n].to_vec();
                let epilogue = Epilogue { bias: Some(&bias), add: true };
                linear_packed(cpu, &x[i * k..][..k], &packed, &mut alone, 1, epilogue);
                same_bits("a row alone", &alone, &y[i * n..][..n]);
            }
            vec![y]
        });
        for ((got, want), size) in got[0].iter().zip(want).zip(size) {
            let most = EPS * (k as f64 / 32.0 + 4.0) * (2.0 + size);
            assert!((f64::from(*got) - want).abs() <= most, "{t}×{k}×{n}: {got} {want}");
        }
    }
}

#[test]
fn int8_activations_are_off_by_half_a_step_for_each_weight_at_most() {
    for (t, k, n) in BLOCKS {
        let (x, w) = (values(t * k, 5), values(n * k, 6));
        let mut q = vec![0u8; n * k / BLOCK_VALUES * Q8_0_BYTES];
        quantize_q8_0(&w, &mut q);
        let mut w = vec![0.0; n * k];
        dequantize(Weight::Q8_0(&q), &mut w);
        let got = everywhere("int8", |cpu| {
            let packed = PackedWeight::for_int8(cpu, &q, n, k);
            let (mut y, mut h) = (vec![0.0; t * n], vec![0.0; t * n]);
            linear_packed(cpu, &x, &packed, &mut y, t, Epilogue::NONE);
            linear_swiglu_packed(cpu, &x, &packed, &packed, &mut h, t);
            let mut parts = vec![0.0; t * n];
            swiglu(cpu, &y, &y, &mut parts);
            same_bits("the pair is its parts", &parts, &h);
            vec![y]
        });
        for i in 0..t * n {
            let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
            let (mut want, mut most) = (0.0, 0.0);
            for (x, w) in x.chunks(32).zip(w.chunks(32)) {
                let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
                for (&x, &w) in x.iter().zip(w) {
                    want += f64::from(x) * f64::from(w);
                    most += f64::from(largest) / 254.0 * 1.001 * f64::from(w.abs());
                }
            }
            let away = (f64::from(got[0][i]) - want).abs();
            assert!(away <= most + EPS * k as f64, "{t}×{k}×{n}: {away} > {most}");
        }
    }
}

#[test]
fn int8_activations_keep_what_is_no_number() {
    let mut q = vec![0u8; 2 * Q8_0_BYTES];
    quantize_q8_0(&[0.5; 64], &mut q);
    for (bad, nan) in [(f32::NAN, true), (f32::INFINITY, true), (1e-44, false), (0.0, false)] {
        for at in [0, 13, 31, 45] {
            let got = everywhere("int8", |cpu| {
                let mut x = vec![0.0; 64];
                x[at] = bad;
                let mut y = vec![7.0];
                let packed = PackedWeight::for_int8(cpu, &q, 1, 64);
                linear_packed(cpu, &x, &packed, &mut y, 1, Epilogue::NONE);
                vec![y]
            });
            assert_eq!(got[0][0].is_nan(), nan, "{bad} at {at} became {}", got[0][0]);
            assert!(nan || got[0][0] == 0.0, "{bad} at {at} became {}", got[0][0]);
        }
    }
}

#[test]
fn q8_0_is_off_by_half_a_step_at_most() {
    let x = values(32 * 50, 9);
    let mut q = vec![0u8; 50 * Q8_0_BYTES];
    quantize_q8_0(&x, &mut q);
    let mut y = vec![0.0; x.len()];
    dequantize(Weight::Q8_0(&q), &mut y);
    for (x, y) in x.chunks(32).zip(y.chunks(32)) {
        let step = x.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
        for (x, y) in x.iter().zip(y) {
            // The scale is stored in half precision: 2⁻¹¹ of up to 127 steps on top.
            assert!((x - y).abs() <= step * (0.5 + 127.0 / 2048.0), "{x} became {y}, step {step}");
        }
    }
    let mut zeros = vec![1u8; Q8_0_BYTES];
    quantize_q8_0(&[0.0; 32], &mut zeros);
    assert_eq!(zeros, [0; Q8_0_BYTES]);
}

#[test]
fn a_q4_0_block_is_its_scale_times_sixteen_low_halves_and_then_sixteen_high() {
    for seed in 0..8_u8 {
        let scale = half::f16::from_f32(0.25 + f32::from(seed));
        let mut block = [0u8; Q4_0_BYTES];
        block[..2].copy_from_slice(&scale.to_le_bytes());
        for (i, byte) in (0_u8..).zip(&mut block[2..]) {
            *byte = (i << 4 | (15 - i)).wrapping_add(seed.wrapping_mul(37));
        }
        let mut found = [0.0; BLOCK_VALUES];
        dequantize(Weight::Q4_0(&block), &mut found);
        for (i, found) in found.into_iter().enumerate() {
            let byte = block[2 + i % 16];
            let half = if i < 16 { byte % 16 } else { byte / 16 };
            assert_eq!(f64::from(found), f64::from(scale) * (f64::from(half) - 8.0), "{i}");
        }
    }
}

#[test]
fn the_swiglu_pair_is_its_parts() {
    for (t, k, n) in [(1, 17, 3), (9, 65, 63), (40, 300, 100)] {
        let (x, wg, wu) = (values(t * k, 1), values(n * k, 2), values(n * k, 3));
        let dims = Dims { t, k, n };
        let got = everywhere("linear_swiglu", |cpu| {
            let [mut h, mut kept, mut g, mut u, mut packed] = [(); 5].map(|()| vec![0.0; t * n]);
            linear_swiglu(cpu, &x, Weight::F32(&wg), Weight::F32(&wu), &mut h, None, dims);
            let keep = Some((&mut g[..], &mut u[..]));
            linear_swiglu(cpu, &x, Weight::F32(&wg), Weight::F32(&wu), &mut kept, keep, dims);
            same_bits("kept or not", &h, &kept);
            let [pg, pu] = [&wg, &wu].map(|w| PackedWeight::new(cpu, Weight::F32(w), n, k));
            linear_swiglu_packed(cpu, &x, &pg, &pu, &mut packed, t);
            same_bits("packed", &h, &packed);
            let mut gate = vec![0.0; t * n];
            linear(cpu, &x, Weight::F32(&wg), &mut gate, dims, Epilogue::NONE);
            same_bits("gate", &gate, &g);
            swiglu(cpu, &g, &u, &mut gate);
            same_bits("h", &gate, &h);
            vec![h, u]
        });
        let gate = product(t, n, k, |i, p| x[i * k + p].into(), |p, j| wg[j * k + p].into());
        let up = product(t, n, k, |i, p| x[i * k + p].into(), |p, j| wu[j * k + p].into());
        let h: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        near("h", &got[0], &h, 10.0 * EPS * k as f64);
        near("up", &got[1], &up, EPS * (k as f64 + 2.0));
        let _ = wide(&x);
    }
}

#[test]
#[should_panic(expected = "linear: x [2, 3] has 5 values")]
fn a_wrong_shape_is_named() {
    let cpu = Cpu::new(None, 1).expect("the best variant");
    linear(
        &cpu,
        &[0.0; 5],
        Weight::F32(&[0.0; 12]),
        &mut [0.0; 8],
        Dims { t: 2, k: 3, n: 4 },
        Epilogue::NONE,
    );
}
