//! `petaflop guard`: what Helm runs before it takes the operator away.

use std::collections::BTreeSet;
use std::time::Duration;

use petaflop_agent_api::clock::Clock;

use super::{Code, Failure, Outcome, say, waiting};
use crate::cluster::begin;
use crate::cluster::guard::{Guard, Open};

/// Claims that are named one by one.
const NAMED: usize = 20;

#[derive(Clone, Copy, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
enum OnRunningClaims {
    /// Refuse, and name them
    Fail,
    /// Suspend what they work for, and wait until they have ended
    Drain,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to do while claims are not over
    #[arg(long, value_enum, default_value = "Fail")]
    on_running_claims: OnRunningClaims,
    /// How long claims may take to end, and providers to list what is left
    #[arg(long, value_name = "SECONDS", default_value_t = 270)]
    timeout_seconds: u64,
    /// The operator's namespace [default: that of the Pod or kubeconfig]
    #[arg(long, env = "POD_NAMESPACE", default_value = "", hide_default_value = true)]
    namespace: String,
    /// Labels of the ComputeProviders of this installation [default: all there are]
    #[arg(long, env = "PETAFLOP_PROVIDER_LABELS", value_name = "SELECTOR")]
    provider_labels: Option<String>,
    #[command(flatten)]
    watched: super::operator::Watched,
}

pub(crate) fn run(args: &Args) -> Outcome {
    waiting()?.block_on(async {
        let (client, own) = begin::client(&args.namespace).await?;
        let guard = Guard { client, clock: Clock::system(), namespaces: args.watched.namespaces() };
        let until = guard.clock.boottime() + Duration::from_secs(args.timeout_seconds);
        let open = match args.on_running_claims {
            OnRunningClaims::Fail => guard.open().await?,
            OnRunningClaims::Drain => {
                let within = Duration::from_secs(args.timeout_seconds);
                let waits =
                    |open: &BTreeSet<Open>| say(format_args!("{} claims to end", open.len()));
                guard.drain(within, waits).await?
            }
        };
        if !open.is_empty() {
            return Err(refusal(args.on_running_claims, &open));
        }
        let labels = args.provider_labels.as_deref();
        let left = until.saturating_sub(guard.clock.boottime());
        let waits = |held: &BTreeSet<String>| {
            say(format_args!("waiting until nothing of ours is listed at {}", names(held)));
        };
        let held = guard.released(labels, left, waits).await?;
        if !held.is_empty() {
            return Err(still_held(&held));
        }
        // What waits could get a machine between this look and the operator's end.
        guard.rest(&own).await?;
        let open = guard.open().await?;
        if !open.is_empty() {
            guard.wake(&own).await?;
            return Err(refusal(args.on_running_claims, &open));
        }
        guard.release().await?;
        Ok(Code::Done)
    })
}

fn names(providers: &BTreeSet<String>) -> String {
    providers.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn still_held(providers: &BTreeSet<String>) -> Failure {
    let names = names(providers);
    Failure::failed(format!(
        "without the operator nobody would end a machine that shows up late at {names}: their machines are listed once more some minutes \
         after the last claim has ended; uninstall again then. Where a provider never will answer again and somebody has made sure that \
         nothing bills there: kubectl patch computeproviders.petaflop.dev NAME --type=merge --patch '{{\"metadata\":{{\"finalizers\":null}}}}'"
    ))
}

fn refusal(mode: OnRunningClaims, open: &BTreeSet<Open>) -> Failure {
    let mut lines: Vec<String> = open
        .iter()
        .take(NAMED)
        .map(|Open { claim, owner, machine }| match machine.as_str() {
            "" => format!("  {claim} of {owner}"),
            machine => format!("  {claim} of {owner}, on {machine}"),
        })
        .collect();
    if open.len() > NAMED {
        lines.push(format!("  and {} more", open.len() - NAMED));
    }
    let mend = match mode {
        OnRunningClaims::Fail => {
            "suspend or delete the jobs and services they are for (kubectl delete trainingjobs.petaflop.dev,inferenceservices.petaflop.dev \
             --all --namespace …) and uninstall again, or set uninstall.onRunningClaims=Drain first"
        }
        OnRunningClaims::Drain => {
            "they did not end in time: see the operator's log and their events, and uninstall again with a longer uninstall.timeoutSeconds"
        }
    };
    Failure::failed(format!(
        "without the operator nobody would end the machines of {} claims:\n{}\n{mend}",
        open.len(),
        lines.join("\n")
    ))
}
