//! `petaflop audit`: machines that carry this installation's identity and should not be there: no
//! claim knows them, their claim has another one, or their lease has lapsed. It needs no running
//! operator.

use petaflop_agent_api::clock::Clock;

use super::{Code, Failure, Outcome, print, print_json, say, show, waiting};
use crate::audit::{Fate, Findings};
use crate::cluster::audit::Audit;
use crate::cluster::begin;
use crate::cluster::make::Make;
use crate::embedded::home::{Home, HomeError};
use crate::installation::Installation;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// End them, but for the youngest
    #[arg(long)]
    terminate: bool,
    /// Without a cluster: those that `petaflop run` rented, at the providers whose keys there are
    #[arg(long, conflicts_with_all = ["ledger_uri", "provider_labels"])]
    local: bool,
    /// Of an installation that is gone, a home or a cluster: its uid, as its machines carry it
    #[arg(long, value_name = "UID", requires = "local")]
    installation: Option<String>,
    /// Where the cost of what is ended is booked [default: it is only said]
    #[arg(long, value_name = "URI", default_value = "", hide_default_value = true)]
    ledger_uri: String,
    /// Labels of the ComputeProviders to ask [default: all]
    #[arg(long, env = "PETAFLOP_PROVIDER_LABELS", value_name = "KEY=VALUE,…")]
    provider_labels: Option<String>,
    #[command(flatten)]
    watched: super::operator::Watched,
    /// The operator's namespace [default: that of the Pod or kubeconfig]
    #[arg(long, env = "POD_NAMESPACE", default_value = "", hide_default_value = true)]
    namespace: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(open: impl FnOnce() -> Result<Home, HomeError>, args: &Args) -> Outcome {
    let findings = match args.local {
        true => {
            let (home, gone) = (open()?, args.installation.as_deref());
            waiting()?.block_on(crate::embedded::audit::run(&home, gone, args.terminate))?
        }
        false => waiting()?.block_on(look(args))?,
    };
    if args.json {
        print_json(&findings)?;
    } else {
        tell(&findings)?;
    }
    Ok(if findings.is_bad() { Code::Failed } else { Code::Done })
}

async fn look(args: &Args) -> Result<Findings, Failure> {
    let clock = Clock::system();
    let (client, namespace) = begin::client(&args.namespace).await?;
    let Some(Installation { uid, .. }) = Installation::read(&client, &namespace).await? else {
        return Err(Failure::failed(format!(
            "no installation in namespace {namespace}: nothing was bought from there; name the operator's namespace with --namespace"
        )));
    };
    let ledger = match args.ledger_uri.as_str() {
        "" => None,
        uri => match begin::ledger(&super::operator::ledger_at(uri), &clock).await {
            Ok(ledger) => Some(ledger),
            // What bills and is nobody's is found and ended all the same.
            Err(error) if args.terminate => {
                say(format_args!("what is ended is not booked: {error}"));
                None
            }
            Err(error) => return Err(error.into()),
        },
    };
    let make = Make::unwatched(client.clone(), clock.clone(), &uid, &args.watched.namespaces())
        .secrets_of(&namespace);
    let audit = Audit {
        client,
        clock,
        installation: &uid,
        namespace: &namespace,
        make: &make,
        provider_labels: args.provider_labels.as_deref(),
        terminate: args.terminate,
        ledger: ledger.as_ref(),
    };
    Ok(audit.run().await?)
}

fn tell(findings: &Findings) -> Result<(), Failure> {
    let Findings { machines, unclaimed, surplus, lapsed, unasked, troubles } = findings;
    if findings.found().next().is_some() {
        let mut table = show::table(
            &["PROVIDER", "MACHINE", "FOR CLAIM", "SINCE", "$/H", "COST $", "WHY", ""],
            &[4, 5],
        );
        let unknown = || "?".to_owned();
        for (why, machine) in findings.found() {
            table.add_row([
                machine.provider.clone(),
                machine.machine.clone(),
                format!("{}/{}", machine.namespace, machine.claim),
                machine.started_at.map_or_else(unknown, |at| at.strftime("%FT%TZ").to_string()),
                machine.hourly_price.map_or_else(unknown, |price| price.to_string()),
                machine.cost.map_or_else(unknown, |cost| cost.to_string()),
                why.to_owned(),
                fate(machine.fate).to_owned(),
            ]);
        }
        print(show::lines(&table))?;
    }
    for provider in unasked {
        say(format_args!("{}: not known: {}", provider.provider, provider.why));
    }
    for trouble in troubles {
        say(format_args!("{}: {}: {}", trouble.provider, trouble.machine, trouble.why));
    }
    say(format_args!(
        "{machines} machines carry our identity: {} without a claim, {} beside their claim's own, {} with a lapsed lease",
        unclaimed.len(),
        surplus.len(),
        lapsed.len(),
    ));
    let any = |fate| findings.found().any(|(_, machine)| machine.fate == fate);
    if any(Fate::GoesOn) {
        say("`petaflop audit --terminate` ends them");
    }
    if any(Fate::Spared) {
        say(
            "more than half of all are without a claim, so rather the claims are gone: nothing was ended; \
             look at `kubectl get computeclaims -A`, and end machines by hand if they are not wanted",
        );
    }
    Ok(())
}

fn fate(fate: Fate) -> &'static str {
    match fate {
        Fate::Ended => "ended",
        Fate::GoesOn => "goes on",
        Fate::Young => "too young to tell",
        Fate::Spared => "spared",
    }
}
