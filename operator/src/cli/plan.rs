//! `petaflop plan -f`: the decision without acting.

use std::path::PathBuf;

use jiff::Timestamp;
use petaflop_arbiter::decide::{decide, explain};
use petaflop_arbiter::decision::Outcome as Decided;
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::own_or_rent::{OwnOrRent, Purchase};
use petaflop_arbiter::workload::Workload;
use petaflop_arbiter::world::{Recorded, World};
use petaflop_crds::{Document, Object, manifest};

use super::only::OnlyAt;
use super::{Code, Failure, Outcome, print, print_json, say, show, waiting};
use crate::embedded::admit;
use crate::embedded::config::Config;
use crate::embedded::home::Home;
use crate::embedded::job::{Admission, Compute, Folder, Phase, Status};
use crate::embedded::observe::Providers;
use crate::embedded::place;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The manifest; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Plan for this folder, file or URI instead of the manifest's datasets
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    #[command(flatten)]
    only: OnlyAt,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Write the world of the first decision to this file, for `explain --world`
    #[arg(long, value_name = "FILE")]
    save_world: Option<PathBuf>,
    /// Say whether buying pays: what a machine like the cheapest of one's own costs to buy, in dollars
    #[arg(long, value_name = "USD", value_parser = dollars)]
    bought_usd: Option<Usd>,
    /// Years that it is used
    #[arg(long, value_name = "YEARS", default_value = "4", requires = "bought_usd", value_parser = clap::value_parser!(u32).range(1..=50))]
    bought_years: u32,
}

/// An amount that is not below 0.
fn dollars(text: &str) -> Result<Usd, String> {
    let usd: Usd = text.parse().map_err(|error| format!("{error}"))?;
    if usd < Usd::ZERO { Err("must be 0 or more".to_owned()) } else { Ok(usd) }
}

pub(crate) fn run(home: &Home, args: &Args) -> Outcome {
    let mut documents = manifest::read(&args.file).map_err(Failure::bad_input)?;
    args.only.apply(&mut documents);
    let mut decisions = Vec::new();
    let mut compared = Vec::new();
    let purchase = args.bought_usd.map(|usd| Purchase { usd, years: args.bought_years });
    let mut code = Code::Done;
    for document in &documents {
        let Some(admission) = asked(home, document, args.data.as_deref())? else {
            continue;
        };
        let now = Timestamp::now();
        let workload = workload_for(home, &admission)?;
        let world = world_for(home, workload, now)?;
        let seen = Recorded { now: Timestamp::now(), world };
        let decided = decide(&seen.world, seen.now).decisions;
        let Some(mut decision) = decided.into_iter().find(|d| d.workload.uid == admission.uid)
        else {
            continue;
        };
        if let (Some(path), true) = (&args.save_world, decisions.is_empty()) {
            std::fs::write(path, serde_json::to_vec_pretty(&seen)?)?;
            decision.world = Some(seen.hash());
        }
        if matches!(decision.outcome, Decided::Waiting { .. }) {
            code = Code::NoOffer;
        }
        if !args.json {
            print(format_args!("{} {}", document.kind(), document.name()))?;
            print(show::decision(&decision))?;
            if !decision.misses.is_empty() {
                print(show::misses(&decision.misses))?;
            }
        }
        if let Some(purchase) = purchase {
            let explained = explain(&seen.world, seen.now, &decision.workload);
            let both = explained.and_then(|explained| OwnOrRent::of(&explained, purchase));
            if !args.json {
                print(show::own_or_rent(both.as_ref()))?;
            }
            compared.push(both);
        }
        decisions.push(decision);
    }
    if args.json {
        let mut told = serde_json::json!({ "decisions": decisions });
        if purchase.is_some() {
            told["ownOrRent"] = serde_json::to_value(&compared)?;
        }
        print_json(&told)?;
    }
    Ok(code)
}

/// What a document asks for, as it would be admitted; nothing is kept. `None` with a word
/// to the user where that cannot be said yet.
pub(super) fn asked(
    home: &Home,
    document: &Document,
    data: Option<&str>,
) -> Result<Option<Admission>, Failure> {
    let namespace = admit::namespace_of(document);
    let admitted = match &document.object {
        Object::TrainingJob(job) => {
            let resolved = admit::resolve(document, &job.spec, &namespace, data)
                .map_err(Failure::bad_input)?;
            let runtime = crate::embedded::runtime::find()?;
            let identity = waiting()?
                .block_on(admit::identify(home, &runtime, &resolved))
                .map_err(Failure::bad_input)?;
            if let Some(artifact) = &identity.cached {
                say(format_args!(
                    "{}: finished before; `run` would use artifact {artifact} and cost nothing",
                    document.name()
                ));
            }
            admit::training(home, resolved, &identity, Compute::default())
        }
        Object::InferenceService(service) => {
            let Some(model) =
                super::services::model_of(home, document.directory(), &namespace, &service.spec)?
            else {
                say(format_args!("{}: waits until its TrainingJob is complete", document.name()));
                return Ok(None);
            };
            admit::serving(
                home,
                &namespace,
                &document.name(),
                &service.spec,
                model,
                0,
                Compute::default(),
            )
        }
    };
    let (_, admission) = admitted.map_err(Failure::bad_input)?;
    Ok(Some(admission))
}

/// What the arbiter is asked for it, with what was done and spent before.
pub(super) fn workload_for(home: &Home, admission: &Admission) -> Result<Workload, Failure> {
    let folder = Folder::of(home, admission.kind(), &admission.namespace, &admission.name);
    let known = folder.admission()?.is_some_and(|known| known.uid == admission.uid);
    // What is complete would be done anew.
    let status = match folder.status()? {
        status if known && status.phase != Phase::Complete => status,
        _ => Status::default(),
    };
    place::workload_of(admission, &status).map_err(Failure::bad_input)
}

/// The world as it is now, with this in it.
pub(super) fn world_for(home: &Home, workload: Workload, now: Timestamp) -> Result<World, Failure> {
    let runtime = crate::embedded::runtime::find()?;
    let providers = Providers::of(home, &Config::read(home)?, runtime)?;
    Ok(waiting()?.block_on(place::look(home, &providers, workload, now))?)
}
