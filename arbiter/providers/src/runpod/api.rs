//! The one place from which RunPod is called: one connection a call, nothing repeated, no
//! redirects, within the quota, and no secret in what is said about it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};

use super::answer::Answer;
use super::quota::{Pace, Purpose, Told};

/// A read that has not ended after this long has failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// A create may take longer; who gives up on it does not know what became of it.
const CREATE_PATIENCE: Duration = Duration::from_secs(60);
/// Largest answer that is read.
const LARGEST: usize = 64 << 20;

/// Which of the two interfaces; each has a quota of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interface {
    Rest,
    GraphQl,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// Nothing was sent: the quota says to wait this long.
    Wait(Duration),
    /// Nothing was sent: no connection.
    NotSent(String),
    /// It may have been done.
    Lost(String),
}

/// Talks to RunPod.
pub(super) struct Api {
    http: reqwest::Client,
    base: Url,
    key: String,
    header: HeaderValue,
    rest: Mutex<Pace>,
    graphql: Mutex<Pace>,
    now: Now,
}

/// A clock.
pub(super) type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

impl Api {
    /// # Errors
    /// What is wrong with address or key, in words, without the key.
    pub(super) fn new(base: &str, key: &str) -> Result<Self, String> {
        let base: Url = base.parse().map_err(|error| format!("address {base:?}: {error}"))?;
        if !matches!(base.scheme(), "http" | "https") || base.cannot_be_a_base() {
            return Err(format!("address \"{base}\" is none of http or https"));
        }
        let mut header = HeaderValue::from_str(&format!("Bearer {key}"))
            .map_err(|_| "the API key has characters that no key has".to_owned())?;
        header.set_sensitive(true);
        if key.trim().is_empty() {
            return Err("the API key is empty".to_owned());
        }
        // Unless the program chose one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // A connection that was kept may break under a purchase; each call has its own.
        let mut http = reqwest::Client::builder()
            .retry(reqwest::retry::never())
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(0);
        // The environment's proxies are for the world outside.
        let local = base.host_str().is_some_and(|host| {
            let host = host.trim_matches(['[', ']']);
            host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        });
        if local {
            http = http.no_proxy();
        }
        let http = http.build().map_err(|error| error.to_string())?;
        let key = key.to_owned();
        let (rest, graphql) = (Mutex::default(), Mutex::default());
        Ok(Self { http, base, key, header, rest, graphql, now: Arc::new(Timestamp::now) })
    }

    /// Quotas run by this clock.
    pub(super) fn by_clock(self, now: Now) -> Self {
        Self { now, ..self }
    }

    /// What the clock says.
    pub(super) fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// `GET /v2/<path>?<query>`.
    pub(super) async fn get(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        purpose: Purpose,
    ) -> Result<Answer, NoAnswer> {
        let mut url = self.url(Interface::Rest, path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let call = Call { method: Method::GET, url, body: None, patience: PATIENCE, secret: "" };
        self.call(Interface::Rest, purpose, call).await
    }

    /// `DELETE /v2/<path>`.
    pub(super) async fn delete(&self, path: &[&str]) -> Result<Answer, NoAnswer> {
        let url = self.url(Interface::Rest, path);
        let call = Call { method: Method::DELETE, url, body: None, patience: PATIENCE, secret: "" };
        self.call(Interface::Rest, Purpose::Machine, call).await
    }

    /// `POST`s a purchase to `/v2/pods` or `/graphql`. `secret` is in the body and nowhere else.
    pub(super) async fn buy(
        &self,
        interface: Interface,
        body: Vec<u8>,
        secret: &str,
    ) -> Result<Answer, NoAnswer> {
        let path: &[&str] = match interface {
            Interface::Rest => &["pods"],
            Interface::GraphQl => &[],
        };
        let url = self.url(interface, path);
        let patience = CREATE_PATIENCE;
        let call = Call { method: Method::POST, url, body: Some(body), patience, secret };
        self.call(interface, Purpose::Machine, call).await
    }

    /// A GraphQL query, which changes nothing.
    pub(super) async fn ask(
        &self,
        question: &serde_json::Value,
        purpose: Purpose,
    ) -> Result<Answer, NoAnswer> {
        let body = question.to_string().into_bytes();
        let url = self.url(Interface::GraphQl, &[]);
        let call =
            Call { method: Method::POST, url, body: Some(body), patience: PATIENCE, secret: "" };
        self.call(Interface::GraphQl, purpose, call).await
    }

    fn url(&self, interface: Interface, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        // A base it can be: that was looked at.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty();
            segments.push(match interface {
                Interface::Rest => "v2",
                Interface::GraphQl => "graphql",
            });
            // Escaped: an id from outside leads nowhere else.
            segments.extend(path);
        }
        url
    }

    fn pace(&self, interface: Interface) -> std::sync::MutexGuard<'_, Pace> {
        let pace = match interface {
            Interface::Rest => &self.rest,
            Interface::GraphQl => &self.graphql,
        };
        pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call(
        &self,
        interface: Interface,
        purpose: Purpose,
        call: Call<'_>,
    ) -> Result<Answer, NoAnswer> {
        let Call { method, url, body, patience, secret } = call;
        if let Some(wait) = self.pace(interface).call(purpose, self.now()) {
            return Err(NoAnswer::Wait(wait));
        }
        let posted = method == Method::POST;
        let mut request = self.http.request(method, url).timeout(patience);
        request = request.header(AUTHORIZATION, self.header.clone());
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        let mut answer = request.send().await.map_err(|error| {
            let sent = !(error.is_connect() || error.is_builder());
            let words = error_words(error);
            if sent { NoAnswer::Lost(words) } else { NoAnswer::NotSent(words) }
        })?;
        let status = answer.status().as_u16();
        // By the time of the answer, which is what it counts from.
        let now = self.now();
        let wait = self.pace(interface).heard(&told(answer.headers()), status, now);
        let mut body = Vec::new();
        while let Some(piece) =
            answer.chunk().await.map_err(|error| NoAnswer::Lost(error_words(error)))?
        {
            if body.len() + piece.len() > LARGEST {
                return Err(NoAnswer::Lost(format!("an answer of more than {LARGEST} bytes")));
            }
            body.extend_from_slice(&piece);
        }
        // Whatever may be repeated to people. Of lists of pods, which hold their environment, nothing is.
        if status >= 300 || posted {
            body = without(body, &[&self.key, secret]);
        }
        Ok(Answer { status, wait: wait.unwrap_or_default(), body })
    }
}

struct Call<'a> {
    method: Method,
    url: Url,
    body: Option<Vec<u8>>,
    patience: Duration,
    /// In the body; an error may repeat what it does not like.
    secret: &'a str,
}

fn told(headers: &HeaderMap) -> Told {
    let text = |name: &str| {
        let all = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        let all: Vec<&str> = all.collect();
        (!all.is_empty()).then(|| all.join(", "))
    };
    let (limit, policy) = (text("ratelimit"), text("ratelimit-policy"));
    Told { limit, policy, retry_after: text("retry-after") }
}

/// An error and its causes, without the address.
fn error_words(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}

/// The same text with each of the secrets struck out.
fn without(body: Vec<u8>, secrets: &[&str]) -> Vec<u8> {
    let mut text = String::from_utf8_lossy(&body).into_owned();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "…");
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_struck_out_of_what_is_repeated() {
        let body = br#"{"detail":"key canary-1 and token canary-2"}"#.to_vec();
        let text = String::from_utf8(without(body, &["canary-1", "", "canary-2"])).expect("text");
        assert_eq!(text, r#"{"detail":"key … and token …"}"#);
        assert_eq!(without(vec![0xff], &["x"]), "\u{fffd}".as_bytes());
    }

    #[test]
    fn what_is_no_address_and_what_is_no_key_is_refused_without_saying_the_key() {
        for base in ["", "api.runpod.io", "ftp://a", "data:x", "unix:/run/x"] {
            assert!(Api::new(base, "k").is_err(), "{base}");
        }
        for key in ["", " ", "canary\n"] {
            let error = Api::new("http://127.0.0.1:1", key).err().expect("no key");
            assert!(!error.contains("canary"), "{error}");
        }
    }
}
