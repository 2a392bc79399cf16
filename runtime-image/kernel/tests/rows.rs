//! Row, column, map and gather kernels against plain f64 loops, and their gradients
//! against finite differences of those loops.

mod common;
use common::{everywhere, near, same_bits, values, wide};
use petaflop_kernel::*;

const WIDTHS: [usize; 11] = [1, 3, 16, 17, 63, 64, 65, 129, 200, 384, 1030];

/// d f(x) / dx by central differences, f summed with weights `dy`.
fn differences(x: &[f64], dy: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let h = 1e-5;
    let at = |i: usize, d: f64| -> f64 {
        let mut x = x.to_vec();
        x[i] += d;
        f(&x).iter().zip(dy).map(|(a, b)| a * b).sum()
    };
    (0..x.len()).map(|i| (at(i, h) - at(i, -h)) / (2.0 * h)).collect()
}

fn rms(x: &[f64], gain: &[f64], eps: f64) -> Vec<f64> {
    let n = gain.len();
    let mut y = vec![];
    for row in x.chunks(n) {
        let s = 1.0 / (row.iter().map(|x| x * x).sum::<f64>() / n as f64 + eps).sqrt();
        y.extend((0..n).map(|i| row[i] * s * gain[i]));
    }
    y
}

#[test]
fn rms_norm_forward() {
    for n in WIDTHS {
        for t in [1, 3, 70] {
            let (x, gain) = (values(t * n, 1), values(n, 2));
            let got = everywhere(&format!("rms_norm {t}×{n}"), |cpu| {
                let (mut y, mut rstd) = (vec![0.0; t * n], vec![0.0; t]);
                rms_norm(cpu, &x, &gain, &mut y, &mut rstd, 1e-5);
                vec![y, rstd]
            });
            near("y", &got[0], &rms(&wide(&x), &wide(&gain), f64::from(1e-5f32)), 2e-6);
        }
    }
}

#[test]
fn rms_norm_gradients() {
    for (t, n) in [(1, 1), (2, 3), (3, 17), (2, 65), (5, 33)] {
        let (x, gain, dy) = (values(t * n, 1), values(n, 2), values(t * n, 3));
        let (dx0, dgain0) = (values(t * n, 4), values(n, 5));
        let got = everywhere("rms_norm_backward", |cpu| {
            let (mut y, mut rstd) = (vec![0.0; t * n], vec![0.0; t]);
            rms_norm(cpu, &x, &gain, &mut y, &mut rstd, 1e-2);
            let (mut dx, mut added, mut dgain) = (vec![9.0; t * n], dx0.clone(), dgain0.clone());
            rms_norm_backward(cpu, &x, &gain, &rstd, &dy, &mut dx, false, None);
            rms_norm_backward(cpu, &x, &gain, &rstd, &dy, &mut added, true, Some(&mut dgain));
            let sum: Vec<f32> = dx.iter().zip(&dx0).map(|(a, b)| b + a).collect();
            same_bits("accumulated dx", &sum, &added);
            vec![dx, dgain]
        });
        let eps = f64::from(1e-2f32);
        let dx = differences(&wide(&x), &wide(&dy), |x| rms(x, &wide(&gain), eps));
        let dgain = differences(&wide(&gain), &wide(&dy), |g| rms(&wide(&x), g, eps));
        let dgain: Vec<f64> = dgain.iter().zip(&dgain0).map(|(a, &b)| a + f64::from(b)).collect();
        near("dx", &got[0], &dx, 1e-5);
        near("dgain", &got[1], &dgain, 1e-5);
    }
}

#[test]
fn column_sums_over_many_blocks_of_rows() {
    for (t, n) in [(1, 1), (63, 3), (64, 64), (65, 17), (129, 130), (700, 33)] {
        let (x, gain, dy, rstd, before) =
            (values(t * n, 1), values(n, 2), values(t * n, 3), values(t, 4), values(n, 5));
        let got = everywhere(&format!("columns {t}×{n}"), |cpu| {
            let (mut sum, mut dgain, mut dx) = (before.clone(), before.clone(), vec![0.0; t * n]);
            column_sum(cpu, &x, &mut sum);
            rms_norm_backward(cpu, &x, &gain, &rstd, &dy, &mut dx, false, Some(&mut dgain));
            vec![sum, dgain]
        });
        let (mut sum, mut dgain) = (wide(&before), wide(&before));
        for r in 0..t {
            for i in 0..n {
                sum[i] += f64::from(x[r * n + i]);
                dgain[i] += f64::from(x[r * n + i]) * f64::from(dy[r * n + i]) * f64::from(rstd[r]);
            }
        }
        near("column_sum", &got[0], &sum, 1e-5);
        near("dgain", &got[1], &dgain, 1e-5);
    }
}

#[test]
fn rotary_embedding_turns_and_turns_back() {
    for (heads, d) in [(1, 2), (3, 6), (2, 34), (2, 128)] {
        let (t, half) = (5, d / 2);
        let angles: Vec<f32> = values(9 * half, 1).iter().map(|x| x * 3.0).collect();
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let x = values(t * heads * d, 2);
        let positions = [0u32, 8, 3, 3, 7];
        let got = everywhere("rope", |cpu| {
            let (mut y, mut back) = (x.clone(), x.clone());
            rope(cpu, &mut y, &cos, &sin, &positions, heads, false);
            back.copy_from_slice(&y);
            rope(cpu, &mut back, &cos, &sin, &positions, heads, true);
            vec![y, back]
        });
        let mut want = wide(&x);
        for (r, row) in want.chunks_mut(d).enumerate() {
            for i in 0..half {
                let table = positions[r / heads] as usize * half + i;
                let (c, s) = (f64::from(cos[table]), f64::from(sin[table]));
                let (a, b) = (row[i], row[half + i]);
                row[i] = a * c - b * s;
                row[half + i] = b * c + a * s;
            }
        }
        near("turned", &got[0], &want, 5e-7);
        near("back", &got[1], &wide(&x), 1e-6);
    }
}

#[test]
fn swiglu_and_its_gradients() {
    let f = |g: f64, u: f64| g / (1.0 + (-g).exp()) * u;
    for n in [1, 15, 64, 129, 40_000] {
        let gate: Vec<f32> = values(n, 1).iter().map(|x| x * 20.0).collect();
        let (up, dh) = (values(n, 2), values(n, 3));
        let got = everywhere("swiglu", |cpu| {
            let [mut h, mut dgate, mut dup] = [(); 3].map(|()| vec![0.0; n]);
            swiglu(cpu, &gate, &up, &mut h);
            swiglu_backward(cpu, &gate, &up, &dh, &mut dgate, &mut dup);
            vec![h, dgate, dup]
        });
        let (gate, up, dh) = (wide(&gate), wide(&up), wide(&dh));
        let h: Vec<f64> = (0..n).map(|i| f(gate[i], up[i])).collect();
        let e = 1e-5;
        let dgate: Vec<f64> = (0..n)
            .map(|i| dh[i] * (f(gate[i] + e, up[i]) - f(gate[i] - e, up[i])) / (2.0 * e))
            .collect();
        let dup: Vec<f64> = (0..n)
            .map(|i| dh[i] * (f(gate[i], up[i] + e) - f(gate[i], up[i] - e)) / (2.0 * e))
            .collect();
        near("h", &got[0], &h, 1e-6);
        near("dgate", &got[1], &dgate, 2e-6);
        near("dup", &got[2], &dup, 2e-6);
    }
}

#[test]
fn exponential_and_logarithm_are_near_and_tame_at_the_edges() {
    // silu(x) = x/(1+e⁻ˣ) shows e; cross-entropy of two logits shows e and ln.
    let x: Vec<f32> = (-1000..=1000)
        .map(|i| i as f32 * 0.1)
        .chain([f32::MAX, f32::MIN, 0.0, -0.0, 1e-30])
        .collect();
    let ones = vec![1.0; x.len()];
    let got = everywhere("silu at the edges", |cpu| {
        let mut h = vec![0.0; x.len()];
        swiglu(cpu, &x, &ones, &mut h);
        vec![h]
    });
    for (&x, &h) in x.iter().zip(&got[0]) {
        let want = f64::from(x) / (1.0 + (-f64::from(x)).exp());
        assert!(
            (f64::from(h) - want).abs() <= 3e-7 * want.abs() + 1e-35,
            "silu({x}) = {h}, expected {want}"
        );
    }
    let nan = everywhere("NaN", |cpu| {
        let mut h = vec![0.0; 3];
        swiglu(cpu, &[f32::NAN, 1.0, f32::INFINITY], &[1.0, f32::NAN, 2.0], &mut h);
        vec![h]
    });
    assert!(nan[0][0].is_nan() && nan[0][1].is_nan() && nan[0][2] == f32::INFINITY, "{nan:?}");
}

fn nll(x: &[f64], targets: &[u32]) -> Vec<f64> {
    let v = x.len() / targets.len();
    x.chunks(v)
        .zip(targets)
        .map(|(x, &t)| {
            let m = x.iter().copied().fold(f64::MIN, f64::max);
            if t == IGNORE {
                0.0
            } else {
                m + x.iter().map(|x| (x - m).exp()).sum::<f64>().ln() - x[t as usize]
            }
        })
        .collect()
}

#[test]
fn cross_entropy_and_its_gradient() {
    for v in [1, 2, 17, 63, 64, 65, 129, 515] {
        let t = 4;
        let x: Vec<f32> = values(t * v, 1).iter().map(|x| x * 30.0).collect();
        let targets = [0, v as u32 - 1, IGNORE, (v / 2) as u32];
        let got = everywhere(&format!("cross_entropy {v}"), |cpu| {
            let (mut dx, mut loss, mut alone) = (x.clone(), vec![0.0; t], vec![0.0; t]);
            cross_entropy(cpu, &mut dx, &targets, &mut loss, 0.25);
            cross_entropy_loss(cpu, &x, &targets, &mut alone);
            same_bits("with and without gradient", &loss, &alone);
            vec![loss, dx]
        });
        near("nll", &got[0], &nll(&wide(&x), &targets), 1e-6);
        near("dx", &got[1], &differences(&wide(&x), &[0.25; 4], |x| nll(x, &targets)), 1e-6);
    }
}

#[test]
fn logits_far_apart_give_a_finite_loss() {
    let x = [1e30f32, -1e30, 0.0, 1e4];
    let got = everywhere("far apart", |cpu| {
        let mut loss = vec![0.0];
        cross_entropy_loss(cpu, &x, &[3], &mut loss);
        vec![loss]
    });
    assert_eq!(got[0][0], 1e30f32 - 1e4);
}

#[test]
fn embeddings_are_gathered_and_their_gradient_is_summed_in_order() {
    let rows = 20;
    for width in [1, 3, 17, 64, 96, 130] {
        let table = values(rows * width, 1);
        let tokens: Vec<u32> = values(200, 2).iter().map(|x| ((x + 1.0) * 9.9) as u32).collect();
        let (dy, before) = (values(tokens.len() * width, 3), values(rows * width, 4));
        let got = everywhere("embedding", |cpu| {
            let (mut y, mut dw) = (vec![0.0; tokens.len() * width], before.clone());
            embedding(cpu, &tokens, Weight::F32(&table), &mut y, width);
            embedding_backward(cpu, &tokens, &dy, &mut dw, width);
            vec![y, dw]
        });
        let mut sums = vec![0f32; rows * width];
        let mut used = vec![false; rows];
        for (t, &token) in tokens.iter().enumerate() {
            let token = token as usize;
            used[token] = true;
            assert_eq!(got[0][t * width..][..width], table[token * width..][..width]);
            for i in 0..width {
                sums[token * width + i] += dy[t * width + i];
            }
        }
        let want: Vec<f32> = (0..sums.len())
            .map(|i| if used[i / width] { before[i] + sums[i] } else { before[i] })
            .collect();
        same_bits("position order", &want, &got[1]);
    }
}

#[test]
fn embeddings_of_quantised_tables() {
    let (rows, width) = (7, 64);
    let mut q = vec![0u8; rows * width / BLOCK_VALUES * Q8_0_BYTES];
    quantize_q8_0(&values(rows * width, 1), &mut q);
    let mut table = vec![0.0; rows * width];
    dequantize(Weight::Q8_0(&q), &mut table);
    let tokens = [6u32, 0, 3];
    let got = everywhere("q8_0 table", |cpu| {
        let mut y = vec![0.0; 3 * width];
        embedding(cpu, &tokens, Weight::Q8_0(&q), &mut y, width);
        vec![y]
    });
    for (y, &t) in got[0].chunks(width).zip(&tokens) {
        assert_eq!(y, &table[t as usize * width..][..width]);
    }
}

#[test]
fn adamw_steps_as_the_paper_says() {
    let c = AdamW {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        bias1: 1.0 - 0.9f32.powi(3),
        bias2: 1.0 - 0.95f32.powi(3),
        grad_scale: 0.5,
    };
    for n in [1, 17, 64, 20_000] {
        let (p, g, m) = (values(n, 1), values(n, 2), values(n, 3));
        let v: Vec<f32> = values(n, 4).iter().map(|x| x.abs()).collect();
        let got = everywhere("adamw", |cpu| {
            let (mut p, mut m, mut v) = (p.clone(), m.clone(), v.clone());
            adamw(cpu, &mut p, &g, &mut m, &mut v, &c);
            vec![p, m, v]
        });
        let w = f64::from;
        let mut want = [vec![], vec![], vec![]];
        for i in 0..n {
            let g = w(g[i]) * w(c.grad_scale);
            let m = w(c.beta1) * w(m[i]) + (1.0 - w(c.beta1)) * g;
            let v = w(c.beta2) * w(v[i]) + (1.0 - w(c.beta2)) * g * g;
            let step = m / w(c.bias1) / ((v / w(c.bias2)).sqrt() + w(c.eps));
            want[0].push(w(p[i]) - w(c.lr) * (step + w(c.weight_decay) * w(p[i])));
            want[1].push(m);
            want[2].push(v);
        }
        for (got, want) in got.iter().zip(&want) {
            near("adamw", got, want, 1e-6);
        }
    }
}

#[test]
fn sums_scales_and_additions() {
    for n in [0, 1, 63, 65, 16_384, 50_001] {
        let (x, y) = (values(n, 1), values(n, 2));
        let got = everywhere("slices", |cpu| {
            let (mut scaled, mut sum) = (x.clone(), y.clone());
            scale(cpu, &mut scaled, 0.3);
            add(cpu, &x, &mut sum);
            let squares = sum_squares(cpu, &x).to_bits();
            vec![
                scaled,
                sum,
                vec![f32::from_bits(squares as u32), f32::from_bits((squares >> 32) as u32)],
            ]
        });
        let bits = u64::from(got[2][0].to_bits()) | u64::from(got[2][1].to_bits()) << 32;
        let want: f64 = wide(&x).iter().map(|x| x * x).sum();
        assert!(
            (f64::from_bits(bits) - want).abs() <= 1e-6 * (1.0 + want),
            "{} {want}",
            f64::from_bits(bits)
        );
        assert!((0..n).all(|i| got[0][i] == x[i] * 0.3 && got[1][i] == x[i] + y[i]));
    }
}

#[test]
#[should_panic(expected = "token 7 in a table of 7 rows")]
fn a_token_beyond_the_table_is_named() {
    let cpu = Cpu::new(None, 1).expect("the best variant");
    embedding(&cpu, &[7], Weight::F32(&[0.0; 14]), &mut [0.0; 2], 2);
}

#[test]
fn names_of_variants_are_read_and_written() {
    for isa in [Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Portable] {
        assert_eq!(isa.to_string().parse(), Ok(isa));
        assert_eq!(Isa::available().contains(&isa), Cpu::new(Some(isa), 1).is_ok(), "{isa}");
    }
    assert_eq!(
        "sse".parse::<Isa>().map_err(|e| e.to_string()),
        Err("unknown kernel variant \"sse\"; expected avx512, avx2, neon or portable".to_owned())
    );
}
