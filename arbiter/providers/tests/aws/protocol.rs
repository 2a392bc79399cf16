//! The buying protocol over this client, against an account that lies: whatever is lost in between,
//! one instance is bought where one was wanted, and none is left where none is.

use petaflop_arbiter::claim::Phase;
use petaflop_arbiter::launch::Wanted;
use petaflop_arbiter::offer::Capacity;
use petaflop_arbiter::reason::Reason;

use super::account::{Account, Create, State};
use super::drive::Buyer;
use super::{client, config, offer};

async fn deal(state: State) -> (Account, Buyer) {
    let account = Account::open(state).await;
    let (provider, hands) = client(config(&account.server.base));
    let offer = offer(&provider, Capacity::Spot).await;
    (account, Buyer::new(provider, hands, offer))
}

fn creates(creates: &[Create]) -> State {
    State { creates: creates.to_vec(), ..State::default() }
}

#[tokio::test]
async fn one_instance_is_bought_whatever_is_lost_in_between() {
    for how in [
        &[][..],
        &[Create::MadeButLost],
        &[Create::MadeBut(500, "InternalError")],
        &[Create::MadeBut(503, "Unavailable")],
        &[Create::Lost],
        &[Create::Lost, Create::MadeButLost],
        &[Create::Refused(500, "InternalError"), Create::Lost],
        &[Create::Refused(503, "RequestLimitExceeded")],
        &[Create::Refused(400, "InsufficientFreeAddressesInSubnet"), Create::MadeButLost],
    ] {
        for lag in [0, 1, 3] {
            let mut state = creates(how);
            state.lag = lag;
            state.subnets.push(("subnet-9", "use1-az1", 1));
            let (account, mut buyer) = deal(state).await;
            buyer.drive(Wanted::Yes, None).await;
            let Phase::Launched { instance, .. } = &buyer.claim.phase else {
                panic!("{how:?}: {:?}", buyer.claim.phase);
            };
            assert_eq!(account.billed().len(), 1, "{how:?} {lag}");
            assert_eq!(*instance, format!("us-east-1/{}", account.billed()[0]), "{how:?} {lag}");
        }
    }
}

#[tokio::test]
async fn whoever_dies_after_the_call_finds_the_instance_again() {
    for how in [&[][..], &[Create::MadeButLost]] {
        for untagged in [false, true] {
            let (account, mut buyer) = deal(State { untagged, ..creates(how) }).await;
            buyer.drive(Wanted::Yes, Some(1)).await;
            assert!(matches!(buyer.claim.phase, Phase::Attempted { .. }));
            // Somebody else goes on, who knows no more than the claim.
            let (provider, hands) = client(config(&account.server.base));
            buyer.provider = Box::new(provider);
            buyer.hands = hands;
            buyer.drive(Wanted::Yes, None).await;
            assert!(matches!(buyer.claim.phase, Phase::Launched { .. }), "{how:?}");
            assert_eq!(account.state().made.len(), 1, "{how:?}");
        }
    }
}

#[tokio::test]
async fn a_refused_claim_leaves_no_instance_behind() {
    for (code, reason) in [
        ("InsufficientInstanceCapacity", Reason::InsufficientCapacity),
        ("MaxSpotInstanceCountExceeded", Reason::QuotaExceeded),
        ("SpotMaxPriceTooLow", Reason::PriceChanged),
        ("UnauthorizedOperation", Reason::Unauthorized),
        ("InvalidParameterValue", Reason::InvalidSpec),
    ] {
        let (account, mut buyer) = deal(creates(&[Create::Refused(400, code)])).await;
        buyer.drive(Wanted::Yes, None).await;
        assert_eq!(buyer.claim.phase, Phase::Ended { reason }, "{code}");
        assert!(account.state().made.is_empty(), "{code}");
    }
}

#[tokio::test]
async fn an_instance_is_ended_again_until_it_is_gone() {
    let (account, mut buyer) = deal(State::default()).await;
    buyer.drive(Wanted::Yes, None).await;
    let failing = vec![(500, "InternalError"), (503, "RequestLimitExceeded")];
    account.state().fails.insert("TerminateInstances", failing);
    buyer.drive(Wanted::No(Reason::Suspended), None).await;
    assert!(matches!(buyer.claim.phase, Phase::Ended { .. }), "{:?}", buyer.claim.phase);
    assert!(account.billed().is_empty());
    assert!(account.asked("TerminateInstances").len() >= 3);
}
