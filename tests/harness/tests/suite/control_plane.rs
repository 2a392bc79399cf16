//! The control plane is a real one, and does what the fault tests ask of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{
    DeleteParams, ListParams, Patch, PatchParams, PostParams, VersionMatch, WatchEvent, WatchParams,
};
use petaflop_harness::{ControlPlane, Launch, Link, Options, eventually};
use serde_json::json;

fn map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({ "metadata": { "name": name }, "data": { "key": value } }))
        .unwrap()
}

fn value(map: &ConfigMap) -> &str {
    map.data.as_ref().and_then(|data| data.get("key")).map_or("", String::as_str)
}

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn an_object_comes_back_as_it_was_written() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace("round-trip").await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(plane.client().await.unwrap(), namespace.name());
    maps.create(&PostParams::default(), &map("one", "value")).await.unwrap();
    assert_eq!(value(&maps.get("one").await.unwrap()), "value");
}

#[tokio::test]
async fn controllers_run_a_deployment_gets_its_replica_set() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace("deployment").await.unwrap();
    let client = plane.client().await.unwrap();
    let labels = json!({ "app": "idle" });
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": { "name": "idle" },
        "spec": {
            "replicas": 2,
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": { "containers": [{ "name": "idle", "image": "localhost/idle:1" }] },
            },
        },
    }))
    .unwrap();
    Api::<Deployment>::namespaced(client.clone(), namespace.name())
        .create(&PostParams::default(), &deployment)
        .await
        .unwrap();
    let sets: Api<ReplicaSet> = Api::namespaced(client, namespace.name());
    eventually("a ReplicaSet with two Pods", SOON, || async {
        let sets = sets.list(&ListParams::default()).await.map_err(|e| e.to_string())?;
        match sets.items.first().and_then(|set| set.status.as_ref()) {
            Some(status) if status.replicas == 2 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_namespace_goes_when_its_test_ends() {
    use k8s_openapi::api::core::v1::Namespace;
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace("short").await.unwrap();
    let name = namespace.name().to_owned();
    drop(namespace);
    let all: Api<Namespace> = Api::all(plane.client().await.unwrap());
    eventually("the namespace is gone", SOON, || async {
        match all.get_opt(&name).await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn users_may_what_rbac_gives_them_and_no_more() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace("rbac").await.unwrap();
    let admin = plane.client().await.unwrap();
    let name = namespace.name();

    let access = plane.user("ada", &["readers", "second"]).unwrap();
    let ada: Api<ConfigMap> = Api::namespaced(access.client().await.unwrap(), name);
    let refused = ada.list(&ListParams::default()).await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 403), "{refused}");

    let rbac = "rbac.authorization.k8s.io";
    let binding = serde_json::from_value(json!({
        "metadata": { "name": "second-may-view" },
        "roleRef": { "apiGroup": rbac, "kind": "ClusterRole", "name": "view" },
        "subjects": [
            { "apiGroup": rbac, "kind": "Group", "name": "second" },
            { "kind": "ServiceAccount", "name": "default", "namespace": name },
        ],
    }))
    .unwrap();
    Api::<k8s_openapi::api::rbac::v1::RoleBinding>::namespaced(admin, name)
        .create(&PostParams::default(), &binding)
        .await
        .unwrap();
    let account = plane.service_account(name, "default").await.unwrap();
    let account: Api<ConfigMap> = Api::namespaced(account.client().await.unwrap(), name);
    for (who, api) in [("ada", ada), ("the ServiceAccount", account)] {
        eventually(&format!("{who} may list"), SOON, || async {
            api.list(&ListParams::default()).await.map(drop).map_err(|e| e.to_string())
        })
        .await
        .unwrap();
        let refused = api.create(&PostParams::default(), &map("one", "")).await.unwrap_err();
        assert!(matches!(&refused, kube::Error::Api(status) if status.code == 403), "{refused}");
    }
}

#[tokio::test]
async fn a_killed_apiserver_comes_back_with_its_data() {
    let plane = ControlPlane::start(Options::default().only_api()).await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(plane.client().await.unwrap());
    maps.create(&PostParams::default(), &map("kept", "value")).await.unwrap();

    plane.apiserver().kill();
    assert!(!plane.apiserver().is_up());
    maps.get("kept").await.unwrap_err();
    plane.etcd().restart().unwrap();
    plane.apiserver().restart().unwrap();
    plane.ready().await.unwrap();
    assert_eq!(value(&maps.get("kept").await.unwrap()), "value");
}

#[tokio::test]
async fn every_server_can_be_killed_and_works_again() {
    let plane = ControlPlane::start(Options::default()).await.unwrap();
    let all = [plane.etcd(), plane.apiserver(), plane.controller_manager(), plane.scheduler()];
    for server in all {
        server.kill();
        assert!(!server.is_up(), "{}", server.name());
    }
    for server in all {
        server.restart().unwrap();
    }
    plane.ready().await.unwrap();
    assert!(all.into_iter().all(|server| server.is_up()));
    plane.namespace("afterwards").await.unwrap();

    // One that is meant to be down is not waited for; one that crashed is missed.
    plane.controller_manager().kill();
    plane.ready().await.unwrap();
    let scheduler = plane.scheduler().pid().unwrap().to_string();
    std::process::Command::new("kill").args(["-9", &scheduler]).status().unwrap();
    let missed = plane.ready().await.unwrap_err().to_string();
    assert!(missed.starts_with("kube-scheduler ended by itself"), "{missed}");
}

#[tokio::test]
async fn a_paused_apiserver_answers_once_it_is_resumed() {
    let plane = ControlPlane::start(Options::default().only_api()).await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(plane.client().await.unwrap());
    maps.create(&PostParams::default(), &map("kept", "value")).await.unwrap();

    plane.apiserver().pause().unwrap();
    assert!(plane.apiserver().is_up());
    let waiting = tokio::spawn(async move { maps.get("kept").await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!waiting.is_finished());
    plane.apiserver().resume().unwrap();
    assert_eq!(value(&waiting.await.unwrap().unwrap()), "value");
}

#[tokio::test]
async fn every_write_is_counted_once_by_object_and_user() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace("audit").await.unwrap();
    let access = plane.user("writer", &["system:masters"]).unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(access.client().await.unwrap(), namespace.name());
    let post = PostParams::default();
    maps.create(&post, &map("before", "")).await.unwrap();

    let writes = plane.writes().await.unwrap();
    maps.create(&post, &map("one", "a")).await.unwrap();
    maps.create(&post, &map("one", "a")).await.unwrap_err();
    maps.create(&PostParams { dry_run: true, ..post.clone() }, &map("two", "")).await.unwrap();
    for text in ["b", "c", "d"] {
        let patch = Patch::Merge(json!({ "data": { "key": text } }));
        maps.patch("one", &PatchParams::default(), &patch).await.unwrap();
    }
    let mut last = maps.get("one").await.unwrap();
    last.data = Some(BTreeMap::from([("key".to_owned(), "e".to_owned())]));
    maps.replace("one", &post, &last).await.unwrap();
    maps.delete("one", &DeleteParams::default()).await.unwrap();

    let tally = writes.tally(Some("writer")).await.unwrap();
    let counted: Vec<_> = tally
        .writes
        .iter()
        .map(|((object, verb), count)| (object.name.as_str(), verb.as_str(), *count))
        .collect();
    assert_eq!(
        counted,
        [("one", "create", 1), ("one", "delete", 1), ("one", "patch", 3), ("one", "update", 1)],
        "{tally}"
    );
    assert_eq!((tally.total(), tally.events, tally.of_resource("configmaps")), (6, 0, 6));
    let refused = writes.all().await.unwrap().into_iter().filter(|write| write.code == 409).count();
    assert_eq!(refused, 1);
}

#[tokio::test]
async fn one_client_is_cut_off_while_another_is_not() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace("proxy").await.unwrap();
    let direct: Api<ConfigMap> = Api::namespaced(plane.client().await.unwrap(), namespace.name());
    let proxy = plane.proxy().unwrap();
    let access = plane.admin().through(&proxy).unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(access.client().await.unwrap(), namespace.name());
    let post = PostParams::default();
    maps.create(&post, &map("open", "")).await.unwrap();

    // Silent: waits, then goes on.
    proxy.set(Link::Silent);
    let asked = maps.clone();
    let waiting = tokio::spawn(async move { asked.get("open").await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!waiting.is_finished());
    direct.get("open").await.unwrap();
    proxy.set(Link::Open);
    waiting.await.unwrap().unwrap();

    // Deaf: it is done, but the client does not know.
    proxy.set(Link::Deaf);
    let asked = maps.clone();
    let waiting =
        tokio::spawn(async move { asked.create(&PostParams::default(), &map("lost", "")).await });
    eventually("the write without an answer", SOON, || async {
        direct.get("lost").await.map(drop).map_err(|e| e.to_string())
    })
    .await
    .unwrap();
    assert!(!waiting.is_finished());
    proxy.cut();
    waiting.await.unwrap().unwrap_err();

    // Refused: an error, not silence, until it is open again.
    proxy.set(Link::Refused);
    maps.get("open").await.unwrap_err();
    proxy.set(Link::Open);
    eventually("an answer after the refusal", SOON, || async {
        maps.get("open").await.map(drop).map_err(|e| e.to_string())
    })
    .await
    .unwrap();

    // Slow: each way once.
    proxy.set(Link::Slow(Duration::from_millis(300)));
    let start = Instant::now();
    maps.get("open").await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(600), "{:?}", start.elapsed());
}

#[tokio::test]
async fn after_compaction_the_past_is_gone() {
    let plane = ControlPlane::start(Options::default().only_api()).await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(plane.client().await.unwrap());
    let old = maps
        .create(&PostParams::default(), &map("old", "first"))
        .await
        .unwrap()
        .metadata
        .resource_version
        .unwrap();
    for round in 0..3 {
        let patch = Patch::Merge(json!({ "data": { "key": round.to_string() } }));
        maps.patch("old", &PatchParams::default(), &patch).await.unwrap();
    }
    let then = ListParams::default().at(&old).matching(VersionMatch::Exact);
    // The API server's own memory of the past ends with it; etcd's does not.
    plane.apiserver().restart().unwrap();
    plane.ready().await.unwrap();
    assert_eq!(value(&maps.list(&then).await.unwrap().items[0]), "first");

    plane.compact().await.unwrap();
    plane.apiserver().restart().unwrap();
    plane.ready().await.unwrap();
    let gone = maps.list(&then).await.unwrap_err();
    assert!(matches!(&gone, kube::Error::Api(status) if status.code == 410), "{gone}");

    let events = maps.watch(&WatchParams::default(), &old).await.unwrap();
    let next = std::pin::pin!(events).next().await.unwrap().unwrap();
    assert!(matches!(&next, WatchEvent::Error(status) if status.code == 410), "{next:?}");
}

#[tokio::test]
async fn a_program_under_test_is_one_more_process_of_the_cluster() {
    let plane = ControlPlane::shared().await;
    let script = "echo hello $WHO; exec sleep 600";
    let launch = Launch::new("sh").arguments(["-c", script]).environment("WHO", "world");
    let program = plane.run("program-under-test", launch).unwrap();
    let said = async |what: &str| {
        eventually("its output", SOON, async || {
            let log = program.log_tail();
            if log == what { Ok(()) } else { Err(log) }
        })
        .await
        .unwrap();
    };
    said("hello world").await;
    program.pause().unwrap();
    program.resume().unwrap();
    program.restart().unwrap();
    said("hello world\nhello world").await;
    program.kill();
    assert!(!program.is_up());
    assert!(program.pause().is_err());
}

#[tokio::test]
async fn nothing_is_left_of_a_plane_that_was_dropped() {
    let plane = ControlPlane::start(Options::default().only_api()).await.unwrap();
    let pids = [plane.etcd().pid().unwrap(), plane.apiserver().pid().unwrap()];
    let folder = plane.admin().kubeconfig().parent().unwrap().to_owned();
    drop(plane);
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "{pid} still runs");
    }
    assert!(!folder.exists(), "{} is still there", folder.display());
}
