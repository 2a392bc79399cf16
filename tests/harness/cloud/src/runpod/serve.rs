//! What is looked at before either API sees a call, and how its answer is written.

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};

use super::answer::{Answer, Ask};
use super::graphql::{self, Request as Query};
use super::keys::Scope;
use super::rest;
use super::wire::LONGEST_BODY;
use super::world::{SOMETHING, World};
use crate::engine::Engine;
use crate::faults::{Fault, Operation};
use crate::shell::{self, Call, Done};

impl shell::World for World {
    // One more than is allowed is enough to know.
    const READ: usize = LONGEST_BODY * 2;

    fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    fn calls(&mut self) -> &mut Vec<Call> {
        &mut self.calls
    }

    fn turn(&mut self, parts: &Parts, body: Option<&[u8]>) -> Done {
        turn(self, parts, body)
    }
}

/// One call, from what was sent to what is said.
fn turn(world: &mut World, parts: &Parts, body: Option<&[u8]>) -> Done {
    let now = world.engine.now();
    let method = parts.method.as_str();
    let segments: Vec<String> = parts.uri.path().split('/').skip(1).map(decoded).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let query = match segments.as_slice() {
        ["graphql"] => Some(Query::read(body.unwrap_or_default())),
        _ => None,
    };
    let operation = match &query {
        Some(Ok(query)) => query.operation(),
        Some(Err(_)) => Operation::Other,
        None => rest::operation(method, segments.get(1..).unwrap_or_default()),
    };
    let faults = world.faults.of_call(operation, now);
    let line = format!("{method} {}", parts.uri.path());
    let names = faults.iter().map(|fault| fault.name()).collect();
    world.calls.push(Call { at: now, operation, line, status: None, faults: names });
    let call = world.calls.len() - 1;
    let done = |answer, quota, faults| Done { call, faults, response: written(answer, quota) };

    if let Some(answer) = faults.iter().find_map(|fault| refusal(*fault, query.is_some())) {
        let quota = Some(header_values(world));
        return done(answer, quota, faults);
    }
    // REST v1 was to go on 2026-11-15.
    if segments.first() == Some(&"v1") {
        return done(retired(), None, faults);
    }
    let scope = key(parts).and_then(|key| world.keys.get(&key).cloned());
    let public = matches!(&query, Some(Ok(query)) if query.is_public());
    if scope.is_none() && !public {
        return done(Answer::problem(401, "the key is not known"), None, faults);
    }
    if let Err(wait) = world.limits.take(now) {
        let quota = Some(header_values(world));
        return done(limited(wait), quota, faults);
    }
    let answer = match (body.filter(|body| body.len() <= LONGEST_BODY), query) {
        (None, _) => Answer::problem(413, "the body is longer than 102400 bytes"),
        (Some(_), Some(Err(answer))) => answer,
        (Some(_), Some(Ok(_))) if method != "POST" => Answer::problem(405, "method not allowed"),
        (Some(_), Some(Ok(query))) => query.answer(world, scope.as_ref(), &faults),
        (Some(body), None) => v2(world, parts, &segments, body, scope.as_ref(), &faults),
    };
    let answer = if faults.contains(&Fault::ErrorButDone) { lie(&segments) } else { answer };
    let quota = scope.map(|_| header_values(world));
    done(answer, quota, faults)
}

fn v2(
    world: &mut World,
    parts: &Parts,
    segments: &[&str],
    body: &[u8],
    scope: Option<&Scope>,
    faults: &[Fault],
) -> Answer {
    let (Some((&"v2", path)), Some(scope)) = (segments.split_first(), scope) else {
        return Answer::problem(404, "no such path");
    };
    let query = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
    let ask = Ask {
        method: parts.method.as_str(),
        path: path.to_vec(),
        query: query.into_owned().collect(),
        body,
        scope,
        faults,
    };
    rest::answer(world, &ask)
}

/// What is said before anything is done.
fn refusal(fault: Fault, graphql: bool) -> Option<Answer> {
    Some(match fault {
        // It is not sent: the connection is cut.
        Fault::LostRequest => Answer::problem(500, "lost"),
        Fault::ErrorNotDone => Answer::problem(500, SOMETHING),
        Fault::RateLimited(wait) => limited(wait),
        Fault::Forbidden => Answer::problem(403, "this key may not do that"),
        Fault::Unavailable => Answer::problem(503, "upstream is unavailable"),
        Fault::GraphQlRetired if graphql => retired(),
        Fault::Retired => retired(),
        _ => return None,
    })
}

fn retired() -> Answer {
    Answer::problem(410, "this API was retired")
}

fn limited(wait: u32) -> Answer {
    Answer { retry_after: Some(wait), ..Answer::problem(429, "too many requests") }
}

/// What is said of something that was done all the same.
fn lie(segments: &[&str]) -> Answer {
    match segments {
        ["graphql"] => graphql::failure(SOMETHING, "INTERNAL_SERVER_ERROR"),
        _ => Answer::problem(500, SOMETHING),
    }
}

fn header_values(world: &World) -> (String, String) {
    (world.limits.header(world.engine.now()), world.limits.policy())
}

/// From `Authorization`, or, as GraphQL allows, from the query.
fn key(parts: &Parts) -> Option<String> {
    let header = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if let Some(key) = header.and_then(|value| value.strip_prefix("Bearer ")) {
        return Some(key.to_owned());
    }
    let query = parts.uri.query().filter(|_| parts.uri.path() == "/graphql")?;
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.find(|(name, _)| name == "api_key").map(|(_, key)| key.into_owned())
}

/// A segment of a path; ids of GPU types have blanks.
fn decoded(segment: &str) -> String {
    let pair = segment.replace('+', "%2B");
    let mut pairs = url::form_urlencoded::parse(pair.as_bytes());
    pairs.next().map(|(name, _)| name.into_owned()).unwrap_or_default()
}

fn written(answer: Answer, quota: Option<(String, String)>) -> Response<Body> {
    let text = answer.body.map(|body| body.to_string());
    let mut response = Response::new(text.map_or_else(Body::empty, Body::from));
    *response.status_mut() =
        StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = if answer.problem { "application/problem+json" } else { "application/json" };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(wait) = answer.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(wait));
    }
    for (name, value) in quota
        .into_iter()
        .flat_map(|(limit, policy)| [("ratelimit", limit), ("ratelimit-policy", policy)])
    {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    response
}
