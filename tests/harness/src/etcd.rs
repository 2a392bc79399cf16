//! What one asks of etcd itself, by its JSON gateway.

use std::time::Duration;

use serde_json::{Value, json};

use crate::control_plane::ControlPlane;
use crate::error::{Error, Result};

impl ControlPlane {
    /// Forgets all history up to now, gives its space back, and says which
    /// revision that is. A list or a page of one from before then gets 410 Gone,
    /// once the API server's own memory does not reach back so far either:
    /// restart it to empty that. (A watch from before an API server's start gets
    /// 410 from the restart alone.)
    ///
    /// # Errors
    /// etcd refuses or does not answer.
    pub async fn compact(&self) -> Result<i64> {
        let url = self.etcd_url().to_owned();
        tokio::task::spawn_blocking(move || {
            let status = ask(&url, "maintenance/status", "status", &json!({}))?;
            let revision: i64 = status["header"]["revision"]
                .as_str()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| Error::Etcd { what: "status", message: status.to_string() })?;
            let compaction = json!({ "revision": revision.to_string(), "physical": true });
            ask(&url, "kv/compaction", "compaction", &compaction)?;
            ask(&url, "maintenance/defragment", "defragmentation", &json!({}))?;
            Ok(revision)
        })
        .await
        .map_err(|failure| Error::Unfit(failure.to_string()))?
    }
}

fn ask(url: &str, path: &str, what: &'static str, body: &Value) -> Result<Value> {
    let failed = |error: ureq::Error| Error::Etcd { what, message: error.to_string() };
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(60))).build().into();
    agent
        .post(format!("{url}/v3/{path}"))
        .send_json(body)
        .map_err(failed)?
        .body_mut()
        .read_json()
        .map_err(failed)
}
