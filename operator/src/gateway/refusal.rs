//! What the gateway answers by itself: OpenAI's error object, one variant a reason.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;

/// Why a request gets no answer of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The head contradicts itself or lacks what HTTP/1.1 asks for.
    Malformed(&'static str),
    /// A method that makes no sense here.
    Method,
    /// The body is larger than this many bytes.
    TooLarge(u64),
    /// The body stopped arriving.
    TooSlow,
    /// The body ended before its announced end.
    Incomplete,
    /// As many requests wait as there is room for.
    Full,
    /// There is none, and none is going to come.
    Off,
    /// None came within this many seconds.
    NoReplica(u64),
    /// Every try failed; the last with this.
    Failed(String),
    /// The replica was silent for this many seconds.
    Silent(u64),
}

impl Refusal {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) | Self::Incomplete => StatusCode::BAD_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Full | Self::Off | Self::NoReplica(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Failed(_) => StatusCode::BAD_GATEWAY,
            Self::Silent(_) => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// A word for programs.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed_request",
            Self::Method => "wrong_method",
            Self::TooLarge(_) => "body_too_large",
            Self::TooSlow => "body_too_slow",
            Self::Incomplete => "body_incomplete",
            Self::Full => "queue_full",
            Self::Off => "no_replica",
            Self::NoReplica(_) => "no_replica",
            Self::Failed(_) => "replica_failed",
            Self::Silent(_) => "replica_silent",
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Malformed(why) => format!("the request is malformed: {why}"),
            Self::Method => "this method is not passed on".to_owned(),
            Self::TooLarge(limit) => {
                format!("the request's body is larger than the {limit} bytes passed on here")
            }
            Self::TooSlow => "the request's body did not arrive in time".to_owned(),
            Self::Incomplete => "the request's body ended before its announced end".to_owned(),
            Self::Full => {
                "too many requests wait for a replica already; try again in a moment".to_owned()
            }
            Self::Off => {
                "the service has no replicas: it is suspended, or scaled to zero".to_owned()
            }
            Self::NoReplica(seconds) => {
                format!("no replica became ready within {seconds} s; try again later")
            }
            Self::Failed(why) => format!("no replica could answer; the last try: {why}"),
            Self::Silent(seconds) => format!("the replica sent nothing for {seconds} s"),
        }
    }

    /// Seconds after which another try may succeed.
    fn retry_after(&self) -> Option<u32> {
        match self {
            Self::Full | Self::Failed(_) => Some(1),
            Self::Off | Self::NoReplica(_) => Some(10),
            Self::Malformed(_)
            | Self::Method
            | Self::TooLarge(_)
            | Self::TooSlow
            | Self::Incomplete
            | Self::Silent(_) => None,
        }
    }

    /// The whole answer.
    pub(super) fn response(&self) -> Response<Full<Bytes>> {
        let status = self.status();
        let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
        let body = serde_json::json!({
            "error": {"message": self.message(), "type": kind, "param": null, "code": self.code()}
        });
        let mut response = Response::new(Full::from(body.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        match self {
            // What is left of the body would be read as the next request.
            Self::Malformed(_)
            | Self::Method
            | Self::TooLarge(_)
            | Self::TooSlow
            | Self::Incomplete => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Self::Full | Self::Off | Self::NoReplica(_) | Self::Failed(_) | Self::Silent(_) => {}
        }
        response
    }
}
