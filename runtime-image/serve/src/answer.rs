//! How an answer is written: one JSON object, or server-sent events that end
//! with `[DONE]`.
//!
//! Headers are sent when the engine has something to say, so a request that
//! fails before that gets a status code that tells so, streamed or not.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::response::sse::{Event as Sse, KeepAlive};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::api::Stream;
use crate::error::ApiError;
use crate::queue::{Event, FinishReason};

/// Comment lines keep proxies from closing a stream that waits for its next token.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Which of the two forms was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `/v1/completions`
    Completion,
    /// `/v1/chat/completions`
    Chat,
}

/// What all parts of one answer have in common.
#[derive(Clone, Debug)]
struct Head {
    endpoint: Endpoint,
    id: String,
    created: u64,
    model: String,
}

/// Waits for the engine and writes the answer. Dropping the returned future or
/// the response's body drops `events`, which tells the engine to stop.
pub(crate) async fn respond(
    endpoint: Endpoint,
    model: &str,
    stream: Option<Stream>,
    events: UnboundedReceiver<Event>,
    ticket: Arc<OwnedSemaphorePermit>,
) -> Result<Response, ApiError> {
    let prefix = match endpoint {
        Endpoint::Completion => "cmpl",
        Endpoint::Chat => "chatcmpl",
    };
    let head = Head {
        endpoint,
        id: format!("{prefix}-{:016x}{:016x}", random(), random()),
        created: unix_time(),
        model: model.to_owned(),
    };
    match stream {
        None => whole(&head, events).await,
        Some(options) => streamed(head, options, events, ticket).await,
    }
}

/// A number that nobody can foresee: `RandomState` is keyed anew for each call.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Seconds since 1970.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.as_secs())
}

/// The next event; a channel that closed without a last one means that the engine is gone.
async fn next(events: &mut UnboundedReceiver<Event>) -> Event {
    events
        .recv()
        .await
        .unwrap_or_else(|| Event::Failed(ApiError::engine_failed("it ended without an answer")))
}

async fn whole(head: &Head, mut events: UnboundedReceiver<Event>) -> Result<Response, ApiError> {
    let mut text = String::new();
    loop {
        match next(&mut events).await {
            Event::Text(piece) => text.push_str(&piece),
            Event::Failed(error) => return Err(error),
            Event::Done { reason, prompt_tokens, completion_tokens } => {
                let (object, choice) = match head.endpoint {
                    Endpoint::Completion => ("text_completion", text_choice(&text, Some(reason))),
                    Endpoint::Chat => {
                        let message =
                            json!({"role": "assistant", "content": text, "refusal": null});
                        ("chat.completion", chat_choice("message", message, Some(reason)))
                    }
                };
                let mut answer = head.envelope(object, json!([choice]));
                answer["usage"] = usage(prompt_tokens, completion_tokens);
                return Ok(Json(answer).into_response());
            }
        }
    }
}

async fn streamed(
    head: Head,
    options: Stream,
    mut events: UnboundedReceiver<Event>,
    ticket: Arc<OwnedSemaphorePermit>,
) -> Result<Response, ApiError> {
    let mut lines = VecDeque::new();
    if head.endpoint == Endpoint::Chat {
        let opening = json!({"role": "assistant", "content": ""});
        lines.push_back(head.chunk(chat_choice("delta", opening, None), options));
    }
    let first = match next(&mut events).await {
        Event::Failed(error) => return Err(error),
        first => first,
    };
    let mut answer = Streamed { head, options, events, lines, ended: false, _ticket: ticket };
    answer.take(first);
    let body = stream::unfold(answer, async |mut answer| {
        let line = answer.line().await?;
        Some((Ok::<_, Infallible>(Sse::default().data(line)), answer))
    });
    Ok(axum::response::Sse::new(body)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response())
}

/// A streamed answer on its way.
struct Streamed {
    head: Head,
    options: Stream,
    events: UnboundedReceiver<Event>,
    /// Written, not yet sent.
    lines: VecDeque<String>,
    /// No event follows.
    ended: bool,
    /// Held until the last byte was taken.
    _ticket: Arc<OwnedSemaphorePermit>,
}

impl Streamed {
    /// The next line's data; `None` after the last.
    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.ended {
                return None;
            }
            let event = next(&mut self.events).await;
            self.take(event);
        }
    }

    /// Writes the lines that an event becomes.
    fn take(&mut self, event: Event) {
        let Streamed { head, options, .. } = self;
        match event {
            Event::Text(text) => {
                let choice = match head.endpoint {
                    Endpoint::Completion => text_choice(&text, None),
                    Endpoint::Chat => chat_choice("delta", json!({"content": text}), None),
                };
                self.lines.push_back(head.chunk(choice, *options));
            }
            Event::Done { reason, prompt_tokens, completion_tokens } => {
                let choice = match head.endpoint {
                    Endpoint::Completion => text_choice("", Some(reason)),
                    Endpoint::Chat => chat_choice("delta", json!({}), Some(reason)),
                };
                self.lines.push_back(head.chunk(choice, *options));
                if options.include_usage {
                    let mut last = head.envelope(head.chunk_object(), json!([]));
                    last["usage"] = usage(prompt_tokens, completion_tokens);
                    self.lines.push_back(last.to_string());
                }
                self.lines.push_back("[DONE]".into());
                self.ended = true;
            }
            // The status line is long gone; clients look for this member.
            Event::Failed(error) => {
                self.lines.push_back(json!(error.body()).to_string());
                self.ended = true;
            }
        }
    }
}

impl Head {
    fn envelope(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    fn chunk_object(&self) -> &'static str {
        match self.endpoint {
            Endpoint::Completion => "text_completion",
            Endpoint::Chat => "chat.completion.chunk",
        }
    }

    /// One streamed chunk. Where token counts were asked for, only the last chunk
    /// has them, and the others say null.
    fn chunk(&self, choice: Value, options: Stream) -> String {
        let mut chunk = self.envelope(self.chunk_object(), json!([choice]));
        if options.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk.to_string()
    }
}

fn text_choice(text: &str, reason: Option<FinishReason>) -> Value {
    json!({"index": 0, "text": text, "logprobs": null, "finish_reason": reason})
}

/// `part` is `message` in a whole answer, `delta` in a chunk.
fn chat_choice(part: &str, content: Value, reason: Option<FinishReason>) -> Value {
    json!({"index": 0, part: content, "logprobs": null, "finish_reason": reason})
}

fn usage(prompt: usize, completion: usize) -> Value {
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    })
}
