//! `petaflop-runtime bench`: rates of this machine and of our kernels on it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use petaflop_device::Roots;
use petaflop_kernel::{Cpu, bench};
use petaflop_model::{
    rng::Philox,
    training::{AdamwStep, TrainingModel},
};
use petaflop_plan::{
    shape::{ModelShape, Rope, RopeScaling},
    training::TrainingOptions,
};
use serde_json::{Value, json};

use crate::{
    bytes::{self, human},
    exit::{Code, Failure, print},
    job::Compute,
};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// f32 matrix product, beside the processor's own peak of fused multiply-adds
    Gemm {
        /// Rows, columns and depth
        #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=16384))]
        size: u32,
        #[command(flatten)]
        common: Common,
    },
    /// Fused multiply-adds on registers alone
    Fma {
        #[command(flatten)]
        common: Common,
    },
    /// Reading memory
    Read {
        /// Bytes to read over and over; take several times the last-level cache
        #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = bytes::parse)]
        size: u64,
        #[command(flatten)]
        common: Common,
    },
    /// Training steps (forward, backward, clipping, AdamW) of a Llama-shaped model on random tokens
    Training {
        #[command(flatten)]
        shape: Shape,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(clap::Args, Debug)]
struct Common {
    /// How long to measure
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    seconds: f64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: Compute,
}

/// The shape rule of common small Llama baselines: one key/value head a query head,
/// tied embeddings, the inner width ⌊D·8/3 / 32 + 1⌋ · 32.
#[derive(clap::Args, Debug)]
struct Shape {
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
    #[arg(long, value_name = "N", default_value_t = 512)]
    vocab: u32,
    /// Tokens of a sequence
    #[arg(long, value_name = "N", default_value_t = 128)]
    seq: u32,
    /// Sequences in a step
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch: u32,
}

pub(crate) fn run(args: &Args) -> Result<Code, Failure> {
    let (facts, json) = match &args.what {
        What::Gemm { size, common } => {
            let cpu = common.cpu()?;
            let n = *size as usize;
            let gemm = bench::gemm_gflops(&cpu, n, n, n, common.millis());
            let peak = bench::fma_peak_gflops(&cpu, common.millis());
            let facts = json!({ "what": "gemm", "size": size, "gflops": gemm, "fma_peak_gflops": peak, "of_peak": gemm / peak });
            (with_cpu(facts, &cpu), common.json)
        }
        What::Fma { common } => {
            let cpu = common.cpu()?;
            let facts =
                json!({ "what": "fma", "gflops": bench::fma_peak_gflops(&cpu, common.millis()) });
            (with_cpu(facts, &cpu), common.json)
        }
        What::Read { size, common } => {
            let cpu = common.cpu()?;
            let bytes = usize::try_from(*size).map_err(Failure::bad_input)?.max(64);
            let facts = json!({ "what": "read", "bytes": bytes, "gb_s": bench::read_gb_s(&cpu, bytes, common.millis()) });
            (with_cpu(facts, &cpu), common.json)
        }
        What::Training { shape, common } => (training(shape, common)?, common.json),
    };
    if json {
        print(facts)?;
    } else {
        for (name, value) in facts.as_object().into_iter().flatten() {
            let people = match value.as_u64() {
                Some(bytes) if name.ends_with("bytes") => format!("  ({})", human(bytes)),
                _ => String::new(),
            };
            print(format_args!("{name:<28} {value}{people}"))?;
        }
    }
    Ok(Code::Done)
}

impl Common {
    fn cpu(&self) -> Result<Cpu, Failure> {
        self.compute.cpu(&petaflop_device::detect(&Roots::system()))
    }

    fn millis(&self) -> u64 {
        (self.seconds.clamp(0.0, 3600.0) * 1000.0) as u64
    }
}

fn with_cpu(mut facts: Value, cpu: &Cpu) -> Value {
    facts["isa"] = cpu.isa().to_string().into();
    facts["threads"] = cpu.threads().into();
    facts
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
}

fn training(shape: &Shape, common: &Common) -> Result<Value, Failure> {
    let cpu = Arc::new(common.cpu()?);
    let model_shape = shape.model();
    let options = TrainingOptions::new(shape.batch, shape.seq);
    let mut model =
        TrainingModel::new(cpu.clone(), &model_shape, &options).map_err(Failure::bad_input)?;
    model.init(0);
    let rows = shape.batch * shape.seq;
    let random = Philox::new(1);
    let draw = |use_: u32| -> Vec<u32> {
        (0..rows).map(|i| random.block([i, 0, 0, use_])[0] % shape.vocab).collect()
    };
    let (tokens, targets) = (draw(0), draw(1));

    let mut seconds = Vec::new();
    let end = Instant::now() + Duration::from_millis(common.millis());
    // The first step touches the memory for the first time and is not counted.
    for step in 0.. {
        let before = Instant::now();
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
        if step > 0 {
            seconds.push(before.elapsed().as_secs_f64());
        }
        if step > 0 && Instant::now() >= end {
            break;
        }
    }
    seconds.sort_by(f64::total_cmp);
    let (best, median) = (seconds[0], seconds[seconds.len() / 2]);
    let parameters = model_shape.parameters();
    let rows = f64::from(rows);
    // The usual count: six a weight and token, and attention's two products over whole squares.
    let attention = 12.0 * f64::from(shape.layers) * f64::from(shape.dim) * f64::from(shape.seq);
    let flops = (6.0 * parameters as f64 + attention) * rows;
    let facts = json!({
        "what": "training",
        "parameters": parameters,
        "steps": seconds.len(),
        "best_step_ms": best * 1e3,
        "median_step_ms": median * 1e3,
        "tokens_per_second": rows / best,
        "median_tokens_per_second": rows / median,
        "gflops": flops / best / 1e9,
        "planned_bytes": model.plan().arena_bytes(),
        "arena_bytes": model.arena_bytes(),
        "peak_rss_bytes": petaflop_train::peak_rss_bytes(),
    });
    Ok(with_cpu(facts, &cpu))
}
