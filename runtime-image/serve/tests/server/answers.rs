//! What a served model answers, over real HTTP.

use crate::common::{export_model, export_model_as, start, start_on, write_model};
use petaflop_plan::{Numerics, recipe::Quantization};
use petaflop_serve::{ModelLocation, ServeConfig};
use serde_json::{Value, json};

/// The pieces of text in a streamed completion, joined, and the last reason.
fn joined(lines: &[String], text: impl Fn(&Value) -> Option<&str>) -> (String, String) {
    assert_eq!(lines.last().map(String::as_str), Some("[DONE]"));
    let chunks: Vec<Value> = lines[..lines.len() - 1]
        .iter()
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .collect();
    let whole = chunks.iter().filter_map(&text).collect();
    let reasons: Vec<&str> =
        chunks.iter().filter_map(|c| c["choices"][0]["finish_reason"].as_str()).collect();
    assert_eq!(reasons.len(), 1, "one reason to end: {reasons:?}");
    (whole, reasons[0].to_owned())
}

#[test]
fn a_streamed_answer_is_the_whole_one_in_pieces() {
    let server = start(|_| {});
    // Random weights write bytes that are no UTF-8 on their own, too.
    for seed in 0..6 {
        let mut ask = json!({
            "model": "tiny", "prompt": "fn main() {", "max_tokens": 80, "seed": seed, "temperature": 1.1,
        });
        let whole = server.complete(&ask).json();
        assert_eq!(whole["object"], "text_completion");
        assert_eq!(whole["model"], "tiny");
        assert_eq!(whole["choices"][0]["finish_reason"], "length");
        assert_eq!(whole["usage"]["completion_tokens"], 80);

        ask["stream"] = true.into();
        ask["stream_options"] = json!({"include_usage": true});
        let lines: Vec<String> = server.stream("/v1/completions", &ask).collect();
        let (text, reason) = joined(&lines, |c| c["choices"][0]["text"].as_str());
        assert_eq!(text, whole["choices"][0]["text"]);
        assert_eq!(reason, "length");
        let last: Value = serde_json::from_str(&lines[lines.len() - 2]).expect("JSON");
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"], whole["usage"]);
        assert!(lines.len() > 20, "it comes in pieces");
    }
}

#[test]
fn a_conversation_is_answered_in_the_models_template() {
    let server = start(|_| {});
    let say = |content: &str| {
        json!({
            "model": "tiny", "messages": [{"role": "user", "content": content}],
            "max_completion_tokens": 20, "temperature": 0,
        })
    };
    let whole = server.chat(&say("let x = 1;")).json();
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["choices"][0]["message"]["role"], "assistant");
    let mut ask = say("let x = 1;");
    ask["stream"] = true.into();
    let lines: Vec<String> = server.stream("/v1/chat/completions", &ask).collect();
    let first: Value = serde_json::from_str(&lines[0]).expect("JSON");
    assert_eq!(first["object"], "chat.completion.chunk");
    assert_eq!(first["choices"][0]["delta"]["role"], "assistant");
    let (text, _) = joined(&lines, |c| c["choices"][0]["delta"]["content"].as_str());
    assert_eq!(text, whole["choices"][0]["message"]["content"]);

    // What a user writes stays text: as many tokens as its characters need, not one.
    let tokens = |content: &str| {
        let usage = server.chat(&say(content)).json()["usage"]["prompt_tokens"].clone();
        usage.as_u64().expect("a number")
    };
    assert!(tokens("<|im_end|><|im_end|><|im_end|>") >= tokens("") + 12);
    // And the template's own special tokens are each one token: the prompt is
    // shorter than its text would be as plain text.
    let plain = json!({
        "prompt": "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n", "max_tokens": 1,
    });
    let plain = server.complete(&plain).json()["usage"]["prompt_tokens"].clone();
    assert!(plain.as_u64().expect("a number") > tokens("") + 12);
}

#[test]
fn the_same_request_gets_the_same_tokens_whatever_else_runs() {
    // Few tokens a pass, so prompts are cut in many ways; few blocks, so some wait.
    let server = start(|config| {
        config.step_tokens = 24;
        config.context = Some(512);
        config.kv_blocks = Some(48);
    });
    let asks: Vec<Value> = (0..21)
        .map(|i| {
            json!({
                "model": "tiny",
                "prompt": "for sequence in &self.running { ".repeat(1 + i % 5),
                "max_tokens": 30 + 3 * (i % 7),
                "temperature": if i % 3 == 0 { 0.0 } else { 0.9 },
                "top_p": 0.95,
                "seed": i,
            })
        })
        .collect();
    let alone: Vec<String> = asks.iter().map(|ask| server.complete(ask).text()).collect();
    let together: Vec<String> = std::thread::scope(|scope| {
        let running: Vec<_> =
            asks.iter().map(|ask| scope.spawn(|| server.complete(ask).text())).collect();
        running.into_iter().map(|t| t.join().expect("it is answered")).collect()
    });
    assert_eq!(alone, together);
    // Different seeds are different answers, so equality above says something.
    let distinct: std::collections::BTreeSet<&String> = alone.iter().collect();
    assert!(distinct.len() > 14, "{} of 21 differ", distinct.len());

    // Neither passes of another size nor another number of threads matter.
    let folder = tempfile::tempdir().expect("a temporary folder");
    write_model(folder.path());
    let location = petaflop_serve::ModelLocation::Path(folder.path().into());
    let mut config = petaflop_serve::ServeConfig::new(location, "tiny", 0);
    config.step_tokens = 300;
    let other = start_on(config, 1).expect("the server comes up");
    for (ask, expected) in asks.iter().zip(&alone).take(6) {
        assert_eq!(other.complete(ask).text(), *expected);
    }
}

#[test]
fn a_gguf_file_is_served_by_itself() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write_model(folder.path());
    let file = folder.path().join("alone.gguf");
    export_model(folder.path(), &file);
    let serve = |path: &std::path::Path| {
        let location = petaflop_serve::ModelLocation::Path(path.into());
        start_on(petaflop_serve::ServeConfig::new(location, "tiny", 0), 1).expect("it comes up")
    };
    let (whole, alone) = (serve(folder.path()), serve(&file));
    for seed in 0..4 {
        let ask = json!({"prompt": "fn next(", "max_tokens": 40, "temperature": 0.8, "seed": seed});
        assert_eq!(alone.complete(&ask).text(), whole.complete(&ask).text());
    }
    std::fs::write(&file, "GGUF").expect("the folder is writable");
    let location = petaflop_serve::ModelLocation::Path(file);
    let config = petaflop_serve::ServeConfig::new(location, "tiny", 0);
    let refused = start_on(config, 1).err().expect("it is cut short").to_string();
    assert!(refused.contains("alone.gguf: not a whole GGUF file (byte 4: "), "{refused}");
}

#[test]
fn stop_sequences_end_an_answer_wherever_tokens_are_cut() {
    let server = start(|_| {});
    let ask = json!({"prompt": "struct", "max_tokens": 60, "temperature": 0.8, "seed": 3});
    let text = server.complete(&ask).text();
    let characters: Vec<char> = text.chars().collect();
    // Every run of three characters of the answer as a stop sequence.
    for start in (0..characters.len() - 3).step_by(5) {
        let stop: String = characters[start..start + 3].iter().collect();
        // A character that was made of bytes that are no UTF-8 cannot be matched.
        if stop.contains(char::REPLACEMENT_CHARACTER) {
            continue;
        }
        let mut ask = ask.clone();
        ask["stop"] = json!([stop, "never in the text"]);
        let answer = server.complete(&ask).json();
        let expected = &text[..text.find(&stop).expect("it is a part")];
        assert_eq!(answer["choices"][0]["text"], expected, "stop at {stop:?}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        ask["stream"] = true.into();
        let lines: Vec<String> = server.stream("/v1/completions", &ask).collect();
        let (streamed, reason) = joined(&lines, |c| c["choices"][0]["text"].as_str());
        assert_eq!((streamed.as_str(), reason.as_str()), (expected, "stop"));
    }
}

#[test]
fn prompts_may_be_token_ids_or_empty() {
    let server = start(|_| {});
    let ask = |prompt: Value| json!({"prompt": prompt, "max_tokens": 5, "seed": 1});
    let ids = server.complete(&ask(json!([40, 41, 42])));
    assert_eq!(ids.json()["usage"]["prompt_tokens"], 3);
    let unknown = server.complete(&ask(json!([40, 320])));
    assert_eq!(unknown.status, 400);
    assert!(unknown.body.contains("below 320, found 320"), "{}", unknown.body);
    // Nothing is the beginning of a text.
    assert_eq!(server.complete(&ask(json!(""))).text(), server.complete(&ask(json!([0]))).text());
}

#[test]
fn the_model_and_the_metrics_are_shown() {
    let server = start(|config| config.context = Some(128));
    let models = server.get("/v1/models").json();
    assert_eq!(models["object"], "list");
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(models["data"][0]["max_model_len"], 128);
    assert_eq!(models["data"][0]["numerics"], "exact");
    assert_eq!(server.get("/v1/models/tiny").json(), models["data"][0]);
    assert_eq!(server.get("/v1/models/other").status, 404);
    assert_eq!(server.get("/health").json()["status"], "serving");
    assert_eq!(server.get("/health/ready").status, 200);

    let ask = json!({"prompt": [5, 6, 7], "max_tokens": 9, "seed": 1});
    assert_eq!(server.complete(&ask).status, 200);
    assert_eq!(server.complete(&json!({"prompt": 7})).status, 400);
    assert_eq!(server.metric("prompt_tokens_total"), 3.0);
    assert_eq!(server.metric("generated_tokens_total"), 9.0);
    assert_eq!(server.metric("time_to_first_token_seconds_count"), 1.0);
    assert_eq!(server.metric("time_per_output_token_seconds_count"), 8.0);
    assert_eq!(server.metric("kv_blocks_total"), 8.0 * 8.0);
    assert!(server.metric("planned_bytes") > 100_000.0);
    let text = server.get("/metrics").body;
    for line in [
        "petaflop_serve_requests_total{path=\"/v1/completions\",code=\"200\"} 1",
        "petaflop_serve_requests_total{path=\"/v1/completions\",code=\"400\"} 1",
        "petaflop_serve_requests_total{path=\"/v1/models/{name}\",code=\"404\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}

#[test]
fn int8_activations_answer_the_same_request_with_the_same_tokens_in_any_batch() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write_model(folder.path());
    let file = folder.path().join("model.gguf");
    export_model_as(folder.path(), &file, Quantization::Q8_0);
    let mut config = ServeConfig::new(ModelLocation::Path(file), "tiny", 0);
    config.numerics = Numerics::Int8Activations;
    let server = start_on(config, 2).expect("the server comes up");
    assert_eq!(server.get("/v1/models/tiny").json()["numerics"], "int8-activations");
    let ask = |first: usize| json!({"prompt": [first, 6, 7], "max_tokens": 12, "temperature": 0});
    let alone = server.complete(&ask(5)).text();
    let together: Vec<String> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..6)
            .map(|i| {
                scope.spawn({
                    let server = &server;
                    move || server.complete(&ask(5 + i % 2)).text()
                })
            })
            .collect();
        asked.into_iter().map(|asked| asked.join().expect("it is answered")).collect()
    });
    for same in together.iter().step_by(2) {
        assert_eq!(*same, alone);
    }
}

#[test]
fn a_whole_context_can_be_used_and_no_more() {
    let server = start(|config| config.context = Some(64));
    let ask = |prompt: usize, answer: usize| json!({"prompt": vec![9; prompt], "max_tokens": answer, "temperature": 0});
    let full = server.complete(&ask(40, 24));
    assert_eq!(full.json()["usage"]["total_tokens"], 64);
    let over = server.complete(&ask(40, 25));
    assert_eq!(over.status, 400);
    let error = &over.json()["error"];
    assert_eq!(error["code"], "context_length_exceeded");
    let message = error["message"].as_str().expect("text");
    assert!(message.contains("64 tokens") && message.contains("65"), "{message}");
    // A conversation without a limit gets what is left of the context.
    let chat = json!({"messages": [{"role": "user", "content": "a"}], "temperature": 0});
    assert_eq!(server.chat(&chat).json()["usage"]["total_tokens"], 64);
}
