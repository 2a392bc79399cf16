//! A task's inputs, brought to where its command finds them, and held against their digests.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use petaflop_agent_api::task::{Input, LogSink};
use petaflop_store::hash::{HashedFile, artifact_hash};
use petaflop_store::{ArtifactHash, Store, StoreError, fetch, folder};
use reqwest::header::{ETAG, HeaderValue, IF_RANGE, RANGE};
use reqwest::{Client, StatusCode};
use tokio::time::{Instant, sleep};

use crate::delivery;

/// A server may be away for so long, as a store may.
const PATIENCE: Duration = Duration::from_secs(240);
/// Between two tries, doubled up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// For a connection, and between two pieces.
const SILENCE: Duration = Duration::from_secs(60);

/// Why an input is not here.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Another try gets no other answer.
    Lasting(String),
    /// Another try may.
    Passing(String),
}

impl Trouble {
    fn map(self, words: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Lasting(said) => Self::Lasting(words(said)),
            Self::Passing(said) => Self::Passing(words(said)),
        }
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        match error.is_lasting() {
            true => Self::Lasting(error.to_string()),
            false => Self::Passing(error.to_string()),
        }
    }
}

/// Brings all of them, one after the other: each takes what the line gives.
pub(crate) async fn bring(
    inputs: &[Input],
    root: &Path,
    sink: Option<&LogSink>,
) -> Result<(), Trouble> {
    if inputs.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(root).map_err(|error| {
        let mend = "the image's user must be allowed to make it";
        Trouble::Lasting(format!("{} cannot be made: {error}; {mend}", root.display()))
    })?;
    for input in inputs {
        let words = |said| format!("input {}: {}: {said}", input.name, public(&input.uri));
        let found = one(input, &root.join(&input.name), sink).await.map_err(|t| t.map(words))?;
        let found = format!("blake3:{found}");
        if let Some(expected) = input.digest.as_ref().filter(|digest| **digest != found) {
            let said = format!("expected {expected}, found {found}: it was changed, or is another");
            return Err(Trouble::Lasting(words(said)));
        }
    }
    Ok(())
}

/// Without what may open it.
fn public(uri: &str) -> &str {
    uri.split_once('?').map_or(uri, |(public, _)| public)
}

async fn one(input: &Input, to: &Path, sink: Option<&LogSink>) -> Result<ArtifactHash, Trouble> {
    let Input { name: _, uri, digest: _, credentials, files } = input;
    if let Some(files) = files {
        let write = || {
            fs::create_dir_all(to)?;
            files.iter().try_for_each(|file| fs::write(to.join(&file.path), &file.bytes))
        };
        write().map_err(failed(to))?;
        return hash(to).await;
    }
    if let Some(place) = uri.strip_prefix("file://") {
        let place = Path::new(place);
        let gone = |e| Trouble::Lasting(format!("not on this machine: {e}"));
        place.metadata().map_err(gone)?;
        symlink(place, to).map_err(failed(to))?;
        return hash(place).await;
    }
    if uri.starts_with("https://") {
        download(uri, to).await?;
        return hash(to).await;
    }
    let sinks = sink.map(|sink| &sink.credentials);
    let given = Some(credentials).filter(|own| !own.is_empty()).or(sinks);
    let given = delivery::given(given);
    let given = given.as_ref();
    if let Some(hash) = uri.strip_prefix("artifact:") {
        let hash: ArtifactHash =
            hash.parse().map_err(|_| Trouble::Lasting("that is no hash".into()))?;
        let sink = sink.ok_or_else(|| Trouble::Lasting("no store is known here".into()))?;
        Store::open_with(&sink.uri, given)?.materialise(hash, to).await?;
        return Ok(hash);
    }
    if uri.starts_with("s3://") {
        let found = fetch::fetch(uri, given, to).await?;
        return found.ok_or_else(|| Trouble::Lasting("there is nothing".into()));
    }
    Err(Trouble::Lasting("this agent does not know how to fetch that".into()))
}

fn failed(to: &Path) -> impl Fn(std::io::Error) -> Trouble {
    move |error| Trouble::Passing(format!("{}: {error}", to.display()))
}

/// The digest of a file or folder as it lies there.
async fn hash(place: &Path) -> Result<ArtifactHash, Trouble> {
    let path = place.to_owned();
    let hashed = tokio::task::spawn_blocking(move || {
        if path.is_dir() {
            return folder::hash(&path);
        }
        let (content, length) = folder::hash_file(&path)?;
        Ok(artifact_hash([HashedFile { path: "", length, content }]))
    });
    Ok(hashed.await.map_err(|_| Trouble::Passing("it was not read to its end".into()))??)
}

/// Goes on where it was cut off, where the server can.
async fn download(url: &str, to: &Path) -> Result<(), Trouble> {
    // TLS needs to know whose arithmetic to use; whoever was first has decided.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().https_only(true).connect_timeout(SILENCE).read_timeout(SILENCE);
    let client = client.build().map_err(|error| Trouble::Passing(error.to_string()))?;
    let mut download =
        Download { file: File::create_new(to).map_err(failed(to))?, done: 0, tag: None };
    let mut pause = PAUSE;
    let mut given_up = Instant::now() + PATIENCE;
    loop {
        let before = download.done;
        match download.go_on(&client, url).await {
            Ok(()) => return Ok(()),
            Err(Trouble::Passing(said)) if Instant::now() < given_up => {
                tracing::warn!(said, "an input is tried again");
            }
            Err(trouble) => return Err(trouble),
        }
        if download.done > before {
            (pause, given_up) = (PAUSE, Instant::now() + PATIENCE);
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

struct Download {
    file: File,
    /// Bytes that are in the file.
    done: u64,
    /// Of what they are from.
    tag: Option<HeaderValue>,
}

impl Download {
    async fn go_on(&mut self, client: &Client, url: &str) -> Result<(), Trouble> {
        // Of the URL no more than [`public`].
        let away = |error: reqwest::Error| Trouble::Passing(reason(&error.without_url()));
        let mut request = client.get(url);
        if let Some(tag) = self.tag.as_ref().filter(|_| self.done > 0) {
            request = request.header(RANGE, format!("bytes={}-", self.done)).header(IF_RANGE, tag);
        }
        let mut response = request.send().await.map_err(away)?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if self.done > 0 => {}
            StatusCode::OK => self.begin(response.headers().get(ETAG))?,
            status @ (StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS) => {
                return Err(Trouble::Passing(format!("the server says {status}")));
            }
            status if status.is_server_error() => {
                return Err(Trouble::Passing(format!("the server says {status}")));
            }
            status => return Err(Trouble::Lasting(format!("the server says {status}"))),
        }
        while let Some(piece) = response.chunk().await.map_err(away)? {
            self.file.write_all(&piece).map_err(|e| Trouble::Passing(e.to_string()))?;
            self.done += piece.len() as u64;
        }
        Ok(())
    }

    /// Anew, from the first byte.
    fn begin(&mut self, tag: Option<&HeaderValue>) -> Result<(), Trouble> {
        self.tag = tag.filter(|tag| !tag.as_bytes().starts_with(b"W/")).cloned();
        self.done = 0;
        let begun = self.file.set_len(0).and_then(|()| self.file.rewind());
        begun.map_err(|e| Trouble::Passing(e.to_string()))
    }
}

/// An error with its causes.
fn reason(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        said = format!("{said}: {error}");
        cause = error.source();
    }
    said
}
