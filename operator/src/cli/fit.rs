//! `petaflop fit`: which offers a model or a job fits on.

use std::path::PathBuf;

use super::{Code, Outcome};
use crate::home::Home;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The manifest of a job; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

pub(crate) fn run(home: &Home, args: &Args) -> Outcome {
    let _ = (home, args);
    Ok(Code::Done)
}
