//! What RunPod's answers mean: to a purchase, and to everything else. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use petaflop_arbiter::claim::Refusal;
use serde_json::Value;

use crate::error::{LaunchError, ProviderError};

/// Longest part of somebody's words that is repeated.
const MOST_WORDS: usize = 600;

/// So many kinds of pod refused in the same words are not refused for what they are: the request, or the
/// key, is at fault.
const SAME_WORDS: usize = 3;

/// An answer: status, how long to stay away where it was a 429, body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) wait: Duration,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// The words of an error (RFC 9457), or of what speaks in its place.
    pub(super) fn words(&self) -> String {
        let text = match self.problem() {
            Some(problem) => {
                let one = |key: &str| problem.get(key).and_then(Value::as_str).map(str::to_owned);
                let many = problem.get("errors").and_then(Value::as_array).into_iter().flatten();
                let detail = one("detail").or_else(|| one("error")).or_else(|| one("message"));
                let detail = detail.or_else(|| one("title"));
                let many = many.filter_map(Value::as_str).map(str::to_owned);
                detail.into_iter().chain(many).collect::<Vec<_>>().join("; ")
            }
            None => String::from_utf8_lossy(&self.body).into_owned(),
        };
        shorten(&text, MOST_WORDS)
    }

    /// The body of an error as RunPod writes them; `None` for what a proxy in between, or a server
    /// at a wrong address, says.
    fn problem(&self) -> Option<serde_json::Map<String, Value>> {
        let body: Value = serde_json::from_slice(&self.body).ok()?;
        let Value::Object(problem) = body else { return None };
        let known = ["title", "detail", "status", "error", "message"];
        known.iter().any(|key| problem.contains_key(*key)).then_some(problem)
    }

    /// Whether RunPod itself says that it knows no such thing. A page of somebody else's that was
    /// not found says nothing about a machine.
    pub(super) fn is_unknown(&self) -> bool {
        self.status == 404 && self.problem().is_some()
    }
}

/// What a person can do about a status.
fn mend(status: u16) -> &'static str {
    match status {
        401 => "; look at the account's key: it may be another account's, or deleted",
        402 => {
            "; add credit to the account, of which a pod takes an hour's at least, or have its spend \
             limit raised (80 $ an hour is the usual one)"
        }
        403 => {
            "; the key needs read and write on pods (All, or Restricted with both), and the account \
             access to what is asked for"
        }
        410 => "; RunPod has switched this interface off: use a newer petaflop",
        _ => "",
    }
}

/// What an answer that is no success means, where nothing was bought.
pub(super) fn of_call(provider: &str, what: &str, answer: &Answer) -> ProviderError {
    let (provider, words) = (provider.to_owned(), answer.words());
    let detail = format!("{what}: {}: {words}{}", answer.status, mend(answer.status));
    match answer.status {
        401 | 403 => ProviderError::Unauthorized { provider, detail },
        // The whole interface, never one pod.
        410 => ProviderError::Retired { provider, detail },
        429 => ProviderError::RateLimited { provider, wait: answer.wait },
        405 | 413 | 422 => ProviderError::Misconfigured {
            provider,
            detail: format!("{detail}; this is a fault of petaflop's, or of a newer API's"),
        },
        _ => ProviderError::Unreachable { provider, detail },
    }
}

/// What an answer to a create means, when it is not 201 with an id.
pub(super) fn of_launch(thing: &str, answer: &Answer, refused: &mut SameWords) -> LaunchError {
    let words = answer.words();
    let kind = match answer.status {
        // A broken rule or nothing to be had: only the words differ, and they are not written down.
        400 if is_ambiguous(&words) => return LaunchError::Ambiguous { detail: words },
        400 if means_no_capacity(&words) => Refusal::NoCapacity,
        400 if refused.heard_of_several(thing, &words) => Refusal::Invalid,
        400 => Refusal::NoCapacity,
        401 => Refusal::Unauthorized,
        402 => Refusal::BalanceTooLow,
        // A key that may not buy may buy nothing; an account that may not have this one, others.
        403 if means_the_key(&words) || refused.heard_of_several(thing, &words) => {
            Refusal::Unauthorized
        }
        403 => Refusal::Quota,
        404 if answer.is_unknown() => Refusal::Invalid,
        405 | 413 | 422 => Refusal::Invalid,
        410 => Refusal::Retired,
        429 => return LaunchError::Later { wait: answer.wait, detail: words },
        // 5xx, a time-out, a redirect, success without an id: it may be there.
        status => return LaunchError::Ambiguous { detail: format!("{status}: {words}") },
    };
    let detail = format!("{}: {words}{}", answer.status, mend(answer.status));
    LaunchError::Refused { kind, detail }
}

/// Words in which creates were refused, and for what. One kind of pod that is refused for an
/// unknown reason may be sold out, or closed to this account; several in the same words are not.
#[derive(Clone, Debug, Default)]
pub(super) struct SameWords {
    words: String,
    things: BTreeSet<String>,
}

impl SameWords {
    /// Whether several kinds of pod were refused in these words by now.
    fn heard_of_several(&mut self, thing: &str, words: &str) -> bool {
        if self.words != words {
            *self = Self { words: words.to_owned(), things: BTreeSet::new() };
        }
        self.things.insert(thing.to_owned());
        self.things.len() >= SAME_WORDS
    }

    /// One was made: the request is sound.
    pub(super) fn made(&mut self) {
        *self = Self::default();
    }
}

/// The words with which RunPod says that there is none.
pub(super) fn means_no_capacity(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    [
        "no longer any instances available",
        "no instances currently available",
        "does not have the resources to deploy your pod",
        "not enough free gpus on the host machine",
    ]
    .iter()
    .any(|known| words.contains(known))
}

/// Whether a 403 speaks of the key. Its words are not written down.
fn means_the_key(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    let mut all = words.split(|c: char| !c.is_ascii_alphanumeric());
    all.any(|word| ["key", "permission", "permissions", "scope", "readonly"].contains(&word))
        || words.contains("read only")
        || words.contains("read-only")
}

/// The words that say nothing: the pod may be there.
pub(super) fn is_ambiguous(words: &str) -> bool {
    words.to_ascii_lowercase().contains("something went wrong")
}

/// No more than so many bytes.
pub(super) fn shorten(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn answer(status: u16, body: &str) -> Answer {
        Answer { status, wait: Duration::from_secs(7), body: body.as_bytes().to_vec() }
    }

    fn problem(status: u16, detail: &str) -> Answer {
        let body = serde_json::json!({ "title": "Error", "status": status, "detail": detail });
        answer(status, &body.to_string())
    }

    #[test]
    fn each_answer_to_a_create_is_a_no_or_a_doubt() {
        let none = "There are no longer any instances available with the requested specifications. \
                    Please refresh and try again.";
        for (status, words, kind) in [
            (400, none, Some(Refusal::NoCapacity)),
            (400, "There are NO INSTANCES currently available", Some(Refusal::NoCapacity)),
            (
                400,
                "There are no longer any instances available with enough disk space.",
                Some(Refusal::NoCapacity),
            ),
            (
                400,
                "This machine does not have the resources to deploy your pod. Please try a \
                 different machine",
                Some(Refusal::NoCapacity),
            ),
            (
                400,
                "There are not enough free GPUs on the host machine to start this pod.",
                Some(Refusal::NoCapacity),
            ),
            (400, "Something went wrong. Please try again later or contact support.", None),
            (401, "bad key", Some(Refusal::Unauthorized)),
            (402, "balance too low", Some(Refusal::BalanceTooLow)),
            (403, "not for this account", Some(Refusal::Quota)),
            (403, "this API key is read-only", Some(Refusal::Unauthorized)),
            (403, "missing permission: pods write", Some(Refusal::Unauthorized)),
            (404, "registry not found", Some(Refusal::Invalid)),
            (405, "method", Some(Refusal::Invalid)),
            (410, "gone for good", Some(Refusal::Retired)),
            (413, "too large", Some(Refusal::Invalid)),
            (422, "interruptible: additionalProperties", Some(Refusal::Invalid)),
            (500, "create pod failed", None),
            (502, "bad gateway", None),
            (504, "upstream timed out", None),
            (200, "no pod in here", None),
            (307, "elsewhere", None),
        ] {
            let error =
                of_launch("1x L4 SECURE", &problem(status, words), &mut SameWords::default());
            match (error, kind) {
                (LaunchError::Refused { kind, detail }, Some(expected)) => {
                    assert_eq!(kind, expected, "{status} {words}");
                    assert!(detail.contains(words), "{detail}");
                }
                (LaunchError::Ambiguous { .. }, None) => {}
                (other, _) => panic!("{status} {words}: {other:?}"),
            }
        }
    }

    #[test]
    fn too_many_calls_are_a_no_until_the_time_that_was_said() {
        let error =
            of_launch("1x L4 SECURE", &problem(429, "slow down"), &mut SameWords::default());
        let wait = Duration::from_secs(7);
        assert_eq!(error, LaunchError::Later { wait, detail: "slow down".into() });
    }

    #[test]
    fn a_400_in_unknown_words_is_the_offers_fault_until_three_say_the_same() {
        let mut same = SameWords::default();
        let mut refused =
            |thing: &str, words: &str| match of_launch(thing, &problem(400, words), &mut same) {
                LaunchError::Refused { kind, .. } => kind,
                other => panic!("{other:?}"),
            };
        assert_eq!(refused("a", "no such luck"), Refusal::NoCapacity);
        assert_eq!(refused("a", "no such luck"), Refusal::NoCapacity);
        assert_eq!(refused("b", "no such luck"), Refusal::NoCapacity);
        assert_eq!(refused("c", "no such luck"), Refusal::Invalid);
        assert_eq!(refused("d", "other words"), Refusal::NoCapacity);
    }

    #[test]
    fn a_403_is_the_offers_fault_until_three_say_the_same() {
        let mut same = SameWords::default();
        let told =
            |thing: &str, same: &mut SameWords| of_launch(thing, &problem(403, "Forbidden"), same);
        for (thing, kind) in [
            ("a", Refusal::Quota),
            ("b", Refusal::Quota),
            ("b", Refusal::Quota),
            ("c", Refusal::Unauthorized),
        ] {
            match told(thing, &mut same) {
                LaunchError::Refused { kind: found, .. } => assert_eq!(found, kind, "{thing}"),
                other => panic!("{other:?}"),
            }
        }
        same.made();
        let after = told("d", &mut same);
        assert!(matches!(after, LaunchError::Refused { kind: Refusal::Quota, .. }), "{after:?}");
    }

    #[test]
    fn a_person_is_told_what_to_do() {
        for (status, words) in [
            (401, "look at the account's key"),
            (402, "add credit"),
            (402, "spend limit raised"),
            (403, "read and write on pods"),
            (410, "newer petaflop"),
        ] {
            let launch = of_launch("a", &problem(status, "no"), &mut SameWords::default());
            let call = of_call("rp", "list pods", &problem(status, "no"));
            for told in [launch.to_string(), call.to_string()] {
                assert!(told.contains("no; ") && told.contains(words), "{status}: {told}");
            }
        }
        let plain = of_call("rp", "list pods", &problem(500, "no"));
        assert!(plain.to_string().ends_with("no"), "{plain}");
    }

    #[test]
    fn each_failed_call_says_when_to_try_again() {
        let call = |status| of_call("rp", "list pods", &problem(status, "words"));
        assert!(matches!(call(401), ProviderError::Unauthorized { .. }));
        assert!(matches!(call(403), ProviderError::Unauthorized { .. }));
        assert!(matches!(call(410), ProviderError::Retired { .. }));
        let wait = Duration::from_secs(7);
        assert_eq!(call(429), ProviderError::RateLimited { provider: "rp".into(), wait });
        assert!(matches!(call(422), ProviderError::Misconfigured { .. }));
        assert!(matches!(call(500), ProviderError::Unreachable { .. }));
        assert!(matches!(call(409), ProviderError::Unreachable { .. }));
    }

    #[test]
    fn only_runpods_own_404_says_that_a_pod_is_unknown() {
        assert!(problem(404, "pod not found").is_unknown());
        assert!(answer(404, r#"{"error":"pod not found","status":404}"#).is_unknown());
        for foreign in ["<html>404</html>", "", "404 page not found", "[]", "{}", "null"] {
            assert!(!answer(404, foreign).is_unknown(), "{foreign}");
        }
    }

    #[test]
    fn words_are_kept_short_and_never_break() {
        let long = "é".repeat(10_000);
        let words = answer(500, &long).words();
        assert!(words.len() <= MOST_WORDS + '…'.len_utf8());
        assert_eq!(answer(500, "\u{0}").words(), "\u{0}");
        let broken = Answer { status: 500, wait: Duration::ZERO, body: vec![0xff, 0xfe] };
        assert!(!broken.words().is_empty());
        let all = answer(422, r#"{"detail":"no","errors":["a: unknown","b: unknown"]}"#);
        assert_eq!(all.words(), "no; a: unknown; b: unknown");
    }
}
