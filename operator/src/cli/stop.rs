//! `petaflop stop`: ask jobs to checkpoint and stop, and services to end.

use super::follow::{Followed, follow};
use super::{Code, Outcome, print_json, say, target};
use crate::embedded::claims::FileClaims;
use crate::embedded::home::Home;
use crate::embedded::job::{Intent, Phase};
use crate::embedded::operate;
use crate::embedded::runtime;
use crate::embedded::sweep::{Mass, sweep};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// `name`, `trainingjob/name` or `inferenceservice/name`; a bare name stands for both
    #[arg(required_unless_present = "unclaimed")]
    pub(super) names: Vec<String>,
    /// Their namespace
    #[arg(short, long)]
    pub(super) namespace: Option<String>,
    /// End every machine of this installation that no claim wants, however many they are
    #[arg(long)]
    pub(super) unclaimed: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

pub(crate) fn run(home: &Home, args: &Args) -> Outcome {
    let mut folders = Vec::new();
    for name in &args.names {
        folders.extend(target::find(home, args.namespace.as_deref(), name)?);
    }
    let waiting = super::waiting()?;
    let mut ended = Vec::new();
    if args.unclaimed {
        let swept = waiting.block_on(sweep(home, &runtime::find()?, Mass::Allowed))?;
        swept.lines().iter().for_each(say);
        ended = swept.orphans;
    }
    let mut stopped = Vec::new();
    for folder in folders {
        let status = folder.status()?;
        let uid = folder.admission()?.map(|admission| admission.uid);
        let claimed = FileClaims::of(home)
            .all()?
            .iter()
            .any(|c| Some(&c.claim.spec.owner.uid) == uid.as_ref());
        if status.phase.is_over() && !claimed {
            say(format_args!("{}: is over already ({})", folder.reference(), status.phase));
            continue;
        }
        folder.write_intent(Intent { suspend: true })?;
        operate::start(home, &folder)?;
        match waiting.block_on(follow(home, &folder, |_| false))? {
            Followed::Ended(status) => {
                let kept = match status.phase {
                    Phase::Suspended if status.steps > 0 => {
                        format!(
                            " at step {} of {}; the same manifest goes on from there",
                            status.checkpoint_step, status.steps
                        )
                    }
                    _ => String::new(),
                };
                say(format_args!("{}: {}{kept}", folder.reference(), status.phase));
                stopped.push(serde_json::json!({
                    "name": folder.name, "namespace": folder.namespace, "status": status,
                }));
            }
            Followed::Left => return Ok(Code::Interrupted),
        }
    }
    if args.json {
        print_json(&serde_json::json!({ "stopped": stopped, "ended": ended }))?;
    }
    Ok(Code::Done)
}
