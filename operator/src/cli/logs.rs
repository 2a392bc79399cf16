//! `petaflop logs`: what a job or service wrote, over all its starts.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Duration;

use super::{Code, Failure, Outcome, target};
use crate::embedded::home::Home;
use crate::embedded::job::Folder;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// `name`, `trainingjob/name` or `inferenceservice/name`
    pub(super) name: String,
    /// Its namespace
    #[arg(short, long)]
    pub(super) namespace: Option<String>,
    /// Go on until it is over
    #[arg(short, long)]
    pub(super) follow: bool,
}

pub(crate) fn run(home: &Home, args: &Args) -> Outcome {
    let folders = target::find(home, args.namespace.as_deref(), &args.name)?;
    let folder = &folders[0];
    let mut printed: Vec<(PathBuf, u64)> = Vec::new();
    loop {
        let over = !folder.is_operated();
        for path in logs(folder)? {
            if !printed.iter().any(|(known, _)| *known == path) {
                printed.push((path, 0));
            }
        }
        for (path, at) in &mut printed {
            let mut file = File::open(&*path)?;
            file.seek(SeekFrom::Start(*at))?;
            let mut news = Vec::new();
            *at += file.read_to_end(&mut news)? as u64;
            if io::stdout().write_all(&news).and_then(|()| io::stdout().flush()).is_err() {
                return Ok(Code::Done);
            }
        }
        if !args.follow || over {
            return Ok(Code::Done);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Logs of all starts, the oldest first.
fn logs(folder: &Folder) -> Result<Vec<PathBuf>, Failure> {
    let Ok(runs) = std::fs::read_dir(folder.root().join("runs")) else {
        return Ok(Vec::new());
    };
    let mut logs = Vec::new();
    for run in runs {
        let log = run?.path().join("log");
        if let Ok(about) = log.metadata() {
            logs.push((about.created().or(about.modified())?, log));
        }
    }
    logs.sort();
    Ok(logs.into_iter().map(|(_, log)| log).collect())
}
