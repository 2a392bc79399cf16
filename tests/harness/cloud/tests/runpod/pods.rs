//! Pods of REST v2.

use serde_json::{Value, json};

use crate::fixture::{Fixture, RTX_4090, SECOND, wish, wish_with};

#[tokio::test]
async fn create_answers_201_with_a_pod_that_is_provisioning() {
    let fixture = Fixture::new();
    let seen = fixture.create(&wish()).await;
    assert_eq!(seen.status, 201);
    let pod = &seen.body;
    assert_eq!(pod["status"], "PROVISIONING");
    assert_eq!(pod["actions"], json!(["stop", "terminate"]));
    assert_eq!(pod["gpu"], json!({ "id": RTX_4090, "count": 1 }));
    assert_eq!((&pod["cost"], &pod["cloud"]), (&json!(0.34), &json!("COMMUNITY")));
    for unset in ["dataCenterId", "runtime", "startedAt", "cudaVersion"] {
        assert!(pod[unset].is_null(), "{unset}");
    }
    assert_eq!(pod["createdAt"], "2026-11-20T10:00:00Z");
}

#[tokio::test]
async fn the_same_create_twice_is_two_pods_of_one_name() {
    let fixture = Fixture::new();
    let (one, other) = (fixture.create(&wish()).await.id(), fixture.create(&wish()).await.id());
    assert_ne!(one, other);
    let names: Vec<Value> = fixture.pods().await.iter().map(|pod| pod["name"].clone()).collect();
    assert_eq!(names, ["one", "one"]);
}

#[tokio::test]
async fn an_unknown_field_is_422_and_each_is_listed() {
    let fixture = Fixture::new();
    let fields = json!({ "interruptible": true, "stopAfter": "2026-11-21T10:00:00Z",
        "gpu": { "id": RTX_4090, "bidPerGpu": 0.3 } });
    let seen = fixture.create(&wish_with(&fields)).await;
    assert_eq!(seen.status, 422);
    let errors = seen.body["errors"].to_string();
    for field in ["interruptible", "stopAfter", "gpu.bidPerGpu", "additionalProperties"] {
        assert!(errors.contains(field), "{errors}");
    }
    assert!(fixture.machines().is_empty());
}

#[tokio::test]
async fn what_breaks_the_contract_is_422() {
    let fixture = Fixture::new();
    let breaks = [
        json!({ "name": "" }),
        json!({ "name": null }),
        json!({ "disk": 0 }),
        json!({ "disk": "40" }),
        json!({ "cloud": "ALL" }),
        json!({ "ports": ["53/udp"] }),
        json!({ "ports": ["8888"] }),
        json!({ "gpu": { "id": RTX_4090, "count": 0 } }),
        json!({ "gpu": null, "cpu": { "id": "cpu5g", "vcpuCount": 3 } }),
    ];
    for fields in breaks {
        assert_eq!(fixture.create(&wish_with(&fields)).await.status, 422, "{fields}");
    }
    let seen = fixture.ask_as(Some("key"), "POST", "/v2/pods", "{".to_owned()).await.unwrap();
    assert_eq!(seen.status, 422);
}

#[tokio::test]
async fn a_rule_across_fields_is_400() {
    let fixture = Fixture::new();
    let disk = json!({ "size": 20, "path": "/data" });
    let breaks = [
        json!({ "gpu": null }),
        json!({ "cpu": { "id": "cpu5g", "vcpuCount": 4 } }),
        json!({ "image": null }),
        json!({ "mounts": { "persistent": disk, "network": [{ "volumeId": "v", "path": "/v" }] } }),
        json!({ "mounts": { "persistent": { "size": 9, "path": "/data" } } }),
        json!({ "gpu": null, "cpu": { "id": "cpu5g", "vcpuCount": 4 }, "cloud": "SECURE",
            "mounts": { "persistent": disk } }),
        json!({ "gpu": { "id": RTX_4090, "minCudaVersion": "12.8", "allowedCudaVersions": ["12.8"] } }),
        json!({ "dataCenterIds": ["US-TX-3", "XX-YY-1"] }),
        json!({ "registry": "nobody" }),
        json!({ "gpu": { "id": "nvidia geforce rtx 4090" } }),
    ];
    for fields in breaks {
        assert_eq!(fixture.create(&wish_with(&fields)).await.status, 400, "{fields}");
    }
    assert!(fixture.machines().is_empty());
}

#[tokio::test]
async fn no_capacity_is_400_too_and_only_its_words_differ() {
    let fixture = Fixture::new();
    fixture.sell_out(RTX_4090, "COMMUNITY");
    let seen = fixture.create(&wish()).await;
    assert_eq!(seen.status, 400);
    let words = "no longer any instances available with the requested specifications";
    assert!(seen.detail().contains(words), "{}", seen.detail());
    assert_eq!(fixture.create(&wish_with(&json!({ "cloud": "SECURE" }))).await.status, 201);
}

#[tokio::test]
async fn the_cloud_is_secure_where_none_is_named_and_never_both() {
    let fixture = Fixture::new();
    fixture.sell_out(RTX_4090, "SECURE");
    let seen = fixture.create(&wish_with(&json!({ "cloud": null }))).await;
    assert_eq!(seen.status, 400, "Community has some");
}

#[tokio::test]
async fn a_pod_goes_only_where_it_may() {
    let fixture = Fixture::new();
    let fields = json!({ "cloud": "SECURE", "dataCenterIds": ["EU-RO-1"] });
    let id = fixture.running(&wish_with(&fields)).await;
    assert_eq!(fixture.pod(&id).await["dataCenterId"], "EU-RO-1");
    let seen = fixture
        .create(&wish_with(&json!({ "cloud": "SECURE", "dataCenterIds": ["US-KS-1"] })))
        .await;
    assert_eq!(seen.status, 400, "it has none");
}

#[tokio::test]
async fn its_price_is_for_one_gpu_and_its_cost_for_the_whole_pod() {
    let fixture = Fixture::new();
    let fields = json!({ "gpu": { "id": RTX_4090, "count": 4 } });
    assert_eq!(fixture.create(&wish_with(&fields)).await.body["cost"], 1.36);
    let cpu = json!({ "gpu": null, "cpu": { "id": "cpu5g", "vcpuCount": 4 }, "cloud": "SECURE" });
    let pod = fixture.create(&wish_with(&cpu)).await.body;
    assert_eq!((&pod["cost"], &pod["cpu"]["vcpuCount"]), (&json!(0.184), &json!(4)));
}

#[tokio::test]
async fn a_pod_runs_with_a_runtime_and_exits_at_no_cost_without_reason_or_exit_code() {
    let fixture = Fixture::new();
    let id = fixture.create(&wish_with(&json!({ "ports": ["8080/http"] }))).await.id();
    fixture.clock.advance(SECOND * 5);
    assert_eq!(fixture.pod(&id).await["status"], "STARTING");
    fixture.clock.advance(SECOND * 20);
    let pod = fixture.pod(&id).await;
    assert_eq!(pod["status"], "RUNNING");
    assert_eq!(pod["actions"], json!(["stop", "restart", "terminate"]));
    assert_eq!(pod["runtime"]["ports"][0]["private"], 8080);
    fixture.clock.advance(SECOND * 7);
    assert_eq!(fixture.pod(&id).await["runtime"]["uptime"], 7);
    let stopped = fixture.act(&id, "stop").await;
    assert_eq!(stopped.status, 200);
    let pod = &stopped.body;
    assert_eq!((&pod["status"], &pod["cost"]), (&json!("EXITED"), &json!(0.0)));
    assert_eq!(pod["actions"], json!(["start", "terminate"]));
    assert!(pod["runtime"].is_null());
    let text = pod.to_string();
    for absent in ["exit", "reason", "interrupt", "lastStatusChange", "machine", "labels", "tags"] {
        assert!(!text.contains(absent), "{absent} in {text}");
    }
}

#[tokio::test]
async fn an_action_that_the_state_does_not_allow_is_409() {
    let fixture = Fixture::new();
    let id = fixture.create(&wish()).await.id();
    assert_eq!(fixture.act(&id, "restart").await.status, 409);
    assert_eq!(fixture.act(&id, "start").await.status, 409);
    assert_eq!(fixture.act(&id, "stop").await.status, 200);
    assert_eq!(fixture.act(&id, "stop").await.status, 409);
    assert_eq!(fixture.act(&id, "start").await.status, 200);
    assert_eq!(fixture.act(&id, "terminate").await.status, 204);
    assert_eq!(fixture.act(&id, "terminate").await.status, 404);
    let reset = fixture.act(&id, "reset").await;
    assert_eq!(reset.status, 422, "v1 had it");
}

#[tokio::test]
async fn delete_is_204_and_afterwards_everything_is_404() {
    let fixture = Fixture::new();
    let id = fixture.running(&wish()).await;
    assert_eq!(fixture.delete(&id).await.status, 204);
    assert_eq!(fixture.delete(&id).await.status, 404);
    assert_eq!(fixture.get(&format!("/v2/pods/{id}")).await.status, 404);
    assert_eq!(fixture.get("/v2/pods/never").await.status, 404);
    assert!(fixture.pods().await.is_empty());
}

#[tokio::test]
async fn env_is_returned_on_read_without_what_the_provider_put_there() {
    let fixture = Fixture::new();
    let env = json!({ "PETAFLOP_IDENTITY": "uid/1" });
    let id = fixture.running(&wish_with(&json!({ "env": env }))).await;
    assert_eq!(fixture.pod(&id).await["env"], env);
    let machine = fixture.machines().remove(0);
    let inside = machine.order.boot.environment;
    assert_eq!(inside["RUNPOD_POD_ID"], id);
    assert_eq!(inside["RUNPOD_GPU_COUNT"], "1");
    assert_eq!(inside["PETAFLOP_IDENTITY"], "uid/1");
    let most: serde_json::Map<_, _> = (0..51).map(|n| (format!("V{n}"), json!("x"))).collect();
    assert_eq!(fixture.create(&wish_with(&json!({ "env": most }))).await.status, 400);
}

#[tokio::test]
async fn args_are_a_command_or_json_with_the_entrypoint_too() {
    let fixture = Fixture::new();
    let json = r#"{"entrypoint":["/bin/sh","-c"],"cmd":["run it"]}"#;
    for args in ["train --fast", json] {
        fixture.create(&wish_with(&json!({ "args": args }))).await;
    }
    let words =
        |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
    let machines = fixture.machines();
    let [text, json] = [&machines[0].order.boot, &machines[1].order.boot];
    assert_eq!((&text.entrypoint, &text.command), (&None, &words(&["train", "--fast"])));
    let entrypoint = words(&["/bin/sh", "-c"]);
    assert_eq!((&json.entrypoint, &json.command), (&entrypoint, &words(&["run it"])));
}

#[tokio::test]
async fn a_change_answers_200_with_the_changed_pod() {
    let fixture = Fixture::new();
    let id = fixture.running(&wish_with(&json!({ "env": { "A": "1" } }))).await;
    let path = format!("/v2/pods/{id}");
    let seen = fixture.ask("PATCH", &path, &json!({ "name": "two", "env": { "B": "2" } })).await;
    assert_eq!((seen.status, &seen.body["name"]), (200, &json!("two")));
    assert_eq!(seen.body["env"], json!({ "B": "2" }));
    let refused = [
        (json!({ "mounts": { "network": [] } }), 400),
        (json!({ "gpu": { "id": RTX_4090 } }), 422),
        (json!({ "cloud": "SECURE" }), 422),
    ];
    for (body, status) in refused {
        assert_eq!(fixture.ask("PATCH", &path, &body).await.status, status, "{body}");
    }
    assert_eq!(fixture.ask("PATCH", "/v2/pods/never", &json!({})).await.status, 404);
}

#[tokio::test]
async fn a_listing_comes_in_one_piece_or_in_pages_that_end() {
    let one = Fixture::new();
    one.create(&wish()).await;
    assert!(one.get("/v2/pods?includeClusterPods=true").await.body["pagination"].is_null());

    let paged = Fixture::with(|setup| setup.page = Some(2));
    for _ in 0..3 {
        paged.create(&wish()).await;
    }
    let first = paged.get("/v2/pods").await.body;
    assert_eq!(first["pods"].as_array().unwrap().len(), 2);
    assert_eq!(first["pagination"]["hasNextPage"], true);
    let cursor = first["pagination"]["nextCursor"].as_str().unwrap();
    let last = paged.get(&format!("/v2/pods?cursor={cursor}")).await.body;
    assert_eq!(last["pods"].as_array().unwrap().len(), 1);
    assert_eq!(last["pagination"], json!({ "hasNextPage": false, "nextCursor": null }));
    let beyond = paged.get(&format!("/v2/pods?cursor={}", u64::MAX)).await.body;
    assert_eq!(beyond["pods"], json!([]));
    assert_eq!(paged.get("/v2/pods?cursor=x").await.status, 400);
}

#[tokio::test]
async fn credentials_of_a_registry_are_made_listed_and_deleted() {
    let fixture = Fixture::new();
    let body = json!({ "name": "r", "username": "u", "password": "canary" });
    let made = fixture.ask("POST", "/v2/registries", &body).await;
    assert_eq!((made.status, &made.body["name"]), (201, &json!("r")));
    let listed = fixture.get("/v2/registries").await.body;
    assert_eq!(listed["registries"][0]["id"], made.body["id"]);
    assert!(!listed.to_string().contains("canary"));
    let used = fixture.create(&wish_with(&json!({ "registry": made.body["id"] }))).await;
    assert_eq!(used.status, 201);
    let path = format!("/v2/registries/{}", made.id());
    assert_eq!(fixture.ask("DELETE", &path, &Value::Null).await.status, 204);
    assert_eq!(fixture.ask("DELETE", &path, &Value::Null).await.status, 404);
}
