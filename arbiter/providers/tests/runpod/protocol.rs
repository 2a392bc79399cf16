//! The buying protocol over this client, against an account that lies: whatever is lost in between,
//! one pod is bought where one was wanted, and none is left where none is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use petaflop_arbiter::claim::Phase;
use petaflop_arbiter::launch::Wanted;
use petaflop_arbiter::offer::Capacity;
use petaflop_arbiter::reason::Reason;
use serde_json::{Value, json};

use super::drive::Buyer;
use super::server::{Reply, Server, problem};
use super::{client, config, offer, pod};

/// An account.
#[derive(Default)]
struct Account {
    /// Those that bill.
    pods: Vec<Value>,
    made: usize,
    /// How the next creates go; after these, well.
    creates: Vec<Create>,
    /// Lists that do not show the latest pod yet.
    lag: usize,
    /// Lists that fail.
    lists_fail: usize,
    /// Deletes that fail.
    deletes_fail: usize,
}

/// How a create goes.
#[derive(Clone, Copy, Debug)]
enum Create {
    /// Made at this price, and answered.
    Made(f64),
    /// Made, and answered with this status in these words.
    MadeBut(u16, &'static str),
    /// Made, and the answer is lost.
    MadeButLost,
    /// Not made, and the answer is lost.
    Lost,
    /// Not made.
    Refused(u16, &'static str),
}

/// An account, its server, and a client of it.
struct Deal {
    account: Arc<Mutex<Account>>,
    buyer: Buyer,
    _server: Server,
}

fn lock(account: &Mutex<Account>) -> MutexGuard<'_, Account> {
    account.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Account {
    fn make(&mut self, asked: &Value, cost: f64) -> Value {
        self.made += 1;
        let pod = pod(&format!("p{}", self.made), asked, cost, "PROVISIONING");
        self.pods.push(pod.clone());
        pod
    }

    fn create(&mut self, asked: &Value) -> Reply {
        let how = if self.creates.is_empty() { Create::Made(0.3) } else { self.creates.remove(0) };
        match how {
            Create::Made(cost) => Reply::Json(201, self.make(asked, cost)),
            Create::MadeBut(status, words) => {
                self.make(asked, 0.3);
                problem(status, words)
            }
            Create::MadeButLost => {
                self.make(asked, 0.3);
                Reply::Cut
            }
            Create::Lost => Reply::Cut,
            Create::Refused(status, words) => problem(status, words),
        }
    }

    fn list(&mut self) -> Reply {
        if self.lists_fail > 0 {
            self.lists_fail -= 1;
            return problem(502, "bad gateway");
        }
        let mut shown = self.pods.clone();
        if self.lag > 0 && !shown.is_empty() {
            self.lag -= 1;
            shown.pop();
        }
        Reply::Json(200, json!({ "pods": shown }))
    }

    fn delete(&mut self, id: &str) -> Reply {
        if self.deletes_fail > 0 {
            self.deletes_fail -= 1;
            return problem(500, "oops");
        }
        let before = self.pods.len();
        self.pods.retain(|pod| pod["id"] != json!(id));
        match self.pods.len() < before {
            true => Reply::Json(204, json!(null)),
            false => problem(404, "pod not found"),
        }
    }
}

impl Deal {
    async fn new(account: Account) -> Self {
        let account = Arc::new(Mutex::new(account));
        let shared = account.clone();
        let server = Server::start(move |call| {
            let mut account = lock(&shared);
            match (call.method.as_str(), call.path.strip_prefix("/v2/pods")) {
                ("POST", Some("")) => account.create(&call.json()),
                ("GET", Some("")) => account.list(),
                ("DELETE", Some(id)) => account.delete(id.trim_start_matches('/')),
                _ => problem(404, "pod not found"),
            }
        })
        .await;
        let (provider, hands) = client(config(&server.base));
        let offer = offer("1x NVIDIA L4 SECURE", Capacity::OnDemand, "0.30548");
        Self { account, buyer: Buyer::new(provider, hands, offer), _server: server }
    }

    fn billing(&self) -> usize {
        lock(&self.account).pods.len()
    }

    fn made(&self) -> usize {
        lock(&self.account).made
    }
}

const NONE: &str = "There are no longer any instances available";

#[tokio::test]
async fn one_pod_is_bought_whatever_is_lost_in_between() {
    for (creates, lag, lists_fail) in [
        (vec![Create::Made(0.3)], 0, 0),
        (vec![Create::MadeButLost], 0, 0),
        // The list is behind, and then does not answer.
        (vec![Create::MadeButLost], 5, 3),
        (vec![Create::MadeBut(500, "create pod: failed")], 3, 0),
        (vec![Create::MadeBut(504, "time-out")], 0, 2),
        (vec![Create::MadeBut(400, "Something went wrong. Please try again later.")], 2, 0),
        // It never happened, and is asked for again when that is sure.
        (vec![Create::Lost], 0, 0),
        (vec![Create::Lost, Create::Lost, Create::MadeButLost], 2, 0),
        (vec![Create::Refused(503, "unavailable")], 0, 1),
    ] {
        let told = format!("{creates:?} {lag} {lists_fail}");
        let mut deal = Deal::new(Account { creates, lag, lists_fail, ..Account::default() }).await;
        deal.buyer.drive(Wanted::Yes, None).await;
        assert!(
            matches!(deal.buyer.claim.phase, Phase::Launched { .. }),
            "{told}: {:?}",
            deal.buyer.claim.phase
        );
        assert_eq!((deal.made(), deal.billing()), (1, 1), "{told}");

        deal.buyer.drive(Wanted::No(Reason::Suspended), None).await;
        assert!(
            matches!(deal.buyer.claim.phase, Phase::Ended { .. }),
            "{told}: {:?}",
            deal.buyer.claim.phase
        );
        assert_eq!((deal.made(), deal.billing()), (1, 0), "{told}");
    }
}

#[tokio::test]
async fn whoever_dies_after_the_call_finds_the_pod_again() {
    for create in [Create::Made(0.3), Create::MadeButLost, Create::MadeBut(500, "failed")] {
        let creates = vec![create];
        let mut deal = Deal::new(Account { creates, ..Account::default() }).await;
        deal.buyer.drive(Wanted::Yes, Some(1)).await;
        assert!(matches!(deal.buyer.claim.phase, Phase::Attempted { .. }));
        deal.buyer.drive(Wanted::Yes, None).await;
        assert!(matches!(deal.buyer.claim.phase, Phase::Launched { .. }), "{create:?}");
        assert_eq!((deal.made(), deal.billing()), (1, 1), "{create:?}");
    }
}

#[tokio::test]
async fn a_refused_claim_leaves_no_pod_behind() {
    for (create, reason) in [
        (Create::Refused(400, NONE), Reason::InsufficientCapacity),
        (Create::Refused(402, "balance"), Reason::BalanceTooLow),
        (Create::Refused(422, "contract"), Reason::InvalidSpec),
        (Create::Refused(410, "retired"), Reason::ApiRetired),
        // Refused, and made all the same.
        (Create::MadeBut(400, NONE), Reason::InsufficientCapacity),
        // Dearer than it was quoted.
        (Create::Made(0.5), Reason::PriceChanged),
    ] {
        let creates = vec![create];
        let mut deal = Deal::new(Account { creates, ..Account::default() }).await;
        deal.buyer.drive(Wanted::Yes, None).await;
        assert_eq!(deal.buyer.claim.phase, Phase::Ended { reason }, "{create:?}");
        assert_eq!(deal.billing(), 0, "{create:?}");
    }
}

#[tokio::test]
async fn a_pod_that_will_not_end_is_ended_again_until_it_does() {
    let mut deal = Deal::new(Account { deletes_fail: 4, ..Account::default() }).await;
    deal.buyer.drive(Wanted::Yes, None).await;
    deal.buyer.drive(Wanted::No(Reason::Suspended), None).await;
    assert!(matches!(deal.buyer.claim.phase, Phase::Ended { .. }));
    assert_eq!((deal.made(), deal.billing()), (1, 0));
}
