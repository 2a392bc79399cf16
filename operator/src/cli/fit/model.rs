//! A model and what is to be done with it, as a workload: by the runtime's own plan where the runtime
//! makes one, by formulas where it does not.

use clap::ValueEnum;
use petaflop_arbiter::memory::{
    Anatomy, Format, Loss, Method, Needs, Optimizer, Recompute, Serving, Training, Use,
};
use petaflop_arbiter::workload::{self, TrainingWork, Work};
use petaflop_plan::dtype::Dtype;
use petaflop_plan::inference::ServingOptions;
use petaflop_plan::shape::ModelShape;
use petaflop_plan::training::{TrainingOptions, plan_training};
use serde::Serialize;
use serde_json::Value;

use super::Args;
use crate::cli::Failure;
use crate::embedded::home::Home;
use crate::embedded::job::Task;
use crate::embedded::{admit, work};
use crate::models;

/// Longest context that is planned for when none is named.
const LONGEST_CONTEXT: u32 = 8192;

/// Tokens of one pass of the server.
const STEP_TOKENS: u32 = 256;

/// Of the model's matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum Precision {
    F32,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q6_k")]
    Q6K,
    #[value(name = "q5_k")]
    Q5K,
    #[value(name = "q4_k")]
    Q4K,
    #[value(name = "q4_0")]
    Q4_0,
}

/// Of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum Cache {
    F32,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
}

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Trained {
    /// Every number
    Full,
    /// Low-rank pairs beside the model
    Lora,
    /// Low-rank pairs beside a model in 4 bits
    Qlora,
}

/// What is made again on the way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Again {
    /// Nothing
    Nothing,
    /// Norms and gates
    Selective,
    /// Whole blocks
    Blocks,
}

/// A model, and what it takes.
pub(super) struct Asked {
    pub(super) parameters: u64,
    pub(super) work: Work,
    /// Where it was estimated.
    pub(super) estimate: Option<Estimate>,
    /// What the ladder starts from.
    pub(super) of: Option<(Anatomy, Use)>,
}

/// Why there is no plan, and what the formulas say.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Estimate {
    pub(super) because: String,
    pub(super) needs: Needs,
}

pub(super) fn read(args: &Args, model: &str) -> Result<Asked, Failure> {
    let config = config(model)?;
    let refused = |error| Failure::bad_input(format!("{model}: {error}"));
    let shape = ModelShape::from_hf_config(&config);
    let anatomy = match (&shape, Anatomy::from_hf_config(&config)) {
        (_, Ok(anatomy)) => Some(anatomy),
        // What the runtime knows needs no more.
        (Ok(_), Err(_)) => None,
        (Err(_), Err(error)) => return Err(refused(error)),
    };
    let made_for = match (&shape, &anatomy) {
        (Ok(shape), _) => shape.max_positions,
        (_, Some(anatomy)) => anatomy.max_positions,
        (Err(_), None) => LONGEST_CONTEXT,
    };
    let context = args.context.unwrap_or(made_for.min(LONGEST_CONTEXT));
    let asked = wanted(args, context);
    let planned = match (&shape, unplanned(args)) {
        (Ok(shape), None) => Ok((shape, plan(args, shape, context)?)),
        (Ok(_), Some(because)) => Err(because.to_owned()),
        (Err(error), _) => Err(format!("petaflop's runtime does not run this model: {error}")),
    };
    Ok(match (planned, anatomy) {
        (Ok((shape, work)), anatomy) => Asked {
            parameters: shape.parameters(),
            work,
            estimate: None,
            of: anatomy.map(|anatomy| (anatomy, asked)),
        },
        (Err(because), Some(anatomy)) => Asked {
            parameters: anatomy.parameters(),
            work: by_formulas(&anatomy, asked),
            estimate: Some(Estimate { because, needs: asked.needs(&anatomy) }),
            of: Some((anatomy, asked)),
        },
        (Err(because), None) => return Err(Failure::bad_input(format!("{model}: {because}"))),
    })
}

/// The model of a manifest, and what its job or service does with it, in the formulas' words.
pub(super) fn admitted(home: &Home, task: &Task) -> Result<(ModelShape, Use), Failure> {
    match task {
        Task::Training(task) => {
            let recipe = &task.recipe;
            let shape = work::trained(recipe, &task.inputs, &home.store());
            let training = Training {
                sequences: recipe.micro_batch_size,
                passes: recipe.gradient_accumulation_steps,
                context: recipe.sequence_len,
                ..PLAIN
            };
            Ok((shape.map_err(Failure::bad_input)?, Use::Train(training)))
        }
        Task::Serving(task) => {
            let served = admit::served(&task.model, &home.store());
            let (shape, weights) = served.map_err(Failure::bad_input)?;
            let serving = Serving {
                weights: match weights {
                    Dtype::Bf16 => Format::Bf16,
                    Dtype::Q8_0 => Format::Q8_0,
                    Dtype::Q4_0 => Format::Q4_0,
                    _ => Format::F32,
                },
                cache: Format::F32,
                sequences: work::SERVED_SEQUENCES,
                context: shape.max_positions,
                step_tokens: work::SERVED_STEP_TOKENS,
            };
            Ok((shape, Use::Serve(serving)))
        }
    }
}

/// What the formulas count for a shape of the runtime's; nothing for one that they do not know.
pub(super) fn anatomy(shape: &ModelShape) -> Option<Anatomy> {
    Anatomy::from_hf_config(&shape.to_hf_config()).ok()
}

/// As the runtime trains.
const PLAIN: Training = Training {
    method: Method::Full,
    optimizer: Optimizer::Adam,
    recompute: Recompute::Nothing,
    loss: Loss::InPlace,
    sequences: 1,
    passes: 1,
    context: LONGEST_CONTEXT,
    precision: workload::Precision::F32,
};

/// The work of a use, by formulas.
pub(super) fn by_formulas(model: &Anatomy, of: Use) -> Work {
    match of {
        Use::Serve(serving) => Work::Serving(serving.work(model)),
        Use::Train(training) => Work::Training(training.work(model)),
    }
}

/// A `config.json`, or that of a size that is known by name.
fn config(model: &str) -> Result<Value, Failure> {
    if let Some(shape) = models::known(model) {
        return Ok(shape.to_hf_config());
    }
    let text = std::fs::read(model).map_err(|error| {
        let names = models::NAMES.join(", ");
        Failure::bad_input(format!("{model}: {error}; expected {names} or a config.json"))
    })?;
    serde_json::from_slice(&text).map_err(|error| Failure::bad_input(format!("{model}: {error}")))
}

/// Why the runtime makes no plan of this, whatever the model.
fn unplanned(args: &Args) -> Option<&'static str> {
    if !args.train {
        return match (args.precision, args.cache) {
            (
                Precision::F32 | Precision::Bf16 | Precision::Q8_0 | Precision::Q4_0,
                None | Some(Cache::F32),
            ) => None,
            (_, None | Some(Cache::F32)) => {
                Some("petaflop's runtime serves from f32, bf16, q8_0 and q4_0")
            }
            (_, Some(_)) => Some("petaflop's runtime keeps keys and values in f32"),
        };
    }
    let plain = args.precision == Precision::F32
        && args.method == Trained::Full
        && args.recompute == Again::Nothing
        && !args.adam_8bit;
    (!plain).then_some("petaflop's runtime trains every number in f32, and makes nothing again")
}

fn plan(args: &Args, shape: &ModelShape, context: u32) -> Result<Work, Failure> {
    if !args.train {
        let weights = match args.precision {
            Precision::F32 => Dtype::F32,
            Precision::Bf16 => Dtype::Bf16,
            Precision::Q4_0 => Dtype::Q4_0,
            _ => Dtype::Q8_0,
        };
        let tokens = args.sequences.max(STEP_TOKENS);
        let options = ServingOptions::new(weights, args.sequences, tokens, context);
        let replica = petaflop_arbiter::work::serving(shape, &options);
        return Ok(Work::Serving(replica.map_err(Failure::bad_input)?));
    }
    let plan = plan_training(shape, &TrainingOptions::new(args.sequences, context))
        .map_err(Failure::bad_input)?;
    let parameters = shape.parameters();
    Ok(Work::Training(TrainingWork {
        steps: 1,
        tokens_per_step: u64::from(args.sequences) * u64::from(context),
        flops_per_step: plan.forward_flops() + plan.backward_flops(),
        traffic_bytes_per_step: plan.bytes_moved() + plan.update_bytes(),
        arena_bytes: plan.arena_bytes(),
        host_bytes: 12 * parameters,
        checkpoint_bytes: 12 * parameters,
        artifact_bytes: 4 * parameters,
        input_bytes: 0,
        checkpoint_interval_seconds: Some(600),
        precision: workload::Precision::F32,
    }))
}

/// What was asked for, in the formulas' words.
fn wanted(args: &Args, context: u32) -> Use {
    let format = match args.precision {
        Precision::F32 => Format::F32,
        Precision::Bf16 => Format::Bf16,
        Precision::Q8_0 => Format::Q8_0,
        Precision::Q6K => Format::Q6K,
        Precision::Q5K => Format::Q5K,
        Precision::Q4K => Format::Q4K,
        Precision::Q4_0 => Format::Q4_0,
    };
    if !args.train {
        return Use::Serve(Serving {
            weights: format,
            cache: match (args.cache, format) {
                (Some(Cache::F32), _) | (None, Format::F32) => Format::F32,
                (Some(Cache::Q8_0), _) => Format::Q8_0,
                (Some(Cache::Bf16), _) | (None, _) => Format::Bf16,
            },
            sequences: args.sequences,
            context,
            step_tokens: args.sequences.max(STEP_TOKENS),
        });
    }
    Use::Train(Training {
        method: match args.method {
            Trained::Full => Method::Full,
            Trained::Lora => Method::Lora { rank: args.rank },
            Trained::Qlora => Method::Qlora { rank: args.rank },
        },
        optimizer: if args.adam_8bit { Optimizer::Adam8bit } else { Optimizer::Adam },
        recompute: match args.recompute {
            Again::Nothing => Recompute::Nothing,
            Again::Selective => Recompute::Selective,
            Again::Blocks => Recompute::Blocks,
        },
        loss: Loss::InPlace,
        sequences: args.sequences,
        passes: 1,
        context,
        precision: match format {
            Format::F32 => workload::Precision::F32,
            _ => workload::Precision::Bf16,
        },
    })
}
