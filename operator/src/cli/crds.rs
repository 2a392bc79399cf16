//! `petaflop crds`.

use std::path::PathBuf;

use petaflop_crds::crds;

use super::{Code, Outcome, print};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write one file a kind into this folder instead
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let Some(folder) = &args.output else {
        print(crds::yaml().trim_end())?;
        return Ok(Code::Done);
    };
    std::fs::create_dir_all(folder)?;
    for crd in crds::all() {
        let name = crd.metadata.name.clone().unwrap_or_default();
        std::fs::write(folder.join(format!("{name}.yaml")), crds::document(&crd))?;
    }
    Ok(Code::Done)
}
