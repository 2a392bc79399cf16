//! Connections to replicas: how one is made ([`Connect`]), kept while unused, and
//! used for one request.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::payload::Outgoing;
use super::{Config, Replica};

/// Largest head of an answer; bodies are passed on as they come.
const BUFFER: usize = 64 << 10;

/// A byte stream to a replica.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// How a connection to a replica is made. Whatever proves the two ends to each other
/// belongs here; above it there is only HTTP/1.1.
#[async_trait]
pub trait Connect: Send + Sync + 'static {
    /// A new connection.
    ///
    /// # Errors
    /// It could not be made; the request goes to another replica.
    async fn connect(&self, replica: &Replica) -> io::Result<Box<dyn Io>>;
}

/// Plain TCP to the replica's address.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

#[async_trait]
impl Connect for Tcp {
    async fn connect(&self, replica: &Replica) -> io::Result<Box<dyn Io>> {
        let stream = TcpStream::connect(&replica.address).await?;
        // A token is a small write, and must not wait for the next.
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

/// What requests are written to.
pub(super) type Sender = SendRequest<Outgoing>;

/// Why a try gave no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection.
    Connect(io::Error),
    /// It ended, or what came is not HTTP.
    Closed(hyper::Error),
    /// As `Closed`, on a connection that had lain unused: more likely the replica just closed it than
    /// that it failed.
    Stale(hyper::Error),
    /// Nothing came.
    Silent,
}

impl Failure {
    /// A word for metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Closed(_) => "closed",
            Self::Stale(_) => "stale",
            Self::Silent => "silent",
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "cannot connect to it: {error}"),
            Self::Closed(error) | Self::Stale(error) => write!(f, "its connection broke: {error}"),
            Self::Silent => f.write_str("it is silent"),
        }
    }
}

/// Unused connections to one replica, each with the time since boot when it was put here.
#[derive(Debug, Default)]
pub(super) struct Idle(Mutex<Vec<(Sender, Duration)>>);

impl Idle {
    /// One that can be used now and has not lain for longer than `keep_alive`.
    pub(super) fn take(&self, now: Duration, keep_alive: Duration) -> Option<Sender> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The longest unused ones are first.
        let old = idle.iter().take_while(|(_, since)| now.saturating_sub(*since) > keep_alive);
        let old = old.count();
        idle.drain(..old);
        idle.retain(|(sender, _)| !sender.is_closed());
        let usable = idle.iter().rposition(|(sender, _)| sender.is_ready())?;
        Some(idle.remove(usable).0)
    }

    /// Keeps one, unless there are `most` already.
    pub(super) fn put(&self, sender: Sender, now: Duration, most: usize) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !sender.is_closed() && idle.len() < most {
            idle.push((sender, now));
        }
    }

    /// Closes all.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// A new connection, ready for its first request.
///
/// # Errors
/// [`Failure::Connect`].
pub(super) async fn connect(
    connect: &dyn Connect,
    replica: &Replica,
    config: &Config,
) -> Result<Sender, Failure> {
    let io = timeout(config.connect_timeout, connect.connect(replica)).await;
    let io = io.unwrap_or_else(|late| Err(late.into())).map_err(Failure::Connect)?;
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER)
        .max_headers(config.head_fields)
        .handshake(TokioIo::new(io))
        .await
        .map_err(Failure::Closed)?;
    // Ends with its sender and its answer; what it fails with, they are told.
    tokio::spawn(async move { connection.await.ok() });
    Ok(sender)
}

/// What a request that failed leaves behind.
pub(super) struct Unsent {
    pub(super) failure: Failure,
    /// The body, where nothing at all was written.
    pub(super) body: Option<Outgoing>,
}

/// Sends a request and waits for the head of its answer.
pub(super) async fn send(
    sender: &mut Sender,
    request: Request<Outgoing>,
    reused: bool,
    silence: Duration,
) -> Result<Response<Incoming>, Unsent> {
    match timeout(silence, sender.try_send_request(request)).await {
        Err(_) => Err(Unsent { failure: Failure::Silent, body: None }),
        Ok(Ok(response)) => Ok(response),
        Ok(Err(mut failed)) => {
            let body = failed.take_message().map(Request::into_body);
            let error = failed.into_error();
            let failure = if reused { Failure::Stale(error) } else { Failure::Closed(error) };
            Err(Unsent { failure, body })
        }
    }
}
