//! `petaflop crds`.

use std::path::PathBuf;

use petaflop_crds::crds;

use super::{Code, Outcome, print, print_json};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write one file a kind into this folder instead
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Print one JSON object, a `List` of them, instead of YAML
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Outcome {
    if args.json {
        print_json(&serde_json::json!({
            "apiVersion": "v1",
            "kind": "List",
            "items": crds::all(),
        }))?;
        return Ok(Code::Done);
    }
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
