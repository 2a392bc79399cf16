//! The operator calls: HTTP/1.1 on a port of the machine. What is said is encrypted
//! end to end, so whoever else reaches the port learns and changes nothing.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use petaflop_agent_api::session::BODY_LIMIT;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::session::{Rejected, Session};

/// Connections at once; others wait.
const CONNECTIONS: usize = 16;
/// Bytes of a request at most; a welcome may hold files and be as long as a body can be.
const REQUEST_BYTES: usize = 1 << 17;
/// For a request's head, and then for its body.
const READ_LIMIT: Duration = Duration::from_secs(30);

/// Serves until it is dropped.
pub(crate) async fn serve(listener: TcpListener, session: Arc<Session>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let session = session.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let session = session.clone();
                async move { Ok::<_, Infallible>(answer(&session, request).await) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(READ_LIMIT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(permit);
        });
    }
}

async fn answer(session: &Session, request: Request<Incoming>) -> Response<Full<Bytes>> {
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
