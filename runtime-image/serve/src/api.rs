//! What a client may ask: the bodies of `/v1/completions` and
//! `/v1/chat/completions`, read field by field into one [`Ask`].
//!
//! Three kinds of fields: those this server acts on; those that cannot change
//! the answer ([`HARMLESS`]), accepted and left; and all others, refused by
//! name unless they carry the value that asks for nothing.

use petaflop_model::chat::{Message, Role};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::sample::Sampling;

/// Stop sequences in one request (OpenAI's limit).
const MAX_STOPS: usize = 4;
/// Bytes of one stop sequence; all of them may have to be held back.
const MAX_STOP_BYTES: usize = 256;
/// Answer tokens of `/v1/completions` where none are given (OpenAI's default).
const DEFAULT_COMPLETION_TOKENS: usize = 16;

/// Fields about the caller, storage or billing: whatever they hold, the answer is the same.
const HARMLESS: [&str; 7] = [
    "user",
    "metadata",
    "safety_identifier",
    "service_tier",
    "store",
    "prompt_cache_key",
    "prompt_cache_retention",
];

/// A well-formed request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ask {
    pub(crate) prompt: Prompt,
    /// Tokens of the answer at most; `None`: as many as the context has left.
    pub(crate) max_tokens: Option<usize>,
    pub(crate) sampling: Sampling,
    pub(crate) stop: Vec<String>,
    pub(crate) stream: Option<Stream>,
}

/// How a streamed answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stream {
    /// A last chunk tells the token counts.
    pub(crate) include_usage: bool,
}

/// What the model is to continue.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompt {
    /// Text as it is.
    Text(String),
    /// Token ids as they are.
    Tokens(Vec<u32>),
    /// A conversation, to be put into the model's template.
    Chat(Vec<Message>),
}

/// Reads the body of `/v1/completions`. `served` is the model's name here;
/// `fresh_seed` is used where the client gives none.
pub(crate) fn completion(body: &[u8], served: &str, fresh_seed: u64) -> Result<Ask, ApiError> {
    let mut fields = Fields::parse(body)?;
    fields.model(served)?;
    let prompt = fields.prompt()?;
    let max_tokens = fields.count("max_tokens")?.unwrap_or(DEFAULT_COMPLETION_TOKENS);
    let ask = fields.common(prompt, Some(max_tokens), fresh_seed)?;
    fields.only("best_of", "one answer is made for each request", |v| v == 1)?;
    fields.only("echo", "the prompt is not repeated", |v| v == false)?;
    fields.only("suffix", "text is only continued, not filled in", |v| v == "")?;
    fields.only("logprobs", "log probabilities are not returned", |_| false)?;
    fields.finish()?;
    Ok(ask)
}

/// Reads the body of `/v1/chat/completions`; as [`completion`].
pub(crate) fn chat(body: &[u8], served: &str, fresh_seed: u64) -> Result<Ask, ApiError> {
    let mut fields = Fields::parse(body)?;
    fields.model(served)?;
    let messages = fields.messages()?;
    let new = fields.count("max_completion_tokens")?;
    let old = fields.count("max_tokens")?;
    let max_tokens = match (new, old) {
        (Some(new), Some(old)) if new != old => {
            return Err(ApiError::invalid(
                "max_tokens",
                format!("max_tokens is {old} and max_completion_tokens is {new}; give one of them"),
            ));
        }
        (new, old) => new.or(old),
    };
    let ask = fields.common(Prompt::Chat(messages), max_tokens, fresh_seed)?;
    let empty = |v: &Value| v.as_array().is_some_and(Vec::is_empty);
    for name in ["tools", "functions"] {
        fields.only(name, "tools are not called by this server", empty)?;
    }
    for name in ["tool_choice", "function_call"] {
        fields.only(name, "tools are not called by this server", |v| v == "none" || v == "auto")?;
    }
    fields.only("parallel_tool_calls", "tools are not called by this server", Value::is_boolean)?;
    fields.only(
        "response_format",
        "the form of the answer is not enforced by this server; only {\"type\": \"text\"} is",
        |v| v.as_object().is_some_and(|o| o.len() == 1) && v["type"] == "text",
    )?;
    fields.only("modalities", "answers are text", |v| {
        v.as_array().is_some_and(|m| m.iter().all(|one| one == "text"))
    })?;
    fields.only("logprobs", "log probabilities are not returned", |v| v == false)?;
    fields.only("top_logprobs", "log probabilities are not returned", |v| v == 0)?;
    fields.finish()?;
    Ok(ask)
}

/// A request's fields that nobody has looked at yet.
struct Fields(Map<String, Value>);

impl Fields {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Fields(map)),
            Ok(other) => Err(ApiError::malformed(format!(
                "the body: expected a JSON object, found {}",
                kind(&other)
            ))),
            Err(e) => Err(ApiError::malformed(format!("the body is not JSON: {e}"))),
        }
    }

    /// The field's value; a JSON null is the same as no field.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|v| !v.is_null())
    }

    fn model(&mut self, served: &str) -> Result<(), ApiError> {
        match self.take("model") {
            // There is one model here, so no name can only mean that one.
            None => Ok(()),
            Some(Value::String(name)) if name == served => Ok(()),
            Some(Value::String(name)) => Err(ApiError::unknown_model(&name, served)),
            Some(other) => Err(wrong("model", "a string", &other)),
        }
    }

    /// A whole number of at least 1.
    fn count(&mut self, name: &'static str) -> Result<Option<usize>, ApiError> {
        self.take(name)
            .map(|v| {
                v.as_u64()
                    .filter(|&n| n >= 1)
                    .map(|n| usize::try_from(n).unwrap_or(usize::MAX))
                    .ok_or_else(|| wrong(name, "a whole number of at least 1", &v))
            })
            .transpose()
    }

    fn number(
        &mut self,
        name: &'static str,
        expected: &str,
        fits: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>, ApiError> {
        self.take(name)
            .map(|v| v.as_f64().filter(|&n| fits(n)).ok_or_else(|| wrong(name, expected, &v)))
            .transpose()
    }

    fn flag(&mut self, name: &'static str) -> Result<bool, ApiError> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(b)) => Ok(b),
            Some(other) => Err(wrong(name, "true or false", &other)),
        }
    }

    /// Settings that both kinds of completion share.
    fn common(
        &mut self,
        prompt: Prompt,
        max_tokens: Option<usize>,
        fresh_seed: u64,
    ) -> Result<Ask, ApiError> {
        let temperature = self
            .number("temperature", "a number from 0 to 2", |n| (0.0..=2.0).contains(&n))?
            .unwrap_or(1.0);
        let top_p = self
            .number("top_p", "a number above 0 and up to 1", |n| n > 0.0 && n <= 1.0)?
            .unwrap_or(1.0);
        let seed = match self.take("seed") {
            None => fresh_seed,
            // Negative seeds are as good as any: their 64 bits are the key.
            Some(v) => v
                .as_u64()
                .or_else(|| v.as_i64().map(i64::cast_unsigned))
                .ok_or_else(|| wrong("seed", "a whole number of 64 bits", &v))?,
        };
        let stop = self.stop()?;
        let stream = self.flag("stream")?;
        let stream = match (stream, self.take("stream_options")) {
            (false, None) => None,
            (false, Some(_)) => {
                return Err(ApiError::invalid(
                    "stream_options",
                    "stream_options are only meaningful with \"stream\": true",
                ));
            }
            (true, options) => Some(stream_options(options)?),
        };
        self.only("n", "one answer is made for each request", |v| v == 1)?;
        for name in ["presence_penalty", "frequency_penalty"] {
            self.only(name, "penalties are not applied by this server", |v| {
                v.as_f64() == Some(0.0)
            })?;
        }
        self.only("logit_bias", "logits are not biased by this server", |v| {
            v.as_object().is_some_and(Map::is_empty)
        })?;
        Ok(Ask {
            prompt,
            max_tokens,
            sampling: Sampling { temperature, top_p, seed },
            stop,
            stream,
        })
    }

    fn stop(&mut self) -> Result<Vec<String>, ApiError> {
        let expected = "a string or a list of strings";
        let stops = match self.take("stop") {
            None => Vec::new(),
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(many)) => many
                .into_iter()
                .map(|v| match v {
                    Value::String(s) => Ok(s),
                    other => Err(wrong("stop", expected, &other)),
                })
                .collect::<Result<_, _>>()?,
            Some(other) => return Err(wrong("stop", expected, &other)),
        };
        if stops.len() > MAX_STOPS {
            return Err(ApiError::invalid(
                "stop",
                format!("stop: expected at most {MAX_STOPS} sequences, found {}", stops.len()),
            ));
        }
        if let Some(bad) = stops.iter().find(|s| s.is_empty() || s.len() > MAX_STOP_BYTES) {
            return Err(ApiError::invalid(
                "stop",
                format!(
                    "stop: expected sequences of 1 to {MAX_STOP_BYTES} bytes, found one of {}",
                    bad.len()
                ),
            ));
        }
        Ok(stops)
    }

    /// The prompt of `/v1/completions`: text, token ids, or a list with one such.
    fn prompt(&mut self) -> Result<Prompt, ApiError> {
        let Some(prompt) = self.take("prompt") else {
            return Err(missing("prompt"));
        };
        let expected = "a string or a list of token ids";
        match prompt {
            Value::String(text) => Ok(Prompt::Text(text)),
            Value::Array(items) if items.iter().all(Value::is_number) => {
                token_ids(&items).map(Prompt::Tokens)
            }
            Value::Array(mut items) if items.len() == 1 => match items.remove(0) {
                Value::String(text) => Ok(Prompt::Text(text)),
                Value::Array(ids) => token_ids(&ids).map(Prompt::Tokens),
                other => Err(wrong("prompt", expected, &other)),
            },
            Value::Array(items) => Err(ApiError::unsupported(
                "prompt",
                format!(
                    "prompt: one prompt is answered for each request, found {}; send a request \
                     for each",
                    items.len()
                ),
            )),
            other => Err(wrong("prompt", expected, &other)),
        }
    }

    fn messages(&mut self) -> Result<Vec<Message>, ApiError> {
        match self.take("messages") {
            None => Err(missing("messages")),
            Some(Value::Array(items)) if items.is_empty() => Err(ApiError::invalid(
                "messages",
                "messages: expected at least one message, found none",
            )),
            Some(Value::Array(items)) => items
                .into_iter()
                .enumerate()
                .map(|(i, item)| message(&format!("messages[{i}]"), item))
                .collect(),
            Some(other) => Err(wrong("messages", "a list of messages", &other)),
        }
    }

    /// Takes a field that is only accepted where it asks for nothing.
    fn only(
        &mut self,
        name: &'static str,
        why: &str,
        asks_for_nothing: impl Fn(&Value) -> bool,
    ) -> Result<(), ApiError> {
        match self.take(name) {
            Some(v) if !asks_for_nothing(&v) => {
                Err(ApiError::unsupported(name, format!("{name}: {why}")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses whatever nobody took.
    fn finish(self) -> Result<(), ApiError> {
        self.0
            .into_iter()
            .find(|(name, value)| !value.is_null() && !HARMLESS.contains(&name.as_str()))
            .map_or(Ok(()), |(name, _)| {
                let message = format!(
                    "{name}: this server does not know this parameter, so it does not pretend to \
                     follow it; leave it out"
                );
                Err(ApiError::unsupported(name, message))
            })
    }
}

fn stream_options(options: Option<Value>) -> Result<Stream, ApiError> {
    let mut fields = match options {
        None => Map::new(),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong("stream_options", "an object", &other)),
    };
    let include_usage = match fields.remove("include_usage") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(b)) => b,
        Some(other) => {
            return Err(wrong("stream_options.include_usage", "true or false", &other));
        }
    };
    // Padding against eavesdroppers on a shared link; there is none to leave out.
    fields.remove("include_obfuscation");
    match fields.into_iter().next() {
        Some((name, _)) => Err(ApiError::unsupported(
            format!("stream_options.{name}"),
            format!("stream_options.{name}: this server does not know this option; leave it out"),
        )),
        None => Ok(Stream { include_usage }),
    }
}

/// One entry of `messages`, found at `path`.
fn message(path: &str, item: Value) -> Result<Message, ApiError> {
    let Value::Object(fields) = item else {
        return Err(wrong(path, "an object with role and content", &item));
    };
    let mut fields = Fields(fields);
    let at = format!("{path}.role");
    let role = match fields.take("role") {
        None => return Err(missing(at)),
        Some(Value::String(role)) => match role.as_str() {
            // OpenAI's newer name for the same place.
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" | "function" => {
                return Err(ApiError::unsupported(
                    at,
                    format!("{path}.role: tools are not called by this server"),
                ));
            }
            other => {
                return Err(ApiError::invalid(
                    at,
                    format!(
                        "{path}.role: expected system, developer, user or assistant, found \
                         {other:?}"
                    ),
                ));
            }
        },
        Some(other) => return Err(wrong(at, "a string", &other)),
    };
    let at = format!("{path}.content");
    let content = match fields.take("content") {
        None => return Err(missing(at)),
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => parts
            .into_iter()
            .enumerate()
            .map(|(i, part)| text_part(&format!("{at}[{i}]"), &part))
            .collect::<Result<_, _>>()?,
        Some(other) => return Err(wrong(at, "a string or a list of text parts", &other)),
    };
    let empty = |v: &Value| v.as_array().is_some_and(Vec::is_empty);
    // What the official client sends back with an assistant's earlier message.
    if let Some((name, _)) =
        fields.0.into_iter().find(|(_, value)| !value.is_null() && !empty(value))
    {
        return Err(ApiError::unsupported(
            format!("{path}.{name}"),
            format!("{path}.{name}: messages have a role and a content here; leave it out"),
        ));
    }
    Ok(Message { role, content })
}

/// The text of one content part, found at `path`.
fn text_part(path: &str, part: &Value) -> Result<String, ApiError> {
    match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        (Some("text"), None) => Err(missing(format!("{path}.text"))),
        (Some(other), _) => Err(ApiError::unsupported(
            format!("{path}.type"),
            format!("{path}.type: this model reads text, not {other:?}"),
        )),
        (None, _) => Err(missing(format!("{path}.type"))),
    }
}

fn token_ids(items: &[Value]) -> Result<Vec<u32>, ApiError> {
    items
        .iter()
        .map(|v| {
            v.as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| wrong("prompt", "token ids", v))
        })
        .collect()
}

fn missing(path: impl Into<String>) -> ApiError {
    let path = path.into();
    let message = format!("{path}: this field is needed");
    ApiError::invalid(path, message)
}

fn wrong(path: impl Into<String>, expected: &str, found: &Value) -> ApiError {
    let path = path.into();
    let message = format!("{path}: expected {expected}, found {}", kind(found));
    ApiError::invalid(path, message)
}

/// A value in a few words: short ones as they are, others by their kind.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) if s.len() <= 40 => format!("{s:?}"),
        Value::String(_) => "a long string".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chat_ask(mut extra: Value) -> Result<Ask, ApiError> {
        let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]});
        let fields = body.as_object_mut().expect("an object");
        fields.append(extra.as_object_mut().expect("an object"));
        chat(body.to_string().as_bytes(), "tiny", 99)
    }

    fn completion_ask(mut extra: Value) -> Result<Ask, ApiError> {
        let mut body = json!({"model": "tiny", "prompt": "hi"});
        let fields = body.as_object_mut().expect("an object");
        fields.append(extra.as_object_mut().expect("an object"));
        completion(body.to_string().as_bytes(), "tiny", 99)
    }

    #[test]
    fn defaults_are_openais() {
        let ask = chat_ask(json!({})).expect("valid");
        assert_eq!(ask.max_tokens, None);
        assert_eq!(ask.sampling.temperature, 1.0);
        assert_eq!(ask.sampling.top_p, 1.0);
        assert_eq!(ask.sampling.seed, 99);
        assert_eq!(ask.stream, None);
        assert_eq!(completion_ask(json!({})).expect("valid").max_tokens, Some(16));
    }

    #[test]
    fn every_setting_is_read() {
        let ask = chat_ask(json!({
            "temperature": 0, "top_p": 0.5, "seed": -1, "max_completion_tokens": 7,
            "stop": ["a", "b"], "stream": true, "stream_options": {"include_usage": true},
        }))
        .expect("valid");
        assert_eq!(ask.max_tokens, Some(7));
        assert_eq!(ask.stop, ["a", "b"]);
        assert_eq!(ask.stream, Some(Stream { include_usage: true }));
        assert_eq!(ask.sampling, Sampling { temperature: 0.0, top_p: 0.5, seed: u64::MAX });
    }

    #[test]
    fn content_parts_are_joined_and_developer_is_system() {
        let ask = chat_ask(json!({"messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "refusal": null, "annotations": [], "tool_calls": null},
        ]}))
        .expect("valid");
        let Prompt::Chat(messages) = ask.prompt else { panic!("a chat") };
        let read: Vec<_> = messages.iter().map(|m| (m.role, m.content.as_str())).collect();
        assert_eq!(read, [(Role::System, "be brief"), (Role::User, "ab"), (Role::Assistant, "c")]);
    }

    #[test]
    fn prompts_may_be_text_or_token_ids() {
        for (given, read) in [
            (json!("a"), Prompt::Text("a".into())),
            (json!(["a"]), Prompt::Text("a".into())),
            (json!([1, 2]), Prompt::Tokens(vec![1, 2])),
            (json!([[1, 2]]), Prompt::Tokens(vec![1, 2])),
            (json!([]), Prompt::Tokens(vec![])),
        ] {
            assert_eq!(completion_ask(json!({"prompt": given})).expect("valid").prompt, read);
        }
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for (field, value) in [
            ("n", json!(2)),
            ("tools", json!([{"type": "function"}])),
            ("tool_choice", json!("required")),
            ("functions", json!([{}])),
            ("response_format", json!({"type": "json_schema", "json_schema": {}})),
            ("response_format", json!({"type": "json_object"})),
            ("logprobs", json!(true)),
            ("top_logprobs", json!(3)),
            ("presence_penalty", json!(0.5)),
            ("frequency_penalty", json!(-0.5)),
            ("logit_bias", json!({"5": 1})),
            ("modalities", json!(["text", "audio"])),
            ("audio", json!({})),
            ("reasoning_effort", json!("low")),
            ("top_k", json!(5)),
            ("temprature", json!(0.5)),
        ] {
            let error = chat_ask(json!({ field: value })).expect_err(field);
            assert_eq!(error.param.as_deref(), Some(field), "{error:?}");
            assert_eq!(error.code, Some("unsupported_parameter"));
            assert_eq!(error.status, 400);
        }
        for (field, value) in [
            ("best_of", json!(3)),
            ("echo", json!(true)),
            ("suffix", json!("x")),
            ("logprobs", json!(0)),
            ("prompt", json!(["a", "b"])),
        ] {
            let error = completion_ask(json!({ field: value })).expect_err(field);
            assert_eq!(error.param.as_deref(), Some(field), "{error:?}");
            assert_eq!(error.code, Some("unsupported_parameter"));
        }
    }

    #[test]
    fn fields_that_ask_for_nothing_are_accepted() {
        chat_ask(json!({
            "n": 1, "tools": [], "tool_choice": "none", "response_format": {"type": "text"},
            "logprobs": false, "top_logprobs": null, "presence_penalty": 0, "frequency_penalty": 0.0,
            "logit_bias": {}, "modalities": ["text"], "audio": null, "user": "me",
            "metadata": {"a": "b"}, "store": false, "service_tier": "auto",
            "parallel_tool_calls": true,
        }))
        .expect("valid");
        completion_ask(json!({"best_of": 1, "echo": false, "suffix": null, "logprobs": null}))
            .expect("valid");
    }

    #[test]
    fn wrong_values_name_field_expectation_and_finding() {
        for (extra, param, says) in [
            (json!({"temperature": 3}), "temperature", "from 0 to 2, found 3"),
            (json!({"temperature": "hot"}), "temperature", "found \"hot\""),
            (json!({"top_p": 0}), "top_p", "found 0"),
            (json!({"seed": 0.5}), "seed", "found 0.5"),
            (json!({"max_tokens": 0}), "max_tokens", "at least 1, found 0"),
            (json!({"max_tokens": -4}), "max_tokens", "found -4"),
            (json!({"max_tokens": 4, "max_completion_tokens": 5}), "max_tokens", "give one"),
            (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop", "at most 4"),
            (json!({"stop": ""}), "stop", "1 to 256 bytes"),
            (json!({"stop": [1]}), "stop", "found 1"),
            (json!({"stream": "yes"}), "stream", "true or false"),
            (json!({"stream_options": {"include_usage": true}}), "stream_options", "stream"),
            (json!({"stream": true, "stream_options": {"x": 1}}), "stream_options.x", "know"),
            (json!({"messages": []}), "messages", "at least one"),
            (json!({"messages": "hi"}), "messages", "a list of messages"),
            (json!({"messages": [{"content": "hi"}]}), "messages[0].role", "needed"),
            (
                json!({"messages": [{"role": "king", "content": "hi"}]}),
                "messages[0].role",
                "\"king\"",
            ),
            (json!({"messages": [{"role": "user"}]}), "messages[0].content", "needed"),
            (json!({"messages": [{"role": "tool", "content": ""}]}), "messages[0].role", "tools"),
            (
                json!({"messages": [{"role": "user", "content": "", "name": "x"}]}),
                "messages[0].name",
                "leave it out",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
                "messages[0].content[0].type",
                "image_url",
            ),
        ] {
            let error = chat_ask(extra.clone()).expect_err(&extra.to_string());
            assert_eq!(error.param.as_deref(), Some(param), "{error:?}");
            assert!(error.message.contains(says), "{error:?}");
            assert_eq!(error.status, 400);
        }
        let error = chat_ask(json!({"model": "gpt-4"})).expect_err("another model");
        assert_eq!((error.status.as_u16(), error.code), (404, Some("model_not_found")));
    }

    #[test]
    fn what_is_not_a_json_object_is_malformed() {
        for body in ["", "{", "[1]", "{\"model\": }", "null", "\u{0}"] {
            let error = chat(body.as_bytes(), "tiny", 0).expect_err(body);
            assert_eq!((error.status.as_u16(), error.code), (400, Some("malformed_json")));
        }
        let deep = "[".repeat(100_000);
        assert_eq!(chat(deep.as_bytes(), "tiny", 0).expect_err("deep").status, 400);
    }
}
