//! A server on loopback that answers as a script says, and remembers what it was asked. One
//! request a connection.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    pub(crate) authorization: String,
    pub(crate) body: String,
}

impl Call {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("the request's body is JSON")
    }

    /// `GET /v2/pods`, say.
    pub(crate) fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// What it answers.
pub(crate) enum Reply {
    Json(u16, Value),
    Text(u16, String),
    With(u16, Vec<(&'static str, String)>, Value),
    /// The connection is closed without an answer.
    Cut,
}

/// An error as RFC 9457 has it.
pub(crate) fn problem(status: u16, detail: &str) -> Reply {
    Reply::Json(status, json!({ "title": "Error", "status": status, "detail": detail }))
}

pub(crate) struct Server {
    pub(crate) base: String,
    calls: Arc<Mutex<Vec<Call>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(crate) async fn start(mut script: impl FnMut(&Call) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let calls = Arc::new(Mutex::new(Vec::new()));
        let noted = calls.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let Some(call) = read(&mut stream).await else { continue };
                noted.lock().unwrap_or_else(PoisonError::into_inner).push(call.clone());
                write(&mut stream, script(&call)).await;
            }
        });
        Self { base, calls, task }
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Method and path of every request so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.calls().iter().map(Call::line).collect()
    }

    /// How many requests began like this.
    pub(crate) fn count(&self, start: &str) -> usize {
        self.lines().iter().filter(|line| line.starts_with(start)).count()
    }
}

async fn read(stream: &mut TcpStream) -> Option<Call> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(':'));
        let found = lines.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let length: usize = header("content-length").parse().unwrap_or(0);
    while bytes.len() < end + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    let mut first = head.lines().next()?.split(' ');
    Some(Call {
        method: first.next()?.to_owned(),
        path: first.next()?.to_owned(),
        authorization: header("authorization"),
        body: String::from_utf8_lossy(&bytes[end..]).into_owned(),
    })
}

async fn write(stream: &mut TcpStream, reply: Reply) {
    let (status, headers, body) = match reply {
        Reply::Json(status, body) => (status, Vec::new(), body.to_string()),
        Reply::With(status, headers, body) => (status, headers, body.to_string()),
        Reply::Text(status, body) => (status, Vec::new(), body),
        Reply::Cut => return,
    };
    let body = if status == 204 { String::new() } else { body };
    let mut head = format!("HTTP/1.1 {status} Status\r\nconnection: close\r\n");
    if status != 204 {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    // Who has gone away misses nothing.
    let _ = stream.write_all(format!("{head}\r\n{body}").as_bytes()).await;
    let _ = stream.shutdown().await;
}
