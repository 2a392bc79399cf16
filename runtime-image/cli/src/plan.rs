//! `petaflop-runtime plan`: the planner, dry. The same code lays out the memory
//! when the job runs, so these bytes are the bytes it takes.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use petaflop_plan::{
    dtype::Dtype,
    inference::{ServingOptions, plan_inference},
    plan::{Plan, Segment},
    recipe::{JobSpec, ModelSource},
    shape::ModelShape,
    training::{TrainingOptions, plan_training},
};
use serde_json::{Map, Value, json};

use crate::{
    bytes::{self, human},
    exit::{Code, Failure, print},
    job,
};

#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["job", "config", "model"])))]
pub(crate) struct Args {
    /// A training job (JSON)
    #[arg(long, value_name = "FILE")]
    job: Option<PathBuf>,
    /// A model's Hugging Face config.json; planned for training unless --serve is given
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A model: a GGUF file, a folder with model.gguf, or one with config.json and safetensors; planned for serving, in the format of its matrices
    #[arg(long, value_name = "PATH", requires = "serve")]
    model: Option<PathBuf>,
    /// Samples in one pass of training
    #[arg(long, value_name = "N", default_value_t = 1, requires = "config")]
    micro_batch_size: u32,
    /// Tokens of one sample of training [default: what the model was made for]
    #[arg(long, value_name = "N", requires = "config")]
    sequence_len: Option<u32>,
    /// Plan serving
    #[arg(long, conflicts_with = "job")]
    serve: bool,
    /// Serving: tokens of prompt and answer together at most [default: what the model was made for]
    #[arg(long, value_name = "N", requires = "serve")]
    context: Option<u32>,
    /// Serving: sequences in the batch at most
    #[arg(long, value_name = "N", default_value_t = 16, requires = "serve")]
    max_sequences: u32,
    /// Serving: tokens of one pass at most
    #[arg(long, value_name = "N", default_value_t = 256, requires = "serve")]
    step_tokens: u32,
    /// Serving: number format of the matrices: f32, bf16, q8_0 or q4_0 [default: the model's, or f32]
    #[arg(long, value_name = "TYPE", value_parser = dtype, requires = "serve")]
    weights: Option<Dtype>,
    /// Memory that it must fit into, such as 24GiB: exit code 3 where it does not
    #[arg(long, value_name = "SIZE", value_parser = bytes::parse)]
    device: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn dtype(text: &str) -> Result<Dtype, String> {
    [Dtype::F32, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0]
        .into_iter()
        .find(|dtype| dtype.name() == text)
        .ok_or_else(|| "expected f32, bf16, q8_0 or q4_0".to_owned())
}

pub(crate) fn run(args: &Args) -> Result<Code, Failure> {
    let (shape, plan, weights) = match (&args.job, &args.config, &args.model) {
        (Some(job), _, _) => of_job(&job::read(job)?)?,
        (_, Some(config), _) if args.serve => of_serving(args, read_config(config)?, Dtype::F32)?,
        (_, Some(config), _) => of_training(args, read_config(config)?)?,
        (_, _, Some(model)) => {
            let model = petaflop_model::weights::open(model).map_err(Failure::bad_input)?;
            of_serving(args, model.shape().clone(), model.serving_format())?
        }
        (None, None, None) => {
            return Err(Failure::bad_input("give --job, --config or --model"));
        }
    };
    let needed = plan.arena_bytes();
    let fits = args.device.map(|device| needed <= device);
    if args.json {
        let segments: Map<String, Value> = Segment::ALL
            .into_iter()
            .map(|segment| {
                Ok((
                    serde_json::to_value(segment)?.as_str().unwrap_or_default().to_owned(),
                    plan.segments.of(segment).into(),
                ))
            })
            .collect::<Result<_, serde_json::Error>>()
            .map_err(Failure::failed)?;
        print(json!({
            "config": shape.to_hf_config(),
            "weights": weights,
            "parameters": shape.parameters(),
            "trained_parameters": plan.trained_parameters(),
            "arena_bytes": needed,
            "segments": segments,
            "rows": plan.rows,
            "operations": plan.steps.len(),
            "forward_flops": plan.forward_flops(),
            "backward_flops": plan.backward_flops(),
            "bytes_moved": plan.bytes_moved(),
            "device_bytes": args.device,
            "fits": fits,
        }))?;
    } else {
        let mut out = std::io::stdout().lock();
        writeln!(out, "parameters   {:>14}", shape.parameters())?;
        for segment in Segment::ALL {
            let bytes = plan.segments.of(segment);
            if bytes > 0 {
                writeln!(
                    out,
                    "{:<12} {bytes:>14}  {}",
                    format!("{segment:?}").to_lowercase(),
                    human(bytes)
                )?;
            }
        }
        writeln!(out, "arena        {needed:>14}  {}", human(needed))?;
    }
    match args.device {
        Some(device) if needed > device => Err(Failure {
            code: Code::DoesNotFit,
            message: format!(
                "{needed} bytes ({}) do not fit into {device} ({}): {} too many",
                human(needed),
                human(device),
                needed - device
            ),
        }),
        _ => Ok(Code::Done),
    }
}

/// A shape, its plan, and the format of its matrices.
type Planned = (ModelShape, Plan, Dtype);

fn of_job(job: &JobSpec) -> Result<Planned, Failure> {
    job.recipe.validate().map_err(|error| Failure::bad_input(format!("recipe: {error}")))?;
    let shape = match &job.recipe.model {
        ModelSource::Scratch(shape) => shape.clone(),
        ModelSource::Base { input } => {
            let uri = job
                .inputs
                .iter()
                .find(|i| i.name == *input)
                .map(|i| i.uri.as_str())
                .unwrap_or_default();
            let folder = Path::new(uri.strip_prefix("file://").unwrap_or(uri));
            read_config(&folder.join("config.json"))?
        }
    };
    let options = TrainingOptions::new(job.recipe.micro_batch_size, job.recipe.sequence_len);
    let plan = plan_training(&shape, &options).map_err(Failure::bad_input)?;
    Ok((shape, plan, Dtype::F32))
}

fn of_serving(args: &Args, shape: ModelShape, format: Dtype) -> Result<Planned, Failure> {
    let weights = args.weights.unwrap_or(format);
    let context = args.context.unwrap_or(shape.max_positions);
    let options = ServingOptions::new(weights, args.max_sequences, args.step_tokens, context);
    let plan = plan_inference(&shape, &options).map_err(Failure::bad_input)?;
    Ok((shape, plan, weights))
}

fn of_training(args: &Args, shape: ModelShape) -> Result<Planned, Failure> {
    let sequence = args.sequence_len.unwrap_or(shape.max_positions);
    let options = TrainingOptions::new(args.micro_batch_size, sequence);
    let plan = plan_training(&shape, &options).map_err(Failure::bad_input)?;
    Ok((shape, plan, Dtype::F32))
}

fn read_config(path: &Path) -> Result<ModelShape, Failure> {
    petaflop_model::weights::read_config(path).map_err(Failure::bad_input)
}
