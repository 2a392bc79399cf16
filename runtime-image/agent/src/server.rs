//! The operator calls: HTTP/1.1 on a port of the machine. What is said is encrypted
//! end to end, so whoever else reaches the port learns and changes nothing. Gateways
//! call on the same port: see [`crate::relay`].

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use petaflop_agent_api::relay::{PATH, PROTOCOL};
use petaflop_agent_api::session::BODY_LIMIT;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::relay::{self, Relay};
use crate::session::{Rejected, Session};

/// Connections at once, streams of gateways not among them; others wait.
const CONNECTIONS: usize = 64;
/// Connections at once on which nothing was said yet. They take no place from the others.
const NEWCOMERS: usize = 64;
/// For a newcomer's first word.
const FIRST_WORD: Duration = Duration::from_secs(3);
/// Bytes of a request at most; a welcome may hold files and be as long as a body can be.
const REQUEST_BYTES: usize = 1 << 17;
/// For a request's head, and then for its body.
const READ_LIMIT: Duration = Duration::from_secs(30);
/// Whoever has said nothing for so long is asked whether it is still there, and given up after a minute more.
const ALIVE: Duration = Duration::from_secs(60);

/// Serves until it is dropped, and everything that it serves with it.
pub(crate) async fn serve(listener: TcpListener, session: Arc<Session>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let newcomers = Arc::new(Semaphore::new(NEWCOMERS));
    let streams = Arc::new(Semaphore::new(relay::STREAMS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(newcomer) = newcomers.clone().acquire_owned().await else {
            return;
        };
        let accepted = loop {
            tokio::select! {
                accepted = listener.accept() => break accepted,
                Some(_) = connections.join_next() => {}
            }
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let (session, streams, places) = (session.clone(), streams.clone(), places.clone());
        connections.spawn(async move {
            // Whoever says nothing holds up nobody who does.
            let first = tokio::time::timeout(FIRST_WORD, stream.peek(&mut [0])).await;
            if !matches!(first, Ok(Ok(1))) {
                return;
            }
            let Ok(place) = places.acquire_owned().await else {
                return;
            };
            drop(newcomer);
            let relay = connection(stream, &session, &streams).await;
            drop(place);
            if let Some(relay) = relay
                && let Err(error) = relay.run().await
            {
                tracing::debug!(%error, "a gateway's stream broke");
            }
        });
    }
}

/// Answers on one connection. Returns the stream that it has become, if it has.
async fn connection(
    stream: TcpStream,
    session: &Session,
    streams: &Arc<Semaphore>,
) -> Option<Relay> {
    // Small messages that others wait for.
    let _ = stream.set_nodelay(true);
    let alive = TcpKeepalive::new().with_time(ALIVE).with_interval(ALIVE / 4).with_retries(4);
    let _ = SockRef::from(&stream).set_tcp_keepalive(&alive);
    let agreement = Mutex::new(None);
    let agreed = &agreement;
    let service = service_fn(move |request: Request<Incoming>| async move {
        let (answer, relay) = answer(session, streams, request).await;
        if relay.is_some() {
            *agreed.lock().unwrap_or_else(PoisonError::into_inner) = relay;
        }
        Ok::<_, Infallible>(answer)
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_LIMIT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    let relay = agreement.into_inner().unwrap_or_else(PoisonError::into_inner);
    served.ok().and(relay)
}

type Answered = (Response<Full<Bytes>>, Option<Relay>);

async fn answer(
    session: &Session,
    streams: &Arc<Semaphore>,
    mut request: Request<Incoming>,
) -> Answered {
    if request.uri().path() != PATH {
        return (rpc(session, request).await, None);
    }
    let knock = request.headers().get(PROTOCOL).and_then(|knock| knock.to_str().ok());
    let Some(knock) = knock.map(str::to_owned) else {
        return (text(StatusCode::NOT_FOUND, "no such path here"), None);
    };
    let upgrade = hyper::upgrade::on(&mut request);
    match Relay::open(session, streams, &knock, upgrade).await {
        Ok((said, relay)) => {
            let mut response = Response::new(Full::default());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
            // Base64.
            if let Ok(said) = HeaderValue::try_from(said) {
                headers.insert(PROTOCOL, said);
            }
            (response, Some(relay))
        }
        Err(error) => (text(status(&error), &error.to_string()), None),
    }
}

async fn rpc(session: &Session, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let result = match (&parts.method, parts.uri.path()) {
        (&Method::GET, "/v1/hello") => session.hello(),
        (&Method::POST, "/v1/hello") if session.is_enrolled() => Err(Rejected::Enrolled),
        (&Method::POST, "/v1/hello") => match read(body, BODY_LIMIT).await {
            Ok(body) => session.welcome(&body).map(|()| Vec::new()),
            Err(status) => return text(status, "the body cannot be read"),
        },
        (&Method::POST, "/v1/rpc") => match read(body, REQUEST_BYTES).await {
            Ok(body) => session.call(&body).await,
            Err(status) => return text(status, "the body cannot be read"),
        },
        (_, "/v1/hello" | "/v1/rpc") => {
            return text(StatusCode::METHOD_NOT_ALLOWED, "no such method here");
        }
        _ => return text(StatusCode::NOT_FOUND, "no such path here"),
    };
    match result {
        Ok(body) => Response::new(Full::from(body)),
        Err(error) => text(status(&error), &error.to_string()),
    }
}

fn status(error: &Rejected) -> StatusCode {
    match error {
        Rejected::Enrolled | Rejected::NotEnrolled => StatusCode::CONFLICT,
        Rejected::Session(_) => StatusCode::FORBIDDEN,
        Rejected::Message(_) | Rejected::Lease(_) | Rejected::BadTask(_) => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        Rejected::NotServing | Rejected::Full => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn read(body: Incoming, limit: usize) -> Result<Bytes, StatusCode> {
    let read = tokio::time::timeout(READ_LIMIT, Limited::new(body, limit).collect()).await;
    match read {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => Err(StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => Err(StatusCode::REQUEST_TIMEOUT),
    }
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text.to_owned()));
    *response.status_mut() = status;
    response
}
