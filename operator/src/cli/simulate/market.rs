//! `petaflop simulate market`: what a queue of jobs costs under each policy, over recorded capacity and prices.

use std::path::PathBuf;
use std::sync::Arc;

use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::spot::law::Shape;
use petaflop_arbiter::spot::model::{Paid, Terms, Zone};
use petaflop_arbiter::spot::optimum::optimum;
use petaflop_arbiter::spot::policies::Name;
use petaflop_arbiter::spot::queue::{self, End, Queued, Went};
use petaflop_arbiter::spot::replay::{Observe, Price, Recorded};
use petaflop_arbiter::spot::table::{Spec, Tables};
use petaflop_arbiter::spot::trace::Trace;
use serde::{Deserialize, Serialize};

use super::super::{Code, Failure, Outcome, print, say, show};
use super::inputs::{bytes, of_file, per_tick};
use super::spot::{seconds, seconds_or_none, whole_seconds};

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("queue").required(true).args(["jobs", "random"])))]
pub(crate) struct Args {
    /// Spot machines that there are, one file a zone: JSON {"metadata":{"gap_seconds":N},"data":[machines,…]}
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    capacity: Vec<PathBuf>,
    /// Prices of spot, one file a zone: JSON {"metadata":{"gap_seconds":N},"data":[usd_per_hour,…]}
    #[arg(long, value_name = "FILE", num_args = 1..)]
    price: Vec<PathBuf>,
    /// The queue: JSON [{"arrives_hours":0,"work_hours":48,"deadline_hours":52,"budget_usd":100},…]; a budget may be left out
    #[arg(long, value_name = "FILE")]
    jobs: Option<PathBuf>,
    /// So many jobs by --seed instead: 1 to 24 hours of work, a deadline of 1.1 to 2 times that and 15 minutes, arriving while they can end before the traces do
    #[arg(long, value_name = "N", requires = "seed", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    random: Option<u32>,
    /// The same seed, the same jobs
    #[arg(long, value_name = "SEED", conflicts_with = "jobs")]
    seed: Option<u64>,
    /// How long a choice holds
    #[arg(long, value_name = "TIME", default_value = "300s", value_parser = seconds)]
    tick: i64,
    /// What a start costs in time: launch, and work since the last checkpoint
    #[arg(long, value_name = "TIME", default_value = "0.05h", value_parser = seconds_or_none)]
    restart: i64,
    /// Price of on-demand, in dollars an hour
    #[arg(long, value_name = "USD", default_value = "3.06")]
    on_demand_usd: UsdPerHour,
    /// Price of spot where --price does not say, in dollars an hour
    #[arg(long, value_name = "USD", default_value = "0.9731")]
    spot_usd: UsdPerHour,
    /// Policies: on-demand, greedy, uniform-progress, alpha-0.1, alpha-0.2, r1, p1, or all
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "all")]
    policy: Vec<String>,
    /// Print one JSON object a policy, one a line
    #[arg(long)]
    json: bool,
    /// With --json: every job too
    #[arg(long, requires = "json")]
    per_job: bool,
}

/// One job of `--jobs`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JobTerms {
    arrives_hours: f64,
    work_hours: f64,
    deadline_hours: f64,
    budget_usd: Option<f64>,
}

#[derive(Serialize)]
struct Report {
    policy: String,
    jobs: usize,
    usd: f64,
    /// Of all jobs, each alone in the market and knowing the future: no policy costs less.
    alone_optimum_usd: f64,
    misses: usize,
    out_of_money: usize,
    moves: u32,
    waited_hours: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    per_job: Option<Vec<OfJob>>,
}

#[derive(Serialize)]
struct OfJob {
    arrives_hours: f64,
    work_hours: f64,
    usd: f64,
    end: &'static str,
    moves: u32,
    waited_hours: f64,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let policies = policies(args)?;
    let (market, capacity) = market(args)?;
    let ticks = capacity.iter().map(Vec::len).min().unwrap_or(0);
    let jobs = jobs(args, ticks)?;
    let ends = |job: &Queued| job.arrives as i64 + job.terms.ticks();
    let late = jobs.iter().filter(|job| ends(job) > ticks as i64).count();
    if late > 0 {
        say(format_args!(
            "note: a trace ends before the deadlines of {late} jobs; after its end it has no spot"
        ));
    }
    let best = |queued: &Queued| optimum(&queued.terms, &market, queued.arrives, Observe::All).paid;
    let alone = jobs.iter().map(best).fold(Paid::ZERO, Paid::plus).usd().as_f64();
    let tables = tables(&jobs, &market);
    let mut reports = Vec::new();
    for name in policies {
        let went = queue::run(&jobs, &market, &capacity, |queued| {
            let own = Spec::of(&queued.terms, &market, queued.arrives);
            let serves = tables.iter().find(|(spec, _)| spec.joined(own).is_some());
            name.policy(&queued.terms, serves.map(|(_, tables)| tables))
        });
        let report = report(args, name, &jobs, &went, alone);
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

/// What P1 decides by: tables for the longest of the jobs that meet the same prices serve all of them.
fn tables(jobs: &[Queued], market: &[Recorded]) -> Vec<(Spec, Arc<Tables>)> {
    let mut specs: Vec<Spec> = Vec::new();
    for queued in jobs {
        let own = Spec::of(&queued.terms, market, queued.arrives);
        match specs.iter_mut().find_map(|known| Some((known.joined(own)?, known))) {
            Some((joined, known)) => *known = joined,
            None => specs.push(own),
        }
    }
    let made = |spec| (spec, Arc::new(Tables::made_when_needed(spec, Shape::default())));
    specs.into_iter().map(made).collect()
}

fn policies(args: &Args) -> Result<Vec<Name>, Failure> {
    let mut chosen = Vec::new();
    for name in &args.policy {
        match name.as_str() {
            "all" => chosen.extend(Name::ALL),
            other => chosen.push(other.parse().map_err(|error| {
                Failure::bad_input(format_args!("{error}, and all for all of them"))
            })?),
        }
    }
    Ok(chosen)
}

/// The zones, and how many machines each has by tick.
fn market(args: &Args) -> Result<(Vec<Recorded>, Vec<Vec<u32>>), Failure> {
    if !args.price.is_empty() && args.price.len() != args.capacity.len() {
        return Err(Failure::bad_input(
            "give one --price file for each --capacity file, in the same order",
        ));
    }
    let (mut market, mut capacity) = (Vec::new(), Vec::new());
    for (index, path) in args.capacity.iter().enumerate() {
        let trace = Trace::parse(&bytes(path)?).map_err(|error| of_file(path, error))?;
        let machines = trace.machines(args.tick).map_err(|error| of_file(path, error))?;
        let spot = match args.price.get(index) {
            None => Price::Fixed(args.spot_usd),
            Some(path) => {
                let prices = Trace::parse(&bytes(path)?).map_err(|error| of_file(path, error))?;
                Price::PerTick(per_tick(path, &prices, args.tick, machines.len())?)
            }
        };
        let available = machines.iter().map(|machines| *machines > 0).collect();
        market.push(Recorded { available, spot, on_demand: args.on_demand_usd });
        capacity.push(machines);
    }
    Ok((market, capacity))
}

fn jobs(args: &Args, ticks: usize) -> Result<Vec<Queued>, Failure> {
    let covered = i64::try_from(ticks).unwrap_or(i64::MAX).saturating_mul(args.tick);
    let given = match (&args.jobs, args.random.zip(args.seed)) {
        (Some(path), _) => serde_json::from_slice(&bytes(path)?).map_err(|e| of_file(path, e))?,
        (None, Some((count, seed))) => by_seed(count, seed, covered as f64 / 3_600.0),
        (None, None) => Vec::new(),
    };
    let job = |(index, job): (usize, JobTerms)| {
        let wrong = |what: &str| {
            Failure::bad_input(format_args!(
                "job {index}: {what}, and not more than ten years or 10^9 dollars"
            ))
        };
        let span =
            |hours: f64, what: &str| whole_seconds(hours * 3_600.0).ok_or_else(|| wrong(what));
        let arrives = span(job.arrives_hours, "arrives_hours must be 0 or more, in whole seconds")?;
        if arrives >= covered {
            return Err(Failure::bad_input(format_args!(
                "job {index} arrives after the end of the traces"
            )));
        }
        let work_is = "work_hours must be above 0, in whole seconds";
        let work = span(job.work_hours, work_is)?;
        if work == 0 {
            return Err(wrong(work_is));
        }
        let zones = vec![Zone { restart: args.restart, probe: Usd::ZERO }; args.capacity.len()];
        let deadline =
            span(job.deadline_hours, "deadline_hours must be 0 or more, in whole seconds")?;
        let budget = match job.budget_usd {
            None => None,
            Some(usd) if (0.0..1e9).contains(&usd) => {
                Some(Usd::from_micros((usd * 1e6).round() as i64))
            }
            Some(_) => return Err(wrong("budget_usd must be 0 or more")),
        };
        // It is seen at the first tick after it came, and its deadline counts from when it came.
        let tick = arrives.div_euclid(args.tick) + i64::from(arrives % args.tick != 0);
        let deadline = deadline - (tick * args.tick - arrives);
        Ok(Queued {
            arrives: usize::try_from(tick).unwrap_or(usize::MAX),
            terms: Terms { tick: args.tick, work, deadline, zones, egress: Vec::new() },
            budget,
        })
    };
    given.into_iter().enumerate().map(job).collect()
}

/// Jobs that a seed gives: SplitMix64 (Steele, Lea, Flood 2014), in whole minutes.
fn by_seed(count: u32, seed: u64, hours: f64) -> Vec<JobTerms> {
    let mut state = seed;
    let mut below = |most: u64| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % most.max(1)
    };
    let mut job = || {
        let work = 60 + below(23 * 60 + 1);
        let deadline = work * (110 + below(91)) / 100 + 15;
        let latest = (hours * 60.0) as u64;
        let arrives = below(latest.saturating_sub(deadline).max(1));
        JobTerms {
            arrives_hours: arrives as f64 / 60.0,
            work_hours: work as f64 / 60.0,
            deadline_hours: deadline as f64 / 60.0,
            budget_usd: None,
        }
    };
    (0..count).map(|_| job()).collect()
}

fn report(args: &Args, name: Name, jobs: &[Queued], went: &[Went], alone: f64) -> Report {
    let hours = |ticks: i64| (ticks * args.tick) as f64 / 3_600.0;
    let ended = |end: End| went.iter().filter(|went| went.end == end).count();
    let job = |(queued, went): (&Queued, &Went)| OfJob {
        arrives_hours: hours(i64::try_from(queued.arrives).unwrap_or(i64::MAX)),
        work_hours: queued.terms.work as f64 / 3_600.0,
        usd: went.paid.usd().as_f64(),
        end: match went.end {
            End::InTime => "in-time",
            End::Late => "late",
            End::OutOfMoney => "out-of-money",
        },
        moves: went.moves,
        waited_hours: hours(i64::from(went.waited)),
    };
    Report {
        policy: name.to_string(),
        jobs: jobs.len(),
        usd: went.iter().map(|went| went.paid).fold(Paid::ZERO, Paid::plus).usd().as_f64(),
        alone_optimum_usd: alone,
        misses: ended(End::Late),
        out_of_money: ended(End::OutOfMoney),
        moves: went.iter().map(|went| went.moves).sum(),
        waited_hours: hours(went.iter().map(|went| i64::from(went.waited)).sum()),
        per_job: args.per_job.then(|| jobs.iter().zip(went).map(job).collect()),
    }
}

fn print_table(reports: &[Report]) -> Result<(), Failure> {
    let columns = [
        "POLICY",
        "JOBS",
        "$",
        "OPTIMUM, EACH ALONE",
        "MISSES",
        "OUT OF MONEY",
        "MOVES",
        "WAITED H",
    ];
    let mut table = show::table(&columns, &[1, 2, 3, 4, 5, 6, 7]);
    for report in reports {
        table.add_row([
            report.policy.clone(),
            report.jobs.to_string(),
            format!("{:.2}", report.usd),
            format!("{:.2}", report.alone_optimum_usd),
            report.misses.to_string(),
            report.out_of_money.to_string(),
            report.moves.to_string(),
            format!("{:.1}", report.waited_hours),
        ]);
    }
    print(show::lines(&table))
}
