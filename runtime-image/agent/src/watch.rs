//! What the agent looks at while a task runs: its progress file, and the provider's notice. Files are
//! real, so this goes by real time.

use std::path::Path;
use std::time::Duration;

use petaflop_store::report::{Progress, ProgressReader};

/// Between two looks at a file.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// New lines of the progress file, each with the name of its event.
pub(crate) fn progress(reader: &mut ProgressReader) -> Vec<(String, serde_json::Value, Progress)> {
    let lines = reader.poll().unwrap_or_else(|error| {
        tracing::warn!(%error, "the progress file cannot be read");
        Vec::new()
    });
    lines
        .into_iter()
        .filter_map(|line| {
            let value = serde_json::to_value(&line).ok()?;
            let event = value.get("event")?.as_str()?.to_owned();
            Some((event, value, line))
        })
        .collect()
}

/// Returns once the notice is there, with the seconds that it leaves where it says so.
pub(crate) async fn notice(file: Option<&Path>) -> Option<u64> {
    let Some(file) = file else {
        return std::future::pending().await;
    };
    loop {
        match std::fs::read_to_string(file) {
            Ok(text) => return text.trim().parse().ok(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "the notice file cannot be read"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
