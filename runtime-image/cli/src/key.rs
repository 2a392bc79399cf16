//! `petaflop-runtime key`: a job's identity, before anything is spent on it.

use std::path::PathBuf;

use crate::{
    corpus,
    exit::{Code, Failure, print},
    job,
};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The job (JSON)
    #[arg(long, value_name = "FILE")]
    job: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<Code, Failure> {
    let job = job::read(&args.job)?;
    let identity = petaflop_train::identify(&job, &corpus::builtins())?;
    print(serde_json::json!({
        "key": identity.key,
        "digests": identity.digests,
        "cached": identity.cached,
    }))?;
    Ok(Code::Done)
}
