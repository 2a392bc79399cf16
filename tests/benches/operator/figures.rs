//! The table: each figure with its spread, beside its baseline and what was aimed at.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// All that was measured, and on what.
pub(crate) struct Figures {
    cpu: String,
    cores: usize,
    commit: String,
    version: String,
    all: Vec<Figure>,
}

/// One figure: what was seen in each round.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    what: String,
    unit: &'static str,
    ours: Vec<f64>,
    peer: Option<(String, Vec<f64>)>,
    aim: &'static str,
}

impl Figure {
    /// Of one round or more.
    pub(crate) fn new(what: impl Into<String>, unit: &'static str, ours: Vec<f64>) -> Self {
        Self { what: what.into(), unit, ours, peer: None, aim: "" }
    }

    /// What was measured beside it, round by round.
    pub(crate) fn beside(mut self, name: impl Into<String>, rounds: Vec<f64>) -> Self {
        self.peer = Some((name.into(), rounds));
        self
    }

    /// What it should be.
    pub(crate) fn aim(mut self, aim: &'static str) -> Self {
        self.aim = aim;
        self
    }

    /// Ours over the baseline's, round by round.
    fn ratios(&self) -> Option<Vec<f64>> {
        let (_, peer) = self.peer.as_ref()?;
        Some(self.ours.iter().zip(peer).map(|(ours, peer)| ours / peer).collect())
    }
}

impl Figures {
    /// None yet, of this program.
    pub(crate) fn new(petaflop: &Path) -> Result<Self> {
        let facts = std::fs::read_to_string("/proc/cpuinfo")?;
        let model = facts.lines().find_map(|line| line.strip_prefix("model name"));
        let cpu = model.map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':'])).into();
        let cores = std::thread::available_parallelism()?.get();
        let root = crate::support::root();
        let git = ["-C", &root.display().to_string(), "describe", "--always", "--dirty"];
        let commit = said(Path::new("git"), &git).unwrap_or_else(|_| "unknown".into());
        let version = said(petaflop, &["--version"])?;
        println!("machine: {cpu}, {cores} cores; commit {commit}");
        println!("versions: {version}; {}", said(Path::new("uname"), &["-sr"])?);
        Ok(Self { cpu, cores, commit, version, all: Vec::new() })
    }

    /// Prints one and keeps it.
    pub(crate) fn add(&mut self, figure: Figure) {
        let Figure { what, unit, ours, peer, aim } = &figure;
        let beside = match (peer, figure.ratios()) {
            (Some((name, rounds)), Some(ratios)) => {
                format!("   {name} {}   ratio {}", spread(rounds), spread(&ratios))
            }
            _ => String::new(),
        };
        let aim = if aim.is_empty() { String::new() } else { format!("   aim {aim}") };
        println!("  {what:58} {} {unit}{beside}{aim}", spread(ours));
        self.all.push(figure);
    }

    /// Appends a row a figure to `csv`, in the columns of `bench/bench.py`, and writes all samples to `json`.
    pub(crate) fn keep(&self, csv: Option<&Path>, to: Option<&Path>) -> Result<()> {
        let Self { cpu, cores, commit, version, all } = self;
        if let Some(path) = csv {
            let mut file = File::options().create(true).append(true).open(path)?;
            if file.metadata()?.len() == 0 {
                writeln!(
                    file,
                    "what,unit,ours,ours_min,ours_max,peer,peer_median,ratio,rounds,cpu,cores,commit"
                )?;
            }
            for figure in all {
                let Figure { what, unit, ours, peer, aim: _ } = figure;
                let (low, middle, high) = range(ours);
                let (name, beside) = match peer {
                    Some((name, rounds)) => (name.as_str(), short(range(rounds).1)),
                    None => ("", String::new()),
                };
                let ratio = figure.ratios().map_or(String::new(), |all| short(range(&all).1));
                let what = what.replace(',', ";");
                let rounds = ours.len();
                let [low, middle, high] = [low, middle, high].map(short);
                writeln!(
                    file,
                    "{what},{unit},{middle},{low},{high},{name},{beside},{ratio},{rounds},{cpu},{cores},{commit}"
                )?;
            }
        }
        if let Some(path) = to {
            let rows: Vec<Value> = all
                .iter()
                .map(|Figure { what, unit, ours, peer, aim }| {
                    let peer = peer
                        .as_ref()
                        .map(|(name, rounds)| json!({ "name": name, "samples": rounds }));
                    json!({ "what": what, "unit": unit, "samples": ours, "peer": peer, "aim": aim })
                })
                .collect();
            let all = json!({ "cpu": cpu, "cores": cores, "commit": commit, "version": version, "figures": rows });
            std::fs::write(path, serde_json::to_vec_pretty(&all)?)?;
        }
        Ok(())
    }
}

/// First line of what a program prints.
pub(crate) fn said(program: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("starting {}", program.display()))?;
    ensure!(output.status.success(), "{}: {}", program.display(), output.status);
    // nginx says its version where others complain.
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned())
}

/// The value below which this share of them lies, `0.5` being the median.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let index = (last as f64 * share).round() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

fn range(values: &[f64]) -> (f64, f64, f64) {
    (quantile(values, 0.0), quantile(values, 0.5), quantile(values, 1.0))
}

fn spread(values: &[f64]) -> String {
    let (low, middle, high) = range(values);
    match values.len() {
        0 | 1 => short(middle),
        _ => format!("{} ({}–{})", short(middle), short(low), short(high)),
    }
}

fn short(value: f64) -> String {
    match value.abs() {
        at if at >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        at if at >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}
