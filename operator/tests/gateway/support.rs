//! The gateway with its sockets, and servers that stand for replicas.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use petaflop_agent_api::clock::Clock;
use petaflop_agent_api::gateway::Server;
use petaflop_operator::gateway::{Config, Connect, Gateway, Replica, State, Tcp, listen, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A gateway with its sockets.
pub(crate) struct Service {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) replicas: watch::Sender<Vec<Replica>>,
    pub(crate) at: String,
    pub(crate) own: String,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) over: JoinHandle<()>,
}

impl Service {
    pub(crate) async fn start(config: Config, replicas: &[&Backend]) -> Self {
        Self::start_by(config, Arc::new(Tcp), ready(replicas)).await
    }

    /// With another way to replicas than the plain one.
    pub(crate) async fn start_by(
        config: Config,
        connect: Arc<dyn Connect>,
        replicas: Vec<Replica>,
    ) -> Self {
        let (replicas, said) = watch::channel(replicas);
        let gateway = Gateway::new(config, Clock::system(), connect, said);
        let (requests, own) = (socket(), socket());
        let (at, own_at) = (address(&requests), address(&own));
        let (stop, stopped) = oneshot::channel();
        let stopped = async { drop(stopped.await) };
        let over = tokio::spawn(serve(gateway.clone(), requests, own, stopped));
        Self { gateway, replicas, at, own: own_at, stop: Some(stop), over }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        ask(&self.at, &format!("GET {path} HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n")).await
    }

    pub(crate) async fn post(&self, body: &str) -> Answer {
        ask(&self.at, &post(body)).await
    }

    /// One metric's value.
    pub(crate) async fn metric(&self, line: &str) -> u64 {
        let text = ask(&self.own, "GET /metrics HTTP/1.0\r\n\r\n").await.body;
        let value = text.lines().find_map(|l| l.strip_prefix(line)).unwrap_or("0");
        value.trim().parse().unwrap()
    }
}

/// A server that stands for a replica.
pub(crate) struct Backend {
    pub(crate) name: String,
    pub(crate) address: String,
    /// Requests but for those for its health.
    pub(crate) asked: Arc<AtomicUsize>,
    /// Most of them at once.
    pub(crate) most: Arc<AtomicUsize>,
    pub(crate) task: JoinHandle<()>,
}

impl Backend {
    /// `answer` gets each request's head and body, and the socket; the connection stays open for
    /// the next request while it says so.
    pub(crate) async fn new<F, A>(name: &str, answer: A) -> Self
    where
        A: Fn(String, Vec<u8>, TcpStream) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Option<TcpStream>> + Send,
    {
        let listener = socket();
        let address = address(&listener);
        let (asked, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counters = (asked.clone(), most.clone(), Arc::new(AtomicUsize::new(0)));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let (answer, (asked, most, now)) = (answer.clone(), counters.clone());
                connections.spawn(async move {
                    while let Some((head, body)) = request(&mut stream).await {
                        if !head.starts_with("GET /health/ready ") {
                            asked.fetch_add(1, SeqCst);
                        }
                        most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                        let next = answer(head, body, stream).await;
                        now.fetch_sub(1, SeqCst);
                        let Some(same) = next else { return };
                        stream = same;
                    }
                });
            }
        });
        Self { name: name.to_owned(), address, asked, most, task }
    }

    /// One that works: answers after `delay` with its name and what it was sent.
    pub(crate) async fn good(name: &'static str, delay: Duration) -> Self {
        Self::new(name, move |head, body, mut stream| async move {
            if !head.starts_with("GET /health/ready ") {
                sleep(delay).await;
            }
            let body = format!("{name}|{}|{head}", body.len());
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: x-hop\r\nx-hop: 1\r\n\r\n",
                body.len()
            );
            stream.write_all((head + &body).as_bytes()).await.ok()?;
            Some(stream)
        })
        .await
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }

    pub(crate) fn replica(&self, state: State) -> Replica {
        let (name, address) = (self.name.clone(), self.address.clone());
        Replica {
            name,
            address,
            agent: None,
            weight: NonZeroU32::MIN,
            state,
            key: None,
            server: Server::Ours,
        }
    }
}

impl Drop for Backend {
    /// As SIGKILL: every socket closes.
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn ready(backends: &[&Backend]) -> Vec<Replica> {
    backends.iter().map(|backend| backend.replica(State::Ready)).collect()
}

pub(crate) fn socket() -> TcpListener {
    listen("127.0.0.1:0".parse().unwrap()).unwrap()
}

pub(crate) fn address(listener: &TcpListener) -> String {
    listener.local_addr().unwrap().to_string()
}

pub(crate) fn post(body: &str) -> String {
    let length = body.len();
    format!(
        "POST /v1/completions HTTP/1.1\r\nHost: s\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// Reads one request with an announced length.
pub(crate) async fn request(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut read = Vec::new();
    loop {
        if let Some(end) = read.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8(read[..end + 4].to_vec()).unwrap().to_lowercase();
            let head = head.replacen("get", "GET", 1).replacen("http/1.1", "HTTP/1.1", 1);
            let length = head.split("content-length: ").nth(1).and_then(|l| l.lines().next());
            let all = end + 4 + length.map_or(0, |length| length.parse::<usize>().unwrap());
            let chunked = head.contains("transfer-encoding: chunked");
            if read.len() >= all && (!chunked || read.ends_with(b"0\r\n\r\n")) {
                return Some((head, read.split_off(end + 4)));
            }
        }
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// Sends bytes and reads to the end of the connection.
pub(crate) async fn ask(address: &str, request: &str) -> Answer {
    let answer = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // A refusal may come before all is written.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    };
    let answer = timeout(SOON, answer).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Answer { code, head: head.to_lowercase(), body: body.to_owned() }
}

/// Waits for something that has no event.
pub(crate) async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let wait = async {
        while !is() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

pub(crate) fn error_code(answer: &Answer) -> String {
    let json: serde_json::Value = serde_json::from_str(&answer.body).expect(&answer.body);
    assert!(json["error"]["message"].is_string() && json["error"]["type"].is_string(), "{json}");
    json["error"]["code"].as_str().unwrap().to_owned()
}

pub(crate) const CHUNKED: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

/// A stream that sends what the test says, and tells when its client has gone.
pub(crate) async fn streaming(
    name: &str,
) -> (Backend, mpsc::UnboundedSender<String>, oneshot::Receiver<()>) {
    let (say, said) = mpsc::unbounded_channel::<String>();
    let (left, leaves) = oneshot::channel();
    let script = Arc::new(std::sync::Mutex::new(Some((said, left))));
    let backend = Backend::new(name, move |_, _, mut stream| {
        let script = script.lock().unwrap().take();
        async move {
            let (mut said, left) = script?;
            stream.write_all(CHUNKED).await.ok()?;
            let mut byte = [0];
            loop {
                tokio::select! {
                    event = said.recv() => {
                        let event = event.unwrap_or_default();
                        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                        stream.write_all(chunk.as_bytes()).await.ok()?;
                        if event.is_empty() {
                            return Some(stream);
                        }
                    }
                    _ = stream.read(&mut byte) => {
                        left.send(()).unwrap();
                        return None;
                    }
                }
            }
        }
    })
    .await;
    (backend, say, leaves)
}

/// Reads until what was read contains `text`.
pub(crate) async fn read_until(stream: &mut TcpStream, text: &str) {
    let mut read = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&read).contains(text) {
            assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0, "cut before {text:?}");
        }
    };
    timeout(SOON, reading).await.unwrap_or_else(|_| panic!("never came: {text:?}"));
}

/// Resident bytes of this process.
pub(crate) fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
