//! `petaflop convert`: what was written for another scheduler, as a manifest.

use std::io::Read;
use std::path::{Path, PathBuf};

use petaflop_crds::manifest::{LARGEST, skypilot};

use super::{Code, Failure, Outcome, print, print_json, say};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    from: From,
}

#[derive(clap::Subcommand)]
enum From {
    /// A task of SkyPilot: the manifest to stdout, what did not carry over to stderr
    Skypilot {
        /// The task; `-` is standard input
        file: PathBuf,
        /// Image of containers to run in, where the task names none
        #[arg(long, value_name = "IMAGE", default_value = skypilot::IMAGE)]
        image: String,
        /// Print one JSON object with both
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(args: &Args) -> Outcome {
    let From::Skypilot { file, image, json } = &args.from;
    let name = file.display().to_string();
    let bytes = read(file).map_err(|error| Failure::bad_input(format!("{name}: {error}")))?;
    let converted = skypilot::convert(&bytes, &name, image).map_err(Failure::bad_input)?;
    if *json {
        let skypilot::Conversion { manifest, notes } = converted;
        print_json(&serde_json::json!({ "manifest": manifest, "notes": notes }))?;
        return Ok(Code::Done);
    }
    print(converted.yaml().trim_end())?;
    for skypilot::Note { line, field, message } in &converted.notes {
        say(format_args!("{name}:{line}: {field}: {message}"));
    }
    Ok(Code::Done)
}

/// At most a byte more than a manifest may have, so that what is too long is seen to be.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let (mut bytes, limit) = (Vec::new(), LARGEST as u64 + 1);
    if path == Path::new("-") {
        std::io::stdin().take(limit).read_to_end(&mut bytes)?;
    } else {
        std::fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}
