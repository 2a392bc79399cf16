//! One number for the bits of every kernel: the same on every variant and architecture,
//! today and later. If it changes on purpose, `NUMERICS_VERSION` in petaflop-plan is raised.

mod common;
use common::{everywhere, values};
use petaflop_kernel::*;

/// Linear layers; attention; norm, loss and optimiser.
const GOLDEN: [&str; 3] = ["b7db08bdd5607253", "6a56cd05f4c4f1d9", "73a2de958a0b8e1a"];

/// FNV-1a over the bits.
fn hash(outputs: &[Vec<f32>]) -> u64 {
    outputs
        .iter()
        .flatten()
        .flat_map(|x| x.to_bits().to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn the_bits_of_every_kernel_are_these() {
    let (t, k, n) = (70, 300, 65);
    let (x, w, w2, dy) = (values(t * k, 1), values(n * k, 2), values(n * k, 3), values(t * n, 4));
    let dims = Dims { t, k, n };
    let linears = everywhere("linear", |cpu| {
        let [mut y, mut h] = [(); 2].map(|()| vec![0.0; t * n]);
        let (mut dx, mut dw) = (vec![0.0; t * k], vec![0.0; n * k]);
        linear(
            cpu,
            &x,
            Weight::F32(&w),
            &mut y,
            dims,
            Epilogue { bias: Some(&w2[..n]), add: false },
        );
        linear_swiglu(cpu, &x, Weight::F32(&w), Weight::F32(&w2), &mut h, None, dims);
        linear_dx(cpu, &dy, Weight::F32(&w), &mut dx, dims, false);
        linear_dw(cpu, &dy, &x, &mut dw, dims, false);
        vec![y, h, dx, dw]
    });

    let a = AttentionDims { batch: 1, seq: 70, heads: 4, kv_heads: 2, head_dim: 24 };
    let q = values(70 * 4 * 24, 5);
    let [key, value] = [6, 7].map(|s| values(70 * 2 * 24, s));
    let attention = everywhere("attention", |cpu| {
        let (mut out, mut lse, mut delta) = (vec![0.0; q.len()], vec![0.0; 280], vec![0.0; 280]);
        let [mut dq, mut dk, mut dv] = [q.len(), key.len(), key.len()].map(|n| vec![0.0; n]);
        attention_forward(cpu, &q, &key, &value, &mut out, &mut lse, a, 0.2);
        attention_backward(
            cpu, &q, &key, &value, &out, &lse, &q, &mut dq, &mut dk, &mut dv, &mut delta, a, 0.2,
        );
        vec![out, lse, dq, dk, dv]
    });

    let rest = everywhere("the rest", |cpu| {
        let (mut y, mut rstd, mut dx, mut dgain) =
            (x.clone(), vec![0.0; t], x.clone(), vec![0.0; k]);
        rms_norm(cpu, &x, &w[..k], &mut y, &mut rstd, 1e-5);
        rms_norm_backward(cpu, &x, &w[..k], &rstd, &y, &mut dx, true, Some(&mut dgain));
        let (mut logits, mut nll) = (dy.iter().map(|x| x * 20.0).collect::<Vec<_>>(), vec![0.0; t]);
        let targets: Vec<u32> = (0..t as u32).map(|i| i % n as u32).collect();
        cross_entropy(cpu, &mut logits, &targets, &mut nll, 0.1);
        let (mut p, mut m, mut v) = (x.clone(), values(t * k, 8), vec![0.5; t * k]);
        let c = AdamW {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            bias1: 0.1,
            bias2: 0.05,
            grad_scale: 1.0,
        };
        adamw(cpu, &mut p, &y, &mut m, &mut v, &c);
        let squares = sum_squares(cpu, &x) as f32;
        vec![y, rstd, dx, dgain, logits, nll, p, m, v, vec![squares]]
    });
    let bits = [linears, attention, rest].map(|outputs| format!("{:016x}", hash(&outputs)));
    assert_eq!(bits, GOLDEN);
}
