//! Asks a command that serves how it is, as a kubelet asks a container: whether it has started, whether it
//! may be sent requests, whether it must be ended. Sockets are real, so this goes by real time.

use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use petaflop_agent_api::task::{Probe, Server};
use petaflop_store::report::Progress;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::session::Session;

/// Tells the session whether the server takes requests. Returns once it must be ended, with why.
pub(crate) async fn follow(server: &Server, session: &Session) -> String {
    let Server { port, startup, readiness, liveness } = server;
    if let Some(probe) = startup {
        let mut asking = Asking::new(probe);
        while let Err(why) = asking.next().await {
            if asking.is_over() {
                return asking.in_words("startup", &why);
            }
        }
    }
    let why = tokio::select! {
        why = dies(liveness.as_ref()) => why,
        never = keep_telling(*port, readiness, session) => match never {},
    };
    session.set_serving(None);
    why
}

async fn keep_telling(port: u16, readiness: &Probe, session: &Session) -> Infallible {
    let mut asking = Asking::new(readiness);
    loop {
        match asking.next().await {
            Ok(()) => session.set_serving(serves(port)),
            Err(why) if asking.is_over() => {
                tracing::info!("{}", asking.in_words("readiness", &why));
                session.set_serving(None);
            }
            Err(_) => {}
        }
    }
}

/// Returns once the liveness probe failed too often, in words.
async fn dies(liveness: Option<&Probe>) -> String {
    let Some(probe) = liveness else { return std::future::pending().await };
    let mut asking = Asking::new(probe);
    loop {
        if let Err(why) = asking.next().await
            && asking.is_over()
        {
            return asking.in_words("liveness", &why);
        }
    }
}

/// The line that our own runtime writes into its progress file. It names no artifact.
fn serves(port: u16) -> Option<serde_json::Value> {
    serde_json::to_value(Progress::Serving { port, model: String::new() }).ok()
}

/// One probe, asked again and again.
struct Asking<'a> {
    probe: &'a Probe,
    /// Before the next check.
    pause: u32,
    /// In a row.
    failures: u32,
}

impl<'a> Asking<'a> {
    fn new(probe: &'a Probe) -> Self {
        Self { probe, pause: probe.initial_delay_seconds, failures: 0 }
    }

    /// Waits for the next check and makes it. Fails with what was wrong.
    async fn next(&mut self) -> Result<(), String> {
        tokio::time::sleep(Duration::from_secs(self.pause.into())).await;
        self.pause = self.probe.period_seconds;
        let limit = Duration::from_secs(self.probe.timeout_seconds.into());
        let answer = match tokio::time::timeout(limit, ask(self.probe)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
        };
        match answer {
            Ok(()) => self.failures = 0,
            Err(_) => self.failures = self.failures.saturating_add(1),
        }
        answer
    }

    fn is_over(&self) -> bool {
        self.failures >= self.probe.failure_threshold
    }

    fn in_words(&self, name: &str, why: &str) -> String {
        let Probe { port, path, .. } = self.probe;
        let what = match path {
            Some(path) => format!("GET :{port}{path}"),
            None => format!("a connection to :{port}"),
        };
        format!("probes.{name} ({what}) failed {} times in a row: {why}", self.failures)
    }
}

async fn ask(probe: &Probe) -> Result<(), String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, probe.port))
        .await
        .map_err(|error| error.to_string())?;
    let Some(path) = &probe.path else { return Ok(()) };
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost:{}\r\nUser-Agent: petaflop-agent\r\nConnection: close\r\n\r\n",
        probe.port
    );
    let status = async {
        stream.write_all(request.as_bytes()).await?;
        // `HTTP/1.1 200`
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        io::Result::Ok(status)
    };
    let status = status.await.map_err(|error| error.to_string())?;
    match status.strip_prefix(b"HTTP/1.") {
        Some([_, b' ', b'2' | b'3', ..]) => Ok(()),
        Some([_, b' ', code @ ..]) => Err(format!("status {}", code.escape_ascii())),
        _ => Err("what it answers is not HTTP/1".to_owned()),
    }
}
