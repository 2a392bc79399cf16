//! Nodes that do not exist take Pods as real ones do.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use petaflop_harness::kwok::{EXIT_CODE, FakeNode, Kwok};
use petaflop_harness::{ControlPlane, eventually};
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);

fn pod(name: &str, resource: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "main",
                "image": "localhost/nothing:1",
                "resources": { "limits": { resource: "8" } },
            }],
        },
    }))
    .unwrap()
}

async fn phase(pods: &Api<Pod>, name: &str, wanted: &str) -> Pod {
    eventually(&format!("{name} {wanted}"), SOON, || async {
        let pod = pods.get(name).await.map_err(|e| e.to_string())?;
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if phase == Some(wanted) { Ok(pod) } else { Err(format!("{:?}", pod.status)) }
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_pod_runs_on_eight_gpus_and_ends_as_it_is_told() {
    let plane = ControlPlane::shared().await;
    let kwok = Kwok::start(plane).await.unwrap();
    kwok.node(&FakeNode::with_8_h100("h100-0")).await.unwrap();
    kwok.node(&FakeNode::with_8_mi300x("mi300x-0")).await.unwrap();
    let client = plane.client().await.unwrap();
    let nodes: Api<Node> = Api::all(client.clone());
    let node = nodes.get("h100-0").await.unwrap();
    let allocatable = node.status.unwrap().allocatable.unwrap();
    assert_eq!(allocatable["nvidia.com/gpu"].0, "8");

    let namespace = plane.namespace("kwok").await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client, namespace.name());
    for (name, resource, node, code, end) in [
        ("nvidia", "nvidia.com/gpu", "h100-0", "0", "Succeeded"),
        ("amd", "amd.com/gpu", "mi300x-0", "3", "Failed"),
    ] {
        pods.create(&PostParams::default(), &pod(name, resource)).await.unwrap();
        let running = phase(&pods, name, "Running").await;
        assert_eq!(running.spec.unwrap().node_name.as_deref(), Some(node));
        let exit = Patch::Merge(json!({ "metadata": { "annotations": { EXIT_CODE: code } } }));
        pods.patch(name, &PatchParams::default(), &exit).await.unwrap();
        phase(&pods, name, end).await;
    }
    // No third device is there to have.
    pods.create(&PostParams::default(), &pod("one-too-many", "google.com/tpu")).await.unwrap();
    let waiting = eventually("the scheduler's verdict", SOON, || async {
        let pod = pods.get("one-too-many").await.map_err(|e| e.to_string())?;
        let conditions = pod.status.and_then(|status| status.conditions).unwrap_or_default();
        conditions.into_iter().find(|c| c.type_ == "PodScheduled").ok_or_else(|| "none".into())
    })
    .await
    .unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("Unschedulable"));
}
