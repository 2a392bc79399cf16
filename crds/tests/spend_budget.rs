//! Budgets: calendar periods in UTC, whom they count, and what they are to the arbiter.

use std::collections::BTreeMap;

use jiff::Timestamp;
use petaflop_arbiter::money::Usd;
use petaflop_crds::SpendBudget;
use petaflop_crds::shared::NameRef;
use petaflop_crds::spend_budget::{Period, projected};
use serde_json::json;

fn at(text: &str) -> Timestamp {
    text.parse().expect("a point in time")
}

fn usd(text: &str) -> Usd {
    text.parse().expect("an amount")
}

fn budget(spec: serde_json::Value) -> SpendBudget {
    serde_json::from_value(json!({
        "apiVersion": "petaflop.dev/v1alpha1", "kind": "SpendBudget",
        "metadata": { "name": "team", "namespace": "team-a" }, "spec": spec
    }))
    .expect("a budget")
}

#[test]
fn periods_follow_the_calendar_in_utc() {
    for (period, now, start, end) in [
        (Period::Hourly, "2026-11-21T10:29:36.5Z", "2026-11-21T10:00:00Z", "2026-11-21T11:00:00Z"),
        (Period::Hourly, "2026-11-21T10:00:00Z", "2026-11-21T10:00:00Z", "2026-11-21T11:00:00Z"),
        (
            Period::Hourly,
            "2026-12-31T23:59:59.999999999Z",
            "2026-12-31T23:00:00Z",
            "2027-01-01T00:00:00Z",
        ),
        (Period::Daily, "2026-11-21T00:00:00Z", "2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z"),
        (Period::Daily, "2024-02-28T12:00:00Z", "2024-02-28T00:00:00Z", "2024-02-29T00:00:00Z"),
        (Period::Daily, "2024-02-29T12:00:00Z", "2024-02-29T00:00:00Z", "2024-03-01T00:00:00Z"),
        (Period::Daily, "2026-02-28T23:59:59Z", "2026-02-28T00:00:00Z", "2026-03-01T00:00:00Z"),
        // Clocks were put forward in most of Europe on this day, not in UTC.
        (Period::Daily, "2026-03-29T01:30:00Z", "2026-03-29T00:00:00Z", "2026-03-30T00:00:00Z"),
        (
            Period::Monthly,
            "2026-01-31T23:59:59.999Z",
            "2026-01-01T00:00:00Z",
            "2026-02-01T00:00:00Z",
        ),
        (Period::Monthly, "2026-02-01T00:00:00Z", "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"),
        (Period::Monthly, "2024-02-29T00:00:00Z", "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z"),
        (Period::Monthly, "2026-12-15T00:00:00Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        (Period::Monthly, "1969-12-31T23:59:59.5Z", "1969-12-01T00:00:00Z", "1970-01-01T00:00:00Z"),
    ] {
        let found = period.around(at(now));
        assert_eq!((found.start, found.end), (at(start), at(end)), "{period:?} around {now}");
        assert!(found.contains(&at(now)), "{period:?} around {now}");
        assert_eq!(period.around(found.end).start, found.end, "periods adjoin");
    }
}

#[test]
fn the_end_of_time_is_no_panic() {
    for period in [Period::Hourly, Period::Daily, Period::Monthly] {
        assert!(period.around(Timestamp::MAX).end >= Timestamp::MAX, "{period:?}");
        assert!(period.around(Timestamp::MIN).start <= Timestamp::MIN, "{period:?}");
    }
}

#[test]
fn a_budget_counts_by_labels_or_by_name() {
    let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let all = budget(json!({ "period": "Daily", "limit": "1" }));
    let some = budget(json!({
        "period": "Daily", "limit": "1", "selector": { "matchLabels": { "team": "a", "kind": "x" } }
    }));
    let named = |name: &str| Some(NameRef { name: name.to_owned() });
    for (budget, labels, budget_ref, counts) in [
        (&all, labels(&[]), None, true),
        (&all, labels(&[("team", "b")]), named("other"), true),
        (&some, labels(&[("team", "a"), ("kind", "x"), ("more", "")]), None, true),
        (&some, labels(&[("team", "a")]), None, false),
        (&some, labels(&[("team", "a"), ("kind", "y")]), None, false),
        (&some, labels(&[]), named("team"), true),
        (&some, labels(&[]), named("other"), false),
    ] {
        let found = budget.spec.counts("team", &labels, budget_ref.as_ref());
        assert_eq!(found, counts, "{labels:?} {budget_ref:?}");
    }
    assert!(all.spec.counts_all() && !some.spec.counts_all());
}

#[test]
fn decisions_see_what_is_left_of_the_running_period() {
    let now = at("2026-02-28T12:00:00Z");
    let all = budget(json!({ "period": "Monthly", "limit": "500.5" }));
    let seen = all.budget(usd("20"), [], now).expect("a budget");
    assert_eq!((seen.namespace.as_str(), seen.name.as_str()), ("team-a", "team"));
    assert_eq!((seen.limit, seen.spent), (usd("500.5"), usd("20")));
    assert_eq!(seen.period_ends_at, at("2026-03-01T00:00:00Z"));
    assert_eq!(seen.workloads, None);

    let some = budget(json!({
        "period": "Hourly", "limit": "1", "selector": { "matchLabels": { "a": "b" } }
    }));
    let seen = some.budget(Usd::ZERO, ["u1".to_owned()], now).expect("a budget");
    assert_eq!(seen.workloads, Some(["u1".to_owned()].into()));
    let nobody = some.budget(Usd::ZERO, [], now).expect("a budget");
    assert!(!nobody.counts("team-a", "u1"), "a selector that selects nothing counts nothing");
}

#[test]
fn a_budget_that_is_no_budget_names_the_field() {
    let mut broken = budget(json!({ "period": "Daily", "limit": "lots" }));
    broken.metadata.namespace = None;
    let errors = broken.budget(Usd::ZERO, [], Timestamp::UNIX_EPOCH).expect_err("broken");
    let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
    assert_eq!(paths, ["spec.limit", "metadata.namespace"]);
}

#[test]
fn each_threshold_warns_when_it_is_reached() {
    let budget =
        budget(json!({ "period": "Daily", "limit": "10", "warnAtPercent": [100, 50, 80] }));
    for (spent, percent) in [
        ("0", None),
        ("4.999999", None),
        ("5", Some(50)),
        ("7.999999", Some(50)),
        ("8", Some(80)),
        ("10", Some(100)),
        ("1000", Some(100)),
    ] {
        assert_eq!(budget.spec.warning(usd(spent)), percent, "{spent}");
    }
}

#[test]
fn what_runs_is_projected_to_the_end_of_the_period() {
    let end = at("2026-11-22T00:00:00Z");
    let rate = "2.5".parse().expect("a rate");
    assert_eq!(projected(usd("1"), rate, at("2026-11-21T20:00:00Z"), end), usd("11"));
    assert_eq!(projected(usd("1"), rate, end, end), usd("1"));
    assert_eq!(
        projected(usd("1"), rate, at("2026-11-23T00:00:00Z"), end),
        usd("1"),
        "a clock ahead"
    );
}
