//! A training step.

use std::sync::Arc;

use petaflop_kernel::{
    Cpu, Dims,
    bench::{self, Rate},
};
use petaflop_model::{
    ModelError,
    place::{Place, Training},
    training::{AdamwStep, TrainingModel},
};
use petaflop_plan::{
    apart::Fusion,
    shape::{ModelShape, Rope, RopeScaling},
    training::TrainingOptions,
};
use petaflop_train::Class;

use super::{
    Measured,
    turns::{draw, in_turn, variant},
};
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
            .with("peak_rss_bytes", petaflop_train::peak_rss_bytes())
            .with("products_gflops", self.products(cpu, millis / 8));
        Ok(measured.beside_generic(rows, best, generic))
    }
}

impl Shape {
    /// 10⁹ operations a second of the linear layers of a step by themselves, at their shapes:
    /// the time of each kind as often as it is there, `millis` for each kind.
    fn products(&self, cpu: &Cpu, millis: u64) -> f64 {
        let ModelShape { layers, hidden, intermediate, vocab, .. } = self.model();
        let rows = (self.batch * self.seq) as usize;
        let kinds = [
            (4 * layers, hidden, hidden),
            (2 * layers, hidden, intermediate),
            (layers, intermediate, hidden),
            (1, hidden, vocab),
        ];
        let (mut flops, mut seconds) = (0.0, 0.0);
        for (count, k, n) in kinds {
            let dims = Dims { t: rows, k: k as usize, n: n as usize };
            let rate = bench::linear_step(cpu, dims, millis);
            flops += f64::from(count) * rate.flops;
            seconds += f64::from(count) * rate.seconds;
        }
        flops / seconds / 1e9
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
