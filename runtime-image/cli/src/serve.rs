//! `petaflop-runtime serve`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use petaflop_device::{Roots, detect};
use petaflop_model::ModelError;
use petaflop_plan::{Numerics, machine::Machine};
use petaflop_serve::{Key, LoadError, ModelLocation, ServeConfig, ServeError};
use petaflop_store::report::{Progress, ProgressWriter};
use petaflop_train::Class;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    exit::{Code, Failure, print},
    job::{Compute, On},
};

/// Variable with what every request must carry. Not an option: command lines are seen by others.
const KEY: &str = "PETAFLOP_REPLICA_KEY";

#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("model").required(true).args(["folder", "gguf", "artifact"])))]
pub(crate) struct Args {
    /// Folder with config.json, safetensors and tokenizer.json
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// GGUF file with weights, tokenizer and chat template
    #[arg(long, value_name = "FILE")]
    gguf: Option<PathBuf>,
    /// Hash of an artifact, or the beginning of it
    #[arg(long, value_name = "HASH", requires = "store")]
    artifact: Option<String>,
    /// The store that holds the artifact
    #[arg(long, value_name = "FOLDER")]
    store: Option<String>,
    /// The model's name in requests and answers
    #[arg(long, default_value = "default")]
    name: String,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes any free one
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Sequences in the batch at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_sequences: Option<u32>,
    /// Tokens of prompt and answer together at most [default: what the model was made for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Tokens of one pass at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    step_tokens: Option<u32>,
    /// Key/value cache blocks of 16 tokens, for all sequences [default: room for every sequence's whole context]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    kv_blocks: Option<u32>,
    /// Arithmetic: exact, or int8-activations, which is faster with q8_0 weights: activations are rounded to 8 bits before
    /// each product, so that answers may differ
    #[arg(long, value_name = "MODE", default_value_t = Numerics::Exact)]
    numerics: Numerics,
    /// Requests that may wait for their turn; further ones are answered 429
    #[arg(long, value_name = "N")]
    max_waiting: Option<u32>,
    /// Seconds that running requests may take to end after SIGTERM
    #[arg(long, value_name = "SECONDS")]
    grace: Option<u64>,
    /// Append to this file, as a line of JSON each: that requests are taken, and a failure
    #[arg(long, value_name = "FILE")]
    progress: Option<PathBuf>,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    on: On,
}

impl Args {
    /// What answers, in a word.
    fn model(&self) -> String {
        let path = || self.path().map(|path| path.display().to_string());
        self.artifact.clone().or_else(path).unwrap_or_default()
    }

    /// Where it lies, if not in a store.
    fn path(&self) -> Option<&PathBuf> {
        self.folder.as_ref().or(self.gguf.as_ref())
    }

    fn config(&self, machine: &Machine) -> Result<ServeConfig, Failure> {
        let model = match (self.path(), &self.artifact, &self.store) {
            (Some(path), _, _) => ModelLocation::Path(path.clone()),
            (None, Some(hash), Some(store)) => {
                ModelLocation::Artifact { store: store.clone(), hash: hash.clone() }
            }
            _ => {
                return Err(Failure::bad_input(
                    "give --folder, --gguf, or --artifact with --store",
                ));
            }
        };
        let defaults = ServeConfig::new(model, &self.name, self.port);
        Ok(ServeConfig {
            host: self.host.clone(),
            max_sequences: self.max_sequences.unwrap_or(defaults.max_sequences),
            context: self.context,
            step_tokens: self.step_tokens.unwrap_or(defaults.step_tokens),
            kv_blocks: self.kv_blocks,
            max_waiting: self.max_waiting.unwrap_or(defaults.max_waiting),
            memory: Some(machine.memory.available),
            grace: self.grace.map_or(defaults.grace, Duration::from_secs),
            numerics: self.numerics,
            key: std::env::var(KEY).ok().filter(|key| !key.is_empty()).map(|key| Key::new(&key)),
            ..defaults
        })
    }
}

/// Serves until SIGTERM or SIGINT, whoever has the key in `PETAFLOP_REPLICA_KEY`, if there is one. Prints one line of JSON when requests are taken:
/// `{"listening":"http://127.0.0.1:8000","model":"default"}`.
pub(crate) fn run(args: &Args) -> Result<Code, Failure> {
    serve(args).inspect_err(|failure| failure.note(args.progress.as_deref()))
}

fn serve(args: &Args) -> Result<Code, Failure> {
    let machine = detect(&Roots::system());
    let config = args.config(&machine)?;
    let on = match args.on.device(&machine)? {
        Some(device) => petaflop_serve::Compute::Device(device),
        None => petaflop_serve::Compute::Cpu(args.compute.cpu(&machine)?),
    };
    let name = config.name.clone();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(async {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let shutdown = async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        };
        let model = args.model();
        let listening = |address: std::net::SocketAddr| {
            note(args.progress.as_deref(), &Progress::Serving { port: address.port(), model });
            // Whoever started us may have stopped reading; the server goes on.
            let _ = print(
                serde_json::json!({ "listening": format!("http://{address}"), "model": name }),
            );
        };
        petaflop_serve::serve(config, on, listening, shutdown).await.map_err(failure)
    });
    // A model that is still being loaded is not waited for.
    runtime.shutdown_background();
    served.map(|()| Code::Done)
}

/// Says something to whoever started us, where they asked for that.
fn note(progress: Option<&Path>, line: &Progress) {
    let Some(progress) = progress else { return };
    let written = ProgressWriter::append(progress).and_then(|mut file| file.write(line));
    if let Err(error) = written {
        tracing::error!(%error, ?line, "is missing in the progress file");
    }
}

fn failure(error: ServeError) -> Failure {
    let code = match &error {
        ServeError::Load(LoadError::DoesNotFit { .. }) => Code::DoesNotFit,
        ServeError::Load(LoadError::Model(ModelError::Device(error))) => {
            Class::of_device(error).into()
        }
        ServeError::Load(LoadError::Scratch(_)) | ServeError::Bind { .. } | ServeError::Io(_) => {
            Code::Failed
        }
        // Another port, another model or other settings are needed; the same command fails again.
        ServeError::PortTaken { .. } | ServeError::Load(_) => Code::BadInput,
    };
    Failure { code, message: error.to_string() }
}
