//! A job's places and prices as a picture, by rows of the ledger.

use jiff::Timestamp;
use petaflop_arbiter::ledger::{Row, RowKind};
use petaflop_arbiter::offer::Capacity;
use petaflop_operator::timeline::svg;

/// Minutes after noon.
fn at(minute: i64) -> Timestamp {
    Timestamp::from_second(1_795_003_200 + 60 * minute).expect("a time")
}

fn row(
    claim: &str,
    place: (&str, &str, Capacity),
    minutes: (i64, i64),
    rate: &str,
    usd: &str,
) -> Row {
    let (zone, instance_type, capacity) = place;
    Row {
        key: format!("{claim}/000001"),
        kind: RowKind::Running,
        namespace: "default".into(),
        job: "train".into(),
        job_uid: "job".into(),
        claim: claim.into(),
        claim_uid: claim.into(),
        instance: String::new(),
        provider: if zone.is_empty() { "runpod" } else { "aws" }.into(),
        region: String::new(),
        zone: zone.into(),
        instance_type: instance_type.into(),
        accelerator: "L4".into(),
        capacity,
        from: at(minutes.0),
        to: at(minutes.1),
        rate: rate.parse().expect("a price"),
        amount: usd.parse().expect("an amount"),
        budgets: Vec::new(),
    }
}

/// `UPDATE=1` writes the picture anew.
#[test]
fn places_and_prices_are_drawn_as_they_were() {
    let spot = ("use1-az1", "g6.xlarge", Capacity::Spot);
    let pod = ("", "1x <A40> & more", Capacity::OnDemand);
    let rows = [
        row("a", spot, (0, 60), "0.3", "0.3"),
        row("a", spot, (60, 90), "0.36", "0.18"),
        row("b", pod, (80, 140), "0.44", "0.44"),
        row("c", spot, (150, 200), "0.3", "0.25"),
        Row { kind: RowKind::Correction, ..row("b", pod, (130, 140), "0.44", "0.01") },
    ];
    let drawn = svg("default/train", &rows).expect("there are rows");
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/timeline.svg");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &drawn).expect("it can be written");
    }
    assert_eq!(drawn, std::fs::read_to_string(&path).unwrap_or_default());
    // The same rows in another order are the same picture.
    let reversed: Vec<Row> = rows.iter().rev().cloned().collect();
    assert_eq!(svg("default/train", &reversed).as_deref(), Some(drawn.as_str()));
}

#[test]
fn what_never_ran_is_no_picture() {
    let spot = ("use1-az1", "g6.xlarge", Capacity::Spot);
    assert_eq!(svg("default/train", &[]), None);
    assert_eq!(svg("default/train", &[row("a", spot, (5, 5), "0.3", "0")]), None);
}
