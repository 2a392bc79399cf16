//! Offers, Pods and instances from objects as the API server has them; the I/O is
//! tested on a real one.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Toleration};
use petaflop_arbiter::claim::Identity;
use petaflop_arbiter::offer::Offer;
use petaflop_arbiter::reason::Reason;
use serde_json::{Value, json};

use super::offers::{AGENT_MEMORY, Terms, offers};
use super::{NodesConfig, instance, labels, manifest, prune};
use crate::machine::{AgentSource, Bootstrap, EnrolmentToken, Machine, Volume, VolumeSource};
use crate::price::PowerPrice;
use crate::provider::{InstanceState, identity_text};

const INSTALLATION: &str = "0c0ffee0-0000-4000-8000-000000000001";

fn fixture<T: serde::de::DeserializeOwned>(text: &str) -> Vec<T> {
    serde_json::from_str(text).expect("the fixture is well-formed")
}

fn nodes() -> Vec<Node> {
    fixture(include_str!("../../tests/fixtures/nodes.json"))
}

fn pods() -> Vec<Pod> {
    fixture(include_str!("../../tests/fixtures/pods.json"))
}

fn tolerate(key: &str) -> Toleration {
    Toleration {
        key: Some(key.to_owned()),
        operator: Some("Exists".to_owned()),
        ..Toleration::default()
    }
}

/// A dollar a kilowatt-hour, and a hundred watts for a whole node: prices are read as watts.
fn power() -> PowerPrice {
    PowerPrice {
        usd_per_kwh: "1".into(),
        idle_watts: 0,
        load_watts: 100,
        pue_milli: 1000,
        margin_percent: 0,
    }
}

fn config() -> NodesConfig {
    NodesConfig {
        name: "nodes".into(),
        installation: INSTALLATION.into(),
        namespaces: Vec::new(),
        selector: BTreeMap::new(),
        tolerations: vec![tolerate("gpu")],
        groups: Vec::new(),
        power: power(),
    }
}

fn quoted(config: &NodesConfig, nodes: &[Node], pods: &[Pod]) -> Vec<Offer> {
    let NodesConfig { name, installation, selector, tolerations, power, .. } = config;
    let terms = Terms { provider: name, installation, selector, tolerations, power };
    offers(&terms, nodes, pods, Timestamp::UNIX_EPOCH).expect("offers")
}

/// One line an offer: slice, devices, processors, memory, watts, slots.
fn lines(offers: &[Offer]) -> String {
    let line = |offer: &Offer| {
        let devices = offer.accelerators.as_ref().map_or("-".to_owned(), |devices| {
            let memory = devices.memory.map_or(0, |bytes| bytes >> 20);
            format!("{} x {} of {memory} Mi", devices.count, devices.model)
        });
        format!(
            "{} {} | {devices} | {}m {} Mi | {} W | {} slots\n",
            offer.instance_type,
            offer.arch,
            offer.vcpu_milli.unwrap_or(0),
            offer.memory.map_or(0, |bytes| (bytes + AGENT_MEMORY) >> 20),
            offer.price.micros() as f64 / 1000.0,
            offer.slots.unwrap_or(0),
        )
    };
    offers.iter().map(line).collect()
}

#[test]
fn what_is_free_of_each_node_is_offered_in_slices() {
    insta::assert_snapshot!("slices", lines(&quoted(&config(), &nodes(), &pods())));
}

#[test]
fn a_selector_leaves_other_nodes_alone() {
    let mut config = config();
    config.selector = [("topology.kubernetes.io/zone".into(), "rack-1".into())].into();
    let offers = quoted(&config, &nodes(), &pods());
    assert!(!offers.is_empty());
    assert!(offers.iter().all(|o| o.instance_type.starts_with("cpu-1:") && o.zone == "rack-1"));
}

#[test]
fn a_claims_pod_holds_its_slot_until_it_is_gone() {
    let config = config();
    let find = |pods: &[Pod]| {
        let offers = quoted(&config, &nodes(), pods);
        offers.into_iter().find(|o| o.instance_type == "h100:nvidia.com/gpu=1").expect("offered")
    };
    let offer = find(&[]);
    assert_eq!(offer.slots, Some(8));
    let mut pod = manifest::pod(&config, &identity(), &offer, &machine(&offer)).expect("a Pod");
    // Not bound yet: it is on the node it is for.
    let before = find(std::slice::from_ref(&pod));
    assert_eq!(before.slots, Some(8), "seven free, one held by its claim");
    assert_eq!(before.shares, offer.shares, "of all that there is");
    assert!(offer.shares.iter().any(|s| s.of == "h100/nvidia.com/gpu" && s.all == 8), "{offer:?}");
    // Over, and not deleted: the devices are free, the claim still counts one slot.
    pod.status = serde_json::from_value(json!({"phase": "Succeeded"})).expect("a status");
    assert_eq!(find(std::slice::from_ref(&pod)).slots, Some(9));
    // Another installation's takes room and has no claim here.
    pod.status = None;
    let labels = pod.metadata.labels.as_mut().expect("labels");
    labels.insert(labels::INSTALLATION.to_owned(), "another".to_owned());
    assert_eq!(find(&[pod]).slots, Some(7));
}

#[test]
fn what_a_cache_forgets_changes_no_offer_and_no_instance() {
    let (mut nodes, mut pods) = (nodes(), pods());
    let offer = quoted(&config(), &nodes, &pods).pop().expect("an offer");
    let mut ours = manifest::pod(&config(), &identity(), &offer, &machine(&offer)).expect("a Pod");
    ours = manifest::with_token(ours, &EnrolmentToken::new("canary"));
    ours.metadata.uid = Some("u".into());
    ours.status = serde_json::from_value(running()).expect("a status");
    let instance = instance::of(&ours);
    pods.push(ours);
    let before = quoted(&config(), &nodes, &pods);
    nodes.iter_mut().for_each(prune::node);
    pods.iter_mut().for_each(prune::pod);
    assert_eq!(quoted(&config(), &nodes, &pods), before);
    let ours = pods.last().expect("it was pushed");
    assert_eq!(instance::of(ours), instance);
    let kept = serde_json::to_string(&pods).expect("JSON");
    assert!(!kept.contains("canary"), "a secret stays in the cache");
}

fn identity() -> Identity {
    Identity {
        installation: INSTALLATION.into(),
        namespace: "team".into(),
        claim: "trj-job-12345678-1-0".into(),
        claim_uid: "7e57ab1e-0000-4000-8000-000000000002".into(),
        attempt: 1,
    }
}

fn machine(offer: &Offer) -> Machine {
    Machine {
        image: "example.org/job:1".into(),
        agent: AgentSource::Image("example.org/agent:1".into()),
        bootstrap: Bootstrap { operator_key: "a2V5".into(), endpoint: None, port: 7443 },
        cpu_millis: offer.vcpu_milli.expect("nodes say"),
        memory: offer.memory.expect("nodes say"),
        ephemeral: Some(1 << 30),
        ports: vec![8080],
        service_account: None,
        image_pull_secrets: vec!["pull".into()],
        volumes: vec![
            Volume {
                name: "data".into(),
                mount_path: "/data".into(),
                read_only: true,
                source: VolumeSource::PersistentVolumeClaim("data".into()),
            },
            Volume {
                name: "secret-0".into(),
                mount_path: "/keys".into(),
                read_only: false,
                source: VolumeSource::Memory,
            },
        ],
        grace_seconds: 30,
        labels: [("app".to_owned(), "job".to_owned())].into(),
    }
}

fn offer_of(instance_type: &str) -> Offer {
    let offers = quoted(&config(), &nodes(), &[]);
    offers.into_iter().find(|offer| offer.instance_type == instance_type).expect("offered")
}

#[test]
fn a_claims_pod_is_complete_and_restricted() {
    let offer = offer_of("h100:nvidia.com/gpu=2");
    let pod = manifest::pod(&config(), &identity(), &offer, &machine(&offer)).expect("a Pod");
    insta::assert_json_snapshot!("pod", pod);
}

#[test]
fn the_token_is_added_to_the_work_alone_and_to_nothing_that_is_kept() {
    let offer = offer_of("cpu-1:cpu=2");
    let pod = manifest::pod(&config(), &identity(), &offer, &machine(&offer)).expect("a Pod");
    assert!(!serde_json::to_string(&pod).expect("JSON").contains("canary"));
    let sent = manifest::with_token(pod, &EnrolmentToken::new("canary"));
    let spec = sent.spec.expect("a spec");
    let init = serde_json::to_string(&spec.init_containers).expect("JSON");
    assert!(!init.contains("canary"));
    let env = spec.containers[0].env.as_ref().expect("an environment");
    let token = env.iter().find(|one| one.name == "PETAFLOP_TOKEN").expect("there");
    assert_eq!(token.value.as_deref(), Some("canary"));
}

#[test]
fn more_than_the_offer_holds_is_refused_before_the_purchase() {
    let offer = offer_of("cpu-1:cpu=2");
    let too_much = [
        Machine { cpu_millis: 2001, ..machine(&offer) },
        Machine { memory: offer.memory.expect("nodes say") + 1, ..machine(&offer) },
        Machine { cpu_millis: 0, ..machine(&offer) },
    ];
    for machine in too_much {
        manifest::pod(&config(), &identity(), &offer, &machine).expect_err("refused");
    }
    let other = Offer { instance_type: "g5.xlarge".into(), ..offer.clone() };
    manifest::pod(&config(), &identity(), &other, &machine(&offer)).expect_err("no slice");
}

fn running() -> Value {
    json!({
        "phase": "Running", "podIP": "10.1.2.3", "startTime": "2026-01-01T00:00:00Z",
        "containerStatuses": [{
            "name": "work", "image": "i", "imageID": "i", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:05Z"}}
        }]
    })
}

fn with_status(status: Value, deleted: bool) -> Pod {
    let offer = offer_of("cpu-1:cpu=1");
    let mut pod = manifest::pod(&config(), &identity(), &offer, &machine(&offer)).expect("a Pod");
    pod.metadata.uid = Some("u".into());
    if deleted {
        pod.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T01:00:00Z")).expect("a time");
    }
    pod.status = serde_json::from_value(status).expect("a status");
    pod
}

/// A container in a state.
fn container(state: Value) -> Value {
    json!([{"name": "work", "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "state": state}])
}

#[test]
fn a_pod_is_what_its_phase_and_its_deletion_say() {
    use InstanceState::{Pending, Running, Terminated, Terminating};
    for (phase, deleted, state) in [
        ("Pending", false, Pending),
        ("Running", false, Running),
        ("Unknown", false, Running),
        ("Pending", true, Terminating),
        ("Running", true, Terminating),
        ("Unknown", true, Terminating),
        ("Succeeded", false, Terminated),
        ("Failed", true, Terminated),
    ] {
        let pod = with_status(json!({"phase": phase}), deleted);
        assert_eq!(instance::of(&pod).map(|i| i.state), Some(state), "{phase} {deleted}");
    }
    let bare = Pod { status: None, ..with_status(json!({}), false) };
    assert_eq!(instance::of(&bare).map(|i| i.state), Some(Pending));
}

#[test]
fn a_running_pod_says_whose_it_is_and_where_its_agent_is() {
    let instance = instance::of(&with_status(running(), false)).expect("an instance");
    assert_eq!(instance.identity, Some(identity()));
    assert_eq!(instance.offer, Some(offer_of("cpu-1:cpu=1")));
    assert_eq!(instance.endpoint.as_deref(), Some("10.1.2.3:7443"));
    assert_eq!(instance.started.map(|at| at.to_string()).as_deref(), Some("2026-01-01T00:00:00Z"));
    assert_eq!(instance.ended, None);
    assert_eq!(instance.id.0, format!("team/{}/u", identity().unique_name()));
    let six = with_status(json!({"phase": "Running", "podIP": "fd00::1"}), false);
    assert_eq!(instance::of(&six).and_then(|i| i.endpoint).as_deref(), Some("[fd00::1]:7443"));
}

#[test]
fn an_ended_pod_says_how_and_when() {
    let status = json!({
        "phase": "Failed", "startTime": "2026-01-01T00:00:00Z",
        "containerStatuses": container(json!({"terminated": {
            "exitCode": 137, "reason": "OOMKilled", "message": "last words\n",
            "startedAt": "2026-01-01T00:00:05Z", "finishedAt": "2026-01-01T00:10:00Z"
        }}))
    });
    let instance = instance::of(&with_status(status, false)).expect("an instance");
    let exit = instance.exit.expect("known");
    assert_eq!((exit.code, exit.message.as_str()), (137, "OOMKilled: last words"));
    assert_eq!(instance.ended.map(|at| at.to_string()).as_deref(), Some("2026-01-01T00:10:00Z"));
    assert_eq!(instance.trouble, None);
    // A Pod that never started billed nothing, so it has no end either.
    let never = with_status(json!({"phase": "Failed", "reason": "OutOfmemory"}), false);
    let never = instance::of(&never).expect("an instance");
    assert_eq!((never.started, never.ended), (None, None));
}

#[test]
fn trouble_is_named_in_the_words_of_the_api() {
    let waiting = |reason: &str| json!({"phase": "Pending", "containerStatuses": container(json!({"waiting": {"reason": reason, "message": "words"}}))});
    let unscheduled = json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
    ]});
    let evicted = json!({"phase": "Failed", "reason": "Evicted", "message": "low on memory"});
    let lost = json!({"phase": "Running", "conditions": [
        {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "node lost"}
    ]});
    for (status, reason, words) in [
        (waiting("ImagePullBackOff"), Some(Reason::ImagePullFailed), "ImagePullBackOff: words"),
        (waiting("ErrImagePull"), Some(Reason::ImagePullFailed), "ErrImagePull: words"),
        (
            waiting("CreateContainerConfigError"),
            Some(Reason::InvalidSpec),
            "CreateContainerConfigError: words",
        ),
        (waiting("ContainerCreating"), None, ""),
        (unscheduled, Some(Reason::InsufficientCapacity), "Unschedulable: 0/1 nodes"),
        (evicted, Some(Reason::SpotInterrupted), "Evicted: low on memory"),
        (lost, Some(Reason::SpotInterrupted), "DeletionByTaintManager: node lost"),
        (
            json!({"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no device"}),
            Some(Reason::InsufficientCapacity),
            "UnexpectedAdmissionError: no device",
        ),
        (running(), None, ""),
    ] {
        let trouble = instance::of(&with_status(status, false)).and_then(|i| i.trouble);
        assert_eq!(trouble.as_ref().map(|t| t.reason), reason, "{trouble:?}");
        assert_eq!(trouble.map(|t| t.message).unwrap_or_default(), words);
    }
}

#[test]
fn the_annotation_holds_the_whole_identity() {
    let offer = offer_of("cpu-1:cpu=1");
    let pod = manifest::pod(&config(), &identity(), &offer, &machine(&offer)).expect("a Pod");
    let annotations = pod.metadata.annotations.expect("annotations");
    assert_eq!(annotations[labels::IDENTITY], identity_text(&identity()));
}

/// Counts the requests that reach it and answers all of them the same; no API server, for what is
/// tested is the client.
async fn overloaded() -> (std::net::SocketAddr, std::sync::Arc<std::sync::atomic::AtomicU32>) {
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let seen = std::sync::Arc::new(AtomicU32::new(0));
    let counter = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counter = counter.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 16];
                // The head and the body may come apart; both fit, and the answer closes.
                let mut text = Vec::new();
                while let Ok(read) = stream.read(&mut buffer).await {
                    text.extend_from_slice(&buffer[..read]);
                    let all = String::from_utf8_lossy(&text);
                    let Some((head, body)) = all.split_once("\r\n\r\n") else { continue };
                    let length = head.lines().find_map(|line| {
                        line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok()
                    });
                    if read == 0 || body.len() >= length.unwrap_or(0) {
                        break;
                    }
                }
                counter.fetch_add(1, Ordering::SeqCst);
                let answer = "HTTP/1.1 503 Service Unavailable\r\nretry-after: 0\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (address, seen)
}

#[tokio::test]
async fn a_purchase_is_sent_once_whatever_the_server_says() {
    use super::{Nodes, Sight, SingleShot};
    use crate::error::LaunchError;
    use crate::provider::{Order, Provider, Work};
    use std::sync::atomic::Ordering;
    let (address, seen) = overloaded().await;
    let url = format!("http://{address}").parse().expect("an address");
    let server = kube::Config::new(url);
    let client = kube::Client::try_from(server.clone()).expect("a client");
    let once = SingleShot::new(server).expect("a client");
    let nodes = Nodes::new(config(), client, once, Sight::Server);
    let offer = offer_of("cpu-1:cpu=1");
    let (identity, machine) = (identity(), machine(&offer));
    let order = Order { identity: &identity, offer: &offer, work: Work::Machine(&machine) };
    let request = nodes.prepare(order).await.expect("prepared");
    let answer = nodes.launch(&request, &EnrolmentToken::new("canary")).await;
    let Err(LaunchError::Ambiguous { detail }) = answer else { panic!("{answer:?}") };
    assert!(!detail.contains("canary"));
    assert_eq!(seen.load(Ordering::SeqCst), 1, "a purchase was repeated");
    // The other client does repeat: this server would have shown it.
    let patience = std::time::Duration::from_secs(20);
    let repeats = async {
        while seen.load(Ordering::SeqCst) < 3 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        answer = nodes.quote() => panic!("the test cannot see repetitions: {answer:?}"),
        seen = tokio::time::timeout(patience, repeats) => seen.expect("it repeats"),
    }
}
