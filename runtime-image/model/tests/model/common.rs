//! Tiny models of every form, and an independent forward pass in f64.

use std::collections::BTreeMap;
use std::sync::Arc;

use petaflop_kernel::{Cpu, Weight, dequantize, quantize_q8_0};
use petaflop_model::rng::Philox;
use petaflop_model::training::TrainingModel;
use petaflop_plan::dtype::Dtype;
use petaflop_plan::shape::{ModelShape, Rope, RopeScaling};
use petaflop_plan::training::TrainingOptions;

/// Shapes that between them use every option.
pub(crate) fn shapes() -> Vec<(&'static str, ModelShape)> {
    let plain = ModelShape {
        layers: 2,
        hidden: 24,
        heads: 4,
        kv_heads: 4,
        head_dim: 8,
        intermediate: 20,
        vocab: 37,
        max_positions: 64,
        norm_eps: 1e-5,
        rope: Rope { theta: 10000.0, scaling: RopeScaling::None },
        tied_embeddings: false,
        qkv_bias: false,
        qk_norm: false,
    };
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 16,
    };
    vec![
        ("plain", plain.clone()),
        (
            "grouped queries, tied",
            ModelShape { kv_heads: 2, tied_embeddings: true, ..plain.clone() },
        ),
        ("bias", ModelShape { kv_heads: 1, qkv_bias: true, ..plain.clone() }),
        ("head norms", ModelShape { kv_heads: 2, qk_norm: true, ..plain.clone() }),
        (
            "llama3 rope",
            ModelShape { rope: Rope { theta: 500.0, scaling: llama3 }, ..plain.clone() },
        ),
        (
            "linear rope",
            ModelShape {
                rope: Rope { theta: 100.0, scaling: RopeScaling::Linear { factor: 4.0 } },
                ..plain
            },
        ),
    ]
}

pub(crate) fn cpu(threads: usize) -> Arc<Cpu> {
    Arc::new(Cpu::new(None, threads).expect("every processor runs some variant"))
}

/// A model whose weights are large enough for every path to matter.
pub(crate) fn model(shape: &ModelShape, options: &TrainingOptions) -> TrainingModel {
    let mut model = TrainingModel::new(cpu(2), shape, options).expect("it has a plan");
    // By the tensor's index alone, whatever is trained.
    let tensors = model.state_mut().into_iter().filter(|(name, _)| !name.ends_with("moment"));
    for (t, (name, values)) in (0u32..).zip(tensors) {
        let gain = name.ends_with("norm.weight");
        for (i, value) in (0u32..).zip(values) {
            let normal = Philox::new(3).normals([i, t, 0, 9])[0];
            *value = (if gain { 1.0 + 0.2 * normal } else { 0.35 * normal }) as f32;
        }
    }
    model
}

/// Tokens that look like nothing in particular.
pub(crate) fn tokens(count: usize, vocab: u32, seed: u64) -> Vec<u32> {
    (0..count as u32).map(|i| Philox::new(seed).block([i, 0, 0, 7])[0] % vocab).collect()
}

/// Weights in f64 by name.
pub(crate) type Weights = BTreeMap<String, Vec<f64>>;

pub(crate) fn weights(model: &TrainingModel) -> Weights {
    model
        .tensors()
        .map(|(t, v)| (t.name.clone(), v.iter().map(|&x| f64::from(x)).collect()))
        .collect()
}

/// `x[t, k] · w[n, k]ᵀ`.
fn matmul(x: &[f64], w: &[f64], k: usize) -> Vec<f64> {
    x.chunks(k)
        .flat_map(|x| w.chunks(k).map(move |w| x.iter().zip(w).map(|(a, b)| a * b).sum()))
        .collect()
}

fn norm(x: &[f64], gain: &[f64], eps: f64) -> Vec<f64> {
    let one = |row: &[f64]| {
        let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
        row.iter().zip(gain).map(|(v, g)| v / (mean + eps).sqrt() * g).collect::<Vec<_>>()
    };
    x.chunks(gain.len()).flat_map(one).collect()
}

fn frequency(shape: &ModelShape, pair: usize) -> f64 {
    let f = shape.rope.theta.powf(-2.0 * pair as f64 / f64::from(shape.head_dim));
    match shape.rope.scaling {
        RopeScaling::None => f,
        RopeScaling::Linear { factor } => f / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_positions,
        } => {
            let (original, wavelength) =
                (f64::from(original_max_positions), std::f64::consts::TAU / f);
            if wavelength < original / high_freq_factor {
                f
            } else if wavelength > original / low_freq_factor {
                f / factor
            } else {
                let smooth = (original / wavelength - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * f / factor + smooth * f
            }
        }
    }
}

fn rotate(x: &mut [f64], shape: &ModelShape, heads: usize) {
    let d = shape.head_dim as usize;
    for (position, row) in x.chunks_mut(heads * d).enumerate() {
        for head in row.chunks_mut(d) {
            for pair in 0..d / 2 {
                let (sin, cos) = (position as f64 * frequency(shape, pair)).sin_cos();
                let (a, b) = (head[pair], head[pair + d / 2]);
                head[pair] = a * cos - b * sin;
                head[pair + d / 2] = b * cos + a * sin;
            }
        }
    }
}

/// Logits `[tokens, vocab]` of one sequence.
pub(crate) fn logits(shape: &ModelShape, w: &Weights, tokens: &[u32]) -> Vec<f64> {
    let (hidden, d) = (shape.hidden as usize, shape.head_dim as usize);
    let (heads, kv_heads) = (shape.heads as usize, shape.kv_heads as usize);
    let embedding = &w["model.embed_tokens.weight"];
    let mut x: Vec<f64> =
        tokens.iter().flat_map(|&t| embedding[t as usize * hidden..][..hidden].to_vec()).collect();
    for l in 0..shape.layers {
        let get = |name: &str| &w[&format!("model.layers.{l}.{name}")];
        let n = norm(&x, get("input_layernorm.weight"), shape.norm_eps);
        let project = |p: &str, count: usize| {
            let mut y = matmul(&n, get(&format!("self_attn.{p}_proj.weight")), hidden);
            if shape.qkv_bias {
                let bias = get(&format!("self_attn.{p}_proj.bias"));
                y.chunks_mut(bias.len())
                    .for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
            }
            if p != "v" {
                if shape.qk_norm {
                    y = norm(&y, get(&format!("self_attn.{p}_norm.weight")), shape.norm_eps);
                }
                rotate(&mut y, shape, count);
            }
            y
        };
        let (q, k, v) = (project("q", heads), project("k", kv_heads), project("v", kv_heads));
        let mut attended = vec![0.0; q.len()];
        for t in 0..tokens.len() {
            for h in 0..heads {
                let g = h / (heads / kv_heads);
                let at = |x: &[f64], t: usize, h: usize, n: usize, e: usize| x[(t * n + h) * d + e];
                let score = |s: usize| {
                    (0..d).map(|e| at(&q, t, h, heads, e) * at(&k, s, g, kv_heads, e)).sum::<f64>()
                        / (d as f64).sqrt()
                };
                let p: Vec<f64> = (0..=t).map(|s| score(s).exp()).collect();
                let total: f64 = p.iter().sum();
                for e in 0..d {
                    attended[(t * heads + h) * d + e] =
                        (0..=t).map(|s| p[s] / total * at(&v, s, g, kv_heads, e)).sum();
                }
            }
        }
        let o = matmul(&attended, get("self_attn.o_proj.weight"), heads * d);
        x.iter_mut().zip(&o).for_each(|(x, o)| *x += o);
        let n = norm(&x, get("post_attention_layernorm.weight"), shape.norm_eps);
        let (gate, up) = (
            matmul(&n, get("mlp.gate_proj.weight"), hidden),
            matmul(&n, get("mlp.up_proj.weight"), hidden),
        );
        let h: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        let down = matmul(&h, get("mlp.down_proj.weight"), shape.intermediate as usize);
        x.iter_mut().zip(&down).for_each(|(x, y)| *x += y);
    }
    let n = norm(&x, &w["model.norm.weight"], shape.norm_eps);
    matmul(&n, w.get("lm_head.weight").unwrap_or(embedding), hidden)
}

/// Sum of the negative log-likelihoods, sequence by sequence.
pub(crate) fn loss(
    shape: &ModelShape,
    w: &Weights,
    tokens: &[u32],
    targets: &[u32],
    sequence: usize,
) -> f64 {
    let vocab = shape.vocab as usize;
    let mut sum = 0.0;
    for (tokens, targets) in tokens.chunks(sequence).zip(targets.chunks(sequence)) {
        for (row, &target) in logits(shape, w, tokens).chunks(vocab).zip(targets) {
            if target != petaflop_model::training::NO_TARGET {
                sum += row.iter().map(|l| l.exp()).sum::<f64>().ln() - row[target as usize];
            }
        }
    }
    sum
}

/// What a matrix is once it was kept in this format.
pub(crate) fn rounded(values: &[f32], dtype: Dtype) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    match dtype {
        Dtype::F32 => out.copy_from_slice(values),
        Dtype::Bf16 => {
            let halves: Vec<u16> =
                values.iter().map(|&v| half::bf16::from_f32(v).to_bits()).collect();
            dequantize(Weight::Bf16(&halves), &mut out);
        }
        Dtype::Q8_0 => {
            let mut blocks = vec![0; values.len() / 32 * 34];
            quantize_q8_0(values, &mut blocks);
            dequantize(Weight::Q8_0(&blocks), &mut out);
        }
        other => panic!("no weights are kept in {other}"),
    }
    out
}

/// To compare to the bit.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
