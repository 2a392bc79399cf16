//! A server's life: bind, load, answer, drain.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use petaflop_kernel::Cpu;
use petaflop_model::place::Place;
use petaflop_plan::Numerics;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};

use crate::answer::unix_time;
use crate::engine::{self, Limits};
use crate::http::{App, router};
use crate::key::Key;
use crate::load::{self, LoadError, Loaded};
use crate::metrics::Metrics;
use crate::queue::Queue;

/// Bytes of a request's body at most, besides [`BODY_BYTES_PER_TOKEN`].
const BODY_BYTES: usize = 1 << 20;
/// Further bytes of a body for each token of the context: long tokens, JSON escapes.
const BODY_BYTES_PER_TOKEN: usize = 32;
/// How long the last answers may take to leave once all are complete.
const FLUSH: Duration = Duration::from_secs(5);

/// Where the model lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelLocation {
    /// A folder with `config.json`, safetensors and `tokenizer.json`; a GGUF file; or a folder with one,
    /// called `model.gguf`.
    Path(PathBuf),
    /// An artifact of a store.
    Artifact {
        /// The store: a folder or URI.
        store: String,
        /// The artifact's hash, or the beginning of it.
        hash: String,
    },
}

/// What the model answers from.
pub enum Compute {
    /// The processor.
    Cpu(Cpu),
    /// A device that was chosen.
    Device(Box<dyn Place>),
}

/// How to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeConfig {
    /// The model.
    pub model: ModelLocation,
    /// Its name in requests and answers.
    pub name: String,
    /// Address to listen on; `127.0.0.1` unless others are to reach it.
    pub host: String,
    /// Port to listen on; 0 takes any free one.
    pub port: u16,
    /// Sequences in the batch at most.
    pub max_sequences: u32,
    /// Tokens of prompt and answer together at most; `None`: what the model was made for.
    pub context: Option<u32>,
    /// Tokens of one pass at most; `max_sequences` where that is more.
    pub step_tokens: u32,
    /// Key/value cache blocks for all sequences together; `None`: room for every
    /// sequence's whole context.
    pub kv_blocks: Option<u32>,
    /// `Exact`, or `Int8Activations` on the processor with q8_0 weights.
    pub numerics: Numerics,
    /// Requests that may wait for their turn; further ones are told to come again.
    pub max_waiting: u32,
    /// Bytes that the plan may take; `None`: not checked.
    pub memory: Option<u64>,
    /// How long running requests may take to end after shutdown was asked for.
    pub grace: Duration,
    /// What every request must carry; `None`: whoever reaches the port is answered.
    pub key: Option<Key>,
}

impl ServeConfig {
    /// The usual settings, on a port of 127.0.0.1.
    pub fn new(model: ModelLocation, name: impl Into<String>, port: u16) -> Self {
        ServeConfig {
            model,
            name: name.into(),
            host: "127.0.0.1".into(),
            port,
            max_sequences: 16,
            context: None,
            step_tokens: 256,
            kv_blocks: None,
            numerics: Numerics::Exact,
            max_waiting: 256,
            memory: None,
            grace: Duration::from_secs(30),
            key: None,
        }
    }
}

/// Why a server did not come up, or ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another program listens there.
    #[error(
        "port {port} of {host} is taken by another program; stop that program, choose another \
         port with --port, or take any free one with --port 0"
    )]
    PortTaken {
        /// As configured.
        host: String,
        /// As configured.
        port: u16,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {host}:{port}: {source}; choose another with --host and --port")]
    Bind {
        /// As configured.
        host: String,
        /// As configured.
        port: u16,
        /// The system's reason.
        source: io::Error,
    },
    /// The model cannot be served.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A thread could not be started, or accepting connections failed.
    #[error("the server cannot run: {0}")]
    Io(#[from] io::Error),
}

/// Serves until `shutdown` resolves and then drains: readiness turns red, new
/// requests are refused, running ones may finish within the grace period.
/// `on` is what it computes on; one processor or another does not change what is answered.
/// `listening` is called once, with the actual address, when requests are taken.
///
/// # Errors
/// Why the server did not come up. A failing engine is no error here: the server
/// goes on, answers 503 and shows red health, so that whoever watches it decides.
pub async fn serve(
    config: ServeConfig,
    on: Compute,
    listening: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    // Before the model is loaded: a taken port is the quicker answer.
    let listener = bind(&config.host, config.port).await?;
    let address = listener.local_addr()?;

    let loading = tokio::task::spawn_blocking({
        let config = config.clone();
        move || load::load(&config, on)
    });
    let mut shutdown = std::pin::pin!(shutdown);
    let loaded = tokio::select! {
        loaded = loading => loaded.map_err(io::Error::other)??,
        () = &mut shutdown => return Ok(()),
    };
    let Loaded { model, blocks, prompts, vocabulary, options, numerics, planned_bytes } = loaded;
    let context = options.context as usize;

    let queue = Arc::new(Queue::new());
    let metrics = Arc::new(Metrics::new(blocks.total(), planned_bytes));
    let tickets = config.max_sequences.saturating_add(config.max_waiting) as usize;
    let app = Arc::new(App {
        name: config.name,
        created: unix_time(),
        context,
        numerics,
        body_limit: BODY_BYTES + BODY_BYTES_PER_TOKEN * context,
        tickets: Arc::new(Semaphore::new(tickets.min(Semaphore::MAX_PERMITS))),
        prompts,
        queue: queue.clone(),
        metrics: metrics.clone(),
        key: config.key,
    });
    let limits = Limits {
        sequences: options.max_sequences as usize,
        step_tokens: options.max_batched_tokens as usize,
    };
    let mut engine = engine::start(model, vocabulary, blocks, limits, queue.clone(), metrics)?;

    let flush = Arc::new(Notify::new());
    let server = tokio::spawn({
        let flush = flush.clone();
        axum::serve(listener, router(app))
            .with_graceful_shutdown(async move { flush.notified().await })
            .into_future()
    });
    tracing::info!(%address, planned_bytes, "serving");
    listening(address);
    shutdown.await;

    tracing::info!(grace_seconds = config.grace.as_secs(), "draining");
    queue.drain();
    if tokio::time::timeout(config.grace, &mut engine).await.is_err() {
        tracing::warn!("the grace period is over; running requests are cut off");
        queue.stop();
        // At most the pass that runs now.
        let _ = tokio::time::timeout(FLUSH, &mut engine).await;
    }
    flush.notify_one();
    match tokio::time::timeout(FLUSH, server).await {
        Ok(ended) => ended.map_err(io::Error::other)??,
        Err(_) => tracing::warn!("some clients did not take the end of their answers"),
    }
    Ok(())
}

async fn bind(host: &str, port: u16) -> Result<TcpListener, ServeError> {
    TcpListener::bind((host, port)).await.map_err(|source| {
        let host = host.to_owned();
        match source.kind() {
            io::ErrorKind::AddrInUse => ServeError::PortTaken { host, port },
            _ => ServeError::Bind { host, port, source },
        }
    })
}
