//! Ending the pod that this is, at RunPod: a container that just exits may be started again, or
//! leaves a stopped pod that bills for its disk. For images with the agent in them and no client for
//! HTTP; it is tried until RunPod does it.

use std::time::Duration;

use reqwest::Client;

/// Between two tries.
const AGAIN: Duration = Duration::from_secs(10);
/// Of one try.
const PATIENCE: Duration = Duration::from_secs(30);
/// The pod's id and the key that is good for it alone, which RunPod puts into every pod.
const ID: &str = "RUNPOD_POD_ID";
const KEY: &str = "RUNPOD_API_KEY";

/// Ends it. `base` is the API's address: `https://api.runpod.io`.
///
/// # Errors
/// This is no pod of RunPod's, or there is no client for HTTPS: it cannot be ended from here.
pub async fn end_pod(base: &str) -> Result<(), String> {
    let own = |name: &str| {
        let value = std::env::var(name).ok().filter(|value| !value.is_empty());
        value.ok_or_else(|| format!("{name} is not set: this is no pod of RunPod's"))
    };
    let (id, key) = (own(ID)?, own(KEY)?);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().timeout(PATIENCE).build().map_err(|error| error.to_string())?;
    let url = format!("{}/v2/pods/{id}/action", base.trim_end_matches('/'));
    loop {
        let call = client.post(&url).bearer_auth(&key).header("content-type", "application/json");
        match call.body(r#"{"action":"terminate"}"#).send().await {
            // It is gone, or was.
            Ok(answer) if answer.status().is_success() || answer.status() == 404 => return Ok(()),
            Ok(answer) => tracing::warn!(status = answer.status().as_u16(), "RunPod"),
            Err(error) => tracing::warn!(error = %error.without_url(), "RunPod"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}
