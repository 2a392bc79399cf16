//! `DescribeSpotPriceHistory`.

use std::collections::BTreeSet;

use crate::fixture::{Fixture, HOME, HOUR, KIND, SECOND, ZONE};
use crate::xml::Node;

const NOW: &str = "2026-11-20T10:00:00Z";

async fn rows(fixture: &Fixture, region: &str, fields: &[(&str, &str)]) -> Vec<Node> {
    let seen = fixture.ask_in(region, "DescribeSpotPriceHistory", fields).await;
    assert_eq!(seen.status, 200, "{}", seen.text);
    seen.body.all("spotPriceHistorySet/item").into_iter().cloned().collect()
}

#[tokio::test]
async fn from_now_on_the_log_tells_the_last_change_of_every_pool() {
    let fixture = Fixture::new();
    let fields = [
        ("StartTime", NOW),
        ("EndTime", NOW),
        ("InstanceType.1", KIND),
        ("ProductDescription.1", "Linux/UNIX"),
    ];
    let seen = rows(&fixture, HOME, &fields).await;
    assert_eq!(seen.len(), 3, "one for each zone");
    let own = seen.iter().find(|row| row.at("availabilityZoneId") == ZONE).unwrap();
    assert!(own.at("timestamp") < NOW, "an old one is still the price");
    let micros = fixture.price();
    assert_eq!(own.at("spotPrice"), format!("0.{micros:06}"));
    assert_eq!((own.at("instanceType"), own.at("productDescription")), (KIND, "Linux/UNIX"));
    assert_eq!(own.at("availabilityZone"), "us-east-2a");
}

#[tokio::test]
async fn a_span_of_time_tells_its_changes_and_the_one_before_them() {
    let fixture = Fixture::new();
    let span = [
        ("StartTime", "2026-11-18T10:00:00Z"),
        ("EndTime", NOW),
        ("InstanceType.1", KIND),
        ("ProductDescription.1", "Linux/UNIX"),
        ("AvailabilityZone", "us-east-2a"),
    ];
    let seen = rows(&fixture, HOME, &span).await;
    let times: Vec<&str> = seen.iter().map(|row| row.at("timestamp")).collect();
    assert_eq!(times.len(), 7, "a change each eight hours, and the one before: {times:?}");
    assert!(times.is_sorted_by(|a, b| a > b), "the newest first");
    assert!(times[6] < "2026-11-18T10" && times[5] > "2026-11-18T10");
}

#[tokio::test]
async fn a_price_that_moves_is_a_new_row() {
    let fixture = Fixture::new();
    let product = fixture.product(true);
    fixture.clock.advance(SECOND * 5);
    fixture.cloud.engine(|engine| engine.set_spot(product, 33_000));
    let zone = [
        ("StartTime", "2026-11-20T10:00:05Z"),
        ("InstanceType.1", KIND),
        ("AvailabilityZoneId", ZONE),
        ("ProductDescription.1", "Linux/UNIX"),
    ];
    let seen = rows(&fixture, HOME, &zone).await;
    assert_eq!((seen[0].at("spotPrice"), seen.len()), ("0.033000", 1));
    assert_eq!(seen[0].at("timestamp"), "2026-11-20T10:00:05.000Z");
}

#[tokio::test]
async fn filters_take_wildcards_and_windows_has_prices_of_its_own() {
    let fixture = Fixture::new();
    let fields = [
        ("StartTime", NOW),
        ("Filter.1.Name", "instance-type"),
        ("Filter.1.Value.1", "c7?.*"),
        ("Filter.2.Name", "availability-zone-id"),
        ("Filter.2.Value.1", ZONE),
    ];
    let seen = rows(&fixture, HOME, &fields).await;
    let of = |name: &str| -> BTreeSet<String> {
        seen.iter().map(|row| row.at(name).to_owned()).collect()
    };
    let kinds = ["c7g.large", "c7i.2xlarge", "c7i.large", "c7i.xlarge"];
    assert!(of("instanceType").iter().map(String::as_str).eq(kinds));
    assert!(of("productDescription").contains("Windows"));
    let unknown = [("Filter.1.Name", "weather"), ("Filter.1.Value.1", "x")];
    let seen = fixture.ask("DescribeSpotPriceHistory", &unknown).await;
    assert_eq!(seen.code(), "InvalidParameterValue");
}

#[tokio::test]
async fn pages_end_with_an_empty_token() {
    let fixture = Fixture::with(|setup| setup.page = Some(200));
    let whole = Fixture::new();
    let now = [("StartTime", NOW), ("ProductDescription.1", "Linux/UNIX")];
    let all = rows(&whole, HOME, &now).await.len();
    let (mut token, mut sizes) = (String::new(), Vec::new());
    loop {
        let mut fields = now.to_vec();
        fields.extend([("MaxResults", "150"), ("NextToken", &token)]);
        let seen = fixture.ask("DescribeSpotPriceHistory", &fields).await;
        sizes.push(seen.body.all("spotPriceHistorySet/item").len());
        assert!(seen.body.has("nextToken"), "also when it is empty");
        token = seen.body.at("nextToken").to_owned();
        if token.is_empty() {
            break;
        }
    }
    assert!(sizes.len() > 1 && sizes.iter().sum::<usize>() == all, "{sizes:?} of {all}");
    let seen = fixture.ask("DescribeSpotPriceHistory", &[("NextToken", "what")]).await;
    assert_eq!(seen.code(), "InvalidNextToken");
}

#[tokio::test]
async fn a_local_zone_is_a_pool_like_any_other_and_some_pools_have_no_discount() {
    let fixture = Fixture::new();
    let fields = [
        ("StartTime", NOW),
        ("InstanceType.1", "p5.48xlarge"),
        ("ProductDescription.1", "Linux/UNIX"),
    ];
    let seen = rows(&fixture, "us-east-1", &fields).await;
    let price = |zone: &str| {
        let own = seen.iter().find(|row| row.at("availabilityZoneId") == zone);
        own.map(|row| row.at("spotPrice").to_owned())
    };
    assert_eq!(price("use1-atl2-az1").as_deref(), Some("10.240000"));
    assert_eq!(price("use1-az1").as_deref(), Some("55.040000"));
    assert_eq!(price("use1-az4").as_deref(), Some("55.040000"));
    let fields = [("StartTime", NOW), ("InstanceType.1", "p5.4xlarge")];
    assert!(rows(&fixture, HOME, &fields).await.is_empty(), "no row, no offer");
}

#[tokio::test]
async fn no_more_is_told_than_ninety_days() {
    let fixture = Fixture::new();
    fixture.clock.advance(HOUR);
    let fields = [
        ("StartTime", "2020-01-01T00:00:00Z"),
        ("InstanceType.1", KIND),
        ("AvailabilityZoneId", ZONE),
        ("ProductDescription.1", "Linux/UNIX"),
    ];
    let seen = rows(&fixture, HOME, &fields).await;
    assert!(seen.len() > 260);
    assert!(seen.last().unwrap().at("timestamp") >= "2026-08-22T11:00:00");
}
