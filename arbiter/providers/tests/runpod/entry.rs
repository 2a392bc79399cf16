//! The lines of shell with which a pod starts, run by a real shell: the agent is fetched, looked
//! at, run; and the pod is ended whatever happens.

use std::process::Stdio;

use petaflop_arbiter::claim::Refusal;
use petaflop_arbiter::offer::Capacity;
use petaflop_providers::machine::AgentSource;
use petaflop_providers::runpod::{AgentDownload, RunPodConfig};
use petaflop_providers::{EnrolmentToken, LaunchError, Machine, Order, Provider, Work};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::server::{Call, Reply, Server};
use super::{TOKEN, client, config, identity, machine, offer, pod};

/// Stands for the agent: says how it was started, and ends.
const AGENT: &str = "#!/bin/sh\necho \"agent $1 for $PETAFLOP_TOKEN\"\nexit 3\n";

fn sha256(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Stands for an agent that works until it is told to end.
const SAVES: &str = "#!/bin/sh
trap 'echo \"agent saves\"; exit 0' TERM
echo \"agent works\"
while :; do sleep 0.1; done
";

/// Buys a pod and starts it as a container would; once it works, it is told to end. Gives what it
/// printed, its exit status, and what it called.
async fn live(agent: &'static str, sha256: String) -> (String, Option<i32>, Vec<Call>) {
    let server = Server::start(move |call| match call.line().as_str() {
        "GET /agent" => Reply::Text(200, agent.to_owned()),
        "POST /v2/pods/p1/action" => Reply::Json(204, json!(null)),
        _ => Reply::Json(201, pod("p1", &call.json(), 0.3, "PROVISIONING")),
    })
    .await;
    let agent = AgentDownload { url: format!("{}/agent", server.base), sha256 };
    let (provider, _) = client(RunPodConfig { agent: Some(agent), ..config(&server.base) });
    let machine = machine();
    let offer = offer("1x NVIDIA L4 SECURE", Capacity::OnDemand, "0.30548");
    let order = Order { identity: &identity(), offer: &offer, work: Work::Machine(&machine) };
    let request = provider.prepare(order).await.expect("a request");
    provider.launch(&request, &EnrolmentToken::new(TOKEN)).await.expect("bought");

    let body = server.calls().remove(0).json();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let start: Value = serde_json::from_str(&text(&body["args"])).expect("JSON");
    let words = |key: &str| -> Vec<String> {
        start[key].as_array().expect("a list").iter().map(text).collect()
    };
    let (entrypoint, command) = (words("entrypoint"), words("cmd"));
    let folder = tempfile::tempdir().expect("a folder");
    let mut container = tokio::process::Command::new(&entrypoint[0]);
    container.args(&entrypoint[1..]).args(command);
    for (name, value) in body["env"].as_object().expect("variables") {
        container.env(name, text(value));
    }
    container
        .env("PETAFLOP_WORK", folder.path().join("work"))
        .env("PETAFLOP_FOLDER", folder.path().join("petaflop"))
        .env("RUNPOD_POD_ID", "p1")
        .env("RUNPOD_API_KEY", "the pod's own")
        .env("NO_PROXY", "*")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut pod = container.spawn().expect("this test needs a shell, and curl or wget");
    let stdout = pod.stdout.take().expect("its output");
    let (mut lines, mut printed) = (BufReader::new(stdout).lines(), String::new());
    while let Some(line) = lines.next_line().await.expect("text") {
        if line == "agent works" {
            // As RunPod is said to: SIGTERM to the first process alone.
            let pid = pod.id().expect("it runs").to_string();
            let told = tokio::process::Command::new("kill").args(["-TERM", &pid]).status().await;
            assert!(told.expect("kill").success());
        }
        printed.push_str(&line);
        printed.push('\n');
    }
    let ended = pod.wait_with_output().await.expect("an end");
    printed.push_str(&String::from_utf8_lossy(&ended.stderr));
    (printed, ended.status.code(), server.calls().split_off(1))
}

#[tokio::test]
async fn the_agent_is_fetched_looked_at_and_run_and_its_end_is_the_pods() {
    let (printed, status, calls) = live(AGENT, sha256(AGENT)).await;
    assert!(printed.contains(&format!("agent supervise for {TOKEN}")), "{printed}");
    assert_eq!(status, Some(3), "{printed}");
    let lines: Vec<_> = calls.iter().map(Call::line).collect();
    assert_eq!(lines, ["GET /agent", "POST /v2/pods/p1/action"]);
    // With the key that RunPod gave it, for itself alone.
    assert_eq!(calls[1].authorization, "Bearer the pod's own");
    assert_eq!(calls[1].json(), json!({ "action": "terminate" }));
}

#[tokio::test]
async fn sigterm_reaches_the_agent_which_saves_before_the_pod_is_ended() {
    let (printed, status, calls) = live(SAVES, sha256(SAVES)).await;
    assert!(printed.ends_with("agent works\nagent saves\n"), "{printed}");
    assert_eq!(status, Some(0), "{printed}");
    let lines: Vec<_> = calls.iter().map(Call::line).collect();
    assert_eq!(lines, ["GET /agent", "POST /v2/pods/p1/action"]);
}

#[tokio::test]
async fn an_image_that_is_known_to_have_no_shell_is_refused_before_anything_is_asked() {
    let server = Server::start(|_| Reply::Cut).await;
    let (provider, _) = client(config(&server.base));
    let offer = offer("1x NVIDIA L4 SECURE", Capacity::OnDemand, "0.30548");
    let prepared = async |image: &str| {
        let machine = Machine { image: image.to_owned(), ..machine() };
        let order = Order { identity: &identity(), offer: &offer, work: Work::Machine(&machine) };
        provider.prepare(order).await
    };
    let AgentSource::Image(carrier) = machine().agent;
    for image in ["gcr.io/distroless/static-debian12", "gcr.io/distroless/base:debug", &carrier] {
        match prepared(image).await {
            Err(LaunchError::Refused { kind: Refusal::Invalid, detail: message }) => {
                assert!(message.contains(image) && message.contains("/bin/sh"), "{message}");
            }
            other => panic!("{image}: {other:?}"),
        }
    }
    for image in ["alpine:3", "docker.io/library/debian:13-slim", "example.org/scratch:1"] {
        prepared(image).await.expect(image);
    }
    assert!(server.calls().is_empty());
}

#[tokio::test]
async fn an_agent_of_another_hash_is_not_run_and_the_pod_ends() {
    let (printed, status, calls) = live(AGENT, sha256("something else")).await;
    assert!(!printed.contains("agent supervise"), "{printed}");
    assert_eq!(status, Some(70), "{printed}");
    assert_eq!(calls.last().map(Call::line), Some("POST /v2/pods/p1/action".to_owned()));
}
