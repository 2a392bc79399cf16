//! `petaflop fit`: how much memory a model or a job takes, which offers it fits on, and what would make
//! it fit where it does not.
//!
//! `model` turns what was asked into work for the arbiter.

mod model;

use std::path::PathBuf;

use jiff::Timestamp;
use petaflop_arbiter::decide::{Explained, explain};
use petaflop_arbiter::memory::{Anatomy, Needs, Use, ladder};
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::obstacle::Check;
use petaflop_arbiter::workload::{Engine, OwnerKind, Work, Workload, WorkloadId};
use petaflop_arbiter::world::World;
use petaflop_crds::manifest;
use serde::Serialize;

use self::model::{Again, Asked, Cache, Estimate, Precision, Trained};
use super::{Code, Failure, Outcome, plan, print, print_json, show};
use crate::embedded::home::Home;
use crate::embedded::job::DEFAULT_NAMESPACE;

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["file", "model"])))]
pub(crate) struct Args {
    /// A manifest; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// A model: 8b, 70b, … for the published Llama of that size, or a config.json
    #[arg(long, value_name = "SIZE|FILE")]
    model: Option<String>,
    /// Number format of the model's matrices; a training computes in f32 or bf16
    #[arg(long, value_enum, default_value = "f32", conflicts_with = "file")]
    precision: Precision,
    /// Number format of keys and values [default: f32 beside f32, else bf16]
    #[arg(long, value_enum, conflicts_with_all = ["file", "train"])]
    cache: Option<Cache>,
    /// Train it instead of serving it
    #[arg(long, conflicts_with = "file")]
    train: bool,
    /// What is trained
    #[arg(long, value_enum, default_value = "full", requires = "train")]
    method: Trained,
    /// Width of the low-rank pairs
    #[arg(long, value_name = "N", default_value_t = 16, requires = "train")]
    rank: u32,
    /// What is made again on the way back, and not kept
    #[arg(long, value_enum, default_value = "nothing", requires = "train")]
    recompute: Again,
    /// Moments of one byte, no master copy
    #[arg(long, requires = "train")]
    adam_8bit: bool,
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

/// What is planned for.
#[derive(Serialize)]
struct Report {
    parameters: u64,
    arena_bytes: u64,
    host_bytes: u64,
    /// Where the runtime makes no plan of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    estimate: Option<Estimate>,
    fitting: usize,
    /// Where it fits nowhere: changes, each on top of those before, up to the first that fits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ladder: Vec<Step>,
    offers: Vec<Row>,
}

/// A change that makes it smaller, and where it then fits.
#[derive(Serialize)]
struct Step {
    change: String,
    arena_bytes: u64,
    needs: Needs,
    fitting: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    cheapest: Option<UsdPerHour>,
}

#[derive(Serialize)]
struct Row {
    fits: bool,
    #[serde(flatten)]
    explained: Explained,
}

pub(crate) fn run(home: &Home, args: &Args) -> Outcome {
    let (mut workload, parameters, estimate, of) = match (&args.file, &args.model) {
        (Some(file), _) => {
            let documents = manifest::read(file).map_err(Failure::bad_input)?;
            let document =
                documents.first().ok_or_else(|| Failure::bad_input("the manifest is empty"))?;
            let Some(admission) = plan::asked(home, document, None)? else {
                return Ok(Code::Failed);
            };
            let (shape, of) = model::admitted(home, &admission.task)?;
            let workload = plan::workload_for(home, &admission)?;
            (
                workload,
                shape.parameters(),
                None,
                model::anatomy(&shape).map(|anatomy| (anatomy, of)),
            )
        }
        (None, Some(model)) => {
            let Asked { parameters, work, estimate, of } = model::read(args, model)?;
            (without_wishes(work), parameters, estimate, of)
        }
        (None, None) => return Err(Failure::bad_input("give --file or --model")),
    };
    unbound(&mut workload);
    let mut world = plan::world_for(home, workload.clone(), Timestamp::now())?;
    let (id, (arena_bytes, host_bytes)) = (workload.id.clone(), memory(&workload.work));
    let offers = rows(&world, &id)?;
    let fitting = count(&offers);
    let ladder = match of {
        Some((anatomy, of)) if fitting == 0 => climb(&mut world, &id, &anatomy, of)?,
        _ => Vec::new(),
    };
    let report = Report { parameters, arena_bytes, host_bytes, estimate, fitting, ladder, offers };
    if args.json {
        print_json(&report)?;
    } else {
        show_report(&report, args.limit)?;
    }
    Ok(if fitting > 0 { Code::Done } else { Code::NoOffer })
}

/// All offers, those that it fits on first, the cheapest before.
fn rows(world: &World, id: &WorkloadId) -> Result<Vec<Row>, Failure> {
    let explanation = explain(world, Timestamp::now(), id)
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
    Ok(rows)
}

fn count(rows: &[Row]) -> usize {
    rows.iter().filter(|row| row.fits).count()
}

/// Up the ladder, to the first rung that fits somewhere.
fn climb(
    world: &mut World,
    id: &WorkloadId,
    anatomy: &Anatomy,
    of: Use,
) -> Result<Vec<Step>, Failure> {
    let mut steps = Vec::new();
    for rung in ladder(anatomy, of) {
        for workload in world.workloads.iter_mut().filter(|workload| workload.id == *id) {
            workload.work = model::by_formulas(anatomy, rung.with);
        }
        let rows = rows(world, id)?;
        let fitting = count(&rows);
        let cheapest = rows.first().filter(|row| row.fits).map(|row| row.explained.offer.price);
        let arena_bytes = rung.needs.total();
        steps.push(Step { change: rung.change, arena_bytes, needs: rung.needs, fitting, cheapest });
        if fitting > 0 {
            break;
        }
    }
    Ok(steps)
}

fn show_report(report: &Report, limit: usize) -> Result<(), Failure> {
    let Report { parameters, arena_bytes, host_bytes, estimate, fitting, ladder, offers } = report;
    print(format_args!(
        "{} parameters; {} on the device that computes, {} of host memory beside it; fits on {fitting} of {} offers",
        show::grouped(*parameters),
        show::bytes(*arena_bytes),
        show::bytes(*host_bytes),
        offers.len()
    ))?;
    if let Some(Estimate { because, needs }) = estimate {
        let parts = [
            ("weights", needs.weights),
            ("states", needs.states),
            ("activations", needs.activations),
            ("cache", needs.cache),
            ("logits", needs.logits),
            ("workspace", needs.workspace),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(_, bytes)| *bytes > 0)
            .map(|(name, bytes)| format!("{name} {}", show::bytes(*bytes)))
            .collect();
        print(format_args!("estimated: {}. {because}", parts.join(", ")))?;
    }
    if !ladder.is_empty() {
        print("what would make it fit, each on top of those above:")?;
        let mut table = show::table(&["CHANGE", "TAKES", "FITS ON", "FROM $/H"], &[1, 2, 3]);
        for Step { change, arena_bytes, fitting, cheapest, .. } in ladder {
            table.add_row([
                change.clone(),
                show::bytes(*arena_bytes),
                fitting.to_string(),
                cheapest.map_or_else(String::new, |price| price.to_string()),
            ]);
        }
        print(show::lines(&table))?;
    }
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

/// A workload that wishes for nothing.
fn without_wishes(work: Work) -> Workload {
    Workload {
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
        measured: None,
    }
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
