//! Finding, watching and ending pods.

use petaflop_arbiter::claim::Identity;
use petaflop_arbiter::reason::Reason;
use petaflop_providers::provider::identity_text;
use petaflop_providers::{InstanceId, InstanceState, Provider, ProviderError};
use serde_json::{Value, json};

use super::server::{Reply, Server, problem};
use super::{client, config, identity, pod};

fn ours(id: &str, identity: &Identity) -> Value {
    let env = json!({ "PETAFLOP_IDENTITY": identity_text(identity) });
    pod(id, &json!({ "name": identity.unique_name(), "env": env }), 0.34, "RUNNING")
}

fn id(text: &str) -> InstanceId {
    InstanceId(text.to_owned())
}

#[tokio::test]
async fn pods_are_found_by_what_they_carry_or_by_their_name_and_others_are_left_alone() {
    let first = identity();
    let second = Identity { attempt: 2, ..first.clone() };
    let other =
        Identity { claim_uid: "22222222-0000-4000-8000-000000000000".into(), ..first.clone() };
    let foreign = Identity { installation: "ffffffff-0".into(), ..first.clone() };
    let mut stripped = ours("stripped", &second);
    stripped["env"] = json!({});
    let strange = json!({ "id": "strange", "name": "my pod", "status": "RUNNING" });
    let pods = json!({ "pods": [
        ours("first", &first), stripped, ours("other", &other), ours("foreign", &foreign), strange,
    ] });
    let server = Server::start(move |_| Reply::Json(200, pods.clone())).await;
    let (provider, _) = client(config(&server.base));
    let found = provider.find(&first).await.expect("a list");
    assert!(found.complete);
    let names: Vec<_> =
        found.instances.iter().map(|i| (i.id.0.as_str(), i.identity.clone())).collect();
    assert_eq!(names, [("first", Some(first.clone())), ("stripped", Some(second))]);
    let all = provider.list(&first.installation).await.expect("a list");
    let names: Vec<_> = all.instances.iter().map(|i| i.id.0.as_str()).collect();
    assert_eq!(names, ["first", "stripped", "other"]);
}

#[tokio::test]
async fn a_list_goes_on_over_its_pages() {
    let server = Server::start(|call| {
        let (number, more, next) = match call.path.as_str() {
            "/v2/pods" => (1, true, "a b&c"),
            "/v2/pods?cursor=a+b%26c" => (2, false, ""),
            other => panic!("{other}"),
        };
        let pods = [ours(&format!("p{number}"), &identity())];
        let paging = json!({ "hasNextPage": more, "nextCursor": next });
        Reply::Json(200, json!({ "pods": pods, "pagination": paging }))
    })
    .await;
    let listing = client(config(&server.base)).0.find(&identity()).await.expect("a list");
    assert!(listing.complete);
    assert_eq!(listing.instances.len(), 2);
}

#[tokio::test]
async fn a_list_that_is_not_all_says_so() {
    // A cursor that repeats, more without a way to it, a second page that fails.
    for (cursor, second) in [
        (json!("round"), None),
        (json!(null), None),
        (json!("next"), Some(500)),
        (json!("n"), Some(410)),
    ] {
        let shown = cursor.clone();
        let server = Server::start(move |call| match (call.path.contains("cursor"), second) {
            (true, Some(status)) => problem(status, "no"),
            _ => {
                let paging = json!({ "hasNextPage": true, "nextCursor": cursor });
                Reply::Json(200, json!({ "pods": [ours("p", &identity())], "pagination": paging }))
            }
        })
        .await;
        let listing = client(config(&server.base)).0.find(&identity()).await.expect("a part");
        assert!(!listing.complete, "{shown}");
        assert!(!listing.instances.is_empty());
    }
    // An entry that cannot be read may be ours.
    let pods = json!({ "pods": [ours("p", &identity()), { "status": "RUNNING" }] });
    let server = Server::start(move |_| Reply::Json(200, pods.clone())).await;
    let listing = client(config(&server.base)).0.find(&identity()).await.expect("a part");
    assert_eq!((listing.complete, listing.instances.len()), (false, 1));
}

#[tokio::test]
async fn no_list_is_never_an_empty_list() {
    for (status, text, retired) in [
        (410, r#"{"title":"Gone","status":410}"#, true),
        (404, "<html>", false),
        (404, r#"{"title":"Not Found","status":404}"#, false),
        (200, "<html>", false),
        (200, "[]", false),
        (200, r#"{"pods":null}"#, false),
        (500, "", false),
        (301, "", false),
    ] {
        let server = Server::start(move |_| Reply::Text(status, text.to_owned())).await;
        let (provider, _) = client(config(&server.base));
        let error = provider.list("i").await.expect_err("no list");
        assert_eq!(matches!(error, ProviderError::Retired { .. }), retired, "{status} {text}");
        provider.find(&identity()).await.expect_err("no list");
    }
    let server = Server::start(|_| Reply::Cut).await;
    client(config(&server.base)).0.list("i").await.expect_err("no answer");
}

#[tokio::test]
async fn only_runpods_own_404_says_that_a_pod_is_gone() {
    let server = Server::start(|_| problem(404, "pod not found")).await;
    let (provider, _) = client(config(&server.base));
    assert_eq!(provider.get(&id("p")).await, Ok(None));
    provider.terminate(&id("p")).await.expect("ending what is gone succeeds");
    for (status, text) in [
        (404, "<html>not found</html>"),
        (410, r#"{"title":"Gone","status":410}"#),
        (401, r#"{"title":"Unauthorized","status":401}"#),
        (409, r#"{"title":"Conflict","status":409}"#),
        (500, r#"{"title":"oops","status":500}"#),
        (302, ""),
    ] {
        let server = Server::start(move |_| Reply::Text(status, text.to_owned())).await;
        let (provider, _) = client(config(&server.base));
        provider.get(&id("p")).await.expect_err(text);
        let error = provider.terminate(&id("p")).await.expect_err(text);
        assert_eq!(matches!(error, ProviderError::Retired { .. }), status == 410, "{error}");
    }
}

#[tokio::test]
async fn ending_a_pod_deletes_it_and_can_be_repeated() {
    let mut there = true;
    let server = Server::start(move |call| match call.method == "DELETE" {
        true if std::mem::take(&mut there) => Reply::Json(204, json!(null)),
        true => problem(404, "pod not found"),
        false => Reply::Json(200, ours("abc123", &identity())),
    })
    .await;
    let (provider, _) = client(config(&server.base));
    provider.terminate(&id("abc123")).await.expect("ended");
    provider.terminate(&id("abc123")).await.expect("ended before");
    // Looked at before, for it may have stopped, and nobody says when once it is deleted.
    let lines = ["GET /v2/pods/abc123", "DELETE /v2/pods/abc123", "DELETE /v2/pods/abc123"];
    assert_eq!(server.lines(), lines);
}

#[tokio::test]
async fn an_id_from_outside_leads_nowhere_else() {
    let server = Server::start(|_| problem(404, "pod not found")).await;
    let (provider, _) = client(config(&server.base));
    provider.terminate(&id("../registries/x?y#z")).await.expect("gone");
    let escaped = "/v2/pods/..%2Fregistries%2Fx%3Fy%23z";
    assert_eq!(server.lines(), [format!("GET {escaped}"), format!("DELETE {escaped}")]);
}

#[tokio::test]
async fn nothing_is_promised_that_runpod_does_not_keep() {
    let provider = client(config("http://127.0.0.1:9")).0;
    let promises = provider.capabilities();
    // No token, names that are not unique, pods that turn up within a minute.
    assert!(!promises.launch_safety.idempotent);
    assert!(promises.launch_safety.settle_seconds >= 60);
    assert!(promises.launch_timeout.as_secs() >= 20 * 60, "large images are pulled in this time");
    let second = std::time::Duration::from_secs(1);
    assert_eq!((promises.billing.granularity, promises.billing.minimum.is_zero()), (second, true));
}

#[tokio::test]
async fn a_stopped_pod_is_still_there_and_nobody_says_why() {
    let mut stopped = ours("p", &identity());
    stopped["status"] = json!("EXITED");
    stopped["cost"] = json!(0.0);
    let server = Server::start(move |_| Reply::Json(200, stopped.clone())).await;
    let (provider, _) = client(config(&server.base));
    let seen = provider.get(&id("p")).await.expect("a pod").expect("a pod");
    assert_eq!(seen.state, InstanceState::Running, "its disk may bill: it must be ended");
    assert_eq!(seen.exit, None);
    assert!(seen.trouble.expect("trouble").message.contains("EXITED"));
    assert_eq!(seen.identity, Some(identity()));
}

#[tokio::test]
async fn a_pod_that_runs_without_an_address_for_two_minutes_is_in_trouble() {
    let ip = std::sync::Arc::new(std::sync::Mutex::new((json!(null), "RUNNING")));
    let told = ip.clone();
    let server = Server::start(move |_| {
        let (ip, status) = told.lock().expect("a lock").clone();
        let port = json!({ "private": 7443, "public": 10341, "type": "tcp", "ip": ip });
        let mut pod = ours("p", &identity());
        pod["env"]["PETAFLOP_PORT"] = json!("7443");
        (pod["status"], pod["runtime"]) = (json!(status), json!({ "ports": [port] }));
        Reply::Json(200, pod)
    })
    .await;
    let (provider, hands) = client(config(&server.base));
    let set = |address: Value, status| *ip.lock().expect("a lock") = (address, status);
    let trouble = async || {
        let seen = provider.get(&id("p")).await.expect("an answer").expect("a pod");
        seen.trouble.map(|trouble| trouble.reason)
    };
    // However long its image is fetched.
    set(json!(null), "STARTING");
    assert_eq!(trouble().await, None);
    hands.forward(600);
    set(json!(null), "RUNNING");
    assert_eq!(trouble().await, None);
    hands.forward(119);
    assert_eq!(trouble().await, None);
    hands.forward(1);
    assert_eq!(trouble().await, Some(Reason::LaunchTimedOut));
    // One that has an address begins anew when it loses it.
    set(json!("203.0.113.7"), "RUNNING");
    assert_eq!(trouble().await, None);
    hands.forward(600);
    set(json!(null), "RUNNING");
    assert_eq!(trouble().await, None);
}
