//! What bad input, bad clients and bad places get.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::common::{eventually, start, start_on, write_model};
use petaflop_serve::{Key, LoadError, ModelLocation, ServeConfig, ServeError};
use petaflop_store::blocking::Store;
use serde_json::json;

#[test]
fn each_bad_request_gets_an_error_a_program_can_read() {
    let server = start(|config| config.context = Some(64));
    let (completions, chat) = ("/v1/completions", "/v1/chat/completions");
    let long = "x ".repeat(4_000);
    for (path, body, status, code, param) in [
        (completions, "{\"prompt\": ".to_owned(), 400, "malformed_json", None),
        (completions, String::new(), 400, "malformed_json", None),
        (chat, "[]".into(), 400, "malformed_json", None),
        (chat, "{}".into(), 400, "invalid_value", Some("messages")),
        (
            completions,
            json!({"prompt": long}).to_string(),
            400,
            "context_length_exceeded",
            Some("prompt"),
        ),
        (
            chat,
            json!({"messages": [{"role": "user", "content": long}]}).to_string(),
            400,
            "context_length_exceeded",
            Some("messages"),
        ),
        (
            chat,
            json!({"messages": [{"role": "user", "content": "x"}], "n": 2}).to_string(),
            400,
            "unsupported_parameter",
            Some("n"),
        ),
        (
            completions,
            json!({"prompt": "x", "model": "gpt"}).to_string(),
            404,
            "model_not_found",
            Some("model"),
        ),
        (completions, "x".repeat(2 << 20), 413, "body_too_large", None),
        ("/v1/embeddings", "{}".into(), 404, "unknown_url", None),
    ] {
        let answer = server.post(path, &body);
        let error = &answer.json()["error"];
        assert_eq!(answer.status, status, "{path} {error}");
        assert_eq!(error["code"], code, "{error}");
        assert_eq!(error["param"].as_str(), param, "{error}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().is_some_and(|m| m.len() > 20), "{error}");
    }
    assert_eq!(server.get(completions).status, 405);
    let raw = server.post(completions, b"{\"prompt\": \"\xff\xfe\"}");
    assert_eq!(raw.status, 400, "{raw:?}");
    // None of it harmed the server.
    assert_eq!(server.complete(&json!({"prompt": "x", "max_tokens": 3})).status, 200);
}

#[test]
fn two_hundred_at_once_are_answered_or_told_to_come_again() {
    let server = start(|config| {
        config.context = Some(128);
        config.max_sequences = 4;
        config.max_waiting = 60;
    });
    let ask = json!({"prompt": "fn", "max_tokens": 100, "temperature": 0});
    let expected = server.complete(&ask).text();
    let most = server.metric("kv_blocks_total");
    let answers: Vec<_> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..200).map(|_| scope.spawn(|| server.complete(&ask))).collect();
        eventually("the batch is full", || server.metric("running_sequences") == 4.0);
        assert!(server.metric("kv_blocks_used") <= most);
        assert!(server.metric("queue_depth") <= 60.0);
        clients.into_iter().map(|c| c.join().expect("it is answered")).collect()
    });
    let (served, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|a| a.status == 200);
    assert!(served.len() >= 64, "{} served", served.len());
    assert!(!refused.is_empty(), "with 64 places, some of 200 are refused");
    for answer in served {
        assert_eq!(answer.text(), expected);
    }
    for answer in refused {
        assert_eq!(answer.status, 429, "{answer:?}");
        assert_eq!(answer.retry_after.as_deref(), Some("1"));
        assert_eq!(answer.json()["error"]["code"], "queue_full");
    }
    assert_eq!(server.complete(&ask).text(), expected);
    eventually("every block is free again", || server.metric("kv_blocks_used") == 0.0);
}

#[test]
fn a_client_that_goes_away_frees_its_blocks() {
    // One place, so that whoever comes next needs what the first one held.
    let server = start(|config| config.max_sequences = 1);
    let ask =
        json!({"prompt": "x", "max_tokens": 16000, "temperature": 0, "stream": true}).to_string();
    let whole = json!({"prompt": "x", "max_tokens": 16000, "temperature": 0}).to_string();
    for body in [ask, whole] {
        let mut client = TcpStream::connect(server.address).expect("the server listens");
        write!(
            client,
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("the server reads");
        eventually("it runs", || server.metric("kv_blocks_used") > 200.0);
        let before = server.metric("abandoned_requests_total");
        drop(client);
        eventually("its blocks are free", || server.metric("kv_blocks_used") == 0.0);
        assert_eq!(server.metric("abandoned_requests_total"), before + 1.0);
    }
    assert_eq!(server.complete(&json!({"prompt": "x", "max_tokens": 3})).status, 200);
}

#[test]
fn running_requests_end_before_the_server_does() {
    let mut server = start(|_| {});
    let ask = json!({"prompt": "x", "max_tokens": 12000, "temperature": 0, "stream": true});
    let mut lines = server.stream("/v1/completions", &ask);
    lines.next().expect("it has begun");
    server.shut_down();
    eventually("readiness turns red", || server.get("/health/ready").status == 503);
    assert_eq!(server.get("/health").status, 200, "the process is well");
    let refused = server.complete(&json!({"prompt": "x"}));
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(refused.json()["error"]["code"], "draining");
    assert!(refused.retry_after.is_some());
    assert_eq!(lines.last().as_deref(), Some("[DONE]"), "the running one ends well");
    server.join().expect("a drained server ends without an error");
}

#[test]
fn what_outlasts_the_grace_period_is_cut_off_and_told_so() {
    let mut server = start(|config| config.grace = Duration::from_millis(50));
    let ask = json!({"prompt": "x", "max_tokens": 16000, "temperature": 0, "stream": true});
    let mut lines = server.stream("/v1/completions", &ask);
    lines.next().expect("it has begun");
    server.shut_down();
    let last = lines.last().expect("something follows");
    let error: serde_json::Value = serde_json::from_str(&last).expect("not [DONE]");
    assert_eq!(error["error"]["code"], "draining", "{error}");
    server.join().expect("it ends without an error");
}

#[test]
fn whoever_has_not_the_key_learns_and_gets_nothing() {
    let server = start(|config| config.key = Some(Key::new("right")));
    for (path, body) in [
        ("/v1/completions", Some(json!({"prompt": "x", "max_tokens": 1}).to_string())),
        ("/v1/models", None),
        ("/health", None),
        ("/metrics", None),
        ("/nowhere", None),
    ] {
        let ask = |key: Option<&str>| {
            let key = key.map_or_else(String::new, |k| format!("petaflop-replica-key: {k}\r\n"));
            let (method, body) = body.as_ref().map_or(("GET", ""), |body| ("POST", body.as_str()));
            let length = body.len();
            let request = format!(
                "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{key}\
                 content-length: {length}\r\n\r\n{body}"
            );
            let mut client = TcpStream::connect(server.address).expect("the server listens");
            client.write_all(request.as_bytes()).expect("the server reads");
            let mut answer = String::new();
            client.read_to_string(&mut answer).expect("the server answers");
            answer
        };
        for wrong in [None, Some(""), Some("Right"), Some("right2")] {
            let answer = ask(wrong);
            assert!(answer.starts_with("HTTP/1.1 401 "), "{path} {wrong:?}: {answer}");
            assert!(answer.contains("www-authenticate: petaflop-replica-key"), "{answer}");
            assert!(!answer.contains("right") && !answer.contains("tiny"), "{answer}");
        }
        let wanted = if path == "/nowhere" { "HTTP/1.1 404 " } else { "HTTP/1.1 200 " };
        let answer = ask(Some("right"));
        assert!(answer.starts_with(wanted), "{path}: {answer}");
    }
}

#[test]
fn a_half_sent_request_does_not_hold_up_a_shutdown() {
    let mut server = start(|_| {});
    let mut client = TcpStream::connect(server.address).expect("the server listens");
    client
        .write_all(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{")
        .expect("the server reads");
    assert_eq!(server.get("/health").status, 200);
    server.shut_down();
    server.join().expect("it ends without an error");
    let mut rest = String::new();
    let _ = client.read_to_string(&mut rest);
}

/// The configuration of a server on a fresh model.
fn config(folder: &tempfile::TempDir) -> ServeConfig {
    write_model(folder.path());
    ServeConfig::new(ModelLocation::Path(folder.path().into()), "tiny", 0)
}

/// Why a server with this configuration does not come up.
fn refusal(config: ServeConfig) -> ServeError {
    match start_on(config, 1) {
        Ok(_) => panic!("it came up"),
        Err(error) => error,
    }
}

#[test]
fn a_taken_port_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let taken = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = taken.local_addr().expect("it is bound").port();
    let error = refusal(ServeConfig { port, ..config(&folder) });
    assert!(matches!(error, ServeError::PortTaken { port: p, .. } if p == port));
    let message = error.to_string();
    assert!(message.contains(&port.to_string()) && message.contains("--port"), "{message}");
    let error = refusal(ServeConfig { host: "192.0.2.1".into(), ..config(&folder) });
    assert!(matches!(error, ServeError::Bind { .. }), "{error}");
}

#[test]
fn a_model_that_cannot_be_served_is_refused_before_anything_starts() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let good = config(&folder);

    let error = refusal(ServeConfig { context: Some(20_000), ..good.clone() });
    assert!(matches!(error, ServeError::Load(LoadError::Plan(_))), "{error}");
    assert!(error.to_string().contains("16384"), "{error}");

    let error = refusal(ServeConfig { memory: Some(100_000), ..good.clone() });
    let ServeError::Load(LoadError::DoesNotFit { planned, available, .. }) = error else {
        panic!("{error}")
    };
    assert!(planned > available);

    // Less than every sequence's whole context: fewer blocks, within what there is.
    let memory = planned + 300_000;
    let server =
        start_on(ServeConfig { memory: Some(memory), ..good.clone() }, 1).expect("it fits");
    assert!(server.metric("planned_bytes") <= memory as f64);
    assert!(server.metric("kv_blocks_total") > 1024.0);
    assert!(server.metric("kv_blocks_total") < 16.0 * 1024.0);
    drop(server);

    let nowhere = ModelLocation::Path(folder.path().join("absent"));
    let error = refusal(ServeConfig { model: nowhere, ..good.clone() });
    assert!(error.to_string().contains("absent"), "{error}");

    for file in ["tokenizer.json", "model.safetensors", "config.json"] {
        let path = folder.path().join(file);
        let bytes = std::fs::read(&path).expect("it was written");
        std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("the folder is writable");
        let error = refusal(good.clone());
        assert!(error.to_string().contains(file), "{file}: {error}");
        std::fs::write(&path, bytes).expect("the folder is writable");
    }
    start_on(good, 1).expect("whole again, it comes up");
}

#[test]
fn an_artifact_is_served_by_its_hash_and_a_damaged_one_is_not() {
    let (folder, home) =
        (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    write_model(folder.path());
    let place = home.path().to_str().expect("its path is text").to_owned();
    let store = Store::open(&place).expect("the store opens");
    let stored = store.put_artifact(folder.path()).expect("the store takes it");
    let hash = stored.hash.to_string();
    let artifact = |hash: &str| {
        let model = ModelLocation::Artifact { store: place.clone(), hash: hash.into() };
        ServeConfig::new(model, "tiny", 0)
    };
    let server = start_on(artifact(&hash[..10]), 1).expect("it comes up");
    assert_eq!(server.complete(&json!({"prompt": "x", "max_tokens": 3})).status, 200);
    drop(server);

    let error = refusal(artifact("0123456789"));
    assert!(matches!(error, ServeError::Load(LoadError::Store(_))), "{error}");

    let manifest = store.manifest(stored.hash).expect("it is there");
    let weights =
        manifest.files.iter().find(|f| f.path == "model.safetensors").expect("it has weights");
    let chunk = weights.chunks[0].to_string();
    let path = home.path().join("chunks").join(&chunk[..2]).join(&chunk);
    let mut bytes = std::fs::read(&path).expect("the chunk is there");
    bytes[100] ^= 1;
    std::fs::remove_file(&path).expect("it can be removed");
    std::fs::write(&path, bytes).expect("the store is writable");
    let error = refusal(artifact(&hash)).to_string();
    assert!(error.contains("model.safetensors"), "{error}");
}
