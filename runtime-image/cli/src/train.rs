//! `petaflop-runtime train`.

use std::path::PathBuf;

use petaflop_device::Roots;
use petaflop_store::report::{Progress, ProgressWriter};
use petaflop_train::{Options, Outcome};

use crate::{
    corpus,
    exit::{Code, Failure},
    job::{self, Compute},
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
    #[command(flatten)]
    compute: Compute,
}

/// Whatever goes wrong is also the last line of the progress file.
pub(crate) fn run(args: &Args) -> Result<Code, Failure> {
    train(args).inspect_err(|failure| {
        let Some(progress) = &args.progress else {
            return;
        };
        let line = Progress::Failed {
            message: failure.message.clone(),
            retry: failure.code == Code::Failed,
        };
        let written = ProgressWriter::append(progress).and_then(|mut file| file.write(&line));
        if let Err(error) = written {
            tracing::error!(%error, "the failure is missing in the progress file");
        }
    })
}

fn train(args: &Args) -> Result<Code, Failure> {
    let stop = signals::stop_flag()?;
    let job = job::read(&args.job)?;
    let machine = petaflop_device::detect(&Roots::system());
    let options = Options {
        builtins: &corpus::builtins(),
        progress: args.progress.as_deref(),
        cpu: args.compute.cpu(&machine)?,
        memory: Some(&machine.memory),
        stop: &stop,
    };
    Ok(match petaflop_train::run(&job, options)? {
        Outcome::Finished { .. } => Code::Done,
        Outcome::Stopped { .. } => Code::Stopped,
    })
}
