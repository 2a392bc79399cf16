//! `petaflop operate` (hidden): the operator of one job or service, in a session of
//! its own, so that no terminal's end reaches it.

use petaflop_arbiter::workload::OwnerKind;

use super::{Code, Outcome, waiting};
use crate::embedded::home::Home;
use crate::embedded::job::Folder;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// `job` or `service`
    #[arg(long, value_parser = ["job", "service"])]
    kind: String,
    #[arg(long)]
    namespace: String,
    #[arg(long)]
    name: String,
}

pub(crate) fn run(home: &Home, args: &Args) -> Outcome {
    // Refused only to a process that leads a group already, and then there is no terminal to leave.
    let _ = rustix::process::setsid();
    let kind = match args.kind.as_str() {
        "service" => OwnerKind::InferenceService,
        _ => OwnerKind::TrainingJob,
    };
    let folder = Folder::of(home, kind, &args.namespace, &args.name);
    waiting()?.block_on(crate::embedded::operate::operate(home, &folder))?;
    Ok(Code::Done)
}
