//! GraphQL: prices, spot, deadlines.

use petaflop_cloud_box::engine::series::{Series, Source};
use serde_json::{Value, json};

use crate::fixture::{Fixture, HOUR, RTX_4090, SECOND, wish};

const RENT: &str =
    "mutation($i:PodRentInterruptableInput!){podRentInterruptable(input:$i){id costPerHr podType}}";
const DEPLOY: &str = "mutation($i:PodFindAndDeployOnDemandInput!){podFindAndDeployOnDemand(input:$i){id costPerHr podType}}";
const PRICES: &str = "query{gpuTypes{id secureCloud communityCloud securePrice communityPrice \
    secureSpotPrice communitySpotPrice}}";

fn input(fields: &Value) -> Value {
    let mut input = json!({ "name": "spot", "imageName": "x/y:1", "gpuTypeId": RTX_4090,
        "gpuCount": 1, "cloudType": "COMMUNITY", "bidPerGpu": 0.34, "containerDiskInGb": 40,
        "volumeInGb": 0, "ports": "8080/http,22/tcp", "env": [{ "key": "A", "value": "b" }] });
    for (name, value) in fields.as_object().unwrap() {
        input[name] = value.clone();
    }
    input.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    input
}

async fn rent(fixture: &Fixture, fields: &Value) -> String {
    let seen = fixture.graphql(RENT, &input(fields)).await;
    let id = seen.body["data"]["podRentInterruptable"]["id"].as_str();
    id.unwrap_or_else(|| panic!("{seen:?}")).to_owned()
}

async fn pod(fixture: &Fixture, id: &str) -> Value {
    let query = "query($i:PodFilter){pod(input:$i){id desiredStatus lastStatusChange costPerHr podType \
        runtime{uptimeInSeconds} machine{gpuDisplayName}}}";
    fixture.graphql(query, &json!({ "podId": id })).await.body["data"]["pod"].clone()
}

#[tokio::test]
async fn a_field_that_is_not_there_is_an_error_in_a_200() {
    let fixture = Fixture::new();
    let seen = fixture.graphql("{myself{pods{id currentStatus}}}", &Value::Null).await;
    assert_eq!(seen.status, 200);
    assert_eq!(seen.body["errors"][0]["extensions"]["code"], "GRAPHQL_VALIDATION_FAILED");
    assert!(seen.error().contains("currentStatus"));
    assert!(seen.body.get("data").is_none());
}

#[tokio::test]
async fn the_catalogue_needs_no_key_and_pods_do() {
    let fixture = Fixture::new();
    let ask = |query: &str, path: &'static str| {
        let body = json!({ "query": query }).to_string();
        let fixture = &fixture;
        async move { fixture.ask_as(None, "POST", path, body).await.unwrap().status }
    };
    assert_eq!(ask(PRICES, "/graphql").await, 200);
    assert_eq!(ask("{myself{id}}", "/graphql").await, 401);
    assert_eq!(ask("{myself{id}}", "/graphql?api_key=key").await, 200);
    assert_eq!(ask("{myself{id}}", "/graphql?api_key=other").await, 401);
}

#[tokio::test]
async fn every_spot_price_equals_its_on_demand_twin() {
    let fixture = Fixture::new();
    let seen = fixture.graphql(PRICES, &Value::Null).await.body;
    let types = seen["data"]["gpuTypes"].as_array().unwrap();
    assert_eq!(types.len(), 9, "the captured ones");
    for kind in types {
        assert_eq!(kind["secureSpotPrice"], kind["securePrice"], "{kind}");
        if kind["communityCloud"] == true {
            assert_eq!(kind["communitySpotPrice"], kind["communityPrice"], "{kind}");
        }
    }
}

#[tokio::test]
async fn what_is_not_offered_costs_zero_or_has_a_price_all_the_same() {
    let fixture = Fixture::new();
    let seen = fixture.graphql(PRICES, &Value::Null).await.body;
    let types = seen["data"]["gpuTypes"].as_array().unwrap();
    let find = |id: &str| types.iter().find(|kind| kind["id"] == id).unwrap();
    let amd = find("AMD Instinct MI300X OAM");
    assert_eq!((&amd["communityCloud"], &amd["communityPrice"]), (&json!(false), &json!(0.5)));
    let a100 = find("NVIDIA A100-SXM4-40GB");
    assert_eq!((&a100["secureCloud"], &a100["securePrice"]), (&json!(false), &json!(0.0)));
}

#[tokio::test]
async fn one_request_probes_many_sizes_and_no_stock_is_null() {
    let fixture = Fixture::new();
    let query = "query($i:GpuTypeFilter){gpuTypes(input:$i){id \
        any:lowestPrice(input:{gpuCount:1}){uninterruptablePrice minimumBidPrice stockStatus countryCode} \
        eight:lowestPrice(input:{gpuCount:8}){uninterruptablePrice stockStatus} \
        secure:lowestPrice(input:{gpuCount:1,secureCloud:true,dataCenterId:\"US-TX-3\"}){uninterruptablePrice stockStatus} \
        french:lowestPrice(input:{gpuCount:1,secureCloud:false,countryCode:\"FR\"}){uninterruptablePrice} \
        nowhere:lowestPrice(input:{gpuCount:1,secureCloud:false}){uninterruptablePrice}}}";
    let seen = fixture.graphql(query, &json!({ "id": RTX_4090 })).await.body;
    let kind = &seen["data"]["gpuTypes"][0];
    assert_eq!(kind["any"]["uninterruptablePrice"], 0.34, "the cheapest over both clouds");
    assert_eq!(kind["any"]["minimumBidPrice"], 0.34);
    assert_eq!(kind["any"]["stockStatus"], "Medium");
    assert_eq!(kind["eight"], json!({ "uninterruptablePrice": null, "stockStatus": null }));
    assert_eq!(kind["secure"]["uninterruptablePrice"], 0.74);
    assert_eq!(kind["french"]["uninterruptablePrice"], 0.34);
    assert!(kind["nowhere"]["uninterruptablePrice"].is_null(), "Community needs a country");
}

#[tokio::test]
async fn stock_of_data_centers_is_sparse_and_some_are_not_listed() {
    let fixture = Fixture::new();
    let query = "{dataCenters{id listed gpuAvailability{gpuTypeId available stockStatus}}}";
    let seen = fixture.graphql(query, &Value::Null).await.body;
    let places = seen["data"]["dataCenters"].as_array().unwrap();
    let hidden = places.iter().find(|place| place["listed"] == false).unwrap();
    assert_eq!(hidden["gpuAvailability"], json!([]));
    let text = places[0]["gpuAvailability"].to_string();
    assert!(text.contains("NVIDIA H200") && !text.contains("MI300X"), "{text}");
}

#[tokio::test]
async fn a_spot_pod_costs_its_bid_for_each_gpu() {
    let fixture = Fixture::new();
    let fields = json!({ "gpuCount": 2, "bidPerGpu": 0.49 });
    let seen = fixture.graphql(RENT, &input(&fields)).await;
    let pod = &seen.body["data"]["podRentInterruptable"];
    assert_eq!((&pod["costPerHr"], &pod["podType"]), (&json!(0.98), &json!("INTERRUPTABLE")));
    assert_eq!(fixture.pods().await[0]["cost"], 0.98, "v2 shows it, but not that it is spot");
    fixture.clock.advance(HOUR);
    let disk = 100_000 * 40 / 730;
    assert_eq!(fixture.billed(), 980_000 + disk);
}

#[tokio::test]
async fn a_bid_below_the_price_or_no_stock_gets_null_and_the_words_for_it() {
    let fixture = Fixture::new();
    let words = "no longer any instances available with the request specifications";
    for fields in [json!({ "bidPerGpu": 0.33 }), json!({ "gpuCount": 7 })] {
        let seen = fixture.graphql(RENT, &input(&fields)).await;
        assert_eq!(seen.status, 200);
        assert!(seen.error().contains(words), "{seen:?}");
        assert_eq!(seen.body["errors"][0]["path"], json!(["podRentInterruptable"]));
        assert!(seen.body["data"]["podRentInterruptable"].is_null());
    }
}

#[tokio::test]
async fn the_price_of_spot_follows_its_series() {
    let fixture = Fixture::new();
    let change = "2026-11-20T11:00:00Z".parse().unwrap();
    for id in fixture.products(RTX_4090, "COMMUNITY") {
        let series = Series::recorded("by hand, for this test", 200_000, vec![(change, 300_000)]);
        assert!(matches!(series.source(), Source::Recorded(_)));
        fixture.cloud.engine(|engine| engine.product_mut(id).spot = Some(series));
    }
    rent(&fixture, &json!({ "bidPerGpu": 0.2 })).await;
    fixture.clock.advance(HOUR);
    let seen = fixture.graphql(RENT, &input(&json!({ "bidPerGpu": 0.2 }))).await;
    assert!(!seen.error().is_empty());
    rent(&fixture, &json!({ "bidPerGpu": 0.3 })).await;
}

#[tokio::test]
async fn on_demand_takes_no_bid_and_an_unknown_input_is_refused() {
    let fixture = Fixture::new();
    let bid = fixture.graphql(DEPLOY, &input(&json!({}))).await;
    assert!(bid.error().contains("bidPerGpu"), "{bid:?}");
    let unknown = fixture.graphql(RENT, &input(&json!({ "color": "red" }))).await;
    assert!(unknown.error().contains("color"), "{unknown:?}");
    assert!(fixture.machines().is_empty());
    let seen = fixture.graphql(DEPLOY, &input(&json!({ "bidPerGpu": null }))).await;
    let pod = &seen.body["data"]["podFindAndDeployOnDemand"];
    assert_eq!((&pod["costPerHr"], &pod["podType"]), (&json!(0.34), &json!("RESERVED")));
}

#[tokio::test]
async fn the_server_ends_a_pod_at_its_deadline() {
    let fixture = Fixture::new();
    let fields = json!({ "terminateAfter": "2026-11-20T11:00:00Z", "containerDiskInGb": 0 });
    let id = rent(&fixture, &fields).await;
    fixture.clock.advance(HOUR - SECOND);
    assert_eq!(pod(&fixture, &id).await["desiredStatus"], "RUNNING");
    fixture.clock.advance(HOUR * 9);
    assert!(pod(&fixture, &id).await.is_null());
    assert_eq!(fixture.billed(), 340_000, "to the second, whenever one looks");
}

#[tokio::test]
async fn the_server_stops_a_pod_that_it_was_told_to_stop_and_keeps_its_volume() {
    let fixture = Fixture::new();
    let fields =
        json!({ "stopAfter": "2026-11-20T11:00:00Z", "containerDiskInGb": 0, "volumeInGb": 73 });
    let id = rent(&fixture, &fields).await;
    fixture.clock.advance(HOUR * 2);
    assert_eq!(pod(&fixture, &id).await["desiredStatus"], "EXITED");
    assert_eq!(fixture.billed(), 340_000 + 10_000 + 20_000);
}

#[tokio::test]
async fn an_evicted_pod_is_exited_by_runpod_stays_listed_and_its_volume_bills_twice() {
    let fixture = Fixture::new();
    let fields = json!({ "containerDiskInGb": 0, "volumeInGb": 73 });
    let id = rent(&fixture, &fields).await;
    fixture.clock.advance(HOUR);
    fixture.cloud.engine(|engine| engine.evict(&id, None)).unwrap();
    let pod = pod(&fixture, &id).await;
    assert_eq!((&pod["desiredStatus"], &pod["costPerHr"]), (&json!("EXITED"), &json!(0.0)));
    assert!(pod["lastStatusChange"].as_str().unwrap().starts_with("Exited by Runpod: "));
    assert!(pod["runtime"].is_null());
    assert_eq!(fixture.pods().await[0]["status"], "EXITED");
    assert_eq!(fixture.billed(), 340_000 + 10_000);
    fixture.clock.advance(HOUR);
    assert_eq!(fixture.billed(), 340_000 + 10_000 + 20_000);
    assert_eq!(fixture.delete(&id).await.status, 204);
    fixture.clock.advance(HOUR * 100);
    assert_eq!(fixture.billed(), 370_000);
}

#[tokio::test]
async fn a_stopped_spot_pod_resumes_on_its_host_or_not_at_all() {
    let fixture = Fixture::new();
    let id = rent(&fixture, &json!({})).await;
    let stop = "mutation($i:PodStopInput!){podStop(input:$i){desiredStatus lastStatusChange}}";
    let seen = fixture.graphql(stop, &json!({ "podId": id })).await.body;
    let stopped = &seen["data"]["podStop"];
    assert_eq!(stopped["desiredStatus"], "EXITED");
    assert!(stopped["lastStatusChange"].as_str().unwrap().starts_with("Exited by user: "));
    let resume = "mutation($i:PodBidResumeInput!){podBidResume(input:$i){costPerHr}}";
    let bid = json!({ "podId": id, "bidPerGpu": 0.4, "gpuCount": 1 });
    let seen = fixture.graphql(resume, &bid).await.body;
    assert_eq!(seen["data"]["podBidResume"]["costPerHr"], 0.4);
    fixture.graphql(stop, &json!({ "podId": id })).await;
    fixture.sell_out(RTX_4090, "COMMUNITY");
    let seen = fixture.graphql(resume, &bid).await;
    assert!(seen.error().contains("not enough free GPUs on the host machine"), "{seen:?}");
}

#[tokio::test]
async fn terminate_answers_null_and_an_unknown_pod_has_words_of_its_own() {
    let fixture = Fixture::new();
    let id = fixture.create(&wish()).await.id();
    let end = "mutation($i:PodTerminateInput!){podTerminate(input:$i)}";
    let seen = fixture.graphql(end, &json!({ "podId": id })).await;
    assert_eq!(seen.body, json!({ "data": { "podTerminate": null } }));
    let seen = fixture.graphql(end, &json!({ "podId": id })).await;
    assert_eq!((seen.status, seen.error()), (200, "pod not found to terminate"));
}

#[tokio::test]
async fn pods_of_one_api_are_pods_of_the_other() {
    let fixture = Fixture::new();
    let spot = rent(&fixture, &json!({})).await;
    let plain = fixture.create(&wish()).await.id();
    let seen = fixture
        .graphql("{myself{pods{id name podType runtime{uptimeInSeconds}}}}", &Value::Null)
        .await;
    let pods = seen.body["data"]["myself"]["pods"].as_array().unwrap().clone();
    let ids: Vec<&Value> = pods.iter().map(|pod| &pod["id"]).collect();
    assert_eq!(ids, [&json!(spot), &json!(plain)]);
    assert!(pods.iter().all(|pod| pod["runtime"].is_null()), "until the container is up");
    assert_eq!(fixture.pod(&spot).await["env"], json!({ "A": "b" }));
}

#[tokio::test]
async fn a_key_that_may_not_change_anything_is_told_so_in_a_200() {
    let fixture = Fixture::new();
    let body = json!({ "query": RENT, "variables": { "i": input(&json!({})) } }).to_string();
    let seen = fixture.ask_as(Some("look"), "POST", "/graphql", body).await.unwrap();
    assert_eq!(
        (seen.status, &seen.body["errors"][0]["extensions"]["code"]),
        (200, &json!("FORBIDDEN"))
    );
    assert!(fixture.machines().is_empty());
}
