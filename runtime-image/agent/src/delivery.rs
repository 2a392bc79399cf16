//! A task's result on its way to the store that is to have it too. What is there already is not sent again, so
//! that a delivery that was cut off goes on with the next.

use std::collections::BTreeMap;

use petaflop_agent_api::message::{Exit, Why};
use petaflop_agent_api::task::{Delivery, LogSink, Secret};
use petaflop_store::place::Credentials;
use petaflop_store::report::Progress;
use petaflop_store::{ArtifactHash, Store, StoreError};

/// Delivers what the command named as it finished. An end that says otherwise comes of it where it
/// fails; one that names nothing stays as it is.
pub(crate) async fn deliver(delivery: Delivery, sink: Option<LogSink>, exit: Exit) -> Exit {
    let report = exit.report.clone().and_then(|report| serde_json::from_value(report).ok());
    let Some(Progress::Finished { key, artifact, .. }) = report else { return exit };
    match send(&delivery, sink.as_ref(), &artifact, &key).await {
        Ok(()) => exit,
        Err(error) => {
            let why = if error.is_lasting() { Why::BadDelivery } else { Why::NotDelivered };
            let message = format!(
                "artifact {artifact} is in the installation's own store, but could not be copied to {}: {error}",
                delivery.to
            );
            Exit { why, message, report: None, ..exit }
        }
    }
}

async fn send(
    Delivery { to, credentials, from }: &Delivery,
    sink: Option<&LogSink>,
    artifact: &str,
    key: &str,
) -> Result<(), StoreError> {
    let bad = |_| StoreError::BadHash(artifact.to_owned());
    let artifact: ArtifactHash = artifact.parse().map_err(bad)?;
    let to = Store::open_with(to, given(Some(credentials)).as_ref())?;
    let sinks = given(sink.map(|sink| &sink.credentials));
    let mut last = Err(StoreError::BadHash(artifact.to_string()));
    for from in from {
        last = to.take(&Store::open_with(from, sinks.as_ref())?, artifact).await;
        match &last {
            Ok(_) => return to.bind_key(None, key, artifact).await,
            Err(StoreError::NotFound { .. }) => {}
            Err(_) => break,
        }
    }
    last.map(drop)
}

/// As stores take them.
pub(crate) fn given(credentials: Option<&BTreeMap<String, Secret>>) -> Option<Credentials<'_>> {
    let given = credentials.into_iter().flatten();
    let given: Credentials<'_> =
        given.map(|(name, value)| (name.as_str(), value.expose())).collect();
    Some(given).filter(|given| !given.is_empty())
}
