//! `petaflop explain -f`: why not that one, with numbers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use petaflop_arbiter::claim::Device;
use petaflop_arbiter::decide::{Explained, Explanation, explain};
use petaflop_arbiter::decision::CostBreakdown;
use petaflop_arbiter::ledger::Row;
use petaflop_arbiter::obstacle::Obstacle;
use petaflop_arbiter::workload::WorkloadId;
use petaflop_arbiter::world::Recorded;
use petaflop_crds::manifest;

use super::{Code, Failure, Outcome, plan, print, print_json, say, show, waiting};
use crate::embedded::admit;
use crate::embedded::home::{Home, HomeError};
use crate::timeline;

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["name", "file", "world"])))]
pub(crate) struct Args {
    /// In a cluster, or of a recorded world: a job or service of it, `trainingjob/name` or `inferenceservice/name`
    pub(super) name: Option<String>,
    /// Its namespace
    #[arg(short, long, requires = "name")]
    pub(super) namespace: Option<String>,
    /// The manifest; `-` is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["name", "world"])]
    file: Option<PathBuf>,
    /// A recorded world (`plan --save-world`, or world.json of a job), instead of the one that is now
    #[arg(long, value_name = "FILE")]
    world: Option<PathBuf>,
    /// Draw instead, by the ledger: where it was, when, and what it paid there
    #[arg(long, value_name = "FILE", conflicts_with_all = ["world", "offer"])]
    pub(super) svg: Option<PathBuf>,
    /// Only this offer, in full
    #[arg(long, value_name = "ID")]
    offer: Option<String>,
    /// Show only the first ones
    #[arg(long, value_name = "N", default_value_t = 25)]
    limit: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(open: impl FnOnce() -> Result<Home, HomeError>, args: &Args) -> Outcome {
    if let Some(picture) = &args.svg {
        return draw(open, args, picture);
    }
    let (seen, workload, recorded) = match (&args.world, &args.file) {
        (Some(path), _) => {
            let seen = recorded_world(path)?;
            let workload = workload_of(args, &seen)
                .map_err(|said| Failure::bad_input(format!("{}: {said}", path.display())))?;
            (seen, workload, true)
        }
        (None, Some(file)) => {
            let home = open()?;
            let documents = manifest::read(file).map_err(Failure::bad_input)?;
            let document =
                documents.first().ok_or_else(|| Failure::bad_input("the manifest is empty"))?;
            let Some(admission) = plan::asked(&home, document, None)? else {
                return Ok(Code::Failed);
            };
            let workload = plan::workload_for(&home, &admission)?;
            let id = workload.id.clone();
            let world = plan::world_for(&home, workload, Timestamp::now())?;
            (Recorded { now: Timestamp::now(), world }, id, false)
        }
        (None, None) => return Err(Failure::bad_input(NOT_HERE)),
    };
    let mut explanation = explain(&seen.world, seen.now, &workload)
        .ok_or_else(|| Failure::failed("the world does not hold the workload"))?;
    if recorded {
        explanation.decision.world = Some(seen.hash());
    }
    show_explanation(args, &explanation)
}

/// A world that was written down, maybe by another version of petaflop: then it is said what of it plays
/// no part here.
fn recorded_world(path: &Path) -> Result<Recorded, Failure> {
    let failed = |what: String| Failure::bad_input(format!("{}: {what}", path.display()));
    let text = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
    let mut reader = serde_json::Deserializer::from_slice(&text);
    let mut unknown = BTreeSet::new();
    let seen = serde_ignored::deserialize(&mut reader, |field| {
        unknown.insert(field.to_string());
    })
    .and_then(|seen: Recorded| reader.end().map(|()| seen))
    .map_err(|e| failed(format!("not a recorded world: {e}")))?;
    if !unknown.is_empty() {
        let fields = unknown.iter().take(10).map(String::as_str).collect::<Vec<_>>().join(", ");
        say(format_args!(
            "{}: recorded by another version of petaflop, whose decision may differ; passed over: {fields}{}",
            path.display(),
            if unknown.len() > 10 { ", …" } else { "" },
        ));
    }
    Ok(seen)
}

/// The workload of a recorded world that is asked about: the one that is named, else the first.
fn workload_of(args: &Args, seen: &Recorded) -> Result<WorkloadId, String> {
    let wanted = args.name.as_deref().map(|name| name.rsplit('/').next().unwrap_or(name));
    let is_it = |id: &&WorkloadId| {
        wanted.is_none_or(|wanted| id.name == wanted)
            && args.namespace.as_ref().is_none_or(|namespace| id.namespace == *namespace)
    };
    let mut all = seen.world.workloads.iter().map(|workload| &workload.id);
    match all.find(is_it) {
        Some(id) => Ok(id.clone()),
        None if seen.world.workloads.is_empty() => Err("the world holds no workload".to_owned()),
        None => Err("the world does not hold this workload".to_owned()),
    }
}

/// Draws what the ledger of this home says of the job.
fn draw(open: impl FnOnce() -> Result<Home, HomeError>, args: &Args, picture: &Path) -> Outcome {
    let Some(file) = &args.file else { return Err(Failure::bad_input(NOT_HERE)) };
    let documents = manifest::read(file).map_err(Failure::bad_input)?;
    let document = documents.first().ok_or_else(|| Failure::bad_input("the manifest is empty"))?;
    let (namespace, name) = (admit::namespace_of(document), document.name());
    let rows = waiting()?.block_on(open()?.ledger()?.rows_from(Timestamp::MIN))?;
    write_picture(picture, &namespace, &name, rows)
}

/// Writes the picture of a job's rows among these.
pub(super) fn write_picture(
    picture: &Path,
    namespace: &str,
    name: &str,
    mut rows: Vec<Row>,
) -> Outcome {
    rows.retain(|row| row.namespace == namespace && row.job == name);
    let svg = timeline::svg(&format!("{namespace}/{name}"), &rows).ok_or_else(|| {
        Failure::failed(format!("{namespace}/{name}: the ledger has no row of it yet"))
    })?;
    std::fs::write(picture, svg)
        .map_err(|e| Failure::failed(format!("{}: {e}", picture.display())))?;
    Ok(Code::Done)
}

/// Prints what is asked for of it.
pub(super) fn show_explanation(args: &Args, explanation: &Explanation) -> Outcome {
    if let Some(id) = &args.offer {
        let one = explanation.offers.iter().find(|one| one.offer.id.0 == *id).ok_or_else(|| {
            Failure::bad_input(format!("there is no offer {id:?}; `petaflop offers` lists them"))
        })?;
        if args.json {
            print_json(one)?;
        } else {
            print(in_full(one))?;
        }
        return Ok(Code::Done);
    }
    if args.json {
        print_json(explanation)?;
        return Ok(Code::Done);
    }
    if let Some(world) = &explanation.decision.world {
        print(format_args!("world {world}"))?;
    }
    print(show::decision(&explanation.decision))?;
    let mut table = show::table(&["OFFER", "HARDWARE", "$/H", "$ TO FINISH", "WHY NOT"], &[2, 3]);
    for one in explanation.offers.iter().take(args.limit) {
        let why: Vec<String> = one.obstacles.iter().map(ToString::to_string).collect();
        table.add_row([
            one.offer.id.to_string(),
            show::hardware(&one.offer),
            one.offer.price.to_string(),
            one.cost.as_ref().map_or_else(|| "-".to_owned(), |cost| cost.total.to_string()),
            if why.is_empty() { "chosen".to_owned() } else { why.join("; ") },
        ]);
    }
    print(show::lines(&table))?;
    if explanation.offers.len() > args.limit {
        print(format_args!("… and {} more (--limit)", explanation.offers.len() - args.limit))?;
    }
    Ok(Code::Done)
}

const NOT_HERE: &str = "a name is one of a cluster: give --cluster; here, --file or --world";

/// Whether a lower price is all that it takes.
const fn is_price(obstacle: &Obstacle) -> bool {
    matches!(obstacle, Obstacle::Dearer { .. } | Obstacle::NotPreferred { .. })
}

fn in_full(one: &Explained) -> String {
    let Explained { offer, device, cost, obstacles, wins_at } = one;
    let mut text = format!(
        "{}: {} at {} $/h, {}, price seen: {}; computes on its {}\n",
        offer.id,
        show::hardware(offer),
        offer.price,
        offer.capacity,
        show::seen(offer),
        match device {
            Device::Cpu => "processor",
            Device::Accelerators => "accelerators",
        },
    );
    if let Some(CostBreakdown {
        total,
        terms,
        millis,
        millis_range,
        usd_range,
        tokens_per_second,
        usd_per_million_tokens,
    }) = cost
    {
        let (low, high) = *millis_range;
        text.push_str(&format!(
            "  {total} $ expected{} in {} ({} to {})\n",
            show::between(*usd_range),
            show::span(*millis),
            show::span(low),
            show::span(high)
        ));
        if let Some(rate) = tokens_per_second {
            text.push_str(&format!(
                "  {} tokens/s ({} to {})\n",
                show::grouped(rate.expected as u64),
                show::grouped(rate.low as u64),
                show::grouped(rate.high as u64)
            ));
        }
        if let Some(price) = usd_per_million_tokens {
            text.push_str(&format!("  {price} $ for a million tokens\n"));
        }
        for term in terms {
            text.push_str(&format!(
                "  {:<9} {:>10} $  {}\n",
                format!("{:?}", term.what),
                term.usd.to_string(),
                show::span(term.millis)
            ));
        }
    }
    match obstacles.as_slice() {
        [] => text.push_str("  chosen"),
        obstacles => {
            for obstacle in obstacles {
                text.push_str(&format!("  not taken: {obstacle}"));
                if let Some(give) = obstacle.would_have_to_give() {
                    text.push_str(&format!("  (would have to give: {give})"));
                }
                text.push('\n');
            }
            match wins_at {
                Some(price) => text.push_str(&format!("  would be taken at up to {price} $/h")),
                None if cost.is_some() => text.push_str("  would not be taken at any price"),
                None => {}
            }
            if wins_at.is_some() && obstacles.iter().any(|obstacle| !is_price(obstacle)) {
                text.push_str(", were it not for what else is in its way");
            }
            text.truncate(text.trim_end().len());
        }
    }
    text
}
