//! Whole models: a training step, a prompt, a token.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use petaflop_kernel::{Cpu, bench::Rate};
use petaflop_model::{
    ModelError, WeightsError,
    gguf::{TensorType, block},
    inference::{Chunk, InferenceModel, Logits},
    place::{Place, Training},
    rng::Philox,
    training::{AdamwStep, TrainingModel},
    weights::Weights,
};
use petaflop_plan::{
    apart::Fusion,
    dtype::Dtype,
    inference::ServingOptions,
    shape::{ModelShape, Rope, RopeScaling},
    training::TrainingOptions,
};
use petaflop_train::Class;

use super::{Measured, kernels};
use crate::exit::{Code, Failure};

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
    /// Measure the generic variant alone: the same kernels, tiles and threads, one launch an operation, no fusion
    #[arg(long)]
    generic: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self { layers: 4, dim: 128, heads: 4, vocab: 512, seq: 128, batch: 16, generic: false }
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

    /// A step; beside it, on the processor, one of the generic variant, in turn.
    pub(super) fn measure(
        &self,
        cpu: &Arc<Cpu>,
        device: Option<Box<dyn Place>>,
        millis: u64,
    ) -> Result<Measured, Failure> {
        let beside = device.is_none() && !self.generic;
        let fusion = if self.generic { Fusion::Apart } else { Fusion::Fused };
        let mut ours = Steps::new(self, cpu, device, fusion)?;
        let (seconds, generic) = if beside {
            let mut generic = Steps::new(self, cpu, None, Fusion::Apart)?;
            let [ours, generic] = in_turn(millis, [&mut || ours.one(), &mut || generic.one()])?;
            (ours, Some(generic[0]))
        } else {
            let [ours] = in_turn(millis, [&mut || ours.one()])?;
            (ours, None)
        };
        let (shape, model) = (self.model(), ours.model);
        let (best, median) = (seconds[0], seconds[seconds.len() / 2]);
        let parameters = shape.parameters();
        let rows = f64::from(self.batch * self.seq);
        // The usual count: six a weight and token, and attention's two products over whole squares.
        let attention = 12.0 * f64::from(self.layers) * f64::from(self.dim) * f64::from(self.seq);
        let flops = (6.0 * parameters as f64 + attention) * rows;
        let Self { layers, dim, heads: _, vocab, seq, batch, generic: alone } = self;
        let what = format!("{}training L{layers} D{dim} V{vocab} T{seq} B{batch}", variant(*alone));
        let measured = Measured::new(what, Rate { flops, bytes: 0.0, seconds: best })
            .with("parameters", parameters)
            .with("on", ours.on)
            .with("steps", seconds.len())
            .with("best_step_ms", best * 1e3)
            .with("median_step_ms", median * 1e3)
            .with("tokens_per_second", rows / best)
            .with("median_tokens_per_second", rows / median)
            .with("planned_bytes", model.plan().arena_bytes())
            .with("arena_bytes", model.arena_bytes())
            .with("peak_rss_bytes", petaflop_train::peak_rss_bytes());
        Ok(measured.beside_generic(rows, best, generic))
    }
}

/// Steps of training of one model.
struct Steps {
    model: Box<dyn Training>,
    /// What it computes on.
    on: String,
    tokens: Vec<u32>,
    targets: Vec<u32>,
    step: u64,
}

impl Steps {
    fn new(
        shape: &Shape,
        cpu: &Arc<Cpu>,
        device: Option<Box<dyn Place>>,
        fusion: Fusion,
    ) -> Result<Self, Failure> {
        let options = TrainingOptions { fusion, ..TrainingOptions::new(shape.batch, shape.seq) };
        let form = shape.model();
        let (on, model) = match device {
            Some(device) => (device.name(), device.training(&form, &options)),
            None => (
                format!("{}, {} threads", cpu.isa(), cpu.threads()),
                TrainingModel::new(Arc::clone(cpu), &form, &options)
                    .map(|model| Box::new(model) as Box<dyn Training>),
            ),
        };
        let mut model = model.map_err(unfit)?;
        model.init(0).map_err(Failure::failed)?;
        let rows = shape.batch * shape.seq;
        let [tokens, targets] = [0, 1].map(|use_| draw(rows, shape.vocab, use_));
        Ok(Self { model, on, tokens, targets, step: 0 })
    }

    fn one(&mut self) -> Result<(), Failure> {
        let Self { model, on: _, tokens, targets, step } = self;
        let mut pass = || {
            model.zero_gradients()?;
            model.accumulate(tokens, targets, 1.0 / tokens.len() as f32)?;
            model.clip(1.0)?;
            model.adamw(&AdamwStep {
                step: *step,
                learning_rate: 1e-3,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 1e-4,
            })
        };
        pass().map_err(unfit)?;
        *step += 1;
        Ok(())
    }
}

/// What a model says that cannot be made or go on here.
fn unfit(error: ModelError) -> Failure {
    let code = match &error {
        ModelError::Device(error) => Class::of_device(error).into(),
        ModelError::NotFinite { .. } | ModelError::Memory(_) => Code::Failed,
        _ => Code::BadInput,
    };
    Failure { code, message: error.to_string() }
}

/// Before a benchmark's name.
fn variant(generic: bool) -> &'static str {
    if generic { "generic " } else { "" }
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
    /// Measure the generic variant alone: the same kernels, tiles and threads, one launch an operation, no fusion
    #[arg(long)]
    generic: bool,
}

impl Default for Serving {
    fn default() -> Self {
        Self { layers: 30, vocab: 49152, prompt: 512, weights: Dtype::Q8_0, generic: false }
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

    /// The whole prompt in one pass, and the logits after its last token; beside it the same of
    /// the generic variant, in turn.
    pub(super) fn prefill(&self, cpu: &Arc<Cpu>, millis: u64) -> Result<Measured, Failure> {
        let mut model = self.model(cpu, self.generic)?;
        let prompt = draw(self.prompt, self.vocab, 0);
        let (seconds, generic) = if self.generic {
            let [ours] = in_turn(millis, [&mut || pass(&mut model, &prompt, 0)])?;
            (ours[0], None)
        } else {
            let mut generic = self.model(cpu, true)?;
            let [ours, generic] = in_turn(
                millis,
                [&mut || pass(&mut model, &prompt, 0), &mut || pass(&mut generic, &prompt, 0)],
            )?;
            (ours[0], Some(generic[0]))
        };
        let rate = Rate {
            flops: self.flops(self.prompt, 0),
            bytes: self.bytes(&model, self.prompt, 0),
            seconds,
        };
        let tokens = f64::from(self.prompt);
        let measured = Measured::new(self.name("prefill"), rate)
            .with("tokens_per_second", tokens / seconds)
            .with("planned_bytes", model.arena_bytes());
        Ok(measured.beside_generic(tokens, seconds, generic))
    }

    /// The token after the prompt, over and over.
    pub(super) fn decode(&self, cpu: &Arc<Cpu>, millis: u64) -> Result<Measured, Failure> {
        let mut model = self.model(cpu, self.generic)?;
        pass(&mut model, &draw(self.prompt, self.vocab, 0), 0)?;
        let token = draw(1, self.vocab, 1);
        let [seconds] = in_turn(millis, [&mut || pass(&mut model, &token, self.prompt)])?;
        let seconds = seconds[0];
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
        let Self { layers, vocab, prompt, weights, generic } = self;
        format!("{}{what} L{layers} D576 V{vocab} {weights} T{prompt}", variant(*generic))
    }

    fn model(&self, cpu: &Arc<Cpu>, generic: bool) -> Result<InferenceModel, Failure> {
        let options = ServingOptions {
            fusion: if generic { Fusion::Apart } else { Fusion::Fused },
            ..ServingOptions::new(self.weights, 1, self.prompt, self.prompt + 1)
        };
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

/// What is measured: one repetition.
type Repeated<'a> = &'a mut dyn FnMut() -> Result<(), Failure>;

/// Seconds of each repetition of each, within about `millis` for each, the least first. They take
/// turns, so that all meet the same machine. The first of all touches memory for the first time
/// and is not counted.
fn in_turn<const N: usize>(
    millis: u64,
    mut each: [Repeated<'_>; N],
) -> Result<[Vec<f64>; N], Failure> {
    for f in &mut each {
        f()?;
    }
    let mut seconds = [const { Vec::new() }; N];
    let end = Instant::now() + Duration::from_millis(millis.saturating_mul(N as u64));
    loop {
        for (f, seconds) in each.iter_mut().zip(&mut seconds) {
            let before = Instant::now();
            f()?;
            seconds.push(before.elapsed().as_secs_f64());
        }
        if Instant::now() >= end {
            for seconds in &mut seconds {
                seconds.sort_by(f64::total_cmp);
            }
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
