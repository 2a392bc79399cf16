//! `petaflop artifacts`: the store of trained models.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use petaflop_store::blocking::Store;
use petaflop_store::{GcOptions, Keep};

use super::{Code, Outcome, print, print_json, say, show};
use crate::embedded::home::Home;
use crate::embedded::job::{Folder, ServedModel, Task};

/// What is younger may belong to an upload under way.
const YOUNG: Duration = Duration::from_secs(600);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
    /// Print one JSON object
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum What {
    /// List artifacts
    Ls,
    /// Show an artifact's files
    Show {
        /// Its hash, or the beginning of it
        hash: String,
    },
    /// Read everything, and name what is damaged
    Verify {
        /// Only this one
        hash: Option<String>,
    },
    /// Remove what nothing refers to
    Gc {
        /// Also remove artifacts that no job or service of this home names
        #[arg(long)]
        unreferenced: bool,
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
    },
}

pub(crate) fn run(home: &Home, args: &Args) -> Outcome {
    let store = Store::open(&home.store().display().to_string())?;
    match &args.what {
        What::Ls => list(&store, args.json),
        What::Show { hash } => {
            let manifest = store.manifest(store.resolve(hash)?)?;
            if args.json {
                print_json(&manifest)?;
                return Ok(Code::Done);
            }
            print(manifest.artifact)?;
            let mut table = show::table(&["FILE", "BYTES", "BLAKE3"], &[1]);
            for file in &manifest.files {
                table.add_row([
                    file.path.clone(),
                    file.length.to_string(),
                    file.blake3.to_string(),
                ]);
            }
            print(show::lines(&table))?;
            Ok(Code::Done)
        }
        What::Verify { hash } => {
            let hash = hash.as_deref().map(|hash| store.resolve(hash)).transpose()?;
            let report = store.verify(hash)?;
            if args.json {
                print_json(&report)?;
            } else {
                say(format_args!(
                    "{} artifacts, {} files, {} read; {} damaged",
                    report.artifacts,
                    report.files,
                    show::bytes(report.bytes),
                    report.findings.len()
                ));
                for damage in &report.findings {
                    print(damage)?;
                }
            }
            Ok(if report.findings.is_empty() { Code::Done } else { Code::Failed })
        }
        What::Gc { unreferenced, dry_run } => gc(home, &store, *unreferenced, *dry_run, args.json),
    }
}

fn list(store: &Store, json: bool) -> Outcome {
    let artifacts = store.list()?;
    if json {
        print_json(&serde_json::json!({ "artifacts": artifacts }))?;
        return Ok(Code::Done);
    }
    let now = Timestamp::now();
    let mut table = show::table(&["ARTIFACT", "FILES", "SIZE", "AGE", ""], &[1, 2, 3]);
    for info in artifacts {
        table.add_row([
            info.hash.to_string(),
            info.files.to_string(),
            show::bytes(info.bytes),
            show::age(info.written, now),
            info.damage.map(|damage| damage.to_string()).unwrap_or_default(),
        ]);
    }
    print(show::lines(&table))?;
    Ok(Code::Done)
}

fn gc(home: &Home, store: &Store, unreferenced: bool, dry_run: bool, json: bool) -> Outcome {
    let mut keep = Keep::All;
    if unreferenced {
        let mut named = BTreeSet::new();
        for folder in Folder::all(home)? {
            let hash = match folder.admission()?.map(|admission| admission.task) {
                Some(Task::Serving(task)) => match task.model {
                    ServedModel::Artifact(hash) => Some(hash),
                    ServedModel::Folder(_) | ServedModel::Gguf(_) => None,
                },
                Some(Task::Training(_)) | None => folder.status()?.artifact,
            };
            named.extend(hash.and_then(|hash| store.resolve(&hash).ok()));
        }
        keep = Keep::Only(named);
    }
    let report = store.gc(&GcOptions { keep, min_age: YOUNG, dry_run })?;
    if json {
        print_json(&report)?;
        return Ok(Code::Done);
    }
    for hash in &report.artifacts {
        print(hash)?;
    }
    say(format_args!(
        "{}{} artifacts, {} keys, {} chunks, {}",
        if dry_run { "would remove " } else { "removed " },
        report.artifacts.len(),
        report.keys,
        report.chunks,
        show::bytes(report.bytes)
    ));
    Ok(Code::Done)
}
