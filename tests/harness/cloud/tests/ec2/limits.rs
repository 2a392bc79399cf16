//! Token buckets.

use petaflop_cloud_box::ec2::limits::{Bucket, Limits};

use crate::fixture::{Fixture, SECOND};

#[tokio::test]
async fn a_bucket_of_calls_empties_and_is_filled_again_by_the_second() {
    let fixture = Fixture::new();
    let mut codes = Vec::new();
    for _ in 0..101 {
        codes.push(fixture.ask("DescribeVolumes", &[]).await.status);
    }
    assert_eq!((codes[99], codes[100]), (200, 503));
    let seen = fixture.ask("DescribeVolumes", &[]).await;
    assert_eq!((seen.status, seen.code()), (503, "RequestLimitExceeded"));
    assert_eq!(fixture.ask("DescribeSubnets", &[]).await.status, 200, "each API has its own");
    assert_eq!(fixture.ask_in("us-east-1", "DescribeVolumes", &[]).await.status, 200, "and region");
    fixture.clock.advance(SECOND);
    let mut well = 0;
    while fixture.ask("DescribeVolumes", &[]).await.status == 200 {
        well += 1;
    }
    assert_eq!(well, 20, "twenty a second");
}

#[tokio::test]
async fn launching_takes_from_a_bucket_by_the_instance_too() {
    let fixture = Fixture::with(|setup| {
        let launched = Bucket { size: 3, refill: 2 };
        setup.limits = Limits { launched, ..Limits::REAL };
    });
    let two = [("MinCount", "2"), ("MaxCount", "2")];
    assert_eq!(fixture.launch(&two).await.status, 200);
    let seen = fixture.launch(&two).await;
    assert_eq!((seen.status, seen.code()), (503, "RequestLimitExceeded"));
    assert_eq!(fixture.machines().len(), 2);
    fixture.clock.advance(SECOND);
    assert_eq!(fixture.launch(&two).await.status, 200);
}
