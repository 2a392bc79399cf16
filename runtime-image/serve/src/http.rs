//! The HTTP surface: routes, reading bodies within bounds, health and metrics.
//! How an answer is written lies in `answer`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, MatchedPath, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::StreamExt as _;
use petaflop_plan::Numerics;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;

use crate::answer::{self, Endpoint};
use crate::api::{self, Ask};
use crate::error::ApiError;
use crate::key::Key;
use crate::metrics::{self, Metrics};
use crate::prompt::Prompts;
use crate::queue::{Job, Phase, Queue};

/// A body that takes longer to arrive is given up, so that slow senders cannot
/// hold every ticket.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// What the handlers share.
pub(crate) struct App {
    /// The model's name in requests and answers.
    pub(crate) name: String,
    /// Seconds since 1970 when this server came up.
    pub(crate) created: u64,
    /// Tokens of prompt and answer together at most.
    pub(crate) context: usize,
    /// Whose bits the answers have.
    pub(crate) numerics: Numerics,
    /// Bytes of one request's body at most.
    pub(crate) body_limit: usize,
    /// One for each request in flight, from before its body is read until its
    /// last byte is sent. Together with `body_limit` and `context` they bound
    /// what requests can make the server hold.
    pub(crate) tickets: Arc<Semaphore>,
    pub(crate) prompts: Prompts,
    pub(crate) queue: Arc<Queue>,
    pub(crate) metrics: Arc<Metrics>,
    /// What every request must carry, if anything.
    pub(crate) key: Option<Key>,
}

/// Every route.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/health", get(health))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics_text))
        .method_not_allowed_fallback(async |request: Request| {
            ApiError::wrong_method(request.uri().path())
        })
        .fallback(async |request: Request| ApiError::unknown_path(request.uri().path()))
        .layer(middleware::from_fn_with_state(app.clone(), admit))
        // Around it: what is refused is counted, too.
        .layer(middleware::from_fn_with_state(app.clone(), count))
        // Bodies are read by `read`, which has its own limit and message.
        .layer(DefaultBodyLimit::disable())
        .with_state(app)
}

/// Answers only who has the key. Health and metrics are no exception: whoever watches has it.
async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match &app.key {
        Some(key) if !key.is_in(request.headers()) => ApiError::no_key().into_response(),
        _ => next.run(request).await,
    }
}

/// Counts each answer by path and status code.
async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let path = match request.extensions().get::<MatchedPath>() {
        Some(path) => path.as_str().to_owned(),
        // One label for all unknown paths, or a client could make labels without end.
        None => "other".to_owned(),
    };
    let response = next.run(request).await;
    app.metrics.answered(path, response.status().as_u16());
    response
}

async fn completions(State(app): State<Arc<App>>, request: Request) -> Response {
    complete(&app, Endpoint::Completion, request).await.unwrap_or_else(IntoResponse::into_response)
}

async fn chat_completions(State(app): State<Arc<App>>, request: Request) -> Response {
    complete(&app, Endpoint::Chat, request).await.unwrap_or_else(IntoResponse::into_response)
}

async fn complete(
    app: &Arc<App>,
    endpoint: Endpoint,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    app.queue.open()?;
    let ticket = app
        .tickets
        .clone()
        .try_acquire_owned()
        .map_err(|_| ApiError::queue_full(app.queue.waiting()))?;
    let ticket = Arc::new(ticket);
    let body = read(request.into_body(), app.body_limit).await?;

    // Parsing and tokenising a large body takes long enough to be kept off the
    // threads that all connections share.
    let prepared = tokio::task::spawn_blocking({
        let app = app.clone();
        move || prepare(&app, endpoint, &body)
    })
    .await;
    let (ask, prompt, max_tokens) = match prepared {
        Ok(result) => result?,
        Err(_) => return Err(ApiError::engine_failed("reading the request failed")),
    };

    let (events, receiver) = mpsc::unbounded_channel();
    app.queue.push(Job {
        prompt,
        max_tokens,
        sampling: ask.sampling,
        stop: ask.stop,
        arrived,
        events,
        ticket: ticket.clone(),
    })?;
    answer::respond(endpoint, &app.name, ask.stream, receiver, ticket).await
}

/// From the body's bytes to what the engine needs: the request, its prompt's
/// tokens, and how many tokens the answer may have.
fn prepare(app: &App, endpoint: Endpoint, body: &[u8]) -> Result<(Ask, Vec<u32>, usize), ApiError> {
    let seed = answer::random();
    let ask = match endpoint {
        Endpoint::Completion => api::completion(body, &app.name, seed)?,
        Endpoint::Chat => api::chat(body, &app.name, seed)?,
    };
    let tokens = app.prompts.tokens(&ask.prompt)?;
    let param = match endpoint {
        Endpoint::Completion => "prompt",
        Endpoint::Chat => "messages",
    };
    let left = app.context.saturating_sub(tokens.len());
    let wanted = ask.max_tokens.unwrap_or(left.max(1));
    if wanted > left {
        return Err(ApiError::too_long(param, app.context, tokens.len(), wanted));
    }
    Ok((ask, tokens, wanted))
}

/// The whole body, unless it is too large or too slow. What exceeds the limit is
/// read on for a while and thrown away: a client that still writes when its
/// connection is closed would never see the answer.
async fn read(body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let reading = async {
        let mut parts = body.into_data_stream();
        let (mut bytes, mut seen) = (Vec::new(), 0);
        while let Some(part) = parts.next().await {
            let part = part.map_err(|_| ApiError::malformed("the body broke off"))?;
            seen += part.len();
            if seen <= limit {
                bytes.extend_from_slice(&part);
            } else if seen > 4 * limit {
                break;
            }
        }
        if seen > limit {
            return Err(ApiError::body_too_large(limit));
        }
        Ok(bytes)
    };
    tokio::time::timeout(BODY_TIMEOUT, reading)
        .await
        .unwrap_or_else(|_| Err(ApiError::body_too_slow(BODY_TIMEOUT.as_secs())))
}

fn model_card(app: &App) -> serde_json::Value {
    json!({
        "id": app.name,
        "object": "model",
        "created": app.created,
        "owned_by": "petaflop",
        "max_model_len": app.context,
        "numerics": app.numerics,
    })
}

async fn models(State(app): State<Arc<App>>) -> Response {
    Json(json!({"object": "list", "data": [model_card(&app)]})).into_response()
}

async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Response {
    if name == app.name {
        Json(model_card(&app)).into_response()
    } else {
        ApiError::unknown_model(&name, &app.name).into_response()
    }
}

/// Whether the process is any good: red only when the engine is dead.
async fn health(State(app): State<Arc<App>>) -> Response {
    match app.queue.phase() {
        Phase::Dead(why) => status(StatusCode::SERVICE_UNAVAILABLE, "dead", Some(&why)),
        Phase::Serving => status(StatusCode::OK, "serving", None),
        Phase::Draining | Phase::Stopping => status(StatusCode::OK, "draining", None),
    }
}

/// Whether new requests should be sent here.
async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.queue.phase() {
        Phase::Serving => status(StatusCode::OK, "ready", None),
        Phase::Draining | Phase::Stopping => {
            status(StatusCode::SERVICE_UNAVAILABLE, "draining", None)
        }
        Phase::Dead(why) => status(StatusCode::SERVICE_UNAVAILABLE, "dead", Some(&why)),
    }
}

fn status(code: StatusCode, word: &str, why: Option<&str>) -> Response {
    (code, Json(json!({"status": word, "reason": why}))).into_response()
}

async fn metrics_text(State(app): State<Arc<App>>) -> Response {
    let waiting = i64::try_from(app.queue.waiting()).unwrap_or(i64::MAX);
    app.metrics.queue_depth.set(waiting);
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], app.metrics.text()).into_response()
}

#[cfg(test)]
mod tests {
    use petaflop_model::chat::{ChatTemplate, DEFAULT_TEMPLATE};
    use petaflop_model::tokenizer::Tokenizer;

    use super::*;

    fn app() -> Arc<App> {
        let text = include_str!("http.rs");
        let tokenizer = Tokenizer::train_bpe(text.lines(), 300).expect("merges enough");
        let template = ChatTemplate::new(DEFAULT_TEMPLATE).expect("it compiles");
        Arc::new(App {
            name: "tiny".into(),
            created: 0,
            context: 64,
            numerics: Numerics::Exact,
            body_limit: 1 << 10,
            tickets: Arc::new(Semaphore::new(1)),
            prompts: Prompts::new(tokenizer, template, 300),
            queue: Arc::new(Queue::new()),
            metrics: Arc::new(Metrics::new(1, 0)),
            key: None,
        })
    }

    fn ask() -> Request {
        Request::new(Body::from(r#"{"prompt": "x", "max_tokens": 2}"#))
    }

    #[tokio::test]
    async fn a_dead_engine_turns_health_red_and_answers_at_once() {
        let app = app();
        // One that waits when it happens, and one that comes later.
        let waiting = tokio::spawn({
            let app = app.clone();
            async move { complete(&app, Endpoint::Completion, ask()).await }
        });
        while app.queue.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(health(State(app.clone())).await.status(), 200);
        app.queue.die("panic: a test");
        let failed = waiting.await.expect("no panic").expect_err("it fails");
        assert_eq!((failed.status.as_u16(), failed.code), (500, Some("engine_failed")));
        let refused = complete(&app, Endpoint::Completion, ask()).await.expect_err("dead");
        assert_eq!((refused.status.as_u16(), refused.code), (503, Some("engine_dead")));
        for red in [health(State(app.clone())).await, ready(State(app.clone())).await] {
            assert_eq!(red.status(), 503);
        }
        // Shutting down does not hide it.
        app.queue.drain();
        assert_eq!(health(State(app)).await.status(), 503);
    }

    #[tokio::test]
    async fn a_ticket_is_held_until_the_answer_is_sent() {
        let app = app();
        let first = tokio::spawn({
            let app = app.clone();
            async move { complete(&app, Endpoint::Completion, ask()).await }
        });
        while app.queue.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        let refused = complete(&app, Endpoint::Completion, ask()).await.expect_err("no ticket");
        assert_eq!((refused.status.as_u16(), refused.retry_after), (429, Some(1)));
        first.abort();
        // The queue lets go of it when it next looks.
        let _ = first.await;
        let looked = app.queue.next(false, Err::<(), Job>).expect("serving");
        assert_eq!(looked.abandoned, 1);
        assert_eq!(app.tickets.available_permits(), 1);
    }
}
