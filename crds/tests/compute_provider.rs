//! Providers as decisions see them.

use jiff::Timestamp;
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::Accelerators;
use petaflop_arbiter::world::Switch;
use petaflop_crds::ComputeProvider;
use petaflop_crds::compute_provider::{
    AwsProvider, AwsRegion, Power, ProviderFacts, ProviderType, RunPodProvider,
};
use serde_json::{Value, json};

fn at(text: &str) -> Timestamp {
    text.parse().expect("a point in time")
}

fn provider(spec: Value) -> ComputeProvider {
    serde_json::from_value(json!({
        "apiVersion": "petaflop.dev/v1alpha1", "kind": "ComputeProvider",
        "metadata": { "name": "nodes" }, "spec": spec
    }))
    .expect("a provider")
}

fn facts() -> ProviderFacts {
    ProviderFacts { usable: true, spent_this_month: Usd::from_micros(7) }
}

#[test]
fn nobody_may_use_a_provider_until_somebody_is_allowed() {
    let now = at("2026-11-21T10:00:00Z");
    for (allowed, expected) in [
        (json!(null), Some(vec![])),
        (json!([]), Some(vec![])),
        (json!(["a", "b"]), Some(vec!["a".to_owned(), "b".to_owned()])),
        (json!(["*"]), None),
        (json!(["a", "*"]), None),
    ] {
        let mut spec = json!({ "nodes": {} });
        if !allowed.is_null() {
            spec["allowedNamespaces"] = allowed.clone();
        }
        let state = provider(spec).state(&facts(), now).expect("a state");
        assert_eq!(state.allowed_namespaces, expected, "{allowed}");
    }
}

#[test]
fn what_cannot_be_used_takes_no_new_claims_whatever_it_says() {
    let now = at("2026-11-21T10:00:00Z");
    for (state, usable, expected) in [
        ("Enabled", true, Switch::Enabled),
        ("Enabled", false, Switch::Disabled),
        ("Cordoned", true, Switch::Cordoned),
        ("Cordoned", false, Switch::Disabled),
        ("Disabled", true, Switch::Disabled),
        ("Disabled", false, Switch::Disabled),
    ] {
        let provider = provider(json!({ "nodes": {}, "state": state }));
        let found = provider.state(&ProviderFacts { usable, ..facts() }, now).expect("a state");
        assert_eq!(found.state, expected, "{state} {usable}");
    }
}

#[test]
fn accelerators_are_allowed_and_denied_by_model_or_family() {
    let now = at("2026-11-21T10:00:00Z");
    let all = json!({ "H100-SXM": true, "H100-PCIe": true, "L4": true, "unknown-card": true });
    for (rule, admitted) in [
        (json!({}), all),
        (json!({ "allow": ["h100"] }), json!({ "H100-SXM": true, "H100-PCIe": true })),
        (json!({ "allow": ["H100"], "deny": ["H100-PCIe"] }), json!({ "H100-SXM": true })),
        (json!({ "deny": ["H100"] }), json!({ "L4": true, "unknown-card": true })),
    ] {
        let provider = provider(json!({ "nodes": {}, "accelerators": rule }));
        let state = provider.state(&facts(), now).expect("a state");
        for model in ["H100-SXM", "H100-PCIe", "L4", "unknown-card"] {
            let devices = Accelerators { model: model.into(), count: 1, memory: None };
            let expected = admitted[model] == json!(true);
            assert_eq!(state.accelerators.admits(&devices), expected, "{rule} {model}");
        }
    }
}

#[test]
fn an_accelerator_that_nobody_makes_is_named_with_the_nearest() {
    let wrong = provider(json!({ "nodes": {}, "accelerators": { "deny": ["L4", "H1000"] } }));
    let errors = wrong.state(&facts(), Timestamp::UNIX_EPOCH).expect_err("no such model");
    let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        ["spec.accelerators.deny[1]: no accelerator is called \"H1000\"; did you mean H100?"]
    );
}

#[test]
fn limits_hold_for_an_hour_a_calendar_month_and_a_number_of_machines() {
    let now = at("2024-02-29T23:59:59Z");
    let limited = provider(json!({
        "nodes": {}, "limits": { "hourly": "5", "monthly": "1000.25", "machines": 3 }
    }));
    let state = limited.state(&facts(), now).expect("a state");
    assert_eq!(state.name, "nodes");
    assert_eq!(state.max_hourly.map(UsdPerHour::micros), Some(5_000_000));
    let monthly = state.monthly.expect("a limit");
    assert_eq!((monthly.limit.micros(), monthly.spent.micros()), (1_000_250_000, 7));
    assert_eq!(monthly.ends_at, at("2024-03-01T00:00:00Z"));
    assert_eq!(state.max_machines, Some(3));

    let free = provider(json!({ "nodes": {} })).state(&facts(), now).expect("a state");
    assert_eq!((free.max_hourly, free.monthly, free.max_machines), (None, None, None));
}

#[test]
fn a_limit_that_is_no_limit_names_the_field() {
    let broken = provider(json!({ "nodes": {}, "limits": { "hourly": "5 USD", "monthly": "" } }));
    let errors = broken.state(&facts(), Timestamp::UNIX_EPOCH).expect_err("broken");
    let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
    assert_eq!(paths, ["spec.limits.hourly", "spec.limits.monthly"]);
}

#[test]
fn prices_are_adjusted_without_passing_a_limit_by_rounding() {
    for (percent, price, adjusted) in [
        (0, 1_000_001, 1_000_001),
        (10, 1_000_001, 1_100_002),
        (-99, 1, 1),
        (-50, 3, 2),
        (1000, 100, 1_100),
        (1000, i64::MAX, i64::MAX),
    ] {
        let provider = provider(json!({ "nodes": {}, "priceAdjustmentPercent": percent }));
        let price = UsdPerHour::from_micros(price).expect("not negative");
        assert_eq!(provider.spec.adjusted(price).micros(), adjusted, "{percent} {price}");
    }
}

#[test]
fn a_provider_is_of_one_type() {
    for (spec, type_) in [
        (json!({ "nodes": {} }), Some(ProviderType::Nodes)),
        (json!({ "host": {} }), Some(ProviderType::Host)),
        (json!({ "runpod": {} }), Some(ProviderType::RunPod)),
        (json!({ "aws": { "regions": [{ "name": "us-east-1" }] } }), Some(ProviderType::AWS)),
        (json!({}), None),
        (json!({ "nodes": {}, "aws": { "regions": [] } }), None),
    ] {
        assert_eq!(provider(spec.clone()).spec.type_(), type_, "{spec}");
    }
}

#[test]
fn what_leaves_aws_costs_what_the_settings_say() {
    let egress = |aws: Value| {
        let state = provider(json!({ "aws": aws })).state(&facts(), Timestamp::UNIX_EPOCH);
        state.map(|state| state.egress_usd_per_gb.micros())
    };
    let regions = json!([{ "name": "us-east-1" }]);
    assert_eq!(egress(json!({ "regions": regions })), Ok(90_000));
    assert_eq!(egress(json!({ "regions": regions, "egressPricePerGb": "0" })), Ok(0));
    let errors = egress(json!({ "regions": regions, "egressPricePerGb": "a cent" }));
    assert_eq!(errors.expect_err("no price")[0].path, "spec.aws.egressPricePerGb");
    let nodes = provider(json!({ "nodes": {} })).state(&facts(), Timestamp::UNIX_EPOCH);
    assert_eq!(nodes.expect("a state").egress_usd_per_gb, Usd::ZERO);
}

#[test]
fn machines_elsewhere_are_for_workloads_that_nothing_ties_to_the_cluster() {
    let state = |spec| provider(spec).state(&facts(), Timestamp::UNIX_EPOCH).expect("it is sound");
    assert!(!state(json!({ "nodes": {} })).remote);
    assert!(state(json!({ "runpod": {}, "credentialsSecretRef": { "name": "key" } })).remote);
    assert!(state(json!({ "aws": { "regions": [{ "name": "us-east-1" }] } })).remote);
}

#[test]
fn the_runpod_settings_that_are_left_out_are_the_default_ones() {
    let runpod: RunPodProvider = serde_json::from_value(json!({})).expect("all has defaults");
    assert_eq!(runpod, RunPodProvider::default());
}

#[test]
fn of_aws_only_regions_must_be_named() {
    let aws: AwsProvider = serde_json::from_value(json!({ "regions": [{ "name": "us-east-1" }] }))
        .expect("the rest has defaults");
    let region = AwsRegion { name: "us-east-1".into(), ..Default::default() };
    assert_eq!(aws, AwsProvider { regions: vec![region], ..Default::default() });
}

#[test]
fn the_power_that_is_left_out_is_the_default_one() {
    let power: Power = serde_json::from_value(json!({})).expect("all has defaults");
    assert_eq!(power, Power::default());
}
