//! An API server that has too much to do says when to ask again, in a header that kube's errors leave out.
//! Here it goes where errors keep it: into the answer's Status. Nothing is repeated by the client itself;
//! whoever failed comes back in its own time, and not before.

use std::time::Duration;

use http::Response;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http_body_util::{BodyExt, Full};
use kube::client::{ClientBuilder, DynBody};
use kube::{Client, Config};
use serde_json::json;
use tower::util::MapResponseLayer;

/// Longest wait that is heeded, whatever the server asks for.
const LONGEST: Duration = Duration::from_secs(120);

/// A client whose errors say when to ask again, where the server does.
///
/// # Errors
/// The configuration makes no client.
pub fn client(config: Config) -> Result<Client, kube::Error> {
    Ok(ClientBuilder::try_from(config)?.with_layer(&MapResponseLayer::new(told)).build())
}

/// How long the API server asks to wait.
pub fn asked_for(error: &kube::Error) -> Option<Duration> {
    let kube::Error::Api(status) = error else { return None };
    let seconds = status.details.as_ref()?.retry_after_seconds;
    (seconds > 0).then(|| Duration::from_secs(seconds.into()).min(LONGEST))
}

/// An answer as it is, or a Status in the place of plain words with that header.
fn told(answer: Response<Box<DynBody>>) -> Response<Box<DynBody>> {
    let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let is_status = header(CONTENT_TYPE).is_some_and(|kind| kind.starts_with("application/json"));
    let seconds = header(RETRY_AFTER).and_then(|seconds| seconds.parse::<u32>().ok());
    let code = answer.status();
    let Some(seconds) = seconds.filter(|_| !is_status && !code.is_success()) else {
        return answer;
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(),
        "reason": "TooManyRequests",
        "message": format!("the API server has too much to do and wants to be asked again in {seconds} s"),
        "details": { "retryAfterSeconds": seconds },
    });
    let body = Full::from(status.to_string()).map_err(Into::into);
    Response::from_parts(answer.into_parts().0, Box::new(body) as Box<DynBody>)
}

#[cfg(test)]
mod tests {
    use kube::api::Api;
    use petaflop_crds::TrainingJob;
    use tower::{Layer, service_fn};

    use super::*;

    /// What an operator's error says of an answer with these headers.
    async fn asked(code: u16, headers: &[(&str, &str)], body: &str) -> Option<Duration> {
        let (headers, body) = (
            headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect::<Vec<_>>(),
            body.to_owned(),
        );
        let server = service_fn(move |_: http::Request<kube::client::Body>| {
            let mut answer = Response::builder().status(code);
            for (name, value) in &headers {
                answer = answer.header(name, value);
            }
            let body = Full::from(body.clone()).map_err(Into::into);
            let answer = answer.body(Box::new(body) as Box<DynBody>);
            async move { answer }
        });
        let client = Client::new(MapResponseLayer::new(told).layer(server), "ns");
        let jobs: Api<TrainingJob> = Api::namespaced(client, "ns");
        let error = jobs.get("a").await.expect_err("it is refused");
        asked_for(&error)
    }

    #[tokio::test]
    async fn the_server_s_word_when_to_ask_again_is_kept_wherever_it_says_so() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let plain = ("content-type", "text/plain; charset=utf-8");
        let json = ("content-type", "application/json");
        let busy = "Too many requests, please try again later.";
        let status = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","code":429,
            "reason":"TooManyRequests","message":"m","details":{"retryAfterSeconds":9}}"#;
        assert_eq!(asked(429, &[plain, ("retry-after", "7")], busy).await, seconds(7));
        assert_eq!(asked(503, &[plain, ("retry-after", "1")], busy).await, seconds(1));
        assert_eq!(asked(429, &[json, ("retry-after", "7")], status).await, seconds(9));
        assert_eq!(asked(429, &[plain, ("retry-after", "100000")], busy).await, seconds(120));
        for (headers, body) in [
            (vec![plain], busy),
            (vec![plain, ("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT")], busy),
            (vec![plain, ("retry-after", "-1")], busy),
            (vec![json, ("retry-after", "7")], "{}"),
        ] {
            assert_eq!(asked(429, &headers, body).await, None, "{headers:?}");
        }
    }
}
