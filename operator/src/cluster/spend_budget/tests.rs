use serde_json::json;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().expect("a point in time")
}

fn usd(text: &str) -> Usd {
    text.parse().expect("an amount")
}

const NOON: &str = "2026-11-21T12:00:00Z";

fn budget(spec: serde_json::Value) -> SpendBudget {
    let mut object: SpendBudget = serde_json::from_value(json!({
        "apiVersion": "petaflop.dev/v1alpha1", "kind": "SpendBudget",
        "metadata": { "name": "team", "namespace": "ns" }, "spec": spec,
    }))
    .expect("a budget");
    object.metadata.generation = Some(1);
    object
}

fn sums(spent: &str, reserved: &str, rate: &str) -> Sums {
    Sums { spent: usd(spent), reserved: usd(reserved), rate: rate.parse().expect("a rate") }
}

fn look(object: &SpendBudget, sums: Sums, now: &str) -> Next {
    next(&Seen { object, sums, cheapest: None, now: at(now) })
}

/// The object once its status was written.
fn then(object: &SpendBudget, next: &Next) -> SpendBudget {
    SpendBudget { status: Some(next.status.clone()), ..object.clone() }
}

fn condition(status: &SpendBudgetStatus, type_: &str) -> (String, String) {
    let found = status.conditions.iter().find(|c| c.type_ == type_);
    found.map(|c| (c.status.clone(), c.reason.clone())).unwrap_or_default()
}

fn is(type_: &str, status: &SpendBudgetStatus, is: &str, reason: &str) {
    assert_eq!(condition(status, type_), (is.to_owned(), reason.to_owned()), "{type_}");
}

#[test]
fn a_new_budget_is_ready_at_once_and_never_written_while_nothing_is_spent() {
    let object = budget(json!({"period": "Hourly", "limit": "10", "warnAtPercent": [80]}));
    let one = look(&object, Sums::default(), NOON);
    is("Ready", &one.status, "True", "Ok");
    is("WithinBudget", &one.status, "True", "Ok");
    is("Exhausted", &one.status, "False", "Ok");
    assert_eq!((one.status.observed_generation, one.again), (Some(1), None));
    let object = then(&object, &one);
    for later in ["2026-11-21T12:06:00Z", "2026-11-21T13:00:01Z", "2026-12-24T00:00:00Z"] {
        let two = look(&object, Sums::default(), later);
        assert_eq!((Some(two.status), two.again), (object.status.clone(), None), "{later}");
    }
}

#[test]
fn sums_are_written_at_most_every_five_minutes_and_what_is_news_at_once() {
    let object = budget(json!({"period": "Daily", "limit": "10", "warnAtPercent": [50, 80]}));
    let one = look(&object, sums("1", "1", "0.4"), NOON);
    assert_eq!(one.status.projected, Some(Money("5.8".into())), "twelve more hours at 0.4");
    assert_eq!(one.again, Some(Duration::from_secs(300)));
    let object = then(&object, &one);
    let soon = look(&object, sums("1.01", "0.99", "0.4"), "2026-11-21T12:01:00Z");
    assert_eq!(Some(&soon.status), object.status.as_ref());
    assert_eq!(soon.again, Some(Duration::from_secs(240)), "it is written then");
    let later = look(&object, sums("1.05", "0.95", "0.4"), "2026-11-21T12:05:00Z");
    assert_eq!(later.status.spent, Some(Money("1.05".into())));
    let news = look(&object, sums("4.01", "1", "0.4"), "2026-11-21T12:01:00Z");
    is("WithinBudget", &news.status, "False", "WarningThreshold");
    is("Ready", &news.status, "True", "WarningThreshold");
    assert_eq!(news.status.warned_at_percent, Some(50));
    assert_eq!(news.status.spent, Some(Money("4.01".into())));
}

#[test]
fn the_last_sum_is_written_when_all_has_ended() {
    let object = budget(json!({"period": "Daily", "limit": "10"}));
    let object = then(&object, &look(&object, sums("1", "1", "0.4"), NOON));
    let ended = sums("1.1", "0", "0");
    let soon = look(&object, ended, "2026-11-21T12:01:00Z");
    assert_eq!(Some(&soon.status), object.status.as_ref());
    let last = look(&object, ended, "2026-11-21T12:05:00Z");
    assert_eq!(last.status.projected, Some(Money("1.1".into())));
    let object = then(&object, &last);
    let idle = look(&object, ended, "2026-11-21T20:00:00Z");
    assert_eq!(Some(idle.status), object.status);
    assert_eq!(idle.again, Some(Duration::from_secs(4 * 3600)), "the period's end");
}

#[test]
fn a_threshold_warns_once_a_period_and_again_after_an_edit() {
    let object = budget(json!({"period": "Daily", "limit": "10", "warnAtPercent": [50, 80]}));
    let object = then(&object, &look(&object, sums("1", "7.5", "1"), NOON));
    assert_eq!(object.status.as_ref().and_then(|s| s.warned_at_percent), Some(80));
    // The reservation was larger than the cost.
    let less = look(&object, sums("2", "0", "0"), "2026-11-21T13:00:00Z");
    is("WithinBudget", &less.status, "True", "Ok");
    assert_eq!(less.status.warned_at_percent, Some(80));
    let tomorrow = look(&then(&object, &less), Sums::default(), "2026-11-22T00:00:00Z");
    assert_eq!(tomorrow.status.warned_at_percent, None);
    assert_eq!(tomorrow.status.period_start, Some(time(at("2026-11-22T00:00:00Z"))));
    let mut raised = then(&object, &less);
    raised.spec.limit = Money("100".into());
    raised.metadata.generation = Some(2);
    let edited = look(&raised, sums("2", "0", "0"), "2026-11-21T13:00:00Z");
    assert_eq!(edited.status.warned_at_percent, None);
}

#[test]
fn a_limit_is_reached_by_spending_and_passes_with_the_period_or_a_higher_limit() {
    let spec = json!({"period": "Hourly", "limit": "1", "onExceeded": "Suspend"});
    let object = budget(spec);
    let near = look(&object, sums("0.9", "0.3", "1.2"), NOON);
    is("Exhausted", &near.status, "False", "Ok");
    assert_eq!(near.again, Some(Duration::from_millis(300_000)), "0.1 $ at 1.2 $/h");
    let over = look(&object, sums("1", "0.2", "1.2"), "2026-11-21T12:05:00Z");
    is("Exhausted", &over.status, "True", "LimitReached");
    is("WithinBudget", &over.status, "False", "LimitReached");
    is("Ready", &over.status, "True", "LimitReached");
    let object = then(&object, &over);
    let next_hour = look(&object, Sums::default(), "2026-11-21T13:00:00Z");
    is("Exhausted", &next_hour.status, "False", "Ok");
    let mut raised = object.clone();
    raised.spec.limit = Money("2".into());
    raised.metadata.generation = Some(2);
    let more = look(&raised, sums("1", "0", "0"), "2026-11-21T12:06:00Z");
    is("Exhausted", &more.status, "False", "Ok");
    assert_eq!(more.status.observed_generation, Some(2));
    // Lowered below what was spent.
    let mut lowered = object;
    lowered.spec.limit = Money("0.5".into());
    lowered.metadata.generation = Some(2);
    let less = look(&lowered, sums("1", "0", "0"), "2026-11-21T12:06:00Z");
    is("Exhausted", &less.status, "True", "LimitReached");
    assert_eq!(less.again, Some(Duration::from_secs(54 * 60)));
}

#[test]
fn a_budget_below_the_cheapest_minute_stalls_and_says_what_to_change() {
    let small = budget(json!({"period": "Daily", "limit": "0.006"}));
    let cheapest = ("cloud/r/small".to_owned(), "0.4".parse().expect("a rate"));
    let with = |object: &SpendBudget, cheapest| {
        next(&Seen { object, sums: Sums::default(), cheapest, now: at(NOON) }).status
    };
    let stalled = with(&small, Some(&cheapest));
    is("Stalled", &stalled, "True", "InvalidSpec");
    let said = stalled.conditions.iter().find(|c| c.type_ == "Stalled").expect("it is there");
    assert!(said.message.contains("raise it to 0.006667 $"), "{}", said.message);
    assert!(said.message.contains("cloud/r/small at 0.4 $/h"), "{}", said.message);
    is("Ready", &with(&small, None), "True", "Ok");
    let enough = budget(json!({"period": "Daily", "limit": "0.006667"}));
    is("Stalled", &with(&enough, Some(&cheapest)), "False", "Ok");
    // Nothing at all is meant: a freeze.
    let none = budget(json!({"period": "Daily", "limit": "0"}));
    is("Stalled", &with(&none, Some(&cheapest)), "False", "LimitReached");
    is("Exhausted", &with(&none, Some(&cheapest)), "True", "LimitReached");
}
