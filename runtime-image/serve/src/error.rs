//! What a client is told when its request cannot be answered: OpenAI's error
//! shape, one constructor for each kind of refusal.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::key;

/// A refused or failed request, as its client sees it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// Which field of the request is at fault, as a path: `messages[0].content`.
    pub(crate) param: Option<String>,
    /// A word for programs: `context_length_exceeded`.
    pub(crate) code: Option<&'static str>,
    pub(crate) message: String,
    /// Seconds after which another try may succeed.
    pub(crate) retry_after: Option<u32>,
}

/// The JSON form: `{"error": {"message", "type", "param", "code"}}`.
#[derive(Serialize)]
pub(crate) struct ErrorBody<'a> {
    error: ErrorFields<'a>,
}

#[derive(Serialize)]
struct ErrorFields<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        ApiError { status, param: None, code: None, message: message.into(), retry_after: None }
    }

    fn with_code(self, code: &'static str) -> Self {
        ApiError { code: Some(code), ..self }
    }

    fn retry_after(self, seconds: u32) -> Self {
        ApiError { retry_after: Some(seconds), ..self }
    }

    /// 400: the body is not JSON, or not a JSON object.
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message).with_code("malformed_json")
    }

    /// 400: a field has a value that cannot be used.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError {
            param: Some(param.into()),
            ..Self::new(StatusCode::BAD_REQUEST, message).with_code("invalid_value")
        }
    }

    /// 400: a field that this server does not act on. Never ignored in silence:
    /// an answer without what was asked for looks like one with it.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError {
            param: Some(param.into()),
            ..Self::new(StatusCode::BAD_REQUEST, message).with_code("unsupported_parameter")
        }
    }

    /// 400: prompt and answer do not fit into the context.
    pub(crate) fn too_long(
        param: &'static str,
        context: usize,
        prompt: usize,
        answer: usize,
    ) -> Self {
        let asked = prompt + answer;
        ApiError {
            param: Some(param.into()),
            ..Self::new(
                StatusCode::BAD_REQUEST,
                format!(
                    "this model's context is {context} tokens, but {asked} were asked for \
                     ({prompt} in the prompt, {answer} for the answer); shorten the prompt or \
                     lower max_tokens"
                ),
            )
            .with_code("context_length_exceeded")
        }
    }

    /// 401: the request does not carry the server's key.
    pub(crate) fn no_key() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "this is one replica of a service, and answers the service's gateways alone; ask the \
             service's address",
        )
        .with_code("no_replica_key")
    }

    /// 404: no such model here.
    pub(crate) fn unknown_model(asked: &str, served: &str) -> Self {
        ApiError {
            param: Some("model".into()),
            ..Self::new(
                StatusCode::NOT_FOUND,
                format!("the model {asked:?} is not served here; this server has {served:?}"),
            )
            .with_code("model_not_found")
        }
    }

    /// 404: no such path.
    pub(crate) fn unknown_path(path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            format!(
                "{path} is not served here; there are /v1/models, /v1/completions, \
                 /v1/chat/completions, /health, /health/ready and /metrics"
            ),
        )
        .with_code("unknown_url")
    }

    /// 405: the path exists, the method does not.
    pub(crate) fn wrong_method(path: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            format!(
                "{path} does not take this method; completions are asked for by POST, the rest \
                 by GET"
            ),
        )
    }

    /// 413: the body is larger than the server reads.
    pub(crate) fn body_too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the request's body is larger than the {limit} bytes this server reads"),
        )
        .with_code("body_too_large")
    }

    /// 408: the body did not arrive in time.
    pub(crate) fn body_too_slow(seconds: u64) -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the request's body did not arrive within {seconds} s"),
        )
    }

    /// 429: as many requests are waiting as the plan has memory for.
    pub(crate) fn queue_full(waiting: usize) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            format!("{waiting} requests are waiting already; try again in a moment"),
        )
        .with_code("queue_full")
        .retry_after(1)
    }

    /// 503: the server finishes what it has and takes nothing new.
    pub(crate) fn draining() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "this server is shutting down and takes no new requests",
        )
        .with_code("draining")
        .retry_after(5)
    }

    /// 503: the engine stopped earlier; the process has to be started again.
    pub(crate) fn engine_dead(why: &str) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the engine has stopped ({why}); the server has to be started again"),
        )
        .with_code("engine_dead")
    }

    /// 500: the engine failed while this request was in it.
    pub(crate) fn engine_failed(why: &str) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the engine failed while it worked on this request: {why}"),
        )
        .with_code("engine_failed")
    }

    /// 503: the grace period of a shutdown ended before the answer did.
    pub(crate) fn cut_off() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "this server shut down before the answer was complete",
        )
        .with_code("draining")
        .retry_after(5)
    }

    /// The JSON form.
    pub(crate) fn body(&self) -> ErrorBody<'_> {
        let r#type = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            s if s.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        ErrorBody {
            error: ErrorFields {
                message: &self.message,
                r#type,
                param: self.param.as_deref(),
                code: self.code,
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let asks = HeaderValue::from(key::HEADER);
            response.headers_mut().insert(header::WWW_AUTHENTICATE, asks);
        }
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
