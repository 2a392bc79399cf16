//! The commands of `petaflop`, one file each. stdout carries what was asked for (with
//! `--json` exactly one object); everything else goes to stderr.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::embedded::home::{Home, HomeError};

mod artifacts;
mod attach;
mod audit;
mod cluster;
mod convert;
mod costs;
mod crds;
mod explain;
mod fit;
mod follow;
mod gateway;
mod guard;
mod logs;
mod offers;
mod only;
mod operate;
mod operator;
mod plan;
mod ps;
mod report;
mod run;
#[cfg(feature = "sandbox")]
mod sandbox;
mod selftest;
mod services;
mod show;
mod simulate;
mod stop;
mod target;

/// Shown by `--help`.
const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  failed
    2  bad input; nothing was started
    3  no offer meets the constraints; the nearest misses were shown
   75  stopped on request after a checkpoint; the same command goes on from there
  130  interrupted a second time; what runs goes on stopping by itself

Every command that shows something takes --json, but for two whose output is text:
`logs` and `completions`.

What an hour of this machine costs is set in config.yaml in the state folder:
    host: {usdPerKwh: \"0.25\", idleWatts: 30, loadWatts: 120, pueMilli: 1100, marginPercent: 10}";

#[derive(Parser)]
#[command(name = "petaflop", version, about, after_help = EXIT_CODES)]
/// Runs training jobs and inference services at the cheapest place that meets their constraints.
struct Cli {
    /// Folder of this installation's state [default: $PETAFLOP_HOME, else the XDG data folder]
    #[arg(long, global = true, value_name = "FOLDER")]
    home: Option<PathBuf>,
    #[command(flatten)]
    cluster: cluster::Args,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run what a manifest describes, and follow it
    Run(run::Args),
    /// Show what would be decided, and why, without doing it
    Plan(plan::Args),
    /// Say for an offer why it was not taken, with numbers
    Explain(explain::Args),
    /// List jobs and services
    Ps(ps::Args),
    /// Print the log of a job or service
    Logs(logs::Args),
    /// Stop jobs and services; a job can go on from its checkpoint
    Stop(stop::Args),
    /// Follow a job that runs already
    Attach(attach::Args),
    /// List what can be had, and at what price
    Offers(offers::Args),
    /// Say which offers a model or job fits on
    Fit(fit::Args),
    /// Turn a task of another scheduler into a manifest
    Convert(convert::Args),
    /// Play policies over recorded markets
    Simulate(simulate::Args),
    /// Add up what was spent
    Costs(costs::Args),
    /// Look after trained models
    Artifacts(artifacts::Args),
    /// Run a command among clouds on this machine, where nothing is paid
    #[cfg(feature = "sandbox")]
    Sandbox(sandbox::Args),
    /// Work in a cluster: what the chart starts
    Operator(operator::Args),
    /// Find machines that carry our identity and that no claim knows
    Audit(audit::Args),
    /// Refuse, or drain, before the operator is uninstalled
    Guard(guard::Args),
    /// See whether an operator answers and is ready
    Selftest(selftest::Args),
    /// Print the CustomResourceDefinitions
    Crds(crds::Args),
    /// Balance requests over a service's replicas (started by the operator)
    Gateway(gateway::Args),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Work for one job or service (started by `run`)
    #[command(hide = true)]
    Operate(operate::Args),
}

/// How a command ends when nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// Done.
    Done = 0,
    /// Failed, and said so.
    Failed = 1,
    /// No offer meets the constraints.
    NoOffer = 3,
    /// Stopped on request; can go on.
    Stopped = 75,
    /// Interrupted a second time.
    Interrupted = 130,
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// The input is wrong, and nothing was started.
    pub(crate) fn bad_input(message: impl std::fmt::Display) -> Self {
        Self { code: 2, message: message.to_string() }
    }

    /// It did not work.
    pub(crate) fn failed(message: impl std::fmt::Display) -> Self {
        Self { code: 1, message: message.to_string() }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::failed(error)
    }
}

/// A command's end.
pub(crate) type Outcome = Result<Code, Failure>;

/// Parses the command line and runs the command.
pub fn main() -> ExitCode {
    // TLS needs to know whose arithmetic to use, before anything makes a client.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    log(&cli.command);
    let home = cli.home;
    let open = move || -> Result<Home, HomeError> {
        match home {
            Some(root) => Home::open(&root),
            None => Home::open(&Home::default_root()?),
        }
    };
    let outcome = match cli.cluster.is_meant() {
        true => cluster::dispatch(&cli.cluster, &cli.command),
        false => dispatch(cli.command, open),
    };
    let code = outcome.map(|code| code as u8).unwrap_or_else(|Failure { code, message }| {
        let known = message.starts_with("error:") || message.contains("\nerror:");
        let prefix = if known { "" } else { "error: " };
        if !message.is_empty() {
            // A closed stderr is no reason to end differently.
            let _ = writeln!(io::stderr(), "{prefix}{message}");
        }
        code
    });
    ExitCode::from(code)
}

/// To stderr: for people, or, where nobody sits before it, one JSON object a line.
fn log(command: &Command) {
    let service = matches!(command, Command::Operator(_));
    let default = if service { "info" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("PETAFLOP_LOG")
        .unwrap_or_else(|_| default.into());
    let log = tracing_subscriber::fmt().with_writer(io::stderr).with_env_filter(filter);
    match service {
        true => log.json().flatten_event(true).with_span_list(false).init(),
        false => log.init(),
    }
}

fn dispatch(command: Command, open: impl FnOnce() -> Result<Home, HomeError>) -> Outcome {
    match command {
        Command::Run(args) => run::run(&open()?, &args),
        Command::Plan(args) => plan::run(&open()?, &args),
        Command::Explain(args) => explain::run(open, &args),
        Command::Ps(args) => ps::run(&open()?, &args),
        Command::Logs(args) => logs::run(&open()?, &args),
        Command::Stop(args) => stop::run(&open()?, &args),
        Command::Attach(args) => attach::run(&open()?, &args),
        Command::Offers(args) => offers::run(&open()?, &args),
        Command::Fit(args) => fit::run(&open()?, &args),
        Command::Convert(args) => convert::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Costs(args) => costs::run(&open()?, &args),
        Command::Artifacts(args) => artifacts::run(&open()?, &args),
        #[cfg(feature = "sandbox")]
        Command::Sandbox(args) => sandbox::run(&open()?, args),
        Command::Operator(args) => operator::run(args),
        Command::Audit(args) => audit::run(open, &args),
        Command::Guard(args) => guard::run(&args),
        Command::Selftest(args) => selftest::run(&args),
        Command::Crds(args) => crds::run(&args),
        Command::Gateway(args) => gateway::run(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "petaflop", &mut io::stdout());
            Ok(Code::Done)
        }
        Command::Operate(args) => operate::run(&open()?, &args),
    }
}

/// Prints to stdout. A reader that went away (`| head`) ends the command, and nothing is said of it.
pub(crate) fn print(text: impl std::fmt::Display) -> Result<(), Failure> {
    writeln!(io::stdout(), "{text}").map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::failed(""),
        _ => Failure::failed(format!("cannot write to stdout: {error}; is its disk full?")),
    })
}

/// Says something to a person; nobody listening is no failure.
pub(crate) fn say(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints one JSON object.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    print(serde_json::to_string_pretty(value)?)
}

/// A runtime for the parts that wait.
pub(crate) fn waiting() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}
