//! `petaflop-runtime train`.

use std::path::PathBuf;

use petaflop_device::Roots;
use petaflop_train::{Options, Outcome};

use crate::{
    corpus,
    exit::{Code, Failure},
    job::{self, Compute, On},
    signals,
};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The job (JSON)
    #[arg(long, value_name = "FILE")]
    job: PathBuf,
    /// Append one line of JSON for every event to this file
    #[arg(long, value_name = "FILE")]
    progress: Option<PathBuf>,
    /// Train even where the same job was finished before; the same artifact comes out
    #[arg(long)]
    fresh: bool,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    on: On,
}

/// Whatever goes wrong is also the last line of the progress file.
pub(crate) fn run(args: &Args) -> Result<Code, Failure> {
    train(args).inspect_err(|failure| failure.note(args.progress.as_deref()))
}

fn train(args: &Args) -> Result<Code, Failure> {
    let stop = signals::stop_flag()?;
    let job = job::read(&args.job)?;
    let machine = petaflop_device::detect(&Roots::system());
    let options = Options {
        builtins: &corpus::builtins(),
        progress: args.progress.as_deref(),
        cpu: args.compute.cpu(&machine)?,
        device: args.on.device(&machine)?,
        memory: Some(&machine.memory),
        fresh: args.fresh,
        stop: &stop,
    };
    Ok(match petaflop_train::run(&job, options)? {
        Outcome::Finished { .. } => Code::Done,
        Outcome::Stopped { .. } => Code::Stopped,
    })
}
