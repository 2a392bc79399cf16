//! What the operator answers by HTTP.
//!
//! | module | answers |
//! |---|---|
//! | [`health`] | `/healthz`, `/readyz` |
//! | [`metrics`] | `/metrics` |
//! | [`offers`], [`explain`], [`costs`] | `/api/v1/offers`, `/api/v1/explain/…`, `/api/v1/costs` |
//! | [`logs`] | `/api/v1/logs/…` |
//! | [`auth`] | nothing: **who may see what** |
//!
//! Offers and decisions are known to the leader alone; a replica that stands by says so (503).

pub mod auth;
mod costs;
mod explain;
mod health;
mod logs;
mod metrics;
mod offers;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderValue, StatusCode, header};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::workload::OwnerKind;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::cluster::Operator;
use crate::cluster::operate::Queues;
use auth::Reviews;

/// Connections at once.
const CONNECTIONS: usize = 256;
/// From a connection's begin to its request's last header.
const HEAD: Duration = Duration::from_secs(10);
/// How long to leave the listener alone when there are no more file descriptors.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// What handlers look at.
struct Api {
    operator: Arc<Operator>,
    queues: Queues,
    reviews: Reviews,
}

impl Api {
    /// The operator, where it knows offers and money.
    fn leading(&self) -> Result<&Operator, Refusal> {
        match self.operator.health.has_begun() {
            true => Ok(&self.operator),
            false => Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "this replica stands by, or has only just begun; ask the one that leads (the Lease petaflop-operator names it), or again in some seconds",
            )),
        }
    }

    fn router(operator: Arc<Operator>, queues: Queues) -> Router {
        let reviews = Reviews::new(operator.client.clone(), operator.clock.clone());
        Router::new()
            .route("/healthz", get(health::healthz))
            .route("/readyz", get(health::readyz))
            .route("/metrics", get(metrics::answer))
            .route("/api/v1/offers", get(offers::answer))
            .route("/api/v1/costs", get(costs::answer))
            .route("/api/v1/explain/{namespace}/{kind}/{name}", get(explain::answer))
            .route("/api/v1/logs/{namespace}/{kind}/{name}", get(logs::answer))
            .fallback(|uri: http::Uri| async move {
                Refusal::new(StatusCode::NOT_FOUND, format!("{} is not served here", uri.path()))
            })
            .with_state(Arc::new(Self { operator, queues, reviews }))
    }
}

/// Answers until it is dropped, and every connection with it.
pub(crate) async fn serve(operator: Arc<Operator>, queues: Queues, listener: TcpListener) {
    let clock = operator.clock.clone();
    accept(&clock, Api::router(operator, queues), listener, CONNECTIONS).await;
}

/// Answers so many connections at once until it is dropped, and every connection with it.
pub(crate) async fn accept(clock: &Clock, router: Router, listener: TcpListener, most: usize) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < most => match accepted {
                Ok((stream, _)) => { connections.spawn(connection(router.clone(), stream)); }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    clock.sleep(EXHAUSTED).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(router: Router, stream: TcpStream) {
    // What is followed comes in small pieces.
    let _ = stream.set_nodelay(true);
    let ended = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

/// The kind that a part of a path names: as kubectl takes it.
fn kind_of(text: &str) -> Result<OwnerKind, Refusal> {
    match text {
        "trainingjobs" | "trainingjob" | "trj" => Ok(OwnerKind::TrainingJob),
        "inferenceservices" | "inferenceservice" | "infs" => Ok(OwnerKind::InferenceService),
        _ => Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            format!("expected trainingjobs or inferenceservices, found {text:?}"),
        )),
    }
}

/// Why a request gets no answer: a status, and what to do about it.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl From<QueryRejection> for Refusal {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(StatusCode::BAD_REQUEST, rejection.body_text())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { status, message } = self;
        let body = json!({ "error": { "status": status.as_u16(), "message": message } });
        let mut response = (status, Json(body)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}
