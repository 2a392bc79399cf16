//! What is asked, and what is answered: values, so that all between them is a function.

use serde_json::{Value, json};

use super::keys::Scope;
use crate::faults::Fault;

/// A request to REST v2 that came through authentication, quota and the limit of its length.
pub(crate) struct Ask<'a> {
    pub(crate) method: &'a str,
    /// Below `/v2`.
    pub(crate) path: Vec<&'a str>,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) body: &'a [u8],
    pub(crate) scope: &'a Scope,
    pub(crate) faults: &'a [Fault],
}

impl Ask<'_> {
    /// A parameter of the query.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A parameter that is a list with commas, empty where it is not there.
    pub(crate) fn list(&self, name: &str) -> Vec<&str> {
        let text = self.parameter(name).unwrap_or_default();
        text.split(',').filter(|part| !part.is_empty()).collect()
    }

    pub(crate) fn shows(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }
}

/// An answer before it is written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// `None`: no body.
    pub(crate) body: Option<Value>,
    /// Seconds after which to come again.
    pub(crate) retry_after: Option<u32>,
    /// The body is `application/problem+json`.
    pub(crate) problem: bool,
}

impl Answer {
    pub(crate) fn ok(body: Value) -> Self {
        Self { status: 200, body: Some(body), retry_after: None, problem: false }
    }

    pub(crate) fn created(body: Value) -> Self {
        Self { status: 201, ..Self::ok(body) }
    }

    pub(crate) fn nothing() -> Self {
        Self { status: 204, body: None, retry_after: None, problem: false }
    }

    /// An error as RFC 9457 has it.
    pub(crate) fn problem(status: u16, detail: &str) -> Self {
        let body = json!({ "title": title(status), "status": status, "detail": detail });
        Self { status, body: Some(body), retry_after: None, problem: true }
    }

    /// A body that is not what the contract says, with each of its errors.
    pub(crate) fn contract(errors: &[String]) -> Self {
        let mut answer = Self::problem(422, "The request does not match the contract.");
        if let Some(body) = &mut answer.body {
            body["errors"] = json!(errors);
        }
        answer
    }
}

fn title(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        410 => "Gone",
        413 => "Content Too Large",
        422 => "Unprocessable Entity",
        429 => "Too Many Requests",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}
