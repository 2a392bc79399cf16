//! `petaflop attach`: follow a job that runs already.

use super::follow::{Followed, follow};
use super::{Code, Failure, Outcome, print_json, say, target};
use crate::embedded::home::Home;
use crate::embedded::job::Phase;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// `name` or `trainingjob/name`
    name: String,
    /// Its namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Print its status as one JSON object at the end
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(home: &Home, args: &Args) -> Outcome {
    let folders = target::find(home, args.namespace.as_deref(), &args.name)?;
    let folder = &folders[0];
    let available = |status: &crate::embedded::job::Status| status.phase == Phase::Available;
    let status = match super::waiting()?.block_on(follow(home, folder, available))? {
        Followed::Ended(status) => status,
        Followed::Left => return Ok(Code::Interrupted),
    };
    if args.json {
        print_json(&status)?;
    }
    match status.phase {
        Phase::Complete => {
            say(format_args!("complete: artifact {}", status.artifact.unwrap_or_default()));
            Ok(Code::Done)
        }
        Phase::Available => {
            say(format_args!("answers at {}", status.url.unwrap_or_default()));
            Ok(Code::Done)
        }
        Phase::Suspended => Ok(Code::Stopped),
        _ => Err(Failure::failed(format!("{}: {}", folder.name, status.message))),
    }
}
