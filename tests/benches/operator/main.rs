//! Figures of the operator, the agent and the gateway beside their baselines, on a real control
//! plane: `make bench-operator`. Nothing here asserts a time; a table goes to stdout, rows to a CSV,
//! and every sample to a JSON file.
//!
//! | module | measures |
//! |---|---|
//! | [`job`] | writes of one TrainingJob from create to complete; an agent that waits on its task |
//! | [`idle`] | writes of an operator with nothing to do; memory by objects; a cold start |
//! | [`rate`] | jobs created → claims written, beside plain creates; apply → first status |
//! | [`gateway`] | requests through the gateway, beside nginx |
//! | [`relayed`] | an agent that requests to a replica go through |
//! | [`installed`] | the shipped program as the chart starts it, with the chart's rights |
//! | [`process`] | memory and processor time of a process |
//! | [`figures`] | the table |

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its results")]

mod figures;
mod gateway;
mod idle;
mod installed;
mod job;
#[path = "../../tests/operator/mod.rs"]
mod operator;
mod process;
mod rate;
mod relayed;
#[path = "../../tests/support/mod.rs"]
mod support;
#[allow(dead_code, reason = "the tests' own part of it is not used here")]
#[path = "../../tests/operator_binary/world.rs"]
mod world;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use figures::Figures;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Job,
    Idle,
    Rate,
    Gateway,
}

/// Figures of the operator on a real control plane.
#[derive(Debug, Parser)]
struct Args {
    /// Which parts [default: all]
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// TrainingJobs, and as many claims, whose memory is measured; beside a tenth of them
    #[arg(long, default_value_t = 10_000)]
    objects: usize,
    /// TrainingJobs of the operator that has nothing to do
    #[arg(long, default_value_t = 1_000)]
    quiet_objects: usize,
    /// Seconds for which its writes are counted
    #[arg(long, default_value_t = 300)]
    quiet_seconds: u64,
    /// TrainingJobs that are created at once
    #[arg(long, default_value_t = 200)]
    burst: usize,
    /// Rounds of what is compared
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of load on the gateway, each time
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Seconds for which an agent is watched
    #[arg(long, default_value_t = 90)]
    agent_seconds: u64,
    /// The operator [default: that of this build]
    #[arg(long, value_name = "PATH")]
    petaflop: Option<PathBuf>,
    /// The static agent [default: that of this build]
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// Rows are added to this file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// All samples go into this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let petaflop = args.petaflop.clone().map_or_else(|| petaflop_tests::binary("petaflop"), Ok)?;
    let mut figures = Figures::new(&petaflop)?;
    let wanted = |part: Part| args.only.is_empty() || args.only.contains(&part);
    if wanted(Part::Gateway) {
        gateway::measure(&args, &petaflop, &mut figures).await?;
    }
    if wanted(Part::Job) {
        job::measure(&args, &mut figures).await?;
    }
    if wanted(Part::Rate) {
        rate::measure(&args, &petaflop, &mut figures).await?;
    }
    if wanted(Part::Idle) {
        idle::measure(&args, &petaflop, &mut figures).await?;
    }
    figures.keep(args.csv.as_deref(), args.json.as_deref())
}
