//! `petaflop simulate`: policies over recorded markets, beside the baselines and the exact optimum.
//!
//! | file | holds |
//! |---|---|
//! | `spot` | `simulate spot`: its options, and what it prints |
//! | `market` | `simulate market`: a queue of jobs, its options, and what it prints |
//! | `inputs` | traces, prices and zones from files, as markets |
//! | `runs` | all runs, on all processors |

use super::Outcome;

mod inputs;
mod market;
mod runs;
mod spot;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// A job with a deadline on spot machines, over recorded availability
    Spot(spot::Args),
    /// A queue of jobs that take machines from one another, over recorded capacity and prices
    Market(market::Args),
}

pub(crate) fn run(args: &Args) -> Outcome {
    match &args.what {
        What::Spot(args) => spot::run(args),
        What::Market(args) => market::run(args),
    }
}
