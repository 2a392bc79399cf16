//! Buying a pod: once, what was frozen, and never for more than was decided on.

use std::sync::{Arc, Mutex};

use petaflop_arbiter::claim::{FrozenRequest, Identity, LaunchAnswer, Refusal};
use petaflop_arbiter::offer::{Capacity, Offer};
use petaflop_providers::machine::{Volume, VolumeSource};
use petaflop_providers::runpod::{RunPod, RunPodConfig};
use petaflop_providers::{EnrolmentToken, InstanceId, LaunchError, Machine, Order, Provider, Work};
use serde_json::{Value, json};

use super::server::{Call, Reply, Server, problem};
use super::{KEY, TOKEN, client, config, identity, machine, offer, pod};

const NONE: &str = "There are no longer any instances available with the requested specifications. \
                    Please refresh and try again.";

fn community() -> Offer {
    offer("1x NVIDIA GeForce RTX 4090 COMMUNITY", Capacity::OnDemand, "0.34548")
}

async fn freeze(
    provider: &RunPod,
    offer: &Offer,
    machine: &Machine,
) -> Result<FrozenRequest, LaunchError> {
    let order = Order { identity: &identity(), offer, work: Work::Machine(machine) };
    provider.prepare(order).await
}

async fn buy(provider: &RunPod, offer: &Offer) -> Result<InstanceId, LaunchError> {
    let request = freeze(provider, offer, &machine()).await.expect("a request");
    assert!(!request.body.contains(TOKEN) && !request.body.contains(KEY), "{}", request.body);
    provider.launch(&request, &EnrolmentToken::new(TOKEN)).await
}

fn refusal(answer: &Result<InstanceId, LaunchError>) -> Option<Refusal> {
    match answer.as_ref().err()?.answer() {
        LaunchAnswer::Refused(kind) => Some(kind),
        LaunchAnswer::Accepted { .. } | LaunchAnswer::Unclear => None,
    }
}

fn is_ambiguous(answer: &Result<InstanceId, LaunchError>) -> bool {
    matches!(answer, Err(LaunchError::Ambiguous { .. }))
}

/// Makes a pod at this price.
fn made(call: &Call, cost: f64) -> Reply {
    Reply::Json(201, pod("abc123", &call.json(), cost, "PROVISIONING"))
}

#[tokio::test]
async fn a_create_has_documented_fields_only_and_carries_who_it_is_for() {
    let server = Server::start(|call| made(call, 0.34)).await;
    let settings = RunPodConfig { registry: Some("reg1".into()), ..config(&server.base) };
    let (provider, _) = client(settings);
    let id = buy(&provider, &community()).await.expect("bought");
    assert_eq!(id, InstanceId("abc123".into()));
    let call = server.calls().remove(0);
    assert_eq!(call.line(), "POST /v2/pods");
    assert_eq!(call.authorization, format!("Bearer {KEY}"));
    let body = call.json();
    let fields: Vec<_> = body.as_object().expect("an object").keys().collect();
    assert_eq!(
        fields,
        ["name", "image", "args", "env", "disk", "ports", "cloud", "gpu", "registry"]
    );
    assert_eq!(body["name"], json!(identity().unique_name()));
    assert_eq!(body["cloud"], json!("COMMUNITY"));
    assert_eq!(body["gpu"], json!({ "id": "NVIDIA GeForce RTX 4090", "count": 1 }));
    assert_eq!((&body["disk"], &body["ports"]), (&json!(40), &json!(["7443/tcp", "8000/tcp"])));
    let env = &body["env"];
    // Nothing of the operator's own environment, and nothing of the cluster's.
    let variables: Vec<_> = env.as_object().expect("an object").keys().collect();
    assert_eq!(
        variables,
        [
            "PETAFLOP_IDENTITY",
            "PETAFLOP_OFFER",
            "PETAFLOP_OPERATOR_KEY",
            "PETAFLOP_PORT",
            "PETAFLOP_WORK",
            "RUNPOD_POD_USER",
            "PETAFLOP_TOKEN",
        ]
    );
    assert_eq!(env["PETAFLOP_TOKEN"], json!(TOKEN));
    assert_eq!(env["PETAFLOP_PORT"], json!("7443"));
    assert_eq!(
        env["PETAFLOP_IDENTITY"],
        json!(petaflop_providers::provider::identity_text(&identity()))
    );
    // What was bought is read back from the pod itself.
    let bought: Offer =
        serde_json::from_str(env["PETAFLOP_OFFER"].as_str().expect("text")).expect("an offer");
    assert_eq!(bought, community());
    let start: Value = serde_json::from_str(body["args"].as_str().expect("text")).expect("JSON");
    assert_eq!(start["entrypoint"], json!(["/bin/sh", "-c"]));
}

#[tokio::test]
async fn name_variables_and_ports_stay_within_what_a_pod_may_have() {
    let server = Server::start(|call| made(call, 0.34)).await;
    let (provider, _) = client(config(&server.base));
    // As long as the API lets anything be called.
    let identity = Identity {
        namespace: "n".repeat(63),
        claim: format!("trj-{}", "c".repeat(249)),
        attempt: u32::MAX,
        ..identity()
    };
    let machine = machine();
    let order = Order { identity: &identity, offer: &community(), work: Work::Machine(&machine) };
    let request = provider.prepare(order).await.expect("a request");
    provider.launch(&request, &EnrolmentToken::new(TOKEN)).await.expect("bought");
    let body = server.calls().remove(0).json();
    let name = body["name"].as_str().expect("a name");
    assert!((1..=60).contains(&name.len()), "{name}");
    assert!(body["env"].as_object().expect("variables").len() <= 50);
    for port in body["ports"].as_array().expect("ports") {
        assert!(port.as_str().is_some_and(|port| port.ends_with("/tcp")), "no UDP: {port}");
    }
}

#[tokio::test]
async fn processors_and_data_centers_are_asked_for_by_name() {
    let server = Server::start(|call| made(call, 0.1)).await;
    let data_centers = vec!["EU-RO-1".to_owned()];
    let (provider, _) = client(RunPodConfig { data_centers, ..config(&server.base) });
    let cpu = offer("2 vCPU cpu5g SECURE", Capacity::OnDemand, "0.10548");
    buy(&provider, &cpu).await.expect("bought");
    let body = server.calls().remove(0).json();
    assert_eq!(body["cpu"], json!({ "id": "cpu5g", "vcpuCount": 2 }));
    assert_eq!((&body["gpu"], &body["dataCenterIds"]), (&Value::Null, &json!(["EU-RO-1"])));
}

#[tokio::test]
async fn a_pod_in_another_data_center_than_was_asked_for_is_ended_and_was_not_to_be_had() {
    let two = ["EU-RO-1", "US-TX-3"].map(str::to_owned).to_vec();
    let cpu = offer("2 vCPU cpu5g SECURE", Capacity::OnDemand, "0.10548");
    for (created, read, kept) in [
        (json!("EU-RO-1"), json!(null), true),
        (json!("US-TX-3"), json!(null), true),
        (json!("US-KS-2"), json!(null), false),
        // Not told by the create: it is read back. It may not be known then either.
        (json!(null), json!("EU-RO-1"), true),
        (json!(null), json!("US-KS-2"), false),
        (json!(null), json!(null), true),
    ] {
        let case = format!("{created} {read}");
        let server = Server::start(move |call| {
            let at = |place: &Value| {
                let mut pod = pod("abc123", &call.json(), 0.1, "PROVISIONING");
                pod["dataCenterId"] = place.clone();
                pod
            };
            match call.method.as_str() {
                "DELETE" => Reply::Json(204, json!(null)),
                "GET" => {
                    Reply::Json(200, json!({ "id": "abc123", "cost": 0.1, "dataCenterId": read }))
                }
                _ => Reply::Json(201, at(&created)),
            }
        })
        .await;
        let settings = RunPodConfig { data_centers: two.clone(), ..config(&server.base) };
        let answer = buy(&client(settings).0, &cpu).await;
        assert_eq!(server.count("DELETE"), usize::from(!kept), "{case}");
        if kept {
            answer.expect(&case);
            continue;
        }
        assert_eq!(refusal(&answer), Some(Refusal::NoCapacity), "{case}: {answer:?}");
        let Err(LaunchError::GivenBack { waste, detail, .. }) = answer else { panic!("{case}") };
        assert_eq!((waste.instance.0.as_str(), waste.price.micros()), ("abc123", 105_480));
        assert!(detail.contains("in US-KS-2 instead of EU-RO-1, US-TX-3"), "{detail}");
    }
}

#[tokio::test]
async fn spot_is_asked_for_in_one_data_center_and_in_several_not_at_all() {
    let rented = json!({ "data": { "podRentInterruptable": { "id": "s1", "costPerHr": 0.5 } } });
    let spot = offer("1x NVIDIA L40S SECURE", Capacity::Spot, "0.50548");
    for (places, kept) in [(&[][..], true), (&["EU-RO-1"], true), (&["EU-RO-1", "US-TX-3"], false)]
    {
        let reply = rented.clone();
        let server = Server::start(move |call| match call.method.as_str() {
            "GET" => Reply::Json(200, json!({ "id": "s1", "dataCenterId": "EU-RO-1" })),
            _ => Reply::Json(200, reply.clone()),
        })
        .await;
        let data_centers = places.iter().map(|place: &&str| (*place).to_owned()).collect();
        let (provider, _) = client(RunPodConfig { data_centers, ..config(&server.base) });
        match kept {
            true => {
                assert_eq!(buy(&provider, &spot).await, Ok(InstanceId("s1".into())));
                let input = &server.calls().remove(0).json()["variables"]["i"];
                assert_eq!(input["dataCenterId"].as_str(), places.first().copied());
            }
            false => {
                let refused = freeze(&provider, &spot, &machine()).await.expect_err("no one call");
                assert!(refused.to_string().contains("one data centre at most"), "{refused}");
                assert!(server.calls().is_empty());
            }
        }
    }
}

#[tokio::test]
async fn the_same_order_is_the_same_request() {
    let (provider, hands) = client(config("http://127.0.0.1:9"));
    let first = freeze(&provider, &community(), &machine()).await.expect("a request");
    hands.forward(5);
    assert_eq!(freeze(&provider, &community(), &machine()).await, Ok(first));
}

#[tokio::test]
async fn each_answer_to_a_create_is_a_no_or_a_doubt_and_is_asked_for_once() {
    for (status, words, kind) in [
        (400, NONE, Some(Refusal::NoCapacity)),
        (400, "Something went wrong. Please try again later or contact support.", None),
        (401, "no", Some(Refusal::Unauthorized)),
        (402, "balance too low", Some(Refusal::BalanceTooLow)),
        (403, "no", Some(Refusal::Quota)),
        (410, "API retired", Some(Refusal::Retired)),
        (413, "too large", Some(Refusal::Invalid)),
        (422, "interruptible: additionalProperties", Some(Refusal::Invalid)),
        (429, "slow down", Some(Refusal::RateLimited)),
        (500, "create pod: failed", None),
        (503, "unavailable", None),
        (504, "time-out", None),
        (307, "elsewhere", None),
    ] {
        // What the pod was asked for comes back in the words, secrets and all.
        let server = Server::start(move |call| {
            problem(status, &format!("{words} {}", call.body.replace('"', "")))
        })
        .await;
        let (provider, _) = client(config(&server.base));
        let answer = buy(&provider, &community()).await;
        assert_eq!(refusal(&answer), kind, "{status} {words}: {answer:?}");
        assert_eq!(is_ambiguous(&answer), kind.is_none(), "{status} {words}: {answer:?}");
        assert_eq!(server.count("POST"), 1, "{status}: a create is never repeated");
        let error = answer.expect_err("no pod");
        let told = format!("{error:?} {error}");
        assert!(!told.contains(TOKEN) && !told.contains(KEY), "{told}");
    }
}

#[tokio::test]
async fn a_pod_that_was_made_though_the_create_failed_is_found() {
    for failure in [Some((500, "create pod: time-out")), Some((400, NONE)), None] {
        let pods = Arc::new(Mutex::new(Vec::new()));
        let there = pods.clone();
        let server = Server::start(move |call| {
            let mut pods = there.lock().expect("the pods");
            match (call.method.as_str(), failure) {
                ("GET", _) => Reply::Json(200, json!({ "pods": pods.clone() })),
                (_, Some((status, words))) => {
                    pods.push(pod("late", &call.json(), 0.34, "PROVISIONING"));
                    problem(status, words)
                }
                // The answer is lost on its way.
                (_, None) => {
                    pods.push(pod("late", &call.json(), 0.34, "PROVISIONING"));
                    Reply::Cut
                }
            }
        })
        .await;
        let (provider, _) = client(config(&server.base));
        let answer = buy(&provider, &community()).await;
        answer.expect_err("no pod was told of");
        assert_eq!(server.count("POST"), 1);
        let found = provider.find(&identity()).await.expect("a list");
        assert!(found.complete);
        assert_eq!(found.instances.len(), 1);
        assert_eq!(found.instances[0].id, InstanceId("late".into()));
        assert_eq!(found.instances[0].offer, Some(community()), "its cost can be booked");
        let listed = provider.list(&identity().installation).await.expect("a list");
        assert_eq!(listed.instances, found.instances, "the sweep sees it too");
    }
}

#[tokio::test]
async fn success_without_a_pod_is_a_doubt_and_so_is_no_answer() {
    for text in ["", "<html>", "{}", r#"{"id":""}"#, "null"] {
        let server = Server::start(move |_| Reply::Text(201, text.to_owned())).await;
        assert!(is_ambiguous(&buy(&client(config(&server.base)).0, &community()).await), "{text}");
    }
    let server = Server::start(|_| Reply::Cut).await;
    assert!(is_ambiguous(&buy(&client(config(&server.base)).0, &community()).await));
    assert_eq!(server.count("POST"), 1);
}

#[tokio::test]
async fn where_nobody_listens_nothing_was_bought() {
    // A port that is taken, and on which nobody listens.
    let taken = tokio::net::TcpSocket::new_v4().expect("a socket");
    taken.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let base = format!("http://{}", taken.local_addr().expect("an address"));
    let answer = buy(&client(config(&base)).0, &community()).await;
    assert_eq!(refusal(&answer), Some(Refusal::Transient), "{answer:?}");
}

#[tokio::test]
async fn a_pod_that_is_dearer_than_quoted_is_ended_and_refused() {
    let server = Server::start(|call| match call.method.as_str() {
        "DELETE" => Reply::Json(204, json!(null)),
        _ => made(call, 0.39),
    })
    .await;
    let answer = buy(&client(config(&server.base)).0, &community()).await;
    assert_eq!(refusal(&answer), Some(Refusal::PriceChanged), "{answer:?}");
    assert_eq!(server.lines(), ["POST /v2/pods", "DELETE /v2/pods/abc123"]);
    // What it cost meanwhile is told, its disk of 40 GB included.
    let Err(LaunchError::GivenBack { waste, .. }) = answer else { panic!("{answer:?}") };
    assert_eq!((waste.instance.0.as_str(), waste.price.micros()), ("abc123", 395_480));
    assert_eq!(Some(waste.from), "2026-11-20T10:00:00Z".parse().ok());
    // Nor does what its disk costs leave room for a pod that is dearer.
    let server = Server::start(|call| match call.method.as_str() {
        "DELETE" => Reply::Json(204, json!(null)),
        _ => made(call, 0.345),
    })
    .await;
    let answer = buy(&client(config(&server.base)).0, &community()).await;
    assert_eq!(refusal(&answer), Some(Refusal::PriceChanged), "{answer:?}");
    // As dear as quoted, or cheaper, is kept.
    for cost in [0.34, 0.2] {
        let server = Server::start(move |call| made(call, cost)).await;
        buy(&client(config(&server.base)).0, &community()).await.expect("bought");
    }
}

#[tokio::test]
async fn a_dearer_pod_that_cannot_be_ended_is_not_forgotten() {
    let server = Server::start(|call| match call.method.as_str() {
        "DELETE" => problem(500, "oops"),
        _ => made(call, 0.39),
    })
    .await;
    let answer = buy(&client(config(&server.base)).0, &community()).await;
    assert!(is_ambiguous(&answer), "{answer:?}");
    assert_eq!((server.count("POST"), server.count("DELETE")), (1, 3));
}

#[tokio::test]
async fn a_dearer_pod_that_is_not_known_yet_is_ended_once_it_is() {
    // The first request is not heard of: a create may be older than what else of RunPod knows it.
    let unknown = std::sync::atomic::AtomicU32::new(1);
    let server = Server::start(move |call| match call.method.as_str() {
        "DELETE" if unknown.swap(0, std::sync::atomic::Ordering::Relaxed) > 0 => {
            problem(404, "pod not found")
        }
        "DELETE" => Reply::Json(204, json!(null)),
        _ => made(call, 0.39),
    })
    .await;
    let answer = buy(&client(config(&server.base)).0, &community()).await;
    assert_eq!(refusal(&answer), Some(Refusal::PriceChanged), "{answer:?}");
    assert_eq!((server.count("POST"), server.count("DELETE")), (1, 2));
}

#[tokio::test]
async fn a_pod_that_is_not_known_yet_is_not_taken_for_gone_when_it_is_ended() {
    let server = Server::start(|call| match call.method.as_str() {
        "DELETE" => problem(404, "pod not found"),
        "GET" if call.path == "/v2/pods" => Reply::Json(200, json!({ "pods": [] })),
        "GET" => problem(404, "pod not found"),
        _ => made(call, 0.34),
    })
    .await;
    let (provider, hands) = client(config(&server.base));
    let id = buy(&provider, &community()).await.expect("bought");
    let error = provider.terminate(&id).await.expect_err("nobody knows that it is gone");
    assert!(error.to_string().contains("not known yet"), "{error}");
    // By now a pod is known, if there is one.
    hands.0.advance(std::time::Duration::from_secs(90));
    provider.terminate(&id).await.expect("gone");
    assert_eq!(server.count("DELETE"), 2);
}

#[tokio::test]
async fn a_price_that_the_create_does_not_tell_is_read_back() {
    let server = Server::start(|call| match call.method.as_str() {
        "DELETE" => Reply::Json(204, json!(null)),
        "GET" => Reply::Json(200, json!({ "id": "abc123", "cost": 9.0 })),
        _ => made(call, 0.0),
    })
    .await;
    let answer = buy(&client(config(&server.base)).0, &community()).await;
    assert_eq!(refusal(&answer), Some(Refusal::PriceChanged), "{answer:?}");
    assert_eq!(server.count("GET /v2/pods/abc123"), 1);
}

#[tokio::test]
async fn what_the_owner_adds_to_prices_is_not_paid() {
    // 25 per cent on top: 0.34548 was decided on as 0.43185, and 0.39 is still too much.
    let server = Server::start(|call| match call.method.as_str() {
        "DELETE" => Reply::Json(204, json!(null)),
        _ => made(call, 0.39),
    })
    .await;
    let settings = RunPodConfig { price_adjustment_percent: 25, ..config(&server.base) };
    let adjusted = offer("1x NVIDIA L4 SECURE", Capacity::OnDemand, "0.43185");
    let answer = buy(&client(settings).0, &adjusted).await;
    assert_eq!(refusal(&answer), Some(Refusal::PriceChanged), "{answer:?}");
    // A discount that RunPod does not show: it quotes more than was decided on.
    let server = Server::start(|call| made(call, 0.34)).await;
    let settings = RunPodConfig { price_adjustment_percent: -20, ..config(&server.base) };
    let adjusted = offer("1x NVIDIA L4 SECURE", Capacity::OnDemand, "0.276384");
    buy(&client(settings).0, &adjusted).await.expect("bought");
}

#[tokio::test]
async fn spot_is_bid_for_by_graphql_for_each_accelerator_and_ends_by_itself() {
    let rented = json!({ "data": { "podRentInterruptable": { "id": "s1", "costPerHr": 1.0 } } });
    let server = Server::start(move |_| Reply::Json(200, rented.clone())).await;
    let (provider, hands) = client(config(&server.base));
    let spot = offer("2x NVIDIA L40S SECURE", Capacity::Spot, "1.00548");
    assert_eq!(buy(&provider, &spot).await, Ok(InstanceId("s1".into())));
    assert_eq!(server.lines(), ["POST /graphql"]);
    let body = server.calls().remove(0).json();
    assert!(body["query"].as_str().expect("text").contains("podRentInterruptable"));
    let input = &body["variables"]["i"];
    // 1.00548 less 40 GB of disk, by two: never the whole pod's price for each.
    assert_eq!((&input["bidPerGpu"], &input["gpuCount"]), (&json!(0.5), &json!(2)));
    assert_eq!(input["ports"], json!("7443/tcp,8000/tcp"));
    // No volume, which would stay behind and bill.
    assert_eq!((&input["volumeInGb"], &input["containerDiskInGb"]), (&json!(0), &json!(40)));
    assert_eq!(input["name"], json!(identity().unique_name()));
    let ends: jiff::Timestamp =
        input["terminateAfter"].as_str().expect("text").parse().expect("a time");
    assert_eq!(ends.duration_since(hands.now()).as_hours(), 24);
    let env = input["env"].as_array().expect("a list");
    assert!(env.contains(&json!({ "key": "PETAFLOP_TOKEN", "value": TOKEN })));
}

#[tokio::test]
async fn errors_of_graphql_come_with_status_200() {
    let error = |message: &str, code: &str| {
        json!({ "errors": [{ "message": format!("{message} {TOKEN}"), "extensions": { "code": code } }],
                "data": { "podRentInterruptable": null } })
    };
    let none = "There are no longer any instances available with the request specifications. Please \
                try again later.";
    for (status, body, kind) in [
        (200, error(none, "RUNPOD"), Some(Refusal::NoCapacity)),
        (200, error("no such field", "GRAPHQL_VALIDATION_FAILED"), Some(Refusal::Invalid)),
        (200, error("Something went wrong. Please try again later", "X"), None),
        (200, json!({ "data": { "podRentInterruptable": null } }), None),
        (410, json!({ "title": "Gone", "status": 410 }), Some(Refusal::Retired)),
        (401, json!({ "title": "Unauthorized", "status": 401 }), Some(Refusal::Unauthorized)),
        (502, json!({}), None),
    ] {
        let reply = body.clone();
        let server = Server::start(move |_| Reply::Json(status, reply.clone())).await;
        let spot = offer("1x NVIDIA L40S SECURE", Capacity::Spot, "0.50548");
        let answer = buy(&client(config(&server.base)).0, &spot).await;
        assert_eq!(refusal(&answer), kind, "{body}: {answer:?}");
        assert_eq!(is_ambiguous(&answer), kind.is_none(), "{body}: {answer:?}");
        assert!(!format!("{answer:?}").contains(TOKEN), "{answer:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_had_is_refused_before_anything_is_asked() {
    let server = Server::start(|_| Reply::Cut).await;
    let (provider, _) = client(config(&server.base));
    let volume = Volume {
        name: "v".into(),
        mount_path: "/v".into(),
        read_only: true,
        source: VolumeSource::ConfigMap("m".into()),
    };
    let machines = [
        Machine { volumes: vec![volume], ..machine() },
        Machine { service_account: Some("sa".into()), ..machine() },
        Machine { image_pull_secrets: vec!["s".into()], ..machine() },
        Machine { memory: 9_000_000_000, ..machine() },
        Machine { cpu_millis: 2001, ..machine() },
        Machine { ephemeral: Some(41_000_000_000), ..machine() },
        Machine { image: " ".into(), ..machine() },
        Machine { image: "x".repeat(102_400), ..machine() },
    ];
    for machine in machines {
        let answer = freeze(&provider, &community(), &machine).await;
        let refused = matches!(answer, Err(LaunchError::Refused { kind: Refusal::Invalid, .. }));
        assert!(refused, "{answer:?}");
    }
    let settings = RunPodConfig { agent: None, ..config(&server.base) };
    let answer = freeze(&client(settings).0, &community(), &machine()).await;
    assert_eq!(refusal(&answer.map(|_| InstanceId(String::new()))), Some(Refusal::Invalid));
    let foreign = Offer { provider: "other".into(), ..community() };
    let nonsense = offer("p5.48xlarge", Capacity::OnDemand, "1");
    let spot_cpu = offer("2 vCPU cpu5g SECURE", Capacity::Spot, "1");
    let nothing = offer("1x NVIDIA L4 SECURE", Capacity::Spot, "0.005");
    for offer in [foreign, nonsense, spot_cpu, nothing] {
        freeze(&provider, &offer, &machine()).await.expect_err("no such thing");
    }
    let broken = FrozenRequest { body: "{".into() };
    let answer = provider.launch(&broken, &EnrolmentToken::new(TOKEN)).await;
    assert_eq!(refusal(&answer), Some(Refusal::Invalid));
    assert!(server.calls().is_empty());
}

#[tokio::test]
async fn no_secret_is_printed() {
    let settings = config("http://127.0.0.1:9");
    let (provider, _) = client(settings.clone());
    assert!(!format!("{settings:?} {provider:?}").contains(KEY));
}
