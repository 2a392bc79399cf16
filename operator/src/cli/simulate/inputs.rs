//! Traces, prices and zones from files, as markets to run in. Nothing is repaired; what is left out is said.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::spot::law::{BASE, Shape};
use petaflop_arbiter::spot::model::{Terms, Zone};
use petaflop_arbiter::spot::replay::{Price, Recorded};
use petaflop_arbiter::spot::trace::Trace;
use serde::Deserialize;

use super::super::Failure;
use super::spot::{Args, whole_seconds};

/// One market, the job's terms in it, and when to start.
pub(super) struct Scene {
    /// Names of its traces, joined by `+`.
    pub(super) name: String,
    pub(super) terms: Terms,
    pub(super) market: Vec<Recorded>,
    /// Ticks.
    pub(super) starts: Vec<usize>,
}

/// Everything that was read.
pub(super) struct Inputs {
    pub(super) scenes: Vec<Scene>,
    /// How long spot lasts, as far as known before a run.
    pub(super) shape: Shape,
    /// What somebody should know about the files.
    pub(super) notes: Vec<String>,
}

#[derive(Default, Deserialize)]
struct ZonesFile {
    #[serde(default)]
    egress_usd_per_gb: HashMap<String, HashMap<String, f64>>,
    #[serde(flatten)]
    zones: BTreeMap<String, ZoneTerms>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ZoneTerms {
    on_demand_usd: Option<f64>,
    restart_hours: Option<f64>,
    probe_usd: Option<f64>,
}

/// A trace as a zone.
struct Read {
    name: String,
    seconds: i64,
    zone: Zone,
    recorded: Recorded,
}

impl Inputs {
    pub(super) fn read(args: &Args) -> Result<Inputs, Failure> {
        let mut notes = Vec::new();
        if !args.price.is_empty() && args.price.len() != args.trace.len() {
            let (prices, traces) = (args.price.len(), args.trace.len());
            return Err(Failure::bad_input(format_args!(
                "--price names {prices} files and --trace {traces}; give one price file for each trace, in the same order"
            )));
        }
        let zones = zones(args)?;
        let mut read = Vec::new();
        for (index, path) in args.trace.iter().enumerate() {
            read.push(one(args, path, args.price.get(index).map(|path| path.as_path()), &zones)?);
        }
        for name in zones.zones.keys().filter(|name| read.iter().all(|read| read.name != **name)) {
            notes.push(format!("note: --zones names {name:?}, which is none of the traces"));
        }
        let groups: Vec<Vec<Read>> = match args.together {
            true => vec![read],
            false => read.into_iter().map(|read| vec![read]).collect(),
        };
        let mut scenes = Vec::new();
        for group in groups {
            scenes.push(scene(args, group, &zones, &mut notes)?);
        }
        Ok(Inputs { scenes, shape: shape(args)?, notes })
    }
}

fn zones(args: &Args) -> Result<ZonesFile, Failure> {
    let Some(path) = &args.zones else { return Ok(ZonesFile::default()) };
    let bytes = bytes(path)?;
    serde_json::from_slice(&bytes).map_err(|error| of_file(path, error))
}

fn shape(args: &Args) -> Result<Shape, Failure> {
    let mut recordings = Vec::new();
    for path in &args.fit_from {
        let trace = Trace::parse(&bytes(path)?).map_err(|error| of_file(path, error))?;
        let available =
            trace.available(BASE, args.means()).map_err(|error| of_file(path, error))?;
        recordings.push(available);
    }
    if recordings.is_empty() {
        return Ok(Shape::default());
    }
    Shape::fitted(&recordings).ok_or_else(|| {
        Failure::bad_input(
            "--fit-from: spot neither comes nor goes in these traces; give some in which it does",
        )
    })
}

pub(super) fn bytes(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| of_file(path, error))
}

pub(super) fn of_file(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::bad_input(format_args!("{}: {error}", path.display()))
}

fn one(args: &Args, path: &Path, price: Option<&Path>, zones: &ZonesFile) -> Result<Read, Failure> {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let trace = Trace::parse(&bytes(path)?).map_err(|error| of_file(path, error))?;
    let available =
        trace.available(args.tick, args.means()).map_err(|error| of_file(path, error))?;
    let spot = match price {
        None => Price::Fixed(args.spot_usd),
        Some(path) => {
            let prices = Trace::parse(&bytes(path)?).map_err(|error| of_file(path, error))?;
            Price::PerTick(per_tick(path, &prices, args.tick, available.len())?)
        }
    };
    let terms = zones.zones.get(&name).cloned().unwrap_or_default();
    let ZoneTerms { on_demand_usd, restart_hours, probe_usd } = terms;
    let wrong = |what: &str| {
        Failure::bad_input(format_args!(
            "--zones: {what} of {name:?} is not a number that is 0 or more (and whole seconds)"
        ))
    };
    let on_demand = match on_demand_usd {
        None => args.on_demand_usd,
        Some(usd) => micros(usd)
            .and_then(|micros| UsdPerHour::from_micros(micros).ok())
            .ok_or_else(|| wrong("on_demand_usd"))?,
    };
    let restart = match restart_hours {
        None => args.restart,
        Some(hours) => whole_seconds(hours * 3_600.0).ok_or_else(|| wrong("restart_hours"))?,
    };
    let probe = micros(probe_usd.unwrap_or(0.0)).ok_or_else(|| wrong("probe_usd"))?;
    let zone = Zone { restart, probe: Usd::from_micros(probe) };
    Ok(Read {
        name,
        seconds: trace.seconds(),
        zone,
        recorded: Recorded { available, spot, on_demand },
    })
}

/// Prices by tick, for all the ticks of the trace that they are of.
pub(super) fn per_tick(
    path: &Path,
    prices: &Trace,
    tick: i64,
    ticks: usize,
) -> Result<Vec<UsdPerHour>, Failure> {
    let prices = prices.prices(tick).map_err(|error| of_file(path, error))?;
    if prices.len() < ticks {
        return Err(of_file(
            path,
            format_args!(
                "has prices for {} ticks, and its trace has {ticks}; the prices must go as far",
                prices.len()
            ),
        ));
    }
    Ok(prices)
}

/// Micro-dollars of dollars that are 0 or more.
fn micros(usd: f64) -> Option<i64> {
    (0.0..1e9).contains(&usd).then(|| (usd * 1e6).round() as i64)
}

fn scene(
    args: &Args,
    group: Vec<Read>,
    zones: &ZonesFile,
    notes: &mut Vec<String>,
) -> Result<Scene, Failure> {
    let names: Vec<&str> = group.iter().map(|read| read.name.as_str()).collect();
    let name = names.join("+");
    let seconds = group.iter().map(|read| read.seconds).min().unwrap_or(0);
    if group.iter().any(|read| read.seconds != seconds) {
        notes.push(format!(
            "note: the traces of {name} are not equally long; starts are those of the shortest"
        ));
    }
    let mut egress = Vec::new();
    for from in &names {
        let mut row = Vec::new();
        for to in &names {
            let known = zones.egress_usd_per_gb.get(*from).and_then(|row| row.get(*to)).copied();
            let each = if from == to { 0.0 } else { known.unwrap_or(args.egress_usd_per_gb) };
            let cost = micros(each * args.checkpoint_gb)
                .filter(|_| each >= 0.0 && args.checkpoint_gb >= 0.0);
            row.push(Usd::from_micros(cost.ok_or_else(|| {
                Failure::bad_input(format_args!(
                    "egress from {from} to {to}: {each} $/GB × {} GB is no amount",
                    args.checkpoint_gb
                ))
            })?));
        }
        egress.push(row);
    }
    let starts = starts(args, seconds, &name)?;
    let late =
        starts.iter().filter(|start| **start as i64 * args.tick + args.deadline > seconds).count();
    if late > 0 {
        notes.push(format!(
            "note: {name} ends before the deadline of {late} starts; after its end there is no spot"
        ));
    }
    let (zones, market): (Vec<Zone>, Vec<Recorded>) =
        group.into_iter().map(|read| (read.zone, read.recorded)).unzip();
    let terms = Terms { tick: args.tick, work: args.work, deadline: args.deadline, zones, egress };
    Ok(Scene { name, terms, market, starts })
}

fn starts(args: &Args, seconds: i64, name: &str) -> Result<Vec<usize>, Failure> {
    if let Some(late) = args.start_ticks.iter().find(|start| **start as i64 * args.tick >= seconds)
    {
        return Err(Failure::bad_input(format_args!(
            "--start-ticks {late} is after the end of {name}, which has {} ticks",
            seconds / args.tick
        )));
    }
    let Some(every) = args.start_every else {
        let given = !args.start_ticks.is_empty();
        return Ok(if given { args.start_ticks.clone() } else { vec![0] });
    };
    if every % args.tick != 0 {
        return Err(Failure::bad_input(format_args!(
            "--start-every must be a whole number of ticks of {} s",
            args.tick
        )));
    }
    let window = args.start_window.unwrap_or(args.deadline);
    let last = (seconds - window).div_euclid(every);
    if last < 0 {
        return Err(Failure::bad_input(format_args!(
            "{name} covers {seconds} s, less than the {window} s that must remain at a start; give --start-window"
        )));
    }
    Ok((0..=last).map(|index| (index * every / args.tick) as usize).collect())
}
