//! Who is let in, and what an agent that calls is told when calls break.

use std::sync::Arc;

use petaflop_agent_api::keys::{NoisePublic, NoiseSecret, OperatorRoot};
use petaflop_agent_api::lease::Nonce;
use petaflop_agent_api::message::{Hello, VERSION, to_bytes};
use petaflop_agent_api::poll::{Poll, PollBody};
use petaflop_agent_api::session::Enrolment;

use super::door::{Answer, Door, Turned, Visits};
use super::link::{Caller, Link, LinkError};

const IDENTITY: &str = "installation/ns/claim/uid/1";
const START: Nonce = Nonce([3; 16]);

/// An agent, and the operator's side of it.
struct World {
    root: OperatorRoot,
    agent: NoiseSecret,
    door: Arc<Door>,
    counter: u64,
}

impl World {
    fn new(pinned: bool) -> (Self, Visits) {
        let (root, agent) = (OperatorRoot::generate(), NoiseSecret::generate());
        let pinned = pinned.then(|| agent.public());
        let (door, visits) = Door::new(IDENTITY.into(), "uid".into(), 1, pinned);
        (Self { root, agent, door: Arc::new(door), counter: 0 }, visits)
    }

    fn linked(pinned: bool) -> (Self, Link) {
        let (world, visits) = Self::new(pinned);
        let link = Link::Called(Caller::new(world.door.clone(), visits));
        (world, link)
    }

    /// A hello by this agent, sealed for this operator, with a token of this root.
    fn hello(&self, agent: &NoiseSecret, to: &NoisePublic, token: &OperatorRoot) -> Vec<u8> {
        let hello = Hello {
            version: VERSION,
            identity: IDENTITY.into(),
            token: token.token("uid", 1),
            facts: serde_json::Value::Null,
            boot_id: "boot".into(),
            start: START,
            lease_nonce: START,
        };
        let enrolment = Enrolment::begin(agent, to, &to_bytes(&hello)).expect("a hello");
        enrolment.message().to_vec()
    }

    fn own_hello(&self) -> Vec<u8> {
        self.hello(&self.agent, &self.root.noise().public(), &self.root)
    }

    fn body(&self, counter: u64, response: &[u8]) -> Vec<u8> {
        let operator = self.root.noise().public();
        Poll::body(&self.agent, &operator, "uid", START, counter, response).expect("a poll")
    }

    fn enter(&self, body: &[u8]) -> Result<Answer, Turned> {
        self.door.poll(&self.root, PollBody::parse(body).expect("a body"))
    }

    /// The agent's next call, with this response.
    fn call(&mut self, response: &[u8]) -> Answer {
        self.counter += 1;
        self.enter(&self.body(self.counter, response)).expect("it is let in")
    }
}

#[tokio::test]
async fn only_the_token_lets_an_agent_in_and_afterwards_only_its_key() {
    let (mut world, mut visits) = World::new(false);
    let (other, stranger) = (OperatorRoot::generate(), NoiseSecret::generate());
    let ours = world.root.noise().public();
    let own = world.own_hello();
    for bad in [
        world.hello(&stranger, &ours, &other),
        world.hello(&stranger, &other.noise().public(), &world.root),
        Vec::new(),
    ] {
        assert!(world.door.hello(&world.root, bad).is_err());
    }
    assert!(matches!(world.enter(&world.body(1, b"")), Err(Turned::NotEnrolled)));
    assert!(visits.try_recv().is_err(), "somebody was let in");

    world.door.hello(&world.root, own.clone()).expect("the agent");
    world.door.pin(world.agent.public());
    // Its welcome may be lost: it alone may ask again, until it has spoken.
    let burned = world.hello(&stranger, &ours, &world.root);
    assert!(world.door.hello(&world.root, burned).is_err());
    world.door.hello(&world.root, own.clone()).expect("the agent again");
    world.call(b"");
    assert!(world.door.hello(&world.root, own).is_err(), "a hello that was heard is said again");
}

#[tokio::test]
async fn a_poll_is_the_agents_own_newer_than_all_before_and_comes_with_its_response() {
    let (mut world, _visits) = World::new(true);
    let first = world.body(1, b"");
    world.call(b"");
    assert!(matches!(world.enter(&first), Err(Turned::Replayed)));
    let mut swapped = world.body(2, b"this");
    swapped.truncate(swapped.len() - 4);
    swapped.extend_from_slice(b"that");
    assert!(matches!(world.enter(&swapped), Err(Turned::Poll(_))));
    let stranger = NoiseSecret::generate();
    let operator = world.root.noise().public();
    let forged = Poll::body(&stranger, &operator, "uid", START, 9, b"").expect("a poll");
    assert!(matches!(world.enter(&forged), Err(Turned::Poll(_))));
    // What was refused has not moved the counter.
    world.call(b"");
}

#[tokio::test]
async fn nobody_fills_the_place_of_calls_that_wait() {
    let (mut world, _visits) = World::new(true);
    let mut waiting = Vec::new();
    let refused = loop {
        world.counter += 1;
        match world.enter(&world.body(world.counter, b"")) {
            Ok(answer) => waiting.push(answer),
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, Turned::Busy), "{refused}");
    assert!((1..10).contains(&waiting.len()), "{}", waiting.len());
}

#[tokio::test]
async fn a_request_is_handed_to_a_call_and_its_response_comes_with_the_next() {
    let (mut world, mut link) = World::linked(true);
    let calls = async {
        assert_eq!(world.call(b"").await.as_deref(), Ok(&b"one"[..]));
        // Lost on its way to the agent, which calls again without a response.
        let lost = world.call(b"1");
        drop(lost);
        // It does not know that its response has arrived.
        assert_eq!(world.call(b"1").await.as_deref(), Ok(&b"two"[..]));
        let _last = world.call(b"2");
        std::future::pending::<()>().await;
    };
    let asks = async {
        assert_eq!(link.request(b"one").await.expect("a response"), b"1");
        assert_eq!(link.request(b"two").await.expect("a response"), b"2");
    };
    tokio::select! {
        biased;
        () = asks => {}
        () = calls => {}
    }
}

#[tokio::test]
async fn the_response_to_a_request_that_was_given_up_is_not_taken_for_another_ones() {
    let (mut world, mut link) = World::linked(true);
    let first = world.call(b"");
    tokio::select! {
        biased;
        response = link.request(b"watch") => panic!("{response:?}"),
        handed = first => assert_eq!(handed.as_deref(), Ok(&b"watch"[..])),
    }
    let calls = async {
        assert_eq!(world.call(b"watched").await.as_deref(), Ok(&b"drain"[..]));
        let _last = world.call(b"draining");
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        response = link.request(b"drain") => assert_eq!(response.expect("one"), b"draining"),
        () = calls => {}
    }
}

#[tokio::test]
async fn an_agent_that_waits_for_its_welcome_gets_it_instead_of_requests() {
    let (world, mut link) = World::linked(true);
    let hello = world.own_hello();
    let answer = world.door.hello(&world.root, hello.clone()).expect("the agent");
    assert!(matches!(link.request(b"watch").await, Err(LinkError::NotEnrolled)));
    assert_eq!(link.hello().await.expect("its hello"), hello);
    link.welcome(b"welcome".to_vec()).await.expect("it waits");
    assert_eq!(answer.await.as_deref(), Ok(&b"welcome"[..]));
}
