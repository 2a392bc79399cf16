//! Ending the pod that the agent is in, by RunPod's API.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Command;

use crate::program::BUILT;

/// A server that answers each request with the next of these, and gives what it was asked.
fn serve(answers: &'static [&'static str]) -> (String, std::thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = std::thread::spawn(move || {
        let asked = answers.iter().map(|answer| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                head.push_str(&line);
                if line == "\r\n" {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let answer =
                format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
            head + &String::from_utf8(body).unwrap()
        });
        asked.collect()
    });
    (url, asked)
}

#[test]
fn a_pod_is_asked_to_end_with_its_own_key_until_it_does() {
    let (url, asked) = serve(&["500 Internal Server Error", "204 No Content"]);
    let ended = Command::new(BUILT)
        .args(["end-pod", &url])
        .env("RUNPOD_POD_ID", "pod1")
        .env("RUNPOD_API_KEY", "own-key")
        .output()
        .unwrap();
    assert!(ended.status.success(), "{ended:?}");
    for said in asked.join().unwrap() {
        assert!(said.starts_with("POST /v2/pods/pod1/action HTTP/1.1\r\n"), "{said}");
        assert!(said.to_ascii_lowercase().contains("authorization: bearer own-key\r\n"), "{said}");
        assert!(said.ends_with(r#"{"action":"terminate"}"#), "{said}");
    }
    assert!(!String::from_utf8_lossy(&ended.stderr).contains("own-key"));
}

#[test]
fn what_is_no_pod_says_so() {
    let refused = Command::new(BUILT)
        .args(["end-pod", "http://127.0.0.1:1"])
        .env_remove("RUNPOD_POD_ID")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("RUNPOD_POD_ID is not set"), "{said}");
}
