use petaflop_arbiter::money::{MILLIS_PER_HOUR, Usd, UsdPerHour};
use proptest::prelude::*;

#[test]
fn amounts_are_read_exactly_as_the_api_writes_them() {
    for (text, micros) in [
        ("0", 0),
        ("2", 2_000_000),
        ("2.5", 2_500_000),
        ("2.50", 2_500_000),
        ("0.000001", 1),
        ("007.1", 7_100_000),
        ("999999999.999999", 999_999_999_999_999),
    ] {
        assert_eq!(text.parse::<Usd>().map(Usd::micros), Ok(micros), "{text}");
        assert_eq!(text.parse::<UsdPerHour>().map(UsdPerHour::micros), Ok(micros), "{text}");
    }
    for text in [
        "",
        ".",
        "1.",
        ".5",
        "-1",
        "+1",
        "1e3",
        "1,5",
        " 1",
        "1 ",
        "$1",
        "1.0000001",
        "1000000000",
        "NaN",
        "inf",
        "0x1",
        "1_000",
        "١",
    ] {
        let error = text.parse::<Usd>().expect_err(text).to_string();
        assert!(error.contains("up to 9 digits"), "{error}");
        assert!(text.parse::<UsdPerHour>().is_err(), "{text}");
    }
}

#[test]
fn amounts_are_written_in_the_shortest_form() {
    for (micros, text) in [
        (0, "0"),
        (1, "0.000001"),
        (-250_000, "-0.25"),
        (2_000_000, "2"),
        (2_500_000, "2.5"),
        (i64::MAX, "9223372036854.775807"),
    ] {
        assert_eq!(Usd::from_micros(micros).to_string(), text);
    }
    assert_eq!(format!("{:>8}", Usd::from_micros(2_500_000)), "     2.5");
}

#[test]
fn a_price_below_zero_cannot_be_made() {
    assert!(UsdPerHour::from_micros(-1).is_err());
    assert!(serde_json::from_str::<UsdPerHour>("\"-1\"").is_err());
    assert!(serde_json::from_str::<UsdPerHour>("1.5").is_err(), "a float");
    assert!(serde_json::from_str::<Usd>("1").is_err(), "a number");
}

#[test]
fn spans_are_paid_to_the_nearest_micro_dollar() {
    let rate = |micros| UsdPerHour::from_micros(micros).expect("not negative");
    for (micros, millis, paid) in [
        (3_600_000, 1, 1),
        (1_800_000, 1, 1), // half a micro-dollar, up
        (1_799_999, 1, 0),
        (2_500_000, MILLIS_PER_HOUR, 2_500_000),
        (2_500_000, -5, 0),
        (i64::MAX, i64::MAX, i64::MAX),
    ] {
        assert_eq!(rate(micros).for_millis(millis).micros(), paid, "{micros} for {millis}");
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back(micros in any::<i64>()) {
        prop_assume!(micros != i64::MIN);
        let amount = Usd::from_micros(micros);
        let json = serde_json::to_string(&amount).expect("a string");
        prop_assert_eq!(serde_json::from_str::<Usd>(&json).expect("reads"), amount);
    }

    #[test]
    fn two_spans_cost_what_the_whole_costs_to_one_micro_dollar(
        micros in 0..1_000_000_000_i64, a in 0..10_000_000_000_i64, b in 0..10_000_000_000_i64,
    ) {
        let rate = UsdPerHour::from_micros(micros).expect("not negative");
        let apart = rate.for_millis(a).micros() + rate.for_millis(b).micros();
        prop_assert!((apart - rate.for_millis(a + b).micros()).abs() <= 1);
        prop_assert!(rate.for_millis(a + b) >= rate.for_millis(a));
    }
}
