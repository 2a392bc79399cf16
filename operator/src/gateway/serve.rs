//! Sockets: the service's own port, the port for health and metrics, and the drain.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use petaflop_agent_api::gateway::PATH;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::metrics::CONTENT_TYPE;
use super::{Config, Control, Gateway};

/// Bytes read ahead for each connection.
const BUFFER: usize = 64 << 10;
/// Connections at once on the second port, which only kubelet and Prometheus use.
const OWN_CONNECTIONS: usize = 64;
/// Connections that the kernel accepts ahead of us. With the usual 128 a burst of clients after a
/// wake would be dropped, and come back only after seconds.
const BACKLOG: u32 = 4096;
/// Bytes of the operator's message at most: a thousand replicas are a sixth of it.
const TOLD_BYTES: usize = 1 << 20;
/// How long it may take to arrive.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// How long to leave the listener alone when there are no more file descriptors.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// A socket for [`serve`] that takes bursts.
///
/// # Errors
/// The address is taken, or not ours.
pub fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = if at.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
    // A restarted gateway need not wait for the connections of the one before.
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

/// Serves until `stop`, then drains: `/readyz` fails at once; after
/// [`Config::drain_delay`] nothing new is taken; it ends when every request is answered,
/// at the latest after [`Config::drain_timeout`] more.
///
/// `requests` is what the Service selects; `own` answers `/healthz`, `/readyz` and `/metrics`.
pub async fn serve(
    gateway: Arc<Gateway>,
    requests: TcpListener,
    own: TcpListener,
    stop: impl Future<Output = ()>,
) {
    tokio::select! {
        () = serve_requests(&gateway, requests, stop) => {}
        () = serve_own(&gateway, None, own) => {}
        () = gateway.follow() => {}
    }
}

/// As [`serve()`], for a gateway that the operator tells its replicas, on the second port.
pub async fn serve_controlled(
    control: Arc<Control>,
    requests: TcpListener,
    own: TcpListener,
    stop: impl Future<Output = ()>,
) {
    let gateway = control.gateway();
    tokio::select! {
        () = serve_requests(gateway, requests, stop) => {}
        () = serve_own(gateway, Some(&control), own) => {}
        () = gateway.follow() => {}
        () = control.follow() => {}
    }
}

async fn serve_requests(
    gateway: &Arc<Gateway>,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) {
    let Config { connections: most, drain_delay, drain_timeout, .. } = *gateway.config;
    let mut connections = JoinSet::new();
    let (closing, closed) = watch::channel(false);
    let until_stop = async {
        stop.await;
        gateway.draining.store(true, Ordering::Relaxed);
        tracing::info!("draining: /readyz fails from now on");
        gateway.clock.sleep(drain_delay).await;
    };
    let mut until_stop = pin!(until_stop);
    loop {
        tokio::select! {
            () = &mut until_stop => break,
            accepted = listener.accept(), if connections.len() < most => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(gateway.clone(), stream, closed.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(EXHAUSTED).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    // Those that the kernel has accepted already would be reset with the listener.
    while let Some(Ok((stream, _))) = listener.accept().now_or_never() {
        connections.spawn(connection(gateway.clone(), stream, closed.clone()));
    }
    drop(listener);
    closing.send_replace(true);
    let finished = async { while connections.join_next().await.is_some() {} };
    if gateway.clock.timeout(drain_timeout, finished).await.is_none() {
        tracing::warn!(open = connections.len(), "the drain took too long; closing what is open");
        connections.shutdown().await;
    }
}

/// One client's connection, to its end, or to the end of the request under way once
/// `closing` is true.
async fn connection(gateway: Arc<Gateway>, stream: TcpStream, mut closing: watch::Receiver<bool>) {
    let Ok(peer) = stream.peer_addr() else { return };
    // A token is a small write, and must not wait for the next.
    let _ = stream.set_nodelay(true);
    let answers = gateway.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answers.clone().handle(peer.ip(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let config = &gateway.config;
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.head_timeout)
        .max_header_size(config.head_bytes)
        .max_headers(config.head_fields)
        .max_buf_size(BUFFER.max(config.head_bytes))
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // An error means that the listener is gone altogether.
    let closes = async { drop(closing.wait_for(|closing| *closing).await) };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closes => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection broke");
    }
}

async fn serve_own(gateway: &Arc<Gateway>, control: Option<&Arc<Control>>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < OWN_CONNECTIONS => {
                let Ok((stream, _)) = accepted else {
                    tokio::time::sleep(EXHAUSTED).await;
                    continue;
                };
                let (gateway, control) = (gateway.clone(), control.cloned());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (gateway, control) = (gateway.clone(), control.clone());
                    async move {
                        Ok::<_, Infallible>(match (request.uri().path(), &control) {
                            (PATH, Some(control)) => operator(control, request).await,
                            (path, _) => own(&gateway, path),
                        })
                    }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service);
                connections.spawn(connection);
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

fn answer(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

/// What the operator says and asks. Whoever it is, only the operator's messages count.
async fn operator(control: &Control, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() == Method::GET {
        let number = |name: &str| -> u64 {
            let pairs = request.uri().query().unwrap_or_default().split('&');
            let mut values = pairs.filter_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            values.next().and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        let wait = Duration::from_secs(number("wait"));
        return match control.known(number("after"), wait).await {
            Ok(message) => answer(StatusCode::OK, message),
            Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        };
    }
    let body = Limited::new(request.into_body(), TOLD_BYTES).collect();
    let Some(Ok(body)) = control.gateway().clock.timeout(TOLD_WITHIN, body).await else {
        return answer(StatusCode::BAD_REQUEST, "the body is too long, or did not arrive\n");
    };
    match control.told(&body.to_bytes()) {
        Ok(()) => answer(StatusCode::NO_CONTENT, ""),
        Err(error) => answer(StatusCode::CONFLICT, format!("{error}\n")),
    }
}

/// What the second port answers to others.
fn own(gateway: &Gateway, path: &str) -> Response<Full<Bytes>> {
    match path {
        "/healthz" => answer(StatusCode::OK, "ok\n"),
        // Not whether a replica is ready: a service that wakes from zero must be reachable.
        "/readyz" if gateway.draining.load(Ordering::Relaxed) => {
            answer(StatusCode::SERVICE_UNAVAILABLE, "draining\n")
        }
        "/readyz" => answer(StatusCode::OK, "ok\n"),
        "/metrics" => {
            let mut response = answer(StatusCode::OK, gateway.metrics.text());
            let kind = HeaderValue::from_static(CONTENT_TYPE);
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        _ => answer(
            StatusCode::NOT_FOUND,
            format!("{path} is not served here; there are /healthz, /readyz and /metrics\n"),
        ),
    }
}
