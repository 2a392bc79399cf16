//! The catalogue of REST v2.

use serde_json::{Value, json};

use crate::fixture::{Fixture, RTX_4090, wish};

fn find<'a>(list: &'a Value, id: &str) -> &'a Value {
    list.as_array().unwrap().iter().find(|entry| entry["id"] == id).unwrap()
}

#[tokio::test]
async fn a_gpu_type_has_prices_for_one_gpu_and_no_spot_price() {
    let fixture = Fixture::new();
    let gpus = fixture.get("/v2/catalog/gpus").await.body["gpus"].clone();
    let gpu = find(&gpus, RTX_4090);
    assert_eq!(gpu["price"], json!({ "secure": 0.74, "community": 0.34, "serverless": null }));
    assert_eq!((&gpu["memory"], &gpu["manufacturer"]), (&json!(24), &json!("NVIDIA")));
    assert_eq!(gpu["maxCount"], json!({ "secure": 8, "community": 8 }));
    assert!(gpu["availability"].is_null(), "nobody asked");
    assert!(!gpus.to_string().contains("spot"));
    let amd = find(&gpus, "AMD Instinct MI300X OAM");
    assert_eq!((&amd["secure"], &amd["community"]), (&json!(true), &json!(false)));
    let path = format!("/v2/catalog/gpus/{}", RTX_4090.replace(' ', "%20"));
    assert_eq!(fixture.get(&path).await.body["id"], RTX_4090);
    assert_eq!(fixture.get("/v2/catalog/gpus/none").await.status, 404);
}

#[tokio::test]
async fn stock_needs_a_product_and_its_filters_need_stock() {
    let fixture = Fixture::new();
    let status = async |query: &str| fixture.get(&format!("/v2/catalog/gpus?{query}")).await.status;
    assert_eq!(status("include=AVAILABILITY").await, 400);
    assert_eq!(status("include=AVAILABILITY&product=POD").await, 200);
    for filter in ["count=2", "cloud=COMMUNITY", "countryCodes=FR", "minCudaVersion=12.8"] {
        assert_eq!(status(filter).await, 400, "{filter}");
    }
    let both = "include=AVAILABILITY&product=POD&cudaVersions=12.8&minCudaVersion=12.8";
    assert_eq!(status(both).await, 400);
}

#[tokio::test]
async fn stock_is_a_word_for_the_wanted_count_on_the_wanted_cloud() {
    let fixture = Fixture::new();
    let gpu = async |query: &str| {
        let path = format!("/v2/catalog/gpus?include=AVAILABILITY&product=POD{query}");
        find(&fixture.get(&path).await.body["gpus"], RTX_4090).clone()
    };
    let secure = gpu("").await;
    assert_eq!(secure["availability"], "MEDIUM", "6 of it");
    let places: Vec<&Value> =
        secure["dataCenters"].as_array().unwrap().iter().map(|p| &p["id"]).collect();
    assert_eq!(places, ["US-TX-3", "EU-RO-1"], "only those that have some");
    assert_eq!(gpu("&count=4").await["availability"], "LOW");
    let none = gpu("&count=8").await;
    assert_eq!(none["availability"], "NONE");
    assert!(none.get("dataCenters").is_none(), "absent when nowhere");
    assert_eq!(gpu("&cloud=COMMUNITY&countryCodes=FR,DE").await["availability"], "MEDIUM");
    assert_eq!(gpu("&cloud=COMMUNITY&countryCodes=DE").await["availability"], "NONE");
}

#[tokio::test]
async fn stock_goes_down_with_each_pod_and_is_no_reservation() {
    let fixture = Fixture::new();
    let mut made = 0;
    while fixture.create(&wish()).await.status == 201 {
        made += 1;
    }
    assert_eq!(made, 12, "6 in each of two countries");
    let path = "/v2/catalog/gpus?include=AVAILABILITY&product=POD&cloud=COMMUNITY";
    let gpus = fixture.get(path).await.body["gpus"].clone();
    assert_eq!(find(&gpus, RTX_4090)["availability"], "NONE");
}

#[tokio::test]
async fn cpu_flavours_have_a_price_for_one_vcpu() {
    let fixture = Fixture::new();
    let cpus = fixture.get("/v2/catalog/cpus").await.body["cpus"].clone();
    assert_eq!(find(&cpus, "cpu5g")["price"]["securePerVcpu"], 0.046);
    assert_eq!(find(&cpus, "cpu5m")["ramGbPerVcpu"], 8);
    let stock = "/v2/catalog/cpus?include=AVAILABILITY&product=POD&vcpuCount=";
    let of = async |count: u32| {
        let seen = fixture.get(&format!("{stock}{count}")).await;
        (seen.status, seen.body["cpus"][0]["availability"].clone())
    };
    assert_eq!(of(32).await, (200, json!("MEDIUM")), "128 of them");
    assert_eq!(of(64).await, (200, json!("NONE")), "larger than any");
    assert_eq!(of(3).await.0, 400);
    assert_eq!(fixture.get("/v2/catalog/cpus?vcpuCount=2").await.status, 400);
}

#[tokio::test]
async fn data_centers_have_a_region_and_their_stock_on_demand() {
    let fixture = Fixture::new();
    let all = fixture.get("/v2/catalog/datacenters").await.body["dataCenters"].clone();
    assert_eq!(find(&all, "EU-RO-1")["region"], "EUROPE");
    assert!(find(&all, "EU-RO-1").get("gpuAvailability").is_none());
    let path = "/v2/catalog/datacenters?include=GPU_AVAILABILITY&regions=EUROPE";
    let europe = fixture.get(path).await.body["dataCenters"].clone();
    assert_eq!(europe.as_array().unwrap().len(), 1);
    let stock = &europe[0]["gpuAvailability"];
    assert_eq!(find(stock, "NVIDIA H200")["availability"], "HIGH");
}
