//! `petaflop simulate spot`: what a job with a deadline costs under each policy, over recorded availability.

use std::path::PathBuf;

use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::spot::policies::Name;
use petaflop_arbiter::spot::replay::{Manner, Observe, Run};
use petaflop_arbiter::spot::trace::Means;
use serde::Serialize;

use super::super::{Code, Failure, Outcome, print, show};
use super::inputs::{Inputs, Scene};
use super::runs;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Recorded availability: JSON {"metadata":{"gap_seconds":N},"data":[…]}; above 0 is available
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    pub(super) trace: Vec<PathBuf>,
    /// Points equal to V are not available, all others are
    #[arg(long, value_name = "V", allow_negative_numbers = true, conflicts_with = "need")]
    unavailable_value: Option<f64>,
    /// How long a choice holds
    #[arg(long, value_name = "TIME", default_value = "300s", value_parser = seconds)]
    pub(super) tick: i64,
    /// Useful work of the job
    #[arg(long, value_name = "TIME", default_value = "48h", value_parser = seconds)]
    pub(super) work: i64,
    /// From the start to the last moment at which the job may end
    #[arg(long, value_name = "TIME", default_value = "52h", value_parser = seconds)]
    pub(super) deadline: i64,
    /// What a start costs in time: launch, and work since the last checkpoint
    #[arg(long, value_name = "TIME", default_value = "0.05h", value_parser = seconds_or_none)]
    pub(super) restart: i64,
    /// Price of on-demand, in dollars an hour
    #[arg(long, value_name = "USD", default_value = "3.06")]
    pub(super) on_demand_usd: UsdPerHour,
    /// Price of spot, in dollars an hour
    #[arg(long, value_name = "USD", default_value = "0.9731")]
    pub(super) spot_usd: UsdPerHour,
    /// Machines wanted at once, in traces that count them: available where data ≥ N
    #[arg(long, value_name = "N")]
    need: Option<u32>,
    /// A run from every so often on [default: one run, from the start of the trace]
    #[arg(long, value_name = "TIME", value_parser = seconds, conflicts_with = "start_ticks")]
    pub(super) start_every: Option<i64>,
    /// How much of the trace must remain at a start [default: the deadline]
    #[arg(long, value_name = "TIME", value_parser = seconds, requires = "start_every")]
    pub(super) start_window: Option<i64>,
    /// Runs from these ticks on
    #[arg(long, value_name = "TICKS", value_delimiter = ',')]
    pub(super) start_ticks: Vec<usize>,
    /// All traces are zones of one market, from the same moment on; else each is a market of its own
    #[arg(long)]
    pub(super) together: bool,
    /// Prices of spot, one file a trace: JSON {"metadata":{"gap_seconds":N},"data":[usd_per_hour,…]}
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(super) price: Vec<PathBuf>,
    /// JSON {"<trace file name>":{"on_demand_usd":…,"restart_hours":…,"probe_usd":…},"egress_usd_per_gb":{"<from>":{"<to>":…}}}
    #[arg(long, value_name = "FILE")]
    pub(super) zones: Option<PathBuf>,
    /// What a move to another zone takes along
    #[arg(long, value_name = "GB", default_value_t = 0.0)]
    pub(super) checkpoint_gb: f64,
    /// Price of taking it along, where --zones does not say
    #[arg(long, value_name = "USD", default_value_t = 0.0)]
    pub(super) egress_usd_per_gb: f64,
    /// What a policy sees of zones in which it holds no spot machine: everything; what an attempt shows; the same for the probe's price
    #[arg(long, value_enum, default_value = "all")]
    observe: Seen,
    /// Whether a policy may see the trace before its start
    #[arg(long, value_enum, default_value = "none")]
    history: History,
    /// P1's idea of how long spot lasts, before it saw any, from these traces [default: from nine zones of February 2023]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(super) fit_from: Vec<PathBuf>,
    /// Policies: on-demand, greedy, uniform-progress, alpha-0.1, alpha-0.2, r1, p1, optimum, or all
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "all")]
    policy: Vec<String>,
    /// Print one JSON object a policy, one a line
    #[arg(long)]
    json: bool,
    /// With --json: every run too
    #[arg(long, requires = "json")]
    per_run: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Seen {
    All,
    Held,
    Probed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum History {
    None,
    BeforeStart,
}

impl Args {
    /// Which points of a trace mean that there is spot.
    pub(super) fn means(&self) -> Means {
        match (self.need, self.unavailable_value) {
            (Some(machines), _) => Means::AtLeast(f64::from(machines)),
            (None, Some(none)) => Means::AllBut(none),
            (None, None) => Means::Positive,
        }
    }

    fn manner(&self) -> Manner {
        let observe = match self.observe {
            Seen::All => Observe::All,
            Seen::Held => Observe::Held,
            Seen::Probed => Observe::Probed,
        };
        Manner { observe, history: self.history == History::BeforeStart }
    }

    fn policies(&self) -> Result<Vec<Contestant>, Failure> {
        let all = || Name::ALL.into_iter().map(Contestant::Policy).chain([Contestant::Optimum]);
        let mut chosen = Vec::new();
        for name in &self.policy {
            match name.as_str() {
                "all" => chosen.extend(all()),
                "optimum" => chosen.push(Contestant::Optimum),
                other => chosen.push(Contestant::Policy(other.parse().map_err(|error| {
                    Failure::bad_input(format_args!("{error}, optimum, and all for all of them"))
                })?)),
            }
        }
        Ok(chosen)
    }
}

/// Who plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contestant {
    Policy(Name),
    Optimum,
}

impl std::fmt::Display for Contestant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Contestant::Policy(name) => name.fmt(f),
            Contestant::Optimum => f.write_str("optimum"),
        }
    }
}

#[derive(Serialize)]
struct Report {
    policy: String,
    runs: usize,
    misses: usize,
    mean_usd: f64,
    mean_of_trace_means_usd: f64,
    moves_per_run: f64,
    per_trace: Vec<OfTrace>,
    #[serde(skip_serializing_if = "Option::is_none")]
    per_run: Option<Vec<OfRun>>,
}

#[derive(Serialize)]
struct OfTrace {
    trace: String,
    runs: usize,
    mean_usd: f64,
    misses: usize,
    optimum_usd: f64,
}

#[derive(Serialize)]
struct OfRun {
    trace: String,
    start_tick: usize,
    usd: f64,
    moves: u32,
    missed: bool,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let policies = args.policies()?;
    let Inputs { scenes, shape, notes } = Inputs::read(args)?;
    for note in notes {
        super::super::say(note);
    }
    let manner = args.manner();
    let optimum = runs::all(&scenes, Contestant::Optimum, manner, shape);
    let mut reports = Vec::new();
    for contestant in policies {
        let runs = match contestant {
            Contestant::Optimum => optimum.clone(),
            Contestant::Policy(_) => runs::all(&scenes, contestant, manner, shape),
        };
        let report = report(contestant, &scenes, &runs, &optimum, args.per_run);
        if args.json {
            print(serde_json::to_string(&report)?)?;
        }
        reports.push(report);
    }
    if !args.json {
        print_table(&reports)?;
    }
    Ok(Code::Done)
}

fn report(
    contestant: Contestant,
    scenes: &[Scene],
    runs: &[Vec<Run>],
    optimum: &[Vec<Run>],
    per_run: bool,
) -> Report {
    let flat: Vec<Run> = runs.iter().flatten().copied().collect();
    let per_trace: Vec<OfTrace> = scenes
        .iter()
        .zip(runs)
        .zip(optimum)
        .map(|((scene, runs), optimum)| OfTrace {
            trace: scene.name.clone(),
            runs: runs.len(),
            mean_usd: mean(runs.iter().map(dollars)),
            misses: missed(runs),
            optimum_usd: mean(optimum.iter().map(dollars)),
        })
        .collect();
    let per_run = per_run.then(|| {
        let of_scene = |(scene, runs): (&Scene, &Vec<Run>)| {
            let run = |(start, run): (&usize, &Run)| OfRun {
                trace: scene.name.clone(),
                start_tick: *start,
                usd: dollars(run),
                moves: run.moves,
                missed: run.missed,
            };
            scene.starts.iter().zip(runs).map(run).collect::<Vec<_>>()
        };
        scenes.iter().zip(runs).flat_map(of_scene).collect()
    });
    Report {
        policy: contestant.to_string(),
        runs: flat.len(),
        misses: missed(&flat),
        mean_usd: mean(flat.iter().map(dollars)),
        mean_of_trace_means_usd: mean(per_trace.iter().map(|trace| trace.mean_usd)),
        moves_per_run: mean(flat.iter().map(|run| f64::from(run.moves))),
        per_trace,
        per_run,
    }
}

fn dollars(run: &Run) -> f64 {
    run.paid.usd().as_f64()
}

fn missed(runs: &[Run]) -> usize {
    runs.iter().filter(|run| run.missed).count()
}

fn mean(values: impl ExactSizeIterator<Item = f64> + Clone) -> f64 {
    values.clone().sum::<f64>() / values.len().max(1) as f64
}

fn print_table(reports: &[Report]) -> Result<(), Failure> {
    let columns = ["POLICY", "RUNS", "MISSES", "MEAN $", "OVER OPTIMUM", "MOVES A RUN"];
    let mut table = show::table(&columns, &[1, 2, 3, 4, 5]);
    for report in reports {
        let optimum = mean(report.per_trace.iter().map(|trace| trace.optimum_usd));
        let over = match optimum > 0.0 {
            true => format!("{:.1} %", (report.mean_of_trace_means_usd / optimum - 1.0) * 100.0),
            false => "-".to_owned(),
        };
        table.add_row([
            report.policy.clone(),
            report.runs.to_string(),
            report.misses.to_string(),
            format!("{:.2}", report.mean_of_trace_means_usd),
            over,
            format!("{:.1}", report.moves_per_run),
        ]);
    }
    print(show::lines(&table))
}

/// `300s`, `5m`, `0.05h`, `2d`: a whole number of seconds above 0.
pub(super) fn seconds(text: &str) -> Result<i64, String> {
    match seconds_or_none(text)? {
        0 => Err("must be longer than nothing".to_owned()),
        seconds => Ok(seconds),
    }
}

/// The same, or 0.
pub(super) fn seconds_or_none(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is no time; write 300s, 5m, 0.05h or 2d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let (number, factor) = match unit {
        's' => (&text[..text.len() - 1], 1.0),
        'm' => (&text[..text.len() - 1], 60.0),
        'h' => (&text[..text.len() - 1], 3_600.0),
        'd' => (&text[..text.len() - 1], 86_400.0),
        _ => (text, 1.0),
    };
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    whole_seconds(number * factor)
        .ok_or_else(|| format!("{text:?} is not a whole number of seconds, from 0 to ten years"))
}

/// Whole seconds, but for what is lost in writing hours as decimals.
pub(super) fn whole_seconds(seconds: f64) -> Option<i64> {
    let whole = seconds.round();
    let near = (seconds - whole).abs() < 1e-6 && (0.0..=3.2e8).contains(&whole);
    near.then_some(whole as i64)
}
