//! What the API server's answers mean: to a launch, and to everything else.

use std::time::Duration;

use kube::core::Status;
use petaflop_arbiter::claim::Refusal;

use crate::error::{LaunchError, ProviderError, refused};

/// How long to leave the server alone where it does not say.
const PAUSE: Duration = Duration::from_secs(5);

/// What a failed POST of a Pod means; `None` where a Pod of that name is there already.
///
/// The server answers 4xx before anything is stored; after 5xx, or none at all, the Pod may exist.
pub(super) fn of_launch(error: &kube::Error) -> Option<LaunchError> {
    let kube::Error::Api(status) = error else {
        return Some(match before_sending(error) {
            true => refused(Refusal::Unauthorized, error.to_string()),
            false => LaunchError::Ambiguous { detail: error.to_string() },
        });
    };
    let detail = status.message.clone();
    let kind = match status.code {
        409 if status.reason == "AlreadyExists" => return None,
        // Not the Pod but the quota's own record was changed by another meanwhile.
        409 => Refusal::Transient,
        401 => Refusal::Unauthorized,
        403 => forbidden(status),
        429 => Refusal::RateLimited,
        // A time-out says nothing, whatever its class.
        400..=407 | 410..=499 => Refusal::Invalid,
        _ => return Some(LaunchError::Ambiguous { detail }),
    };
    Some(refused(kind, detail))
}

/// 403 is said by authorisation and by admission alike; only the words differ.
fn forbidden(status: &Status) -> Refusal {
    let Status { message, .. } = status;
    if message.contains("exceeded quota") {
        Refusal::Quota
    } else if message.contains("status unknown for quota") {
        // A quota so new that nobody has counted yet.
        Refusal::Transient
    } else if message.contains("is forbidden: User ") {
        Refusal::Unauthorized
    } else {
        // Pod security, limit ranges, a namespace that is being deleted, policies.
        Refusal::Invalid
    }
}

/// Whether the request cannot have left: there were no credentials to sign it with.
fn before_sending(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Auth(_))
}

/// What a failed call that buys nothing means.
pub(super) fn of_call(provider: &str, what: &str, error: &kube::Error) -> ProviderError {
    let provider = provider.to_owned();
    let detail = format!("{what}: {error}");
    match error {
        kube::Error::Api(status) => match status.code {
            401 | 403 => ProviderError::Unauthorized { provider, detail: status.message.clone() },
            429 => {
                let seconds = status.details.as_ref().map(|details| details.retry_after_seconds);
                let wait = seconds.filter(|s| *s > 0).map(|s| Duration::from_secs(u64::from(s)));
                ProviderError::RateLimited { provider, wait: wait.unwrap_or(PAUSE) }
            }
            _ => ProviderError::Unreachable { provider, detail },
        },
        kube::Error::Auth(_) => ProviderError::Unauthorized { provider, detail },
        _ => ProviderError::Unreachable { provider, detail },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(code: u16, reason: &str, message: &str) -> kube::Error {
        kube::Error::Api(Status::failure(message, reason).with_code(code).boxed())
    }

    #[test]
    fn each_answer_to_a_launch_is_a_no_or_a_doubt() {
        // The words are the API server's own (1.36).
        for (code, reason, message, kind) in [
            (
                403,
                "Forbidden",
                r#"pods "p" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1"#,
                Some(Refusal::Quota),
            ),
            (
                403,
                "Forbidden",
                r#"pods is forbidden: User "system:serviceaccount:a:b" cannot create resource "pods" in API group "" in the namespace "n""#,
                Some(Refusal::Unauthorized),
            ),
            (
                403,
                "Forbidden",
                r#"pods "p" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true"#,
                Some(Refusal::Invalid),
            ),
            (
                403,
                "Forbidden",
                r#"pods "p" is forbidden: unable to create new content in namespace n because it is being terminated"#,
                Some(Refusal::Invalid),
            ),
            (
                403,
                "Forbidden",
                r#"pods "p" is forbidden: error looking up service account n/x: serviceaccount "x" not found"#,
                Some(Refusal::Invalid),
            ),
            (401, "Unauthorized", "Unauthorized", Some(Refusal::Unauthorized)),
            (404, "NotFound", r#"namespaces "n" not found"#, Some(Refusal::Invalid)),
            (
                409,
                "Conflict",
                r#"Operation cannot be fulfilled on resourcequotas "q": the object has been modified"#,
                Some(Refusal::Transient),
            ),
            (
                422,
                "Invalid",
                r#"Pod "p" is invalid: spec.containers[0].image: Required value"#,
                Some(Refusal::Invalid),
            ),
            (429, "TooManyRequests", "too many requests", Some(Refusal::RateLimited)),
            (500, "InternalError", "etcdserver: leader changed", None),
            (
                503,
                "ServiceUnavailable",
                "the server is currently unable to handle the request",
                None,
            ),
            (408, "Timeout", "timeout", None),
            (504, "Timeout", "request did not complete within the requested timeout", None),
        ] {
            match (of_launch(&api(code, reason, message)), kind) {
                (Some(LaunchError::Refused { kind, detail }), Some(expected)) => {
                    assert_eq!(kind, expected, "{message}");
                    assert_eq!(detail, message);
                }
                (Some(LaunchError::Ambiguous { .. }), None) => {}
                (other, _) => panic!("{message}: {other:?}"),
            }
        }
        assert_eq!(of_launch(&api(409, "AlreadyExists", r#"pods "p" already exists"#)), None);
        let cut = kube::Error::Service("connection reset".into());
        assert!(matches!(of_launch(&cut), Some(LaunchError::Ambiguous { .. })));
    }

    #[test]
    fn each_failed_call_says_when_to_try_again() {
        let call = |code| of_call("nodes", "list", &api(code, "", "words"));
        assert!(matches!(call(403), ProviderError::Unauthorized { .. }));
        assert!(matches!(call(429), ProviderError::RateLimited { wait: PAUSE, .. }));
        assert!(matches!(call(410), ProviderError::Unreachable { .. }));
        assert!(matches!(call(500), ProviderError::Unreachable { .. }));
    }
}
