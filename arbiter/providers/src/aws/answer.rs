//! What AWS's errors mean: to a purchase, and to everything else. Pure.

use std::time::Duration;

use petaflop_arbiter::claim::Refusal;

use crate::error::{LaunchError, ProviderError, refused};

/// Longest part of somebody's words that is repeated.
const MOST_WORDS: usize = 600;

/// Why a call did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nothing was sent: too much was asked lately.
    Wait(Duration),
    /// Nothing was sent.
    NotSent(String),
    /// Nothing was sent: there are no keys, or none that can be used.
    NoKeys(String),
    /// No answer, or none that can be read: it may have been done.
    Lost(String),
    /// AWS says no, or does not know.
    Said(Said),
}

/// An error of AWS's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) status: u16,
    pub(super) code: String,
    pub(super) words: String,
    /// How long to stay away, where it was one call too many.
    pub(super) wait: Duration,
}

/// What a code means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// None to be had in this pool.
    NoCapacity,
    /// The spot price has risen above what we would pay.
    PriceRose,
    /// Virtual processors, instances or volumes: the account's limit.
    Quota,
    /// This zone does not have the type, or not with these options.
    Unsupported,
    /// No free address.
    SubnetFull,
    /// Too many calls.
    TooMany,
    /// Keys without the right, or an account that may not.
    NotAllowed,
    /// The account has no role for spot: on demand is not concerned.
    NoSpotRole,
    /// Keys that are none, or are over.
    BadKeys,
    /// The clock of this machine is off.
    ClockOff,
    /// The token is known with another request: what it made is there.
    Mismatch,
    /// No such thing, or not visible yet.
    Unknown,
    /// The request, or what it names, is at fault.
    Invalid,
    /// It may have been done, or may be done yet.
    Unclear,
}

impl Said {
    pub(super) fn means(&self) -> Meaning {
        let code = self.code.strip_prefix("Client.").unwrap_or(&self.code);
        let code = code.strip_prefix("Server.").unwrap_or(code);
        match code {
            "InsufficientInstanceCapacity"
            | "InsufficientCapacity"
            | "InsufficientHostCapacity"
            | "UnfulfillableCapacity"
            | "ReservationCapacityExceeded" => Meaning::NoCapacity,
            "SpotMaxPriceTooLow" => Meaning::PriceRose,
            "MaxSpotInstanceCountExceeded"
            | "VcpuLimitExceeded"
            | "InstanceLimitExceeded"
            | "MaxFleetCountExceeded"
            | "VolumeLimitExceeded"
            | "MaxIOPSLimitExceeded" => Meaning::Quota,
            "Unsupported"
            | "UnsupportedOperation"
            | "UnsupportedInstanceType"
            | "InstanceTypeNotSupported" => Meaning::Unsupported,
            "InsufficientFreeAddressesInSubnet" => Meaning::SubnetFull,
            "RequestLimitExceeded"
            | "Throttling"
            | "ThrottlingException"
            | "TooManyRequestsException"
            | "RequestThrottled"
            | "EC2ThrottledException" => Meaning::TooMany,
            "RequestExpired" | "RequestTimeTooSkewed" | "RequestInTheFuture" => Meaning::ClockOff,
            "AuthFailure" | "SignatureDoesNotMatch" | "InvalidSignatureException"
                if tells_of_the_clock(&self.words) =>
            {
                Meaning::ClockOff
            }
            "ExpiredToken"
            | "ExpiredTokenException"
            | "InvalidClientTokenId"
            | "UnrecognizedClientException"
            | "AuthFailure"
            | "SignatureDoesNotMatch"
            | "InvalidSignatureException"
            | "InvalidAccessKeyId"
            | "MissingAuthenticationToken" => Meaning::BadKeys,
            "UnauthorizedOperation"
            | "AccessDenied"
            | "AccessDeniedException"
            | "OptInRequired"
            | "PendingVerification"
            | "Blocked"
            | "InvalidPaymentInstrument" => Meaning::NotAllowed,
            "AuthFailure.ServiceLinkedRoleCreationNotPermitted" => Meaning::NoSpotRole,
            _ if code.starts_with("AuthFailure.") => Meaning::NotAllowed,
            "IdempotentParameterMismatch" => Meaning::Mismatch,
            _ if code.ends_with(".NotFound") || code == "ParameterNotFound" => Meaning::Unknown,
            // Known ones of AWS's own, and what a proxy in between says.
            "InternalError" | "InternalFailure" | "ServiceUnavailable" | "Unavailable" => {
                Meaning::Unclear
            }
            "" => Meaning::Unclear,
            _ if (400..500).contains(&self.status) => Meaning::Invalid,
            _ => Meaning::Unclear,
        }
    }

    /// Its words, and what a person can do about it.
    pub(super) fn told(&self) -> String {
        let mend = match self.means() {
            Meaning::NoSpotRole => {
                "; once: aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"
            }
            Meaning::ClockOff => "; set this machine's clock right",
            Meaning::BadKeys => "; look at the account's access key and secret, or make a new pair",
            Meaning::Quota => "; ask AWS for a higher quota in this region, or name others",
            Meaning::SubnetFull => "; name other subnets, or larger ones, for this region",
            Meaning::NotAllowed => "; docs/providers/aws.md has the policy that is needed",
            _ => "",
        };
        let said = match self.words.is_empty() {
            true => self.code.clone(),
            false => format!("{}: {}", self.code, self.words),
        };
        format!("{}{mend}", shorten(&said))
    }
}

/// What a failure means, where nothing was bought.
pub(super) fn of_call(provider: &str, what: &str, failure: Failure) -> ProviderError {
    let provider = provider.to_owned();
    let said = match failure {
        Failure::Wait(wait) => return ProviderError::RateLimited { provider, wait },
        Failure::NoKeys(words) => {
            return ProviderError::NoCredentials { provider, detail: format!("{what}: {words}") };
        }
        Failure::NotSent(words) | Failure::Lost(words) => {
            return ProviderError::Unreachable { provider, detail: format!("{what}: {words}") };
        }
        Failure::Said(said) => said,
    };
    let detail = format!("{what}: {}", said.told());
    match said.means() {
        Meaning::TooMany => ProviderError::RateLimited { provider, wait: said.wait },
        Meaning::NotAllowed | Meaning::NoSpotRole | Meaning::BadKeys | Meaning::ClockOff => {
            ProviderError::Unauthorized { provider, detail }
        }
        Meaning::Unknown | Meaning::Invalid | Meaning::Unsupported | Meaning::Mismatch => {
            ProviderError::Misconfigured { provider, detail }
        }
        Meaning::NoCapacity
        | Meaning::PriceRose
        | Meaning::Quota
        | Meaning::SubnetFull
        | Meaning::Unclear => ProviderError::Unreachable { provider, detail },
    }
}

/// What a failure means to a purchase. A full subnet is worth another try, in another one.
pub(super) fn of_launch(failure: Failure) -> LaunchError {
    let said = match failure {
        Failure::Wait(wait) => {
            return LaunchError::Later { wait, detail: "too much was asked lately".to_owned() };
        }
        Failure::NoKeys(detail) => return refused(Refusal::Unauthorized, detail),
        Failure::NotSent(detail) => return refused(Refusal::Transient, detail),
        Failure::Lost(detail) => return LaunchError::Ambiguous { detail },
        Failure::Said(said) => said,
    };
    let detail = said.told();
    match said.means() {
        Meaning::NoCapacity | Meaning::Unsupported => refused(Refusal::NoCapacity, detail),
        Meaning::PriceRose => refused(Refusal::PriceChanged, detail),
        // As a quota of none of it: other offers may be had, so that it is left alone by itself.
        Meaning::Quota | Meaning::NoSpotRole => refused(Refusal::Quota, detail),
        Meaning::SubnetFull => refused(Refusal::Transient, detail),
        Meaning::TooMany => LaunchError::Later { wait: said.wait, detail },
        Meaning::NotAllowed | Meaning::BadKeys | Meaning::ClockOff => {
            refused(Refusal::Unauthorized, detail)
        }
        Meaning::Unknown | Meaning::Invalid => refused(Refusal::Invalid, detail),
        Meaning::Mismatch | Meaning::Unclear => LaunchError::Ambiguous { detail },
    }
}

/// Whether a signature is refused for its time: with any other mistake in it, AWS's words may hold the
/// request that it expected, whose names have "time" in them too.
fn tells_of_the_clock(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    ["signature expired", "not yet current", "system time", "skew", "request has expired"]
        .iter()
        .any(|known| words.contains(known))
}

/// No more than so many bytes.
fn shorten(text: &str) -> String {
    if text.len() <= MOST_WORDS {
        return text.to_owned();
    }
    let end = (0..=MOST_WORDS).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use petaflop_arbiter::claim::LaunchAnswer;

    use super::*;
    use crate::error::Retry;

    fn said(status: u16, code: &str, words: &str) -> Failure {
        let wait = Duration::from_secs(4);
        Failure::Said(Said { status, code: code.into(), words: words.into(), wait })
    }

    #[test]
    fn each_answer_to_a_purchase_is_a_no_or_a_doubt() {
        for (status, code, kind) in [
            (500, "InsufficientInstanceCapacity", Some(Refusal::NoCapacity)),
            (400, "UnfulfillableCapacity", Some(Refusal::NoCapacity)),
            (400, "ReservationCapacityExceeded", Some(Refusal::NoCapacity)),
            (400, "SpotMaxPriceTooLow", Some(Refusal::PriceChanged)),
            (400, "MaxSpotInstanceCountExceeded", Some(Refusal::Quota)),
            (400, "VcpuLimitExceeded", Some(Refusal::Quota)),
            (400, "InstanceLimitExceeded", Some(Refusal::Quota)),
            (400, "Unsupported", Some(Refusal::NoCapacity)),
            (400, "InsufficientFreeAddressesInSubnet", Some(Refusal::Transient)),
            (503, "RequestLimitExceeded", Some(Refusal::RateLimited)),
            (503, "Client.RequestLimitExceeded", Some(Refusal::RateLimited)),
            (400, "Throttling", Some(Refusal::RateLimited)),
            (403, "UnauthorizedOperation", Some(Refusal::Unauthorized)),
            (401, "AuthFailure", Some(Refusal::Unauthorized)),
            (403, "AuthFailure.ServiceLinkedRoleCreationNotPermitted", Some(Refusal::Quota)),
            (403, "OptInRequired", Some(Refusal::Unauthorized)),
            (400, "PendingVerification", Some(Refusal::Unauthorized)),
            (400, "RequestExpired", Some(Refusal::Unauthorized)),
            (403, "ExpiredToken", Some(Refusal::Unauthorized)),
            (400, "InvalidParameterValue", Some(Refusal::Invalid)),
            (400, "InvalidAMIID.NotFound", Some(Refusal::Invalid)),
            (400, "InvalidSubnetID.NotFound", Some(Refusal::Invalid)),
            (400, "InvalidUserData.Malformed", Some(Refusal::Invalid)),
            (400, "MissingParameter", Some(Refusal::Invalid)),
            (400, "IdempotentParameterMismatch", None),
            (500, "InternalError", None),
            (503, "ServiceUnavailable", None),
            (503, "Unavailable", None),
            (502, "", None),
            (404, "", None),
            (500, "SomethingNew", None),
        ] {
            let error = of_launch(said(status, code, "words"));
            let expected = kind.map_or(LaunchAnswer::Unclear, LaunchAnswer::Refused);
            assert_eq!(error.answer(), expected, "{status} {code}");
            assert!(error.to_string().contains(code), "{error}");
        }
        assert_eq!(
            of_launch(Failure::Lost("x".into())),
            LaunchError::Ambiguous { detail: "x".into() }
        );
        for (failure, kind) in [
            (Failure::Wait(Duration::from_secs(1)), Refusal::RateLimited),
            (Failure::NotSent("x".into()), Refusal::Transient),
            (Failure::NoKeys("x".into()), Refusal::Unauthorized),
        ] {
            let answer = of_launch(failure.clone()).answer();
            assert_eq!(answer, LaunchAnswer::Refused(kind), "{failure:?}");
        }
        let busy = of_launch(said(503, "RequestLimitExceeded", ""));
        assert_eq!(busy.retry(), Retry::After(Duration::from_secs(4)));
    }

    #[test]
    fn each_failed_call_says_when_to_try_again() {
        let call = |status, code, words| of_call("aws", "look", said(status, code, words));
        let retry = |code| call(400, code, "").retry();
        assert_eq!(retry("RequestLimitExceeded"), Retry::After(Duration::from_secs(4)));
        assert_eq!(retry("UnauthorizedOperation"), Retry::AfterChange);
        assert_eq!(retry("ExpiredTokenException"), Retry::AfterChange);
        assert_eq!(retry("InvalidSubnetID.NotFound"), Retry::AfterChange);
        assert!(matches!(call(500, "InternalError", ""), ProviderError::Unreachable { .. }));
        assert!(matches!(call(400, "", "<html>"), ProviderError::Unreachable { .. }));
    }

    #[test]
    fn a_person_is_told_what_to_do() {
        let told = |code, words| match said(400, code, words) {
            Failure::Said(said) => said.told(),
            other => panic!("{other:?}"),
        };
        let role = told("AuthFailure.ServiceLinkedRoleCreationNotPermitted", "no");
        assert!(role.contains("create-service-linked-role"), "{role}");
        assert!(told("RequestExpired", "x").contains("clock"));
        let off =
            "Signature not yet current: 20261120T100000Z is still later; check your system time";
        assert!(told("AuthFailure", off).contains("clock"));
        assert!(
            !told("AuthFailure", "AWS was not able to validate the provided access credentials")
                .contains("clock")
        );
        let expired = "Signature expired: 20261120T100000Z is now earlier than 20261120T101000Z";
        for code in ["SignatureDoesNotMatch", "InvalidSignatureException", "AuthFailure"] {
            assert!(told(code, expired).contains("clock"), "{code}");
            // A wrong secret: AWS shows the request that it expected.
            let wrong = told(
                code,
                "The request signature we calculated does not match the signature \
                you provided. The canonical string should have been 'StartTime=…&x-amz-datetime'",
            );
            assert!(!wrong.contains("clock") && wrong.contains("access key"), "{code}: {wrong}");
        }
        assert!(told("VcpuLimitExceeded", "x").contains("quota"));
        assert!(told("InsufficientFreeAddressesInSubnet", "x").contains("other subnets"));
        let long = told("UnauthorizedOperation", &"é".repeat(10_000));
        assert!(long.len() < MOST_WORDS + 200, "{}", long.len());
    }
}
