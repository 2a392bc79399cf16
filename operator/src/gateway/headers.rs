//! What passes from one side to the other, and what does not (RFC 9110 §7.6, RFC 9112 §6).
//!
//! Framing is never copied: `Content-Length` and `Transfer-Encoding` go, and hyper writes
//! new ones from the body it really sends, so the two sides cannot disagree on where a
//! request ends.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use http::header::{self, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, StatusCode, Uri, Version, request};
use petaflop_agent_api::task::Secret;

use super::refusal::Refusal;

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Carries a replica's key to it: no client's comes through, and no answer's goes out.
pub(super) const REPLICA_KEY: HeaderName = HeaderName::from_static("petaflop-replica-key");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Of one connection only, named in `Connection` or not.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Whether the head is one that two servers read alike. hyper has read it before: it refuses what is
/// no HTTP, and of `Transfer-Encoding` beside `Content-Length` it keeps the first, reads by it and
/// closes (RFC 9112 §6.3); whichever way it does so, two framings never go on from here.
pub(super) fn check(head: &request::Parts) -> Result<(), Refusal> {
    if matches!(head.method, Method::CONNECT | Method::TRACE) {
        return Err(Refusal::Method);
    }
    let count = |name| head.headers.get_all(name).iter().count();
    let hosts = count(header::HOST);
    if hosts > 1 || (hosts == 0 && head.version == Version::HTTP_11) {
        return Err(Refusal::Malformed("there must be exactly one Host"));
    }
    let chunked = count(header::TRANSFER_ENCODING);
    if chunked > 1 || (chunked == 1 && count(header::CONTENT_LENGTH) > 0) {
        return Err(Refusal::Malformed("Content-Length and Transfer-Encoding exclude each other"));
    }
    if chunked == 1 && head.version != Version::HTTP_11 {
        return Err(Refusal::Malformed("Transfer-Encoding needs HTTP/1.1"));
    }
    Ok(())
}

/// The head as a replica gets it; the replica's own [`host`] is still missing.
pub(super) fn towards_replica(head: &mut request::Parts, peer: IpAddr, id: &HeaderValue) {
    let headers = &mut head.headers;
    strip(headers);
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(&REPLICA_KEY);
    // hyper answered it: it sent "100 Continue" when the body was asked for.
    headers.remove(header::EXPECT);
    // Hints for logs, nobody's authority: whoever stands before us may have set them.
    let mut chain = headers
        .get_all(&FORWARDED_FOR)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect::<Vec<_>>()
        .join(", ");
    if !chain.is_empty() {
        chain.push_str(", ");
    }
    chain.push_str(&peer.to_canonical().to_string());
    if let Ok(chain) = HeaderValue::try_from(chain) {
        headers.insert(FORWARDED_FOR, chain);
    }
    if let Some(host) = headers.remove(header::HOST)
        && !headers.contains_key(&FORWARDED_HOST)
    {
        headers.insert(FORWARDED_HOST, host);
    }
    if !headers.contains_key(&FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    headers.insert(REQUEST_ID, id.clone());
    let path = head.uri.path_and_query().cloned();
    head.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    head.version = Version::HTTP_11;
    head.extensions.clear();
}

/// The value of `Host` for a replica's address.
pub(super) fn host(address: &str) -> HeaderValue {
    HeaderValue::from_str(address).unwrap_or(HeaderValue::from_static("replica"))
}

/// A replica's key as a header's value, which nothing prints.
pub(super) fn key(key: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(key.expose()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Whether an answer says that who asked does not have the replica's key: it is another replica than
/// was meant, at an address that was used before.
pub(super) fn refuses_key(status: StatusCode, headers: &HeaderMap) -> bool {
    status == StatusCode::UNAUTHORIZED
        && headers.get(header::WWW_AUTHENTICATE).is_some_and(|asks| asks == REPLICA_KEY.as_str())
}

/// The headers of an answer as the client gets them.
pub(super) fn towards_client(headers: &mut HeaderMap) {
    strip(headers);
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // Framing and addressing are never a hop's own, whatever is claimed.
        .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Makes request ids: random for each process, counted within it.
#[derive(Debug, Default)]
pub(super) struct Ids {
    halves: [RandomState; 2],
    made: AtomicU64,
}

impl Ids {
    /// The client's own id where it is one (at most 128 of `A-Za-z0-9._-`), else a new one.
    pub(super) fn of(&self, headers: &HeaderMap) -> HeaderValue {
        let own = headers.get(&REQUEST_ID).filter(|id| {
            let id = id.as_bytes();
            !id.is_empty()
                && id.len() <= 128
                && id.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b))
        });
        if let Some(own) = own {
            return own.clone();
        }
        let count = self.made.fetch_add(1, Ordering::Relaxed);
        let [high, low] = [0, 1].map(|half| self.halves[half].hash_one(count));
        HeaderValue::try_from(format!("{high:016x}{low:016x}"))
            .unwrap_or(HeaderValue::from_static("unknown"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(version: Version, headers: &[(&str, &str)]) -> request::Parts {
        let mut request = http::Request::builder().version(version).uri("http://a/v1/models?x=1");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_head_that_can_be_read_in_two_ways_is_refused() {
        let (http10, http11) = (Version::HTTP_10, Version::HTTP_11);
        let host = ("host", "a");
        for (version, headers, fine) in [
            (http11, vec![host], true),
            (http10, vec![], true),
            (http11, vec![], false),
            (http11, vec![host, ("host", "b")], false),
            (http11, vec![host, ("content-length", "3")], true),
            (http11, vec![host, ("transfer-encoding", "chunked")], true),
            (http11, vec![host, ("transfer-encoding", "chunked"), ("content-length", "3")], false),
            (
                http11,
                vec![host, ("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")],
                false,
            ),
            (http10, vec![("transfer-encoding", "chunked")], false),
        ] {
            assert_eq!(check(&head(version, &headers)).is_ok(), fine, "{version:?} {headers:?}");
        }
        let mut connect = head(http11, &[host]);
        connect.method = Method::CONNECT;
        assert_eq!(check(&connect), Err(Refusal::Method));
    }

    #[test]
    fn what_belongs_to_one_connection_stays_there() {
        let mut head = head(
            Version::HTTP_11,
            &[
                ("host", "service"),
                ("connection", "close, X-Secret-Hop, Host"),
                ("connection", "x-other"),
                ("x-secret-hop", "1"),
                ("x-other", "1"),
                ("keep-alive", "timeout=5"),
                ("te", "trailers"),
                ("upgrade", "h2c"),
                ("proxy-authorization", "Basic eA=="),
                ("transfer-encoding", "chunked"),
                ("expect", "100-continue"),
                ("authorization", "Bearer key"),
                ("petaflop-replica-key", "a client's"),
                ("x-forwarded-for", "10.0.0.1"),
            ],
        );
        let id = HeaderValue::from_static("abc");
        towards_replica(&mut head, "192.0.2.7".parse().unwrap(), &id);
        let mut left: Vec<_> = head
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                "authorization: Bearer key",
                "x-forwarded-for: 10.0.0.1, 192.0.2.7",
                "x-forwarded-host: service",
                "x-forwarded-proto: http",
                "x-request-id: abc",
            ]
        );
        assert_eq!(head.uri, "/v1/models?x=1", "a replica gets no absolute address");
    }

    #[test]
    fn a_request_keeps_its_id_if_it_is_one() {
        let ids = Ids::default();
        let of = |id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, id.parse().unwrap());
            ids.of(&headers).to_str().unwrap().to_owned()
        };
        assert_eq!(of("trace-1.a_B"), "trace-1.a_B");
        for bad in ["", "a b", "a\"b", &"a".repeat(129)] {
            let made = of(bad);
            assert_eq!(made.len(), 32, "{bad:?}");
            assert_ne!(made, of(bad));
        }
    }
}
