//! Misbehaviour on request.

use petaflop_cloud_box::faults::{Fault, Operation};

use crate::fixture::{Fixture, HOME, HOUR, SECOND, own};

#[tokio::test]
async fn a_launch_whose_answer_is_lost_is_found_by_its_token() {
    let fixture = Fixture::new();
    fixture.fault(Fault::LostAnswer, Operation::Create);
    let subnet = fixture.subnet(HOME, crate::fixture::ZONE);
    let image = fixture.image(HOME, false);
    let fields = [
        ("ImageId", image.as_str()),
        ("InstanceType", crate::fixture::KIND),
        ("MinCount", "1"),
        ("MaxCount", "1"),
        ("SubnetId", subnet.as_str()),
        ("ClientToken", "claim-1"),
    ];
    assert!(fixture.ask_as(&own(), HOME, "RunInstances", &fields).await.is_err());
    assert_eq!(fixture.machines().len(), 1);
    fixture.clock.advance(SECOND * 10);
    let filter = [("Filter.1.Name", "client-token"), ("Filter.1.Value.1", "claim-1")];
    let found = fixture.listed(&filter).await;
    let again = fixture.ask("RunInstances", &fields).await;
    assert_eq!(again.ids(), found, "and the same call again answers it");
    let call = fixture.cloud.calls().remove(0);
    assert_eq!((call.status, call.line.as_str()), (None, "RunInstances us-east-2"));
}

#[tokio::test]
async fn a_launch_that_never_came_made_none() {
    let fixture = Fixture::new();
    fixture.fault(Fault::LostRequest, Operation::Create);
    assert!(fixture.ask_as(&own(), HOME, "RunInstances", &[]).await.is_err());
    assert!(fixture.machines().is_empty());
}

#[tokio::test]
async fn an_internal_error_may_have_launched_one_and_the_token_tells() {
    let fixture = Fixture::new();
    let token = [("ClientToken", "a")];
    let mut texts = Vec::new();
    for (fault, made) in [(Fault::ErrorNotDone, 0), (Fault::ErrorButDone, 1)] {
        fixture.fault(fault, Operation::Create);
        let seen = fixture.launch(&token).await;
        assert_eq!((seen.status, seen.code()), (500, "InternalError"));
        assert_eq!(fixture.machines().len(), made);
        texts.push(seen.message().to_owned());
    }
    assert_eq!(texts[0], texts[1]);
    let id = fixture.machines().remove(0).id;
    assert_eq!(fixture.launch(&token).await.ids(), [id]);
}

#[tokio::test]
async fn what_was_quoted_is_gone_or_dearer_when_it_is_bought() {
    let fixture = Fixture::new();
    fixture.fault(Fault::CapacityGone, Operation::Create);
    assert_eq!(fixture.spot(&[]).await.code(), "InsufficientInstanceCapacity");
    let price = fixture.price();
    fixture.fault(Fault::PriceChanged(1500), Operation::Create);
    let bid = format!("0.{:06}", price * 11 / 10);
    let fields = [("InstanceMarketOptions.SpotOptions.MaxPrice", bid.as_str())];
    assert_eq!(fixture.spot(&fields).await.code(), "SpotMaxPriceTooLow");
    assert_eq!(fixture.price(), price * 3 / 2, "and it stays so");
    assert!(fixture.machines().is_empty());
}

#[tokio::test]
async fn throttled_forbidden_and_unavailable_have_their_codes() {
    let fixture = Fixture::new();
    let cases = [
        (Fault::RateLimited(1), 503, "RequestLimitExceeded"),
        (Fault::Forbidden, 403, "UnauthorizedOperation"),
        (Fault::Unavailable, 503, "Unavailable"),
    ];
    for (fault, status, code) in cases {
        fixture.fault(fault, Operation::List);
        let seen = fixture.ask("DescribeInstances", &[]).await;
        assert_eq!((seen.status, seen.code()), (status, code));
    }
}

#[tokio::test]
async fn a_list_may_lack_its_end_or_lead_to_itself() {
    let fixture = Fixture::new();
    fixture.launch(&[("MinCount", "4"), ("MaxCount", "4")]).await;
    fixture.clock.advance(SECOND * 10);
    fixture.fault(Fault::PartialPage, Operation::List);
    assert_eq!(fixture.listed(&[]).await.len(), 2);
    assert_eq!(fixture.listed(&[]).await.len(), 4);
    fixture.fault(Fault::RepeatedCursor, Operation::List);
    let seen = fixture.ask("DescribeInstances", &[("NextToken", "next-0")]).await;
    assert_eq!(seen.body.at("nextToken"), "next-0");
}

#[tokio::test]
async fn an_instance_on_a_bad_host_is_running_impaired_and_billed() {
    let fixture = Fixture::new();
    fixture.fault(Fault::NeverStarts, Operation::Create);
    let id = fixture.launch(&[]).await.ids().remove(0);
    fixture.clock.advance(HOUR);
    assert_eq!(fixture.state(&id).await, "running");
    let seen = fixture.ask("DescribeInstanceStatus", &[("InstanceId.1", &id)]).await;
    assert_eq!(seen.body.at("instanceStatusSet/item/instanceStatus/status"), "impaired");
    assert!(fixture.billed(&id) > 88_000);
}

#[tokio::test]
async fn any_other_refusal_comes_by_its_code() {
    let fixture = Fixture::new();
    for (status, code) in [(403, "PendingVerification"), (400, "UnfulfillableCapacity")] {
        fixture.fault(Fault::Refused(status, code), Operation::Create);
        let seen = fixture.spot(&[]).await;
        assert_eq!((seen.status, seen.code()), (status, code));
    }
    assert!(fixture.machines().is_empty());
}
