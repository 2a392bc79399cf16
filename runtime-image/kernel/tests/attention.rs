//! Attention against a plain f64 loop, its gradients against finite differences of that
//! loop, and the paged form against the contiguous one to the bit.

mod common;
use common::{everywhere, near, same_bits, values, wide};
use petaflop_kernel::*;

fn dims(batch: usize, seq: usize, heads: usize, kv_heads: usize, head_dim: usize) -> AttentionDims {
    AttentionDims { batch, seq, heads, kv_heads, head_dim }
}

/// Outputs and log-sum-exps, two passes over a full row of scores.
fn naive(q: &[f64], k: &[f64], v: &[f64], a: AttentionDims, scale: f64) -> (Vec<f64>, Vec<f64>) {
    let d = a.head_dim;
    let (mut out, mut lse) = (vec![0.0; q.len()], vec![]);
    for t in 0..a.batch * a.seq {
        for h in 0..a.heads {
            let kv = h / (a.heads / a.kv_heads);
            let first = t / a.seq * a.seq;
            let query = (t * a.heads + h) * d;
            let row = |j: usize| (j * a.kv_heads + kv) * d;
            let s: Vec<f64> = (first..=t)
                .map(|j| scale * (0..d).map(|e| q[query + e] * k[row(j) + e]).sum::<f64>())
                .collect();
            let m = s.iter().copied().fold(f64::MIN, f64::max);
            let z: f64 = s.iter().map(|s| (s - m).exp()).sum();
            for (j, s) in s.iter().enumerate() {
                for e in 0..d {
                    out[query + e] += (s - m).exp() / z * v[row(first + j) + e];
                }
            }
            lse.push(m + z.ln());
        }
    }
    (out, lse)
}

#[test]
fn forward() {
    for a in [
        dims(1, 1, 1, 1, 1),
        dims(2, 3, 2, 1, 3),
        dims(1, 17, 3, 3, 8),
        dims(2, 63, 4, 2, 16),
        dims(1, 64, 2, 1, 17),
        dims(2, 65, 6, 2, 32),
        dims(1, 130, 2, 2, 64),
        dims(1, 200, 4, 1, 130),
    ] {
        let t = a.batch * a.seq;
        let [q, k, v] = [(a.heads, 1), (a.kv_heads, 2), (a.kv_heads, 3)]
            .map(|(h, s)| values(t * h * a.head_dim, s));
        let q: Vec<f32> = q.iter().map(|x| x * 4.0).collect();
        let got = everywhere(&format!("{a:?}"), |cpu| {
            let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; t * a.heads]);
            attention_forward(cpu, &q, &k, &v, &mut out, &mut lse, a, 0.5);
            vec![out, lse]
        });
        let (out, lse) = naive(&wide(&q), &wide(&k), &wide(&v), a, 0.5);
        near("out", &got[0], &out, 1e-5);
        near("lse", &got[1], &lse, 1e-5);
    }
}

#[test]
fn gradients() {
    for a in [
        dims(1, 1, 1, 1, 1),
        dims(2, 3, 2, 1, 3),
        dims(1, 33, 2, 2, 2),
        dims(1, 70, 2, 1, 4),
        dims(1, 5, 4, 2, 17),
    ] {
        let t = a.batch * a.seq;
        let [q, k, v] = [(a.heads, 1), (a.kv_heads, 2), (a.kv_heads, 3)]
            .map(|(h, s)| values(t * h * a.head_dim, s));
        let dout = values(q.len(), 4);
        let got = everywhere(&format!("{a:?}"), |cpu| {
            let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; t * a.heads]);
            attention_forward(cpu, &q, &k, &v, &mut out, &mut lse, a, 0.7);
            let [mut dq, mut dk, mut dv] = [q.len(), k.len(), v.len()].map(|n| vec![9.0; n]);
            let mut delta = vec![0.0; lse.len()];
            attention_backward(
                cpu, &q, &k, &v, &out, &lse, &dout, &mut dq, &mut dk, &mut dv, &mut delta, a, 0.7,
            );
            vec![dq, dk, dv]
        });
        let inputs = [wide(&q), wide(&k), wide(&v)];
        let loss = |x: &[Vec<f64>; 3]| -> f64 {
            naive(&x[0], &x[1], &x[2], a, f64::from(0.7f32))
                .0
                .iter()
                .zip(&dout)
                .map(|(o, &d)| o * f64::from(d))
                .sum()
        };
        for (which, got) in got.iter().enumerate() {
            let want: Vec<f64> = (0..got.len())
                .map(|i| {
                    let [up, down] = [1e-5, -1e-5].map(|h| {
                        let mut x = inputs.clone();
                        x[which][i] += h;
                        loss(&x)
                    });
                    (up - down) / 2e-5
                })
                .collect();
            near(["dq", "dk", "dv"][which], got, &want, 1e-5);
        }
    }
}

#[test]
fn gradients_have_the_same_bits_everywhere_at_real_sizes() {
    let a = dims(2, 131, 4, 2, 24);
    let t = a.batch * a.seq;
    let [q, k, v] = [(a.heads, 1), (a.kv_heads, 2), (a.kv_heads, 3)]
        .map(|(h, s)| values(t * h * a.head_dim, s));
    let dout = values(q.len(), 4);
    everywhere("backward", |cpu| {
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; t * a.heads]);
        attention_forward(cpu, &q, &k, &v, &mut out, &mut lse, a, 0.2);
        let [mut dq, mut dk, mut dv] = [q.len(), k.len(), v.len()].map(|n| vec![9.0; n]);
        let mut delta = vec![0.0; lse.len()];
        attention_backward(
            cpu, &q, &k, &v, &out, &lse, &dout, &mut dq, &mut dk, &mut dv, &mut delta, a, 0.2,
        );
        vec![dq, dk, dv, delta]
    });
}

#[test]
fn paged_rows_have_the_bits_of_the_contiguous_form_in_every_batch() {
    for (heads, kv_heads, d) in [(4, 2, 8), (3, 1, 20), (2, 2, 64)] {
        let lengths = [1usize, 15, 16, 17, 64, 65, 140];
        let (wide, narrow) = (heads * d, kv_heads * d);
        // Blocks are handed out in a scrambled order; unused tokens hold NaN.
        let total: usize = lengths.iter().map(|n| n.div_ceil(KV_BLOCK)).sum();
        let scattered: Vec<u32> = (0..total as u32).map(|i| (i * 7 + 3) % total as u32).collect();
        assert!(!total.is_multiple_of(7), "7 must not divide the number of blocks");
        let [mut k_cache, mut v_cache] =
            [(); 2].map(|()| vec![f32::NAN; total * KV_BLOCK * narrow]);
        let (mut tables, mut data, mut next) = (vec![], vec![], 0);
        for (i, &n) in lengths.iter().enumerate() {
            let blocks = &scattered[next..next + n.div_ceil(KV_BLOCK)];
            next += blocks.len();
            let slots: Vec<u32> =
                (0..n as u32).map(|j| blocks[j as usize / 16] * 16 + j % 16).collect();
            let seed = 10 * i as u64;
            let [q, k, v] =
                [(wide, 1), (narrow, 2), (narrow, 3)].map(|(w, s)| values(n * w, seed + s));
            scatter_rows(&k, &slots, &mut k_cache);
            scatter_rows(&v, &slots, &mut v_cache);
            tables.push(blocks);
            data.push((q, k, v));
        }
        everywhere("paged", |cpu| {
            let whole: Vec<Vec<f32>> = data
                .iter()
                .zip(lengths)
                .map(|((q, k, v), n)| {
                    let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; n * heads]);
                    attention_forward(
                        cpu,
                        q,
                        k,
                        v,
                        &mut out,
                        &mut lse,
                        dims(1, n, heads, kv_heads, d),
                        0.3,
                    );
                    out
                })
                .collect();
            // Each plan: (sequence, rows, context) of one batch.
            let plans: [&[(usize, usize, usize)]; 5] = [
                &[(6, 1, 140)],
                &[
                    (0, 1, 1),
                    (1, 1, 15),
                    (2, 1, 16),
                    (3, 1, 17),
                    (4, 1, 64),
                    (5, 1, 65),
                    (6, 1, 139),
                ],
                &[(6, 140, 140)],
                &[(6, 30, 100), (1, 1, 9), (5, 65, 65), (4, 3, 40)],
                &[(6, 70, 70), (6, 70, 140)],
            ];
            for plan in plans {
                let mut q = vec![];
                let mut want = vec![];
                for &(s, rows, context) in plan {
                    let range = (context - rows) * wide..context * wide;
                    q.extend_from_slice(&data[s].0[range.clone()]);
                    want.extend_from_slice(&whole[s][range]);
                }
                let sequences: Vec<PagedSequence<'_>> = plan
                    .iter()
                    .map(|&(s, rows, context)| PagedSequence { rows, context, blocks: tables[s] })
                    .collect();
                let mut out = vec![0.0; q.len()];
                attention_paged(
                    cpu, &q, &k_cache, &v_cache, &mut out, &sequences, heads, kv_heads, d, 0.3,
                );
                same_bits(&format!("{plan:?}"), &want, &out);
            }
            whole
        });
    }
}

#[test]
#[should_panic(expected = "sequence 0 (1 rows, context 17) does not fit")]
fn a_block_table_that_is_too_short_is_named() {
    let cpu = Cpu::new(None, 1).expect("the best variant");
    let s = [PagedSequence { rows: 1, context: 17, blocks: &[0] }];
    attention_paged(&cpu, &[0.0; 2], &[0.0; 64], &[0.0; 64], &mut [0.0; 2], &s, 1, 1, 2, 1.0);
}
