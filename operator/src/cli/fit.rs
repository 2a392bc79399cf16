//! `petaflop fit`: how much memory a model or a job takes, and which offers it fits on.

use std::path::PathBuf;

use clap::ValueEnum;
use jiff::Timestamp;
use petaflop_arbiter::decide::{Explained, explain};
use petaflop_arbiter::obstacle::Check;
use petaflop_arbiter::workload::{Engine, OwnerKind, TrainingWork, Work, Workload, WorkloadId};
use petaflop_crds::manifest;
use petaflop_plan::dtype::Dtype;
use petaflop_plan::inference::ServingOptions;
use petaflop_plan::shape::ModelShape;
use petaflop_plan::training::{TrainingOptions, plan_training};
use serde::Serialize;

use super::{Code, Failure, Outcome, plan, print, print_json, show};
use crate::embedded::home::Home;
use crate::embedded::job::{DEFAULT_NAMESPACE, Task};
use crate::models;

/// Longest context that is planned for when none is named.
const LONGEST_CONTEXT: u32 = 8192;

/// Tokens of one pass of the server.
const STEP_TOKENS: u32 = 256;

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["file", "model"])))]
pub(crate) struct Args {
    /// A manifest; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// A model: 8b, 70b, … for the published Llama of that size, or a config.json
    #[arg(long, value_name = "SIZE|FILE")]
    model: Option<String>,
    /// Number format of the model's matrices
    #[arg(long, value_enum, default_value = "f32")]
    precision: Precision,
    /// Train it instead of serving it
    #[arg(long, conflicts_with = "file")]
    train: bool,
    /// Tokens of one sequence [default: what the model was made for, at most 8192]
    #[arg(long, value_name = "N", conflicts_with = "file")]
    context: Option<u32>,
    /// Sequences at once
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "file")]
    sequences: u32,
    /// Show only the first ones
    #[arg(long, value_name = "N", default_value_t = 15)]
    limit: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
enum Precision {
    F32,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
}

/// What is planned for.
#[derive(Serialize)]
struct Report {
    parameters: u64,
    arena_bytes: u64,
    host_bytes: u64,
    fitting: usize,
    offers: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    fits: bool,
    #[serde(flatten)]
    explained: Explained,
}

pub(crate) fn run(home: &Home, args: &Args) -> Outcome {
    let (mut workload, parameters) = match (&args.file, &args.model) {
        (Some(file), _) => {
            let documents = manifest::read(file).map_err(Failure::bad_input)?;
            let document =
                documents.first().ok_or_else(|| Failure::bad_input("the manifest is empty"))?;
            let Some(admission) = plan::asked(home, document, None)? else {
                return Ok(Code::Failed);
            };
            let parameters = match &admission.task {
                Task::Training(task) => task.work.checkpoint_bytes / 12,
                Task::Serving(task) => task.work.model_bytes / 4,
            };
            (plan::workload_for(home, &admission)?, parameters)
        }
        (None, Some(model)) => of_model(args, model)?,
        (None, None) => return Err(Failure::bad_input("give --file or --model")),
    };
    unbound(&mut workload);
    let world = plan::world_for(home, workload.clone(), Timestamp::now())?;
    let (id, (arena_bytes, host_bytes)) = (workload.id.clone(), memory(&workload.work));
    let explanation = explain(&world, Timestamp::now(), &id)
        .ok_or_else(|| Failure::failed("the world does not hold the workload"))?;
    let mut rows: Vec<Row> = explanation
        .offers
        .into_iter()
        .map(|explained| Row { fits: fits(&explained), explained })
        .collect();
    rows.sort_by(|a, b| {
        let key =
            |row: &Row| (!row.fits, row.explained.offer.price, row.explained.offer.id.clone());
        key(a).cmp(&key(b))
    });
    let fitting = rows.iter().filter(|row| row.fits).count();
    let report = Report { parameters, arena_bytes, host_bytes, fitting, offers: rows };
    if args.json {
        print_json(&report)?;
    } else {
        show_report(&report, args.limit)?;
    }
    Ok(if fitting > 0 { Code::Done } else { Code::NoOffer })
}

fn show_report(report: &Report, limit: usize) -> Result<(), Failure> {
    let Report { parameters, arena_bytes, host_bytes, fitting, offers } = report;
    print(format_args!(
        "{} parameters; {} on the device that computes, {} of host memory beside it; fits on {fitting} of {} offers",
        show::grouped(*parameters),
        show::bytes(*arena_bytes),
        show::bytes(*host_bytes),
        offers.len()
    ))?;
    let mut table = show::table(&["", "OFFER", "HARDWARE", "$/H", "PRICE OF", "BUT"], &[3]);
    for Row { fits, explained } in offers.iter().take(limit) {
        let but: Vec<String> = explained
            .obstacles
            .iter()
            .filter(|o| !matters_only_for_choice(o.check()))
            .map(ToString::to_string)
            .collect();
        table.add_row([
            if *fits { "fits" } else { "" }.to_owned(),
            explained.offer.id.to_string(),
            show::hardware(&explained.offer),
            explained.offer.price.to_string(),
            show::seen(&explained.offer),
            but.join("; "),
        ]);
    }
    print(show::lines(&table))
}

/// A model by its size or its config.json, as a workload without wishes.
fn of_model(args: &Args, model: &str) -> Result<(Workload, u64), Failure> {
    let shape = match models::known(model) {
        Some(shape) => shape,
        None => {
            let text = std::fs::read(model).map_err(|error| {
                let names: Vec<&str> = models::NAMES.to_vec();
                Failure::bad_input(format!(
                    "{model}: {error}; expected {} or a config.json",
                    names.join(", ")
                ))
            })?;
            let config: serde_json::Value = serde_json::from_slice(&text)
                .map_err(|e| Failure::bad_input(format!("{model}: {e}")))?;
            ModelShape::from_hf_config(&config)
                .map_err(|e| Failure::bad_input(format!("{model}: {e}")))?
        }
    };
    let context = args.context.unwrap_or(shape.max_positions.min(LONGEST_CONTEXT));
    let work = if args.train {
        let plan = plan_training(&shape, &TrainingOptions::new(args.sequences, context))
            .map_err(Failure::bad_input)?;
        if args.precision != Precision::F32 {
            return Err(Failure::bad_input("training is in f32; other precisions are for serving"));
        }
        let parameters = shape.parameters();
        Work::Training(TrainingWork {
            steps: 1,
            tokens_per_step: u64::from(args.sequences) * u64::from(context),
            flops_per_step: plan.forward_flops() + plan.backward_flops(),
            traffic_bytes_per_step: plan.bytes_moved() + plan.update_bytes(),
            arena_bytes: plan.arena_bytes(),
            host_bytes: 12 * parameters,
            checkpoint_bytes: 12 * parameters,
            artifact_bytes: 4 * parameters,
            input_bytes: 0,
            checkpoint_interval_seconds: 600,
            precision: petaflop_arbiter::workload::Precision::F32,
        })
    } else {
        let weights = match args.precision {
            Precision::F32 => Dtype::F32,
            Precision::Bf16 => Dtype::Bf16,
            Precision::Q8_0 => Dtype::Q8_0,
        };
        let tokens = args.sequences.max(STEP_TOKENS);
        let options = ServingOptions::new(weights, args.sequences, tokens, context);
        Work::Serving(
            petaflop_arbiter::work::serving(&shape, &options).map_err(Failure::bad_input)?,
        )
    };
    let workload = Workload {
        id: WorkloadId {
            kind: OwnerKind::InferenceService,
            namespace: DEFAULT_NAMESPACE.to_owned(),
            name: "fit".to_owned(),
            uid: "fit".to_owned(),
        },
        created_at: Timestamp::now(),
        engine: Engine::Runtime,
        work,
        resources: Default::default(),
        accelerators: Vec::new(),
        placement: Default::default(),
        finish_by: None,
        max_total_cost: None,
        interruption: Default::default(),
        progress: Default::default(),
        suspended: false,
        tied: Vec::new(),
    };
    Ok((workload, shape.parameters()))
}

/// Whether the memory is enough and known.
fn fits(explained: &Explained) -> bool {
    !explained.obstacles.iter().any(|o| matches!(o.check(), Check::DeviceMemory | Check::Memory))
}

/// Says nothing about fitting; the date of a price has a column of its own.
fn matters_only_for_choice(check: Check) -> bool {
    matches!(check, Check::Dearer | Check::NotPreferred | Check::NotForSale)
}

/// Takes everything away that is no question of memory.
fn unbound(workload: &mut Workload) {
    let placement = &mut workload.placement;
    placement.providers.clear();
    placement.regions.clear();
    placement.zones.clear();
    placement.exclude_regions.clear();
    placement.capacity = None;
    placement.max_hourly_price = None;
    placement.allow_untrusted_hosts = true;
    workload.finish_by = None;
    workload.max_total_cost = None;
    workload.suspended = false;
}

fn memory(work: &Work) -> (u64, u64) {
    match work {
        Work::Training(work) => (work.arena_bytes, work.host_bytes),
        Work::Serving(work) => (work.arena_bytes, work.host_bytes),
        Work::Opaque(_) => (0, 0),
    }
}
