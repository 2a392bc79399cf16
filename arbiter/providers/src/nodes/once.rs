//! The client that sends a purchase a single time. kube's clients repeat calls
//! that were answered 429, 503 or 504, POSTs included; a Pod that was created
//! under a 504 would then be met as a stranger's. This one does not.

use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::client::Body;
use kube::core::{Request, Status};

/// A client that never repeats a call.
#[derive(Clone)]
pub struct SingleShot(kube::Client);

impl SingleShot {
    /// A client of its own, for the server of this configuration.
    ///
    /// # Errors
    /// When the configuration makes no client.
    pub fn new(mut config: kube::Config) -> Result<Self, kube::Error> {
        config.default_retry = false;
        kube::Client::try_from(config).map(Self)
    }

    /// A client that was built elsewhere, from a configuration whose `default_retry` is off and
    /// with no layer that repeats calls.
    pub fn assume(client: kube::Client) -> Self {
        Self(client)
    }

    /// Creates a Pod by one POST. Its environment holds a secret, so that neither request nor
    /// answer is ever logged here (kube's own typed calls log an answer they cannot read).
    pub(super) async fn create(&self, pod: &Pod) -> Result<Pod, kube::Error> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let body = serde_json::to_vec(pod).map_err(kube::Error::SerdeError)?;
        let request = Request::new(format!("/api/v1/namespaces/{namespace}/pods"))
            .create(&PostParams::default(), body)
            .map_err(kube::Error::BuildRequest)?;
        let answer = self.0.send(request.map(Body::from)).await?;
        let code = answer.status().as_u16();
        let body = answer.into_body().collect_bytes().await?;
        if (200..300).contains(&code) {
            return serde_json::from_slice(&body).map_err(kube::Error::SerdeError);
        }
        // What is no Status comes from a proxy in between; its words are kept short.
        let status = serde_json::from_slice::<Status>(&body).unwrap_or_else(|_| {
            let words = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
            Status::failure(&words, "")
        });
        Err(kube::Error::Api(status.with_code(code).boxed()))
    }
}
