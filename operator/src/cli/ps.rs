//! `petaflop ps`: jobs and services of this home.

use jiff::Timestamp;
use serde::Serialize;

use super::cluster::Namespaces;
use super::{Code, Outcome, print, print_json, say, show};
use crate::embedded::home::Home;
use crate::embedded::job::{Folder, Phase, Status};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What is over, too
    #[arg(short, long)]
    pub(super) all: bool,
    #[command(flatten)]
    pub(super) namespaces: Namespaces,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Serialize)]
struct Row {
    kind: &'static str,
    namespace: String,
    name: String,
    created_at: Timestamp,
    #[serde(flatten)]
    status: Status,
}

pub(crate) fn run(home: &Home, args: &Args) -> Outcome {
    match crate::embedded::runtime::find() {
        Ok(runtime) => {
            let mass = crate::embedded::sweep::Mass::Refused;
            let swept =
                super::waiting()?.block_on(crate::embedded::sweep::sweep(home, &runtime, mass))?;
            swept.lines().iter().for_each(say);
        }
        Err(error) => say(format_args!("not looked for what crashes left behind: {error}")),
    }
    let mut rows = Vec::new();
    for folder in Folder::all(home)? {
        let status = folder.status()?;
        let other = args.namespaces.namespace.as_ref().is_some_and(|one| *one != folder.namespace);
        if other || status.phase.is_over() && !args.all {
            continue;
        }
        let Some(admission) = folder.admission()? else {
            continue;
        };
        rows.push(Row {
            kind: match admission.task {
                crate::embedded::job::Task::Training(_) => "TrainingJob",
                crate::embedded::job::Task::Serving(_) => "InferenceService",
            },
            namespace: folder.namespace,
            name: folder.name,
            created_at: admission.created_at,
            status,
        });
    }
    if args.json {
        print_json(&serde_json::json!({ "items": rows }))?;
        return Ok(Code::Done);
    }
    if rows.is_empty() {
        say(if args.all { "nothing yet" } else { "nothing runs; --all shows what is over" });
        return Ok(Code::Done);
    }
    let now = Timestamp::now();
    let mut table = show::table(
        &["KIND", "NAME", "PHASE", "PROGRESS", "WHERE", "$/H", "COST $", "AGE", "SAYS"],
        &[5, 6, 7],
    );
    for Row { kind, namespace, name, created_at, status } in rows {
        let name = match namespace.as_str() {
            crate::embedded::job::DEFAULT_NAMESPACE => name,
            _ => format!("{namespace}/{name}"),
        };
        let progress = match status.phase {
            Phase::Running => {
                format!("{}/{} {}", status.step, status.steps, super::follow::facts(&status))
            }
            _ if status.steps > 0 => format!("{}/{}", status.step, status.steps),
            _ => String::new(),
        };
        let (place, price) = match &status.place {
            Some(place) if !status.phase.is_over() => {
                (place.offer.clone(), place.price.to_string())
            }
            _ => (String::new(), String::new()),
        };
        let says = match (&status.url, &status.artifact) {
            (Some(url), _) if status.phase == Phase::Available => url.clone(),
            (_, Some(hash)) if status.phase == Phase::Complete => {
                hash[..hash.len().min(16)].to_owned()
            }
            _ => status.message.clone(),
        };
        table.add_row([
            kind.to_owned(),
            name,
            status.phase.to_string(),
            progress,
            place,
            price,
            status.cost.to_string(),
            show::age(created_at, now),
            says,
        ]);
    }
    print(show::lines(&table))?;
    Ok(Code::Done)
}
