use std::fs::File;
use std::time::{Duration, SystemTime};

use object_store::local::LocalFileSystem;
use petaflop_arbiter::ledger::in_period;

use super::*;
use crate::cluster::testing::claim_spec;

const DAY: i64 = 86_400;

fn day(number: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 / DAY * DAY + number * DAY).expect("a time")
}

fn claim(name: &str, began: Timestamp) -> ClaimLedger {
    ClaimLedger::new(claim_spec(name, name, began), format!("uid-{name}"), began)
}

/// Two claims with a row each half day for ten days, the second a day and some hours behind, and one
/// row that was written days after its span. Each row was written when its span was over.
async fn written(folder: &std::path::Path) -> Ledger {
    let objects = LocalFileSystem::new_with_prefix(folder).expect("a folder");
    let ledger = Ledger::over(Arc::new(objects), "here");
    for (name, began) in [("a", day(0)), ("b", day(1) + SignedDuration::from_hours(7))] {
        let mut claim = claim(name, began);
        for half in 1..=20 {
            let until = began + SignedDuration::from_hours(12 * half);
            let cost = claim.spec.offer.price.for_millis(12 * half * 3_600_000);
            ledger.bring_up(&mut claim, until, cost, half == 20).await.expect("written");
            let late = if (name, half) == ("a", 9) { 3 * DAY } else { 0 };
            let at = u64::try_from(until.as_second() + late).expect("after 1970");
            let row = folder.join(format!("{}.json", claim.rows.last().expect("a row").key));
            let file = File::options().append(true).open(row).expect("the row");
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(at)).expect("its time");
        }
    }
    ledger
}

#[tokio::test]
async fn what_is_read_of_a_claim_beyond_any_number_of_rows_is_the_rest_of_the_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = written(folder.path()).await;
    let all = ledger.rows().await.expect("rows");
    assert_eq!(all.len(), 40);
    for name in ["a", "b"] {
        let uid = format!("uid-{name}");
        let whole: Vec<&Row> = all.iter().filter(|row| row.claim_uid == uid).collect();
        let spec = claim(name, day(0)).spec;
        let claim = ledger.claim(&spec, &uid, day(0)).await.expect("its rows");
        assert_eq!(claim.rows.iter().collect::<Vec<_>>(), whole);
        for known in 0..=21 {
            let rest = ledger.since(&uid, known).await.expect("the rest");
            let expected = whole.iter().skip(usize::try_from(known).expect("small"));
            assert!(rest.iter().eq(expected.copied()), "{name} beyond {known}");
        }
    }
    assert_eq!(ledger.since("uid", 0).await.expect("nothing"), [], "of a claim, not of a prefix");
}

#[tokio::test]
async fn what_is_read_for_a_period_holds_all_that_counts_in_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = written(folder.path()).await;
    let all = ledger.rows().await.expect("rows");
    let mut unread = 0;
    for hours in 0..300 {
        let period = day(-1) + SignedDuration::from_hours(hours)..Timestamp::MAX;
        let read = ledger.rows_from(period.start).await.expect("rows");
        let counts = |rows: &[Row]| -> Vec<Row> {
            rows.iter().filter(|row| in_period(row, &period)).cloned().collect()
        };
        assert_eq!(counts(&read), counts(&all), "from {}", period.start);
        unread += all.len() - read.len();
    }
    assert!(unread > 0, "and not always everything");
    assert_eq!(ledger.rows_from(Timestamp::MIN).await.expect("rows"), all);
}

#[tokio::test]
async fn another_machine_of_a_claim_whose_books_are_closed_is_booked_beside_them_and_its_own_is_not()
 {
    let folder = tempfile::tempdir().expect("a folder");
    let objects = LocalFileSystem::new_with_prefix(folder.path()).expect("a folder");
    let ledger = Ledger::over(Arc::new(objects), "here");
    let mut own = claim("a", day(0));
    own.instance = "i-1".to_owned();
    let cost = Usd::from_micros(100);
    ledger.bring_up(&mut own, day(1), cost, true).await.expect("closed");
    let identity = own_identity(&own);
    let offer = || own.spec.offer.clone();
    let of = async |instance: &str, surplus| {
        ledger.of_orphan(&identity, instance, offer(), day(1), surplus).await.expect("its rows")
    };
    assert_eq!(of("i-1", false).await, None, "its last row is written");
    // It came after all, when nobody waited for it any more.
    let late = of("i-2", false).await.expect("open");
    let row = ledger.close_orphan(&late, day(2), cost).await.expect("written").expect("a row");
    assert_eq!((row.claim_uid.as_str(), row.amount), ("uid-a.i-2", cost));
    assert_eq!((row.job, row.from), (own.spec.owner.name.clone(), day(1)));
    assert_eq!(of("i-2", false).await, None, "booked once");
    assert_eq!(ledger.rows().await.expect("rows").len(), 2);

    // A claim that lives has another one: its own books stay open, whether they have rows or not.
    let mut lives = claim("b", day(0));
    lives.instance = "i-3".to_owned();
    let identity = own_identity(&lives);
    let surplus = ledger.of_orphan(&identity, "i-4", offer(), day(0), true).await;
    let surplus = surplus.expect("rows").expect("open");
    ledger.close_orphan(&surplus, day(1), cost).await.expect("written");
    let total = ledger.bring_up(&mut lives, day(1), cost, false).await.expect("goes on");
    assert_eq!(total, cost);
    let uid = &lives.claim_uid;
    assert!(!ledger.claim(&lives.spec, uid, day(0)).await.expect("rows").is_closed());
}

fn own_identity(claim: &ClaimLedger) -> Identity {
    Identity {
        installation: "i".to_owned(),
        namespace: claim.spec.owner.namespace.clone(),
        claim: claim.spec.name.clone(),
        claim_uid: claim.claim_uid.clone(),
        attempt: 0,
    }
}

#[tokio::test]
async fn an_account_is_open_until_its_last_row_and_can_be_closed_by_its_rows_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let objects = LocalFileSystem::new_with_prefix(folder.path()).expect("a folder");
    let ledger = Ledger::over(Arc::new(objects), "here");
    let mut known = claim("a", day(0));
    let provider = known.spec.offer.provider.clone();
    known.instance = "i-1".into();
    let price = known.spec.offer.price;
    let (hour, two) = (SignedDuration::from_hours(1), SignedDuration::from_hours(2));
    let first = price.for_millis(3_600_000);
    ledger.bring_up(&mut known, day(0) + hour, first, false).await.expect("a row");

    let open = ledger.open_at(&provider).await.expect("rows");
    let [account] = open.as_slice() else { panic!("{open:?}") };
    assert_eq!((account.uid.as_str(), account.instance.as_str()), ("uid-a", "i-1"));
    assert_eq!(account.until, day(0) + hour);
    assert_eq!(ledger.open_at("another").await.expect("rows"), []);

    let lost = ledger.of_nobody("uid-a").await.expect("rows").expect("it is open");
    assert_eq!((lost.spec.offer.price, lost.began), (price, day(0)));
    let whole = price.for_millis(7_200_000);
    let row = ledger.close_orphan(&lost, day(0) + two, whole).await.expect("written");
    let row = row.expect("a row");
    assert_eq!((row.kind, row.amount), (RowKind::Orphan, whole.saturating_sub(first)));
    let same = Row { key: known.rows[0].key.clone(), from: day(0), to: row.from, ..row.clone() };
    let of_first = Row { kind: RowKind::Running, amount: first, ..same };
    assert_eq!(of_first, known.rows[0], "in all else it goes on as the rows before");

    assert_eq!(ledger.open_at(&provider).await.expect("rows"), []);
    assert_eq!(ledger.of_nobody("uid-a").await.expect("rows"), None);
    assert_eq!(ledger.of_nobody("uid-b").await.expect("no rows"), None);
}
