//! Where agents call that nobody can dial: `POST /v1/hello` and `POST /v1/rpc` (`petaflop_agent_api::poll`).
//!
//! Strangers can reach it. Whatever is not of an agent that this process talks to gets 404, empty, and its
//! connection is closed; so does everybody at a replica that stands by, and the agent tries again. How much
//! is read, for how long and of how many at once is bounded before anything is looked at.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::{HeaderValue, StatusCode, header};

use super::Agents;
use super::door::Answer;

/// Connections at once. An agent has one.
pub(crate) const CONNECTIONS: usize = 1024;
/// Longest body. A hello is one message of at most 64 KiB; what is asked for here has short answers.
const LONGEST: usize = 128 << 10;
/// How long a body may take.
const READ: Duration = Duration::from_secs(10);
/// How long a call waits for something to be said to it: less than proxies wait.
const HOLD: Duration = Duration::from_secs(30);

/// What is served.
pub(crate) fn router(agents: &Agents) -> Router {
    Router::new()
        .route("/v1/hello", post(hello))
        .route("/v1/rpc", post(rpc))
        .fallback(|| async { nobody() })
        .method_not_allowed_fallback(|| async { nobody() })
        .with_state(agents.clone())
}

async fn hello(State(agents): State<Agents>, body: Body) -> Response {
    let Some(message) = read(body).await else { return nobody() };
    match agents.hello(message) {
        Some(answer) => match said(answer).await {
            Some(welcome) => welcome.into_response(),
            None => nobody(),
        },
        None => nobody(),
    }
}

async fn rpc(State(agents): State<Agents>, body: Body) -> Response {
    let Some(body) = read(body).await else { return nobody() };
    match agents.poll(&body) {
        Some(answer) => match said(answer).await {
            Some(request) => request.into_response(),
            None => StatusCode::NO_CONTENT.into_response(),
        },
        None => nobody(),
    }
}

async fn read(body: Body) -> Option<Vec<u8>> {
    let bytes = tokio::time::timeout(READ, to_bytes(body, LONGEST)).await.ok()?.ok()?;
    Some(bytes.into())
}

async fn said(answer: Answer) -> Option<Vec<u8>> {
    tokio::time::timeout(HOLD, answer).await.ok()?.ok()
}

fn nobody() -> Response {
    let close = (header::CONNECTION, HeaderValue::from_static("close"));
    (StatusCode::NOT_FOUND, [close]).into_response()
}
