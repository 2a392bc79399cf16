//! Round trips: what is read is what was said, by whom it was said, once.

use petaflop_agent_api::keys::NoiseSecret;
use petaflop_agent_api::lease::Nonce;
use petaflop_agent_api::poll::{Poll, PollBody, PollError};
use petaflop_agent_api::session::{Call, Incoming, REQUEST_LIMIT, SessionError};
use proptest::prelude::*;

fn pair() -> (NoiseSecret, NoiseSecret) {
    (NoiseSecret::generate(), NoiseSecret::generate())
}

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

/// Says `request`, answers `response`; what each side read.
fn round_trip(request: &[u8], response: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (operator, agent) = pair();
    let call = Call::begin(&operator, &agent.public(), request).unwrap();
    let incoming = Incoming::read(&agent, &operator.public(), call.message()).unwrap();
    let heard = incoming.request().to_vec();
    let answer = incoming.respond(response).unwrap();
    (heard, call.finish(&answer).unwrap())
}

#[test]
fn a_response_may_be_longer_than_a_noise_message_and_a_request_may_not() {
    for length in [0, 1, 65_479, 65_480, 65_535, 131_039, 1 << 20, 20 << 20] {
        let response = payload(length);
        assert!(round_trip(b"q", &response).1 == response, "{length}");
    }
    let request = payload(REQUEST_LIMIT);
    assert!(round_trip(&request, b"").0 == request);
    let (operator, agent) = pair();
    let error = Call::begin(&operator, &agent.public(), &payload(REQUEST_LIMIT + 1)).unwrap_err();
    assert!(matches!(error, SessionError::TooLong { .. }), "{error}");
}

#[test]
fn only_the_two_that_know_each_other_can_talk() {
    let (operator, agent) = pair();
    let stranger = NoiseSecret::generate();
    let call = Call::begin(&operator, &agent.public(), b"request").unwrap();
    let refused = |agent: &NoiseSecret, operator: &NoiseSecret| {
        Incoming::read(agent, &operator.public(), call.message()).unwrap_err()
    };
    assert_eq!(refused(&stranger, &operator), SessionError::NotAuthentic);
    assert_eq!(refused(&agent, &stranger), SessionError::NotAuthentic);
    // A message made for another purpose, with the very same keys.
    let poll = Poll::body(&operator, &agent.public(), "u", Nonce::generate(), 1, b"").unwrap();
    let sealed = &poll[3..];
    let error = Incoming::read(&agent, &operator.public(), sealed).unwrap_err();
    assert_eq!(error, SessionError::NotAuthentic);
}

#[test]
fn an_answer_fits_its_own_question_only() {
    let (operator, agent) = pair();
    let ask = || Call::begin(&operator, &agent.public(), b"request").unwrap();
    let (first, second) = (ask(), ask());
    let answer = |call: &Call| {
        let incoming = Incoming::read(&agent, &operator.public(), call.message()).unwrap();
        incoming.respond(b"response").unwrap()
    };
    assert_eq!(first.finish(&answer(&second)).unwrap_err(), SessionError::NotAuthentic);
    let long = Call::begin(&operator, &agent.public(), b"request").unwrap();
    let incoming = Incoming::read(&agent, &operator.public(), long.message()).unwrap();
    let body = incoming.respond(&payload(200_000)).unwrap();
    // Cut off between two frames, and with two frames exchanged.
    let frame = 2 + 65_535;
    let exchanged =
        [&body[..frame], &body[2 * frame..3 * frame], &body[frame..2 * frame], &body[3 * frame..]]
            .concat();
    assert_eq!(long.finish(&exchanged).unwrap_err(), SessionError::NotAuthentic);
    let long = Call::begin(&operator, &agent.public(), b"request").unwrap();
    let incoming = Incoming::read(&agent, &operator.public(), long.message()).unwrap();
    let body = incoming.respond(&payload(200_000)).unwrap();
    assert_eq!(long.finish(&body[..2 * frame]).unwrap_err(), SessionError::Malformed);
}

#[test]
fn a_poll_and_the_response_behind_it_are_one_thing() {
    let (operator, agent) = pair();
    let start = Nonce::generate();
    let body = Poll::body(&agent, &operator.public(), "uid-1", start, 7, b"response").unwrap();
    let parsed = PollBody::parse(&body).unwrap();
    assert_eq!(parsed.claim_uid, "uid-1");
    let (poll, response) = parsed.open(&operator, &agent.public()).unwrap();
    assert_eq!((poll.start, poll.counter, response), (start, 7, &b"response"[..]));
    let mut other = body.clone();
    *other.last_mut().unwrap() ^= 1;
    let error = PollBody::parse(&other).unwrap().open(&operator, &agent.public()).unwrap_err();
    assert!(matches!(error, PollError::OtherResponse), "{error}");
    let stranger = NoiseSecret::generate();
    let error = parsed.open(&operator, &stranger.public()).unwrap_err();
    assert!(matches!(error, PollError::Session(SessionError::NotAuthentic)), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_altered_byte_is_refused(length in 0usize..300, at in any::<prop::sample::Index>(), flip in 1u8..) {
        let (operator, agent) = pair();
        let call = Call::begin(&operator, &agent.public(), &payload(length)).unwrap();
        let alter = |message: &[u8]| {
            let mut altered = message.to_vec();
            altered[at.index(message.len())] ^= flip;
            altered
        };
        prop_assert!(Incoming::read(&agent, &operator.public(), &alter(call.message())).is_err());
        let incoming = Incoming::read(&agent, &operator.public(), call.message()).unwrap();
        let answer = incoming.respond(&payload(length)).unwrap();
        prop_assert!(call.finish(&alter(&answer)).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let (operator, agent) = pair();
        prop_assert!(Incoming::read(&agent, &operator.public(), &bytes).is_err());
        let call = Call::begin(&operator, &agent.public(), b"").unwrap();
        prop_assert!(call.finish(&bytes).is_err());
        if let Ok(body) = PollBody::parse(&bytes) {
            prop_assert!(body.open(&operator, &agent.public()).is_err());
        }
    }
}
