//! What is billed.

use petaflop_cloud_box::engine::bill::Item;

use crate::fixture::{Fixture, HOUR, SECOND};

#[tokio::test]
async fn an_instance_bills_by_the_second_from_running_to_shutting_down() {
    let fixture = Fixture::new();
    let id = fixture.launch(&[]).await.ids().remove(0);
    fixture.clock.advance(SECOND * 9);
    assert_eq!(fixture.billed(&id), 0, "pending costs nothing");
    fixture.clock.advance(SECOND + HOUR * 2);
    assert_eq!(fixture.billed(&id), 178_500);
    fixture.clock.advance(SECOND);
    assert_eq!(fixture.billed(&id), 178_525);
    fixture.terminate(&id).await;
    fixture.clock.advance(HOUR);
    assert_eq!(fixture.billed(&id), 178_525, "nor does shutting down");
}

#[tokio::test]
async fn an_instance_that_ran_bills_a_minute_at_least() {
    let fixture = Fixture::new();
    let id = fixture.running(false, &[]).await;
    fixture.clock.advance(SECOND * 7);
    fixture.terminate(&id).await;
    assert_eq!(fixture.billed(&id), 1488, "0.08925 dollars / 60");
    let never = fixture.launch(&[]).await.ids().remove(0);
    fixture.clock.advance(SECOND * 3);
    fixture.terminate(&never).await;
    fixture.clock.advance(HOUR);
    assert_eq!(fixture.billed(&never), 0, "what never ran never bills");
}

#[tokio::test]
async fn spot_costs_what_the_market_said_at_the_start_of_each_hour() {
    let fixture = Fixture::new();
    let product = fixture.product(true);
    fixture.cloud.engine(|engine| engine.set_spot(product, 30_000));
    let bid = [("InstanceMarketOptions.SpotOptions.MaxPrice", "0.08")];
    let id = fixture.running(true, &bid).await;
    fixture.clock.advance(HOUR / 2);
    fixture.cloud.engine(|engine| engine.set_spot(product, 40_000));
    fixture.clock.advance(HOUR / 2);
    assert_eq!(fixture.billed(&id), 30_000, "whatever is bid, and until the hour is over");
    fixture.clock.advance(HOUR / 2);
    assert_eq!(fixture.billed(&id), 50_000);
}

#[tokio::test]
async fn what_is_interrupted_in_its_first_hour_is_free() {
    let fixture = Fixture::new();
    let (young, old) = (fixture.running(true, &[]).await, fixture.running(true, &[]).await);
    let price = fixture.price();
    fixture.clock.advance(HOUR - SECOND * 11);
    fixture.cloud.engine(|engine| engine.evict(&young, None)).unwrap();
    fixture.clock.advance(SECOND * 11);
    fixture.cloud.engine(|engine| engine.evict(&old, None)).unwrap();
    assert_eq!((fixture.billed(&young), fixture.billed(&old)), (0, price));
    let own = fixture.running(true, &[]).await;
    fixture.clock.advance(SECOND * 600);
    fixture.terminate(&own).await;
    assert!(fixture.billed(&own) > 0, "unless one ended it oneself");
}

#[tokio::test]
async fn volumes_bill_from_the_launch_until_they_are_gone() {
    let fixture = Fixture::new();
    let root = [
        ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
        ("BlockDeviceMapping.1.Ebs.VolumeSize", "73"),
    ];
    let id = fixture.launch(&root).await.ids().remove(0);
    let disk = fixture.cloud.engine(|engine| engine.disks()[0].clone());
    fixture.clock.advance(HOUR);
    assert_eq!(fixture.billed(&disk.id), 8000, "0.08 dollars a GB and month of 730 hours");
    fixture.terminate(&id).await;
    fixture.clock.advance(SECOND * 40);
    let billed = fixture.billed(&disk.id);
    fixture.clock.advance(HOUR);
    assert_eq!(fixture.billed(&disk.id), billed);
    let invoice = fixture.cloud.engine(|engine| engine.invoice());
    assert!(invoice.open().is_empty());
    assert_eq!(invoice.total(), fixture.billed(&id) + billed);
    let items: Vec<Item> = invoice.lines().iter().map(|line| line.item).collect();
    assert_eq!(items, [Item::Volume, Item::Compute]);
}

#[tokio::test]
async fn the_same_calls_with_the_same_seed_give_the_same_ids_and_the_same_invoice() {
    let run = async |seed| {
        let fixture = Fixture::with(|setup| setup.seed = seed);
        let first = fixture.running(true, &[]).await;
        fixture.clock.advance(SECOND * 77);
        let second = fixture.launch(&[]).await.ids().remove(0);
        fixture.clock.advance(HOUR);
        fixture.terminate(&first).await;
        fixture.clock.advance(HOUR);
        (first, second, fixture.cloud.engine(|engine| engine.invoice().by_machine()))
    };
    let one = run(1).await;
    assert_eq!(one, run(1).await);
    let other = run(2).await;
    assert!(one.0 != other.0 && one.1 != other.1);
}
