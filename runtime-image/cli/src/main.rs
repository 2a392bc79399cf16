//! `petaflop-runtime`: what runs on a claimed machine. It trains and serves with
//! our kernels, and says beforehand what it would need. It knows nothing of
//! prices, clusters or providers.
//!
//! stdout carries only what a machine reads; everything for people goes to stderr.

mod bench;
mod bytes;
mod check;
mod corpus;
mod detect;
mod exit;
mod job;
mod key;
mod plan;
mod serve;
mod signals;
mod train;

use std::{io, process::ExitCode, time::Instant};

use clap::{CommandFactory, Parser, Subcommand};

#[derive(Parser)]
#[command(name = "petaflop-runtime", version, about, after_help = exit::HELP)]
/// Trains and serves language models on this machine.
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a training job, going on from its newest checkpoint where there is one
    Train(train::Args),
    /// Print a job's key, the digests of its inputs, and the artifact if it was finished before
    Key(key::Args),
    /// Serve a model over the OpenAI API
    Serve(serve::Args),
    /// Print the exact bytes and arithmetic of a job or model without running it
    Plan(plan::Args),
    /// Measure this machine
    Bench(bench::Args),
    /// Run every kernel on this machine's device beside the interpreter, and measure products
    Check(check::Args),
    /// Print what this machine is
    Detect(detect::Args),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let started = Instant::now();
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("PETAFLOP_LOG")
                .unwrap_or_else(|_| "warn".into()),
        )
        .init();
    let result = match Cli::parse().command {
        Command::Train(args) => train::run(&args),
        Command::Key(args) => key::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Bench(args) => bench::run(&args, started),
        Command::Check(args) => check::run(&args),
        Command::Detect(args) => detect::run(&args),
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "petaflop-runtime",
                &mut io::stdout(),
            );
            Ok(exit::Code::Done)
        }
    };
    exit::finish(result)
}
