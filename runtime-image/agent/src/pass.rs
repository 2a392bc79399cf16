//! What opens the store for a while, served on this machine's loopback as containers of ECS and EKS
//! find theirs, so that every S3 client takes it from there, and takes it anew before it expires.
//!
//! The task's environment names the address and a file with a word that must be said there; what
//! opens the store is in this process's memory alone.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::future::Future;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use petaflop_agent_api::lease::Nonce;
use petaflop_agent_api::task::{Pass, Secret, Task};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Where it is asked for.
const PATH: &str = "/v1/store";
/// File with the word, in the work folder.
const WORD_FILE: &str = ".store-word";
/// Connections at once: the task's own.
const CONNECTIONS: usize = 64;

/// Variables by which S3 clients find it.
type Variables = [(&'static str, String); 2];

/// Serves the newest pass until the future is dropped.
pub(crate) async fn serve(
    work: &Path,
    newest: watch::Receiver<Option<Pass>>,
) -> io::Result<(Variables, impl Future<Output = ()> + Send + 'static)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    let mut word = String::new();
    for byte in [Nonce::generate().0, Nonce::generate().0].concat() {
        let _ = write!(word, "{byte:02x}");
    }
    let file = work.canonicalize()?.join(WORD_FILE);
    let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&file);
    open?.write_all(word.as_bytes())?;
    let variables = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("http://127.0.0.1:{port}{PATH}")),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file.display().to_string()),
    ];
    Ok((variables, accept(listener, word.into(), newest)))
}

/// Tells whoever ships the output where to ask, and the command where it may know.
pub(crate) fn tell(task: &mut Task, variables: Variables, command: bool) {
    for (name, value) in variables {
        if let Some(sink) = &mut task.log_sink {
            sink.credentials.insert(name.to_owned(), Secret::new(value.clone()));
        }
        if command {
            task.env.insert(name.to_owned(), value);
        }
    }
}

async fn accept(listener: TcpListener, word: Arc<str>, newest: watch::Receiver<Option<Pass>>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    while let Ok(place) = places.clone().acquire_owned().await {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (word, newest) = (word.clone(), newest.clone());
        connections.spawn(async move {
            let service = service_fn(|request: Request<hyper::body::Incoming>| {
                let answer = answer(&request, &word, newest.borrow().as_ref());
                async { Ok::<_, Infallible>(answer) }
            });
            let server = hyper::server::conn::http1::Builder::new();
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
            drop(place);
        });
    }
}

fn answer<B>(request: &Request<B>, word: &str, pass: Option<&Pass>) -> Response<Full<Bytes>> {
    let refused = |status| {
        let mut response = Response::new(Full::default());
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != PATH || request.method() != Method::GET {
        return refused(StatusCode::NOT_FOUND);
    }
    let said = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
    if said != Some(word.as_bytes()) {
        return refused(StatusCode::UNAUTHORIZED);
    }
    let Some(Pass { id, key, token, expires, told: _ }) = pass else {
        return refused(StatusCode::SERVICE_UNAVAILABLE);
    };
    let body = json!({
        "AccessKeyId": id, "SecretAccessKey": key.expose(), "Token": token.expose(),
        "Expiration": expires.to_string(),
    });
    let mut response = Response::new(Full::from(body.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
