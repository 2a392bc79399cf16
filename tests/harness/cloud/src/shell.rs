//! What every provider in the box stands in: a port, a clock, a world behind a lock, and faults of
//! the connection. A provider says what a call does; the shell says when its answer comes, if it does.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::request::Parts;
use axum::http::{Request, Response};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use petaflop_agent_api::clock::Clock;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use crate::engine::Engine;
use crate::faults::{Fault, Operation};
use crate::host::Wake;

/// A call that came, and how it was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// When it came, by the provider's clock.
    pub at: Timestamp,
    /// What was asked.
    pub operation: Operation,
    /// `POST /v2/pods`, `POST /graphql`, `RunInstances us-east-1`.
    pub line: String,
    /// `None`: the connection was cut, or there is none yet.
    pub status: Option<u16>,
    /// Names of the faults that showed in it.
    pub faults: Vec<&'static str>,
}

/// What changes in a provider.
pub(crate) trait World: Send + 'static {
    /// Bytes of a body that are read; longer ones are not.
    const READ: usize;

    fn engine(&mut self) -> &mut Engine;

    fn calls(&mut self) -> &mut Vec<Call>;

    /// One call, from what was sent to what is said; `None`: a body that is too long.
    fn turn(&mut self, parts: &Parts, body: Option<&[u8]>) -> Done;
}

/// A call after it was done.
pub(crate) struct Done {
    /// Its place among the calls.
    pub(crate) call: usize,
    pub(crate) faults: Vec<Fault>,
    pub(crate) response: Response<Body>,
}

/// A running provider. It has a runtime of its own: its machines outlive whoever uses it.
pub(crate) struct Shell<W: World> {
    inner: Arc<Inner<W>>,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

struct Inner<W> {
    clock: Clock,
    began: (Timestamp, Duration),
    world: Mutex<W>,
    /// Something is due earlier than was thought.
    changed: Arc<Notify>,
}

impl<W: World> Shell<W> {
    /// Starts one; `make` is told its time and whom machines wake.
    pub(crate) fn start(
        name: &str,
        clock: Clock,
        listen: SocketAddr,
        make: impl FnOnce(Timestamp, Wake) -> W,
    ) -> io::Result<Self> {
        let changed = Arc::new(Notify::new());
        let wake = changed.clone();
        let began = (clock.now(), clock.boottime());
        let world = Mutex::new(make(began.0, Arc::new(move || wake.notify_one())));
        let inner = Arc::new(Inner { clock, began, world, changed });
        let runtime =
            Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build()?;
        let listener = std::net::TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        runtime.spawn(serve(listener, inner.clone()));
        runtime.spawn(keep_time(inner.clone()));
        Ok(Self { inner, address, runtime: Some(runtime) })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.inner.now()
    }

    /// Looks at the world as of now, and may change it.
    pub(crate) fn world<T>(&self, look: impl FnOnce(&mut W) -> T) -> T {
        let output = look(&mut self.inner.world());
        self.inner.changed.notify_one();
        output
    }
}

impl<W: World> Drop for Shell<W> {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Also from inside another runtime, where waiting would be refused.
            runtime.shutdown_background();
        }
    }
}

impl<W: World> Inner<W> {
    fn now(&self) -> Timestamp {
        let (wall, boottime) = self.began;
        let passed = self.clock.boottime().saturating_sub(boottime);
        wall + SignedDuration::try_from(passed).unwrap_or(SignedDuration::MAX)
    }

    /// The world as of now.
    fn world(&self) -> MutexGuard<'_, W> {
        let mut world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        world.engine().advance(self.now());
        world
    }
}

/// Lets happen what is due when nobody calls: machines that are more than a state end by it.
async fn keep_time<W: World>(inner: Arc<Inner<W>>) {
    loop {
        let next = inner.world().engine().next_event();
        let wait = next.map_or(Duration::MAX, |next| {
            Duration::try_from(next.duration_since(inner.now())).unwrap_or(Duration::ZERO)
        });
        tokio::select! {
            () = inner.clock.sleep(wait) => {}
            () = inner.changed.notified() => {}
        }
    }
}

/// Ends a connection.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut on purpose")]
struct Cut;

/// Serves until the runtime ends.
async fn serve<W: World>(listener: TcpListener, inner: Arc<Inner<W>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let inner = inner.clone();
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let inner = inner.clone();
            async move { answer(&inner, request.map(Body::new)).await }
        });
        tokio::spawn(async move {
            // What ends early was cut by us on purpose, or by the client.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer<W: World>(inner: &Inner<W>, request: Request<Body>) -> Result<Response<Body>, Cut> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, W::READ).await.ok();
    let Done { call, faults, response } = inner.world().turn(&parts, body.as_deref());
    inner.changed.notify_one();
    for fault in &faults {
        match fault {
            Fault::SlowAnswer(late) => inner.clock.sleep(*late).await,
            Fault::LostRequest | Fault::LostAnswer => return Err(Cut),
            _ => {}
        }
    }
    if let Some(call) = inner.world().calls().get_mut(call) {
        call.status = Some(response.status().as_u16());
    }
    Ok(response)
}
