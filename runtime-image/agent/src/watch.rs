//! What the agent looks at while a task runs: its progress file, its readiness, and
//! the provider's notice. Files and sockets are real, so this goes by real time.

use std::path::Path;
use std::time::Duration;

use petaflop_agent_api::task::HttpProbe;
use petaflop_store::report::{Progress, ProgressReader};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Between two looks at a file.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Of one readiness probe.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

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

/// Returns once the probe is answered with 200 to 399.
pub(crate) async fn ready(probe: &HttpProbe) {
    loop {
        if let Ok(true) = tokio::time::timeout(PROBE_LIMIT, answers(probe)).await {
            return;
        }
        tokio::time::sleep(Duration::from_secs(probe.period_seconds)).await;
    }
}

async fn answers(probe: &HttpProbe) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", probe.port)).await?;
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: localhost:{}\r\nConnection: close\r\n\r\n",
            probe.path, probe.port
        );
        stream.write_all(request.as_bytes()).await?;
        // `HTTP/1.1 200`
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        std::io::Result::Ok(status)
    };
    ask.await.is_ok_and(|status| status.starts_with(b"HTTP/1.") && matches!(status[9], b'2' | b'3'))
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
