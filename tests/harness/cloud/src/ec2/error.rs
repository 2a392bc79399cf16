//! What is refused, in EC2's words where they were seen.

use std::fmt::Display;

/// A refusal: HTTP status, code, words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Error {
    pub(crate) status: u16,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl Error {
    pub(crate) fn new(status: u16, code: &'static str, message: impl Display) -> Self {
        Self { status, code, message: message.to_string() }
    }

    /// A client's mistake.
    pub(crate) fn client(code: &'static str, message: impl Display) -> Self {
        Self::new(400, code, message)
    }

    pub(crate) fn missing(name: &str) -> Self {
        Self::client("MissingParameter", format!("The request must contain the parameter {name}"))
    }

    pub(crate) fn value(value: &str, name: &str) -> Self {
        Self::client("InvalidParameterValue", format!("Invalid value '{value}' for {name}."))
    }

    pub(crate) fn filter(name: &str) -> Self {
        Self::client("InvalidParameterValue", format!("The filter '{name}' is invalid"))
    }

    pub(crate) fn unknown_parameter(name: &str) -> Self {
        Self::client("UnknownParameter", format!("The parameter {name} is not recognized"))
    }

    pub(crate) fn combination(message: impl Display) -> Self {
        Self::client("InvalidParameterCombination", message)
    }

    /// The box's own: nobody shall take this for an answer of EC2's.
    pub(crate) fn not_served(what: &str) -> Self {
        Self::new(501, "NotServedByTheBox", format!("the cloud in a box does not serve {what}"))
    }

    /// Everything was in order, and only that was asked.
    pub(crate) fn dry_run() -> Self {
        Self::new(412, "DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
    }

    pub(crate) fn unauthorized(action: &str) -> Self {
        let message = format!(
            "You are not authorized to perform this operation. The caller is not authorized to \
             perform: {action} because no identity-based policy allows the {action} action."
        );
        Self::new(403, "UnauthorizedOperation", message)
    }

    pub(crate) fn auth_failure() -> Self {
        let message = "AWS was not able to validate the provided access credentials";
        Self::new(401, "AuthFailure", message)
    }

    pub(crate) fn throttled() -> Self {
        Self::new(503, "RequestLimitExceeded", "Request limit exceeded.")
    }

    pub(crate) fn internal() -> Self {
        Self::new(500, "InternalError", "An internal error has occurred")
    }

    pub(crate) fn unavailable() -> Self {
        Self::new(503, "Unavailable", "The service is unavailable. Please try again shortly.")
    }

    /// Ids that are not there; one is enough to refuse all.
    pub(crate) fn not_found(code: &'static str, what: &str, ids: &[String]) -> Self {
        let message = match ids {
            [id] => format!("The {what} ID '{id}' does not exist"),
            ids => format!("The {what} IDs '{}' do not exist", ids.join(", ")),
        };
        Self::client(code, message)
    }
}
