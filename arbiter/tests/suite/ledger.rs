use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::claim::{ClaimSpec, Device};
use petaflop_arbiter::ledger::{ClaimLedger, GroupBy, LedgerError, Row, RowKind, sums};
use petaflop_arbiter::money::{Usd, UsdPerHour};
use proptest::prelude::*;

use crate::worlds::{after, machine, now, training, usd};

fn ledger(rate: UsdPerHour) -> ClaimLedger {
    let spec = ClaimSpec {
        name: "trj-job-6a6f6200-1-0".into(),
        owner: training("job").id,
        placement: 1,
        index: 0,
        offer: petaflop_arbiter::offer::Offer { price: rate, ..machine("m", "1") },
        device: Device::Cpu,
        reserved: Usd::ZERO,
        decided_at: now(),
        revision: None,
        checkpoint_interval_seconds: None,
        runners_up: Vec::new(),
    };
    ClaimLedger::new(spec, "claim-uid".into(), now())
}

fn cost(ledger: &ClaimLedger, until: Timestamp) -> Usd {
    let millis = until.as_millisecond() - ledger.began.as_millisecond();
    ledger.spec.offer.price.for_millis(millis)
}

fn add(ledger: &mut ClaimLedger, until: Timestamp, last: bool) -> Option<Row> {
    let row = ledger.next_row(until, cost(ledger, until), last).expect("it is open");
    ledger.rows.extend(row.clone());
    row
}

#[test]
fn a_ledger_closes_once_and_takes_only_corrections_after() {
    let mut ledger = ledger(crate::worlds::rate("0.1"));
    assert!(matches!(ledger.correction(usd("1")), Err(LedgerError::Open { .. })));
    assert!(add(&mut ledger, after(3600), false).is_some());
    assert!(add(&mut ledger, after(3600), false).is_none(), "no time has passed");
    assert!(add(&mut ledger, after(60), false).is_none(), "the clock went back");
    let last = add(&mut ledger, after(7200), true).expect("the last row");
    assert_eq!((last.kind, last.amount), (RowKind::Final, usd("0.1")));
    assert!(matches!(
        ledger.next_row(after(9000), usd("0.3"), false),
        Err(LedgerError::Closed { .. })
    ));
    assert_eq!(ledger.correction(usd("0.2")), Ok(None), "the bill agrees");
    let row = ledger.correction(usd("0.15")).expect("closed").expect("a difference");
    assert_eq!(row.amount.to_string(), "-0.05");
    ledger.rows.push(row);
    assert_eq!(ledger.total(), Ok(usd("0.15")));
    assert_eq!(ledger.correction(usd("0.15")), Ok(None));
}

#[test]
fn sums_are_by_namespace_job_and_provider_over_half_open_periods() {
    let mut ledger = ledger(crate::worlds::rate("3.6"));
    for second in [10, 20, 30] {
        add(&mut ledger, after(second), false);
    }
    let by =
        |group, from, until| sums(&ledger.rows, group, after(from)..after(until)).expect("fits");
    assert_eq!(by(GroupBy::Job, 0, 20)["default/job"], usd("0.02"));
    assert_eq!(by(GroupBy::Namespace, 20, 40)["default"], usd("0.01"));
    assert_eq!(by(GroupBy::Provider, 0, 30)["cloud"], usd("0.03"));
    assert!(by(GroupBy::Provider, 30, 90).is_empty());
}

#[test]
fn rows_remember_their_budgets_and_older_ones_are_read_without() {
    let mut ledger = ledger(crate::worlds::rate("3.6"));
    add(&mut ledger, after(10), false);
    ledger.budgets = Some(vec!["team".into(), "all".into()]);
    add(&mut ledger, after(20), false);
    // Nobody knows the owner any more.
    ledger.budgets = None;
    let last = add(&mut ledger, after(30), true).expect("the last row");
    assert_eq!(last.budgets, ["team", "all"]);
    let by = sums(&ledger.rows, GroupBy::Budget, Timestamp::MIN..Timestamp::MAX).expect("fits");
    assert_eq!((by["default/team"], by["default/all"]), (usd("0.02"), usd("0.02")));
    let texts: Vec<String> =
        ledger.rows.iter().map(|row| serde_json::to_string(row).expect("text")).collect();
    assert!(!texts[0].contains("budgets") && texts[1].contains(r#""budgets":["team","all"]"#));
    let read: Vec<Row> =
        texts.iter().map(|text| serde_json::from_str(text).expect("a row")).collect();
    assert_eq!(read, ledger.rows);
}

proptest! {
    #[test]
    fn no_micro_dollar_is_lost_however_time_is_cut(
        micros in 0..50_000_000_i64,
        cuts in prop::collection::vec(0..900_000_i64, 1..60),
    ) {
        let rate = UsdPerHour::from_micros(micros).expect("not negative");
        let mut ledger = ledger(rate);
        let mut at = now();
        for (index, millis) in cuts.iter().enumerate() {
            at += SignedDuration::from_millis(*millis);
            let last = index + 1 == cuts.len();
            let row = || ledger.next_row(at, cost(&ledger, at), last).expect("open");
            let once = row();
            prop_assert_eq!(&once, &row(), "a retry writes the same row");
            ledger.rows.extend(once);
        }
        prop_assert_eq!(ledger.total(), Ok(rate.for_millis(cuts.iter().sum())));
        prop_assert!(ledger.rows.iter().all(|row| row.amount >= Usd::ZERO));
        let keys: BTreeSet<&str> = ledger.rows.iter().map(|row| row.key.as_str()).collect();
        prop_assert_eq!(keys.len(), ledger.rows.len());
        // Adjoining periods count every row once.
        let middle = after(cuts.iter().sum::<i64>() / 2000);
        let part = |from, until| sums(&ledger.rows, GroupBy::Job, from..until).expect("fits")
            .into_values().sum::<Usd>();
        let whole = part(Timestamp::MIN, Timestamp::MAX);
        prop_assert_eq!(part(Timestamp::MIN, middle).saturating_add(part(middle, Timestamp::MAX)), whole);
        prop_assert_eq!(Ok(whole), ledger.total());
    }
}
