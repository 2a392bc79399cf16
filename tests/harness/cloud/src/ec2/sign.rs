//! Signature Version 4, read and verified: the whole signature, not the key's id alone.

use std::collections::BTreeMap;

use axum::http::HeaderMap;
use axum::http::request::Parts;
use ring::{digest, hmac};

/// Whose request it is and for what, as its `Authorization` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scope {
    pub(crate) key: String,
    date: String,
    pub(crate) region: String,
    pub(crate) service: String,
    headers: Vec<String>,
    signature: String,
}

impl Scope {
    /// From `AWS4-HMAC-SHA256 Credential=…, SignedHeaders=…, Signature=…`.
    pub(crate) fn read(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get("authorization")?.to_str().ok()?;
        let fields = text.strip_prefix("AWS4-HMAC-SHA256")?.split(',');
        let fields: BTreeMap<&str, &str> =
            fields.filter_map(|field| field.trim().split_once('=')).collect();
        let mut credential = fields.get("Credential")?.split('/').map(str::to_owned);
        let mut next = || credential.next();
        let (key, date, region, service) = (next()?, next()?, next()?, next()?);
        let headers = fields.get("SignedHeaders")?.split(';').map(str::to_owned).collect();
        let signature = (*fields.get("Signature")?).to_owned();
        Some(Self { key, date, region, service, headers, signature })
    }

    /// The request was signed with this secret: its method, path, query, signed headers and body.
    pub(crate) fn is_signed(&self, parts: &Parts, body: &[u8], secret: &str) -> bool {
        let Some(time) = header(&parts.headers, "x-amz-date") else { return false };
        let signs = |name: &str| self.headers.iter().any(|signed| signed == name);
        signs("host")
            && time.starts_with(&self.date)
            && self.sign(parts, body, secret, &time) == self.signature
    }

    /// Signs a request anew as another, whose `x-amz-date` it has already: the host, and all that begins
    /// with `x-amz-`. The new `Authorization`.
    pub(crate) fn resign(&self, parts: &Parts, body: &[u8], key: &str, secret: &str) -> String {
        let time = header(&parts.headers, "x-amz-date").unwrap_or_default();
        let date = time.chars().take(8).collect();
        let names = parts.headers.keys().map(ToString::to_string);
        let mut headers: Vec<String> =
            names.filter(|name| name == "host" || name.starts_with("x-amz-")).collect();
        headers.sort_unstable();
        let mut own = Self { key: key.to_owned(), date, headers, ..self.clone() };
        own.signature = own.sign(parts, body, secret, &time);
        let Self { date, region, service, headers, signature, .. } = own;
        format!(
            "AWS4-HMAC-SHA256 Credential={key}/{date}/{region}/{service}/aws4_request, \
             SignedHeaders={}, Signature={signature}",
            headers.join(";")
        )
    }

    fn sign(&self, parts: &Parts, body: &[u8], secret: &str, time: &str) -> String {
        let headers: String = self
            .headers
            .iter()
            .map(|name| format!("{name}:{}\n", header(&parts.headers, name).unwrap_or_default()))
            .collect();
        let canonical = format!(
            "{}\n{}\n{}\n{headers}\n{}\n{}",
            parts.method,
            parts.uri.path(),
            query(parts),
            self.headers.join(";"),
            hex(digest::digest(&digest::SHA256, body).as_ref())
        );
        let scope = format!("{}/{}/{}/aws4_request", self.date, self.region, self.service);
        let hashed = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{hashed}");
        let mut key = format!("AWS4{secret}").into_bytes();
        for part in [self.date.as_str(), &self.region, &self.service, "aws4_request", &text] {
            key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes())
                .as_ref()
                .to_vec();
        }
        hex(&key)
    }
}

/// A query as it is signed: in order, each name with a value.
fn query(parts: &Parts) -> String {
    let query = parts.uri.query().unwrap_or_default().split('&').filter(|part| !part.is_empty());
    let mut query: Vec<String> = query
        .map(|part| if part.contains('=') { part.to_owned() } else { format!("{part}=") })
        .collect();
    query.sort_unstable();
    query.join("&")
}

/// A header as it is signed: without outer blanks, inner ones as one.
fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    let text = headers.get(name)?.to_str().ok()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    /// The example of AWS's own documentation of Signature Version 4.
    fn example(signature: &str) -> (Scope, Parts) {
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date, Signature={signature}"
        );
        let request = Request::get("/?Version=2010-05-08&Action=ListUsers")
            .header("content-type", "application/x-www-form-urlencoded; charset=utf-8")
            .header("host", "iam.amazonaws.com")
            .header("x-amz-date", "20150830T123600Z")
            .header("authorization", authorization);
        let (parts, ()) = request.body(()).unwrap().into_parts();
        (Scope::read(&parts.headers).unwrap(), parts)
    }

    #[test]
    fn the_example_of_the_documentation_is_signed_and_nothing_else_is() {
        let seen = "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7";
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        let (scope, parts) = example(seen);
        assert_eq!((scope.region.as_str(), scope.service.as_str()), ("us-east-1", "iam"));
        assert!(scope.is_signed(&parts, b"", secret));
        assert!(!scope.is_signed(&parts, b"x", secret), "the body is signed");
        assert!(!scope.is_signed(&parts, b"", "another"));
        let (scope, parts) = example(&seen.replace('5', "6"));
        assert!(!scope.is_signed(&parts, b"", secret));
    }
}
