//! A small model with random weights, and a real server on it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use petaflop_kernel::Cpu;
use petaflop_model::chat::DEFAULT_TEMPLATE;
use petaflop_model::gguf::export::export;
use petaflop_model::gguf::vocabulary;
use petaflop_model::rng::Philox;
use petaflop_model::tokenizer::{TOKENIZER_FILE, Tokenizer};
use petaflop_model::weights::{self, Weights as _, WeightsFolder};
use petaflop_plan::dtype::Dtype;
use petaflop_plan::inference::{ServingOptions, plan_inference};
use petaflop_plan::recipe::{Quantization, SPECIAL_TOKENS};
use petaflop_plan::shape::{ModelShape, Rope, RopeScaling};
use petaflop_serve::{Compute, ModelLocation, ServeConfig, ServeError, serve};
use serde_json::Value;
use tokio::sync::oneshot;

/// Text that the tokenizer is trained on.
const TEXT: &str = include_str!("../../src/engine.rs");

/// Tokens of the model's context.
const CONTEXT: u32 = 16_384;

fn shape() -> ModelShape {
    ModelShape {
        layers: 2,
        hidden: 32,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        intermediate: 64,
        vocab: 320,
        max_positions: CONTEXT,
        norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
        tied_embeddings: false,
        qkv_bias: false,
        qk_norm: false,
    }
}

/// Writes a model of random weights, the same each time. It practically never
/// ends a text by itself: the output rows of the special tokens are zero, those
/// of the others are large.
pub(crate) fn write_model(folder: &Path) {
    let shape = shape();
    let options = ServingOptions::new(Dtype::F32, 1, 1, 16);
    let plan = plan_inference(&shape, &options).expect("the shape is sound");
    let tensors: Vec<(String, Vec<u64>, Vec<f32>)> = (0..)
        .zip(&plan.tensors)
        .map(|(index, tensor)| {
            let columns = *tensor.shape.last().expect("no tensor is a single number") as f64;
            let scale = match tensor.name.as_str() {
                "lm_head.weight" => 4.0 / columns.sqrt(),
                "model.embed_tokens.weight" => 1.0,
                _ => 1.5 / columns.sqrt(),
            };
            let gain = tensor.shape.len() == 1;
            let count: u64 = tensor.shape.iter().product();
            let mut values: Vec<f32> = (0..count.div_ceil(4))
                .flat_map(|i| Philox::new(5).normals([i as u32, index, 0, 0]))
                .map(|x| (if gain { 1.0 + 0.1 * x } else { scale * x }) as f32)
                .take(count as usize)
                .collect();
            if tensor.name == "lm_head.weight" {
                values[..SPECIAL_TOKENS.len() * columns as usize].fill(0.0);
            }
            (tensor.name.clone(), tensor.shape.clone(), values)
        })
        .collect();
    let borrowed = tensors
        .iter()
        .map(|(name, shape, values)| (name.as_str(), shape.as_slice(), values.as_slice()));
    weights::save(folder, &shape, borrowed).expect("the folder is writable");
    let tokenizer =
        Tokenizer::train_bpe(TEXT.lines(), shape.vocab).expect("the text has merges enough");
    let bytes = tokenizer.to_bytes().expect("it is JSON");
    std::fs::write(folder.join(TOKENIZER_FILE), bytes).expect("the folder is writable");
}

/// The model of a folder as a GGUF file, with its tokenizer and no chat template of its own.
pub(crate) fn export_model(folder: &Path, file: &Path) {
    export_model_as(folder, file, Quantization::None);
}

/// The same, quantised.
pub(crate) fn export_model_as(folder: &Path, file: &Path, quantization: Quantization) {
    let opened = WeightsFolder::open(folder).expect("it is a model's");
    let values: BTreeMap<String, Vec<f32>> = opened
        .shape()
        .tensors()
        .into_iter()
        .map(|tensor| {
            let mut values = vec![0.0; tensor.shape.iter().product::<u64>() as usize];
            opened.read_f32(&tensor.name, &mut values).expect("it is there");
            (tensor.name, values)
        })
        .collect();
    let tokenizer = Tokenizer::from_file(&folder.join(TOKENIZER_FILE)).expect("it has one");
    let more = vocabulary::entries(&tokenizer, DEFAULT_TEMPLATE, opened.shape().vocab)
        .expect("GGUF has a name for it");
    export(file, opened.shape(), quantization, more, |name| &values[name])
        .expect("the folder is writable");
}

/// A running server. Dropped, it is asked to shut down and waited for.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    shutdown: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
    _folder: Option<tempfile::TempDir>,
}

/// A server on a fresh small model, with the settings as `adjust` leaves them.
pub(crate) fn start(adjust: impl FnOnce(&mut ServeConfig)) -> Server {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write_model(folder.path());
    let mut config = ServeConfig::new(ModelLocation::Path(folder.path().into()), "tiny", 0);
    config.max_sequences = 8;
    adjust(&mut config);
    let mut server = start_on(config, 2).expect("the server comes up");
    server._folder = Some(folder);
    server
}

/// A server with this configuration, or why it did not come up.
pub(crate) fn start_on(config: ServeConfig, threads: usize) -> Result<Server, ServeError> {
    let (shutdown, asked) = oneshot::channel::<()>();
    let (sender, listening) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let cpu = Cpu::new(None, threads).expect("every machine has some instruction set");
        let listening = move |address| sender.send(address).expect("the test waits for it");
        runtime.block_on(serve(config, Compute::Cpu(cpu), listening, async {
            let _ = asked.await;
        }))
    });
    match listening.recv() {
        Ok(address) => {
            Ok(Server { address, shutdown: Some(shutdown), thread: Some(thread), _folder: None })
        }
        Err(_) => match thread.join().expect("it does not panic") {
            Err(error) => Err(error),
            Ok(()) => panic!("the server ended without being asked"),
        },
    }
}

/// An answer: status, the `Retry-After` header, and the body.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<String>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// The text of the one choice of a completion.
    pub(crate) fn text(&self) -> String {
        let json = self.json();
        json["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("no text: {json}")).to_owned()
    }
}

impl Server {
    fn agent() -> ureq::Agent {
        ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .build()
            .into()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn answer(response: ureq::http::Response<ureq::Body>) -> Answer {
        let header = response.headers().get("retry-after");
        Answer {
            status: response.status().as_u16(),
            retry_after: header.map(|v| v.to_str().expect("a number").to_owned()),
            body: response.into_body().read_to_string().expect("the body is text"),
        }
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        let response = Self::agent().get(self.url(path)).call();
        Self::answer(response.expect("the server answers"))
    }

    pub(crate) fn post(&self, path: &str, body: impl AsRef<[u8]>) -> Answer {
        let response = Self::agent().post(self.url(path)).send(body.as_ref());
        Self::answer(response.expect("the server answers"))
    }

    pub(crate) fn complete(&self, body: &Value) -> Answer {
        self.post("/v1/completions", body.to_string())
    }

    pub(crate) fn chat(&self, body: &Value) -> Answer {
        self.post("/v1/chat/completions", body.to_string())
    }

    /// The data lines of a streamed answer, one by one as they arrive.
    pub(crate) fn stream(&self, path: &str, body: &Value) -> impl Iterator<Item = String> + use<> {
        let response =
            Self::agent().post(self.url(path)).send(body.to_string()).expect("the server answers");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        BufReader::new(response.into_body().into_reader())
            .lines()
            .map(|line| line.expect("the stream is text"))
            .filter_map(|line| line.strip_prefix("data: ").map(str::to_owned))
    }

    /// The value of a metric without labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let prefix = format!("petaflop_serve_{name} ");
        text.lines()
            .find_map(|line| line.strip_prefix(&prefix))
            .unwrap_or_else(|| panic!("no {name} in {text}"))
            .parse()
            .expect("a number")
    }

    /// Asks it to shut down; it drains from now on.
    pub(crate) fn shut_down(&mut self) {
        if let Some(shutdown) = self.shutdown.take() {
            let _ = shutdown.send(());
        }
    }

    /// Waits for its end.
    pub(crate) fn join(&mut self) -> Result<(), ServeError> {
        let thread = self.thread.take().expect("it is joined once");
        thread.join().expect("it does not panic")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shut_down();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.expect("no panic").expect("it ends well");
            }
        }
    }
}

/// Waits until `condition` holds; fails after twenty seconds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
