//! Data that a task is to find on its machine.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use petaflop_agent_api::message::{Answer, Ask, Exit, State, Why};
use petaflop_agent_api::task::{Input, LogSink, Secret, TaskFile};
use petaflop_store::folder;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::operator::{CANARY, Operator, script};
use crate::program::{BUILT, Program};
use crate::s3;

/// Bytes of the file that is served over HTTPS.
const LENGTH: usize = 300_000;

fn content() -> Vec<u8> {
    (0..LENGTH).map(|at| (at % 251) as u8).collect()
}

/// What it answers, one after the other; then 404.
enum Says {
    /// The whole file, as promised; of its bytes no more than so many.
    Cut(usize),
    /// What is asked for by a range.
    Rest,
    /// Nothing, and keeps the connection.
    Silence,
}

/// A server with a certificate of its own, and what it was asked.
struct Server {
    url: String,
    certificate: tempfile::NamedTempFile,
    heard: std::sync::mpsc::Receiver<String>,
}

fn serve(says: Vec<Says>) -> Server {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let certificate = tempfile::NamedTempFile::new().unwrap();
    fs::write(certificate.path(), made.cert.pem()).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!(
        "https://localhost:{}/data?signature={CANARY}",
        listener.local_addr().unwrap().port()
    );
    let (said, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut says = says.into_iter();
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept() {
            let connection = ServerConnection::new(config.clone()).unwrap();
            let mut stream = BufReader::new(StreamOwned::new(connection, stream));
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if !matches!(stream.read_line(&mut head), Ok(read) if read > 0) {
                    break;
                }
            }
            let from: usize = head
                .lines()
                .find_map(|line| {
                    line.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok()
                })
                .unwrap_or(0);
            let _ = said.send(head);
            let all = content();
            let (status, body, promised) = match says.next() {
                Some(Says::Cut(at)) => ("200 OK", &all[..at], LENGTH),
                Some(Says::Rest) => ("206 Partial Content", &all[from..], LENGTH - from),
                Some(Says::Silence) => {
                    kept.push(stream);
                    continue;
                }
                None => ("404 Not Found", &all[..0], 0),
            };
            let answer = format!(
                "HTTP/1.1 {status}\r\nETag: \"one\"\r\nContent-Length: {promised}\r\nConnection: close\r\n\r\n"
            );
            let stream = stream.get_mut();
            let _ = stream.write_all(answer.as_bytes()).and_then(|()| stream.write_all(body));
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    Server { url, certificate, heard }
}

fn input(name: &str, uri: &str) -> Input {
    Input {
        name: name.to_owned(),
        uri: uri.to_owned(),
        digest: None,
        credentials: BTreeMap::new(),
        files: None,
    }
}

fn file(path: &str, bytes: &[u8]) -> TaskFile {
    TaskFile { path: path.to_owned(), bytes: bytes.to_vec() }
}

fn start(operator: &Operator, inputs: &Path, certificate: Option<&Path>) -> Program {
    Program::start_with(Path::new(BUILT), operator, |command| {
        command.env("PETAFLOP_INPUTS", inputs);
        if let Some(certificate) = certificate {
            command.env("SSL_CERT_FILE", certificate);
        }
    })
}

fn exit_of(operator: &mut Operator, program: &Program) -> Exit {
    let report = operator.until(program.address, |state| matches!(state, State::Exited(_)));
    let State::Exited(exit) = report.state else { unreachable!() };
    exit
}

#[test]
fn inputs_are_there_before_the_command_starts() {
    let bucket = s3::Server::start();
    let machine = tempfile::tempdir().unwrap();
    let source = machine.path().join("source");
    fs::create_dir_all(source.join("deep")).unwrap();
    fs::write(source.join("a.txt"), "one").unwrap();
    fs::write(source.join("deep/b.txt"), "two").unwrap();
    let folder_digest = folder::hash(&source).unwrap();
    let set = bucket.root.path().join("bucket/data/set");
    fs::create_dir_all(set.parent().unwrap()).unwrap();
    assert!(
        std::process::Command::new("cp")
            .arg("-r")
            .args([&source, &set])
            .status()
            .unwrap()
            .success()
    );
    let store = machine.path().join("store").display().to_string();
    let artifact = {
        let store = petaflop_store::blocking::Store::open(&store).unwrap();
        store.put_artifact(&source).unwrap().hash
    };
    // It is cut off, and goes on where it was.
    let server = serve(vec![Says::Cut(100_000), Says::Rest]);

    let inputs = machine.path().join("inputs");
    let mut operator = Operator::new();
    let program = start(&operator, &inputs, Some(server.certificate.path()));
    let mut task = script(
        r#"cd "$PETAFLOP_INPUTS" && cat set/a.txt set/deep/b.txt one model/deep/b.txt map/key here/a.txt && wc -c < web"#,
    );
    let own: BTreeMap<String, Secret> = bucket
        .credentials()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Secret::new(value)))
        .collect();
    let of = |name: &str, uri: &str| Input { credentials: own.clone(), ..input(name, uri) };
    let digest = Some(format!("blake3:{folder_digest}"));
    task.inputs = vec![
        Input { digest: digest.clone(), ..of("set", "s3://bucket/data/set") },
        of("one", "s3://bucket/data/set/a.txt"),
        Input { digest: digest.clone(), ..input("model", &format!("artifact:{artifact}")) },
        Input { files: Some(vec![file("key", b"value")]), ..input("map", "configmap://map") },
        Input { digest, ..input("here", &format!("file://{}", source.display())) },
        input("web", &server.url),
    ];
    task.log_sink =
        Some(LogSink { uri: store, prefix: "logs/a".to_owned(), credentials: BTreeMap::new() });
    operator.enrol(program.address, Some(task));
    let exit = exit_of(&mut operator, &program);
    assert_eq!((exit.why, exit.code), (Why::Finished, Some(0)), "{exit:?}");
    assert_eq!(operator.output(program.address), format!("onetwoonetwovalueone{LENGTH}\n"));
    assert_eq!(fs::read(inputs.join("web")).unwrap(), content());
    let asked: Vec<String> = server.heard.try_iter().collect();
    let ranges =
        asked.iter().filter(|head| head.contains("range: bytes=") && head.contains("if-range"));
    assert_eq!((asked.len(), ranges.count()), (2, 1), "{asked:?}");
}

#[test]
fn an_input_that_is_not_there_or_another_ends_the_task_before_it_begins() {
    let bucket = s3::Server::start();
    fs::write(bucket.root.path().join("bucket/a"), "one").unwrap();
    let server = serve(vec![]);
    let own: BTreeMap<String, Secret> = bucket
        .credentials()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Secret::new(value)))
        .collect();
    let of = |uri: &str| Input { credentials: own.clone(), ..input("data", uri) };
    let other = Some(format!("blake3:{}", "0".repeat(64)));
    let empty = tempfile::tempdir().unwrap();
    let nowhere = format!("file://{}/nowhere", empty.path().display());
    for (input, said) in [
        (of("s3://bucket/nothing"), "there is nothing"),
        (Input { digest: other.clone(), ..of("s3://bucket/a") }, "found blake3:"),
        (input("data", &server.url), "the server says 404"),
        (input("data", &nowhere), "not on this machine"),
        (
            Input {
                files: Some(vec![file("key", b"value")]),
                digest: other,
                ..of("configmap://a")
            },
            "found blake3:",
        ),
    ] {
        let inputs = tempfile::tempdir().unwrap();
        let mut operator = Operator::new();
        let program = start(&operator, inputs.path(), Some(server.certificate.path()));
        let mut task = script("echo began");
        task.inputs = vec![input];
        operator.enrol(program.address, Some(task));
        let exit = exit_of(&mut operator, &program);
        assert_eq!((exit.why, exit.started_at), (Why::BadInput, None), "{exit:?}");
        assert!(
            exit.message.starts_with("input data: ") && exit.message.contains(said),
            "{exit:?}"
        );
        assert!(!exit.message.contains(CANARY), "{exit:?}");
        assert_eq!(operator.output(program.address), "");
    }
}

#[test]
fn a_task_is_told_to_end_while_an_input_is_on_its_way() {
    let server = serve(vec![Says::Silence]);
    let inputs = tempfile::tempdir().unwrap();
    let mut operator = Operator::new();
    let program = start(&operator, inputs.path(), Some(server.certificate.path()));
    let mut task = script("echo began");
    task.inputs = vec![input("data", &server.url)];
    operator.enrol(program.address, Some(task));
    server.heard.recv().unwrap();
    let answer = operator.ask(program.address, Ask::Drain { grace_seconds: 60 });
    assert!(matches!(answer, Answer::Report(_)), "{answer:?}");
    let exit = exit_of(&mut operator, &program);
    assert_eq!((exit.why, exit.started_at), (Why::Drained, None), "{exit:?}");
}
