//! Whole models: a training step, a prompt, a token.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use petaflop_kernel::{Cpu, bench::Rate};
use petaflop_model::{
    WeightsError,
    gguf::{TensorType, block},
    inference::{Chunk, InferenceModel, Logits},
    rng::Philox,
    training::{AdamwStep, TrainingModel},
    weights::Weights,
};
use petaflop_plan::{
    dtype::Dtype,
    inference::ServingOptions,
    shape::{ModelShape, Rope, RopeScaling},
    training::TrainingOptions,
};

use super::{Measured, kernels};
use crate::exit::Failure;

/// The shape rule of common small Llama baselines: one key/value head a query head,
/// tied embeddings, the inner width ⌊D·8/3 / 32 + 1⌋ · 32.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Transformer blocks
    #[arg(long, value_name = "N", default_value_t = 4)]
    layers: u32,
    /// Width of the residual stream
    #[arg(long, value_name = "N", default_value_t = 128)]
    dim: u32,
    /// Attention heads
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    heads: u32,
    /// Vocabulary
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    vocab: u32,
    /// Tokens of a sequence
    #[arg(long, value_name = "N", default_value_t = 128)]
    seq: u32,
    /// Sequences in a step
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Self { layers: 4, dim: 128, heads: 4, vocab: 512, seq: 128, batch: 16 }
    }
}

impl Shape {
    fn model(&self) -> ModelShape {
        ModelShape {
            layers: self.layers,
            hidden: self.dim,
            heads: self.heads,
            kv_heads: self.heads,
            head_dim: self.dim / self.heads,
            intermediate: (f64::from(self.dim) * 8.0 / 3.0 / 32.0 + 1.0) as u32 * 32,
            vocab: self.vocab,
            max_positions: self.seq,
            norm_eps: 1e-5,
            rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
            tied_embeddings: true,
            qkv_bias: false,
            qk_norm: false,
        }
    }

    pub(super) fn measure(&self, cpu: &Arc<Cpu>, millis: u64) -> Result<Measured, Failure> {
        let shape = self.model();
        let options = TrainingOptions::new(self.batch, self.seq);
        let mut model =
            TrainingModel::new(Arc::clone(cpu), &shape, &options).map_err(Failure::bad_input)?;
        model.init(0);
        let rows = self.batch * self.seq;
        let (tokens, targets) = (draw(rows, self.vocab, 0), draw(rows, self.vocab, 1));
        let mut step = 0;
        let seconds = repeated(millis, || {
            model.zero_gradients();
            model.accumulate(&tokens, &targets, 1.0 / rows as f32).map_err(Failure::failed)?;
            model.clip(1.0);
            model.adamw(&AdamwStep {
                step,
                learning_rate: 1e-3,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 1e-4,
            });
            step += 1;
            Ok(())
        })?;
        let (best, median) = (seconds[0], seconds[seconds.len() / 2]);
        let parameters = shape.parameters();
        let rows = f64::from(rows);
        // The usual count: six a weight and token, and attention's two products over whole squares.
        let attention = 12.0 * f64::from(self.layers) * f64::from(self.dim) * f64::from(self.seq);
        let flops = (6.0 * parameters as f64 + attention) * rows;
        let Self { layers, dim, heads: _, vocab, seq, batch } = self;
        let what = format!("training L{layers} D{dim} V{vocab} T{seq} B{batch}");
        Ok(Measured::new(what, Rate { flops, bytes: 0.0, seconds: best })
            .with("parameters", parameters)
            .with("steps", seconds.len())
            .with("best_step_ms", best * 1e3)
            .with("median_step_ms", median * 1e3)
            .with("tokens_per_second", rows / best)
            .with("median_tokens_per_second", rows / median)
            .with("planned_bytes", model.plan().arena_bytes())
            .with("arena_bytes", model.arena_bytes())
            .with("peak_rss_bytes", petaflop_train::peak_rss_bytes()))
    }
}

/// A sequence through a model that is served.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct Serving {
    /// Transformer blocks
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=256))]
    layers: u32,
    /// Vocabulary
    #[arg(long, value_name = "N", default_value_t = 49152, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    vocab: u32,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=8000))]
    prompt: u32,
    /// Format of the weights: f32, q8_0 or q4_0
    #[arg(long, value_name = "FORMAT", default_value = "q8_0", value_parser = kernels::format)]
    weights: Dtype,
}

impl Default for Serving {
    fn default() -> Self {
        Self { layers: 30, vocab: 49152, prompt: 512, weights: Dtype::Q8_0 }
    }
}

impl Serving {
    /// SmolLM2-135M's, by its `config.json`.
    fn shape(&self) -> ModelShape {
        ModelShape {
            layers: self.layers,
            hidden: 576,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            intermediate: 1536,
            vocab: self.vocab,
            max_positions: 8192,
            norm_eps: 1e-5,
            rope: Rope { theta: 100_000.0, scaling: RopeScaling::None },
            tied_embeddings: true,
            qkv_bias: false,
            qk_norm: false,
        }
    }

    /// The whole prompt in one pass, and the logits after its last token.
    pub(super) fn prefill(&self, cpu: &Arc<Cpu>, millis: u64) -> Result<Measured, Failure> {
        let mut model = self.model(cpu)?;
        let prompt = draw(self.prompt, self.vocab, 0);
        let seconds = repeated(millis, || pass(&mut model, &prompt, 0))?[0];
        let rate = Rate {
            flops: self.flops(self.prompt, 0),
            bytes: self.bytes(&model, self.prompt, 0),
            seconds,
        };
        Ok(Measured::new(self.name("prefill"), rate)
            .with("tokens_per_second", f64::from(self.prompt) / seconds)
            .with("planned_bytes", model.arena_bytes()))
    }

    /// The token after the prompt, over and over.
    pub(super) fn decode(&self, cpu: &Arc<Cpu>, millis: u64) -> Result<Measured, Failure> {
        let mut model = self.model(cpu)?;
        pass(&mut model, &draw(self.prompt, self.vocab, 0), 0)?;
        let token = draw(1, self.vocab, 1);
        let seconds = repeated(millis, || pass(&mut model, &token, self.prompt))?[0];
        let rate = Rate {
            flops: self.flops(1, self.prompt),
            bytes: self.bytes(&model, 1, self.prompt),
            seconds,
        };
        Ok(Measured::new(self.name("decode"), rate)
            .with("tokens_per_second", 1.0 / seconds)
            .with("planned_bytes", model.arena_bytes()))
    }

    fn name(&self, what: &str) -> String {
        format!("{what} L{} D576 V{} {} T{}", self.layers, self.vocab, self.weights, self.prompt)
    }

    fn model(&self, cpu: &Arc<Cpu>) -> Result<InferenceModel, Failure> {
        let options = ServingOptions::new(self.weights, 1, self.prompt, self.prompt + 1);
        let weights = MadeUp { shape: self.shape(), format: self.weights };
        InferenceModel::new(Arc::clone(cpu), &weights, &options).map_err(Failure::bad_input)
    }

    /// Two operations for each weight and token, the output projection for one token alone; and
    /// attention's two products over the tokens that each token sees.
    fn flops(&self, tokens: u32, before: u32) -> f64 {
        let shape = self.shape();
        let head = f64::from(self.vocab) * f64::from(shape.hidden);
        let blocks = shape.parameters() as f64 - head;
        let (tokens, before) = (f64::from(tokens), f64::from(before));
        let seen = tokens * before + tokens * (tokens + 1.0) / 2.0;
        let attention = 4.0 * seen * shape.q_width() as f64 * f64::from(self.layers);
        2.0 * (blocks * tokens + head) + attention
    }

    /// All weights once, and the keys and values of all tokens so far.
    fn bytes(&self, model: &InferenceModel, tokens: u32, before: u32) -> f64 {
        let cached = model.shape().kv_bytes_per_token(Dtype::F32) as f64;
        model.plan().segments.parameters as f64 + cached * f64::from(tokens + before)
    }
}

fn pass(model: &mut InferenceModel, tokens: &[u32], start: u32) -> Result<(), Failure> {
    let blocks: Vec<u32> = (0..model.options().kv_blocks).collect();
    let chunk = Chunk { tokens, start: start as usize, blocks: &blocks, logits: Logits::Last };
    model.forward(&[chunk]).map(drop).map_err(Failure::failed)
}

/// Seconds of each repetition within about `millis`, the least first. The first of all touches
/// memory for the first time and is not counted.
fn repeated(millis: u64, mut f: impl FnMut() -> Result<(), Failure>) -> Result<Vec<f64>, Failure> {
    f()?;
    let mut seconds = Vec::new();
    let end = Instant::now() + Duration::from_millis(millis);
    loop {
        let before = Instant::now();
        f()?;
        seconds.push(before.elapsed().as_secs_f64());
        if Instant::now() >= end {
            seconds.sort_by(f64::total_cmp);
            return Ok(seconds);
        }
    }
}

/// Random tokens; others for each `use_`.
fn draw(count: u32, vocab: u32, use_: u32) -> Vec<u32> {
    let random = Philox::new(1);
    (0..count).map(|i| random.block([i, 0, 0, use_])[0] % vocab).collect()
}

/// Weights that mean nothing, of some shape: numbers from −0.02 to 0.02, gains 1.
struct MadeUp {
    shape: ModelShape,
    format: Dtype,
}

impl Weights for MadeUp {
    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn path(&self) -> &Path {
        Path::new("made up")
    }

    fn serving_format(&self) -> Dtype {
        self.format
    }

    fn read(&self, name: &str, dtype: Dtype, out: &mut [u8]) -> Result<(), WeightsError> {
        const RUN: usize = 4096;
        let gain = name.ends_with("norm.weight");
        // One run is enough: no number of a product depends on another's being different.
        let numbers: Vec<f32> = draw(RUN as u32, 1 << 16, 2)
            .into_iter()
            .map(|n| if gain { 1.0 } else { (n as f32 / 65536.0 - 0.5) * 0.04 })
            .collect();
        let mut run = vec![0; dtype.bytes(RUN as u64) as usize];
        block::encode(&numbers, TensorType::of(dtype), &mut run);
        for out in out.chunks_mut(run.len()) {
            out.copy_from_slice(&run[..out.len()]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Serving;

    #[test]
    fn operations_of_a_prompt_are_those_of_its_tokens_one_after_another() {
        let serving = Serving::default();
        assert_eq!(serving.shape().parameters(), 134_515_008);
        let one_by_one: f64 = (0..512).map(|before| serving.flops(1, before)).sum();
        // But for the output projection, which a prompt needs once.
        let head = 2.0 * 49152.0 * 576.0;
        assert_eq!(serving.flops(512, 0), one_by_one - 511.0 * head);
    }
}
