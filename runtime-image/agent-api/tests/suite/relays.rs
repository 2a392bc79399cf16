//! Streams between gateway and agent: what comes is what was sent, whole or known to be cut.

use std::io::ErrorKind;

use petaflop_agent_api::keys::NoiseSecret;
use petaflop_agent_api::relay::{Knock, Sealed, Sealing, answer};
use petaflop_agent_api::session::SessionError;
use petaflop_agent_api::task::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

/// Keys of both ends of a stream.
fn keys() -> [Sealing; 2] {
    let (agent, key) = (NoiseSecret::generate(), Secret::new("the replica's"));
    let knock = Knock::begin(&agent.public(), &key).unwrap();
    let (said, theirs) = answer(&agent, &key, knock.message()).unwrap();
    [knock.finish(&said).unwrap(), theirs]
}

/// Both ends, and what lies between them: bytes that can be held up, changed, or cut off.
fn apart() -> (Sealed<DuplexStream>, DuplexStream, DuplexStream, Sealed<DuplexStream>) {
    let ([ours, theirs], (a, b), (c, d)) = (keys(), duplex(1 << 20), duplex(1 << 20));
    (ours.over(a, &[]).unwrap(), b, c, theirs.over(d, &[]).unwrap())
}

#[tokio::test]
async fn bytes_arrive_as_they_were_sent_in_pieces_of_any_size() {
    // A wire that takes a few bytes at a time.
    let ([ours, theirs], (a, b)) = (keys(), duplex(777));
    let (mut gateway, mut agent) = (ours.over(a, &[]).unwrap(), theirs.over(b, &[]).unwrap());
    let sent: Vec<u8> = (0..200_000u32).map(|i| (i * 31 % 251) as u8).collect();
    let piece = sent.clone();
    let echo = tokio::spawn(async move {
        let mut seen = vec![0; 5000];
        loop {
            match agent.read(&mut seen).await.unwrap() {
                0 => return agent.shutdown().await.unwrap(),
                length => agent.write_all(&seen[..length]).await.unwrap(),
            }
            agent.flush().await.unwrap();
        }
    });
    let (mut reads, mut writes) = tokio::io::split(gateway);
    let writing = tokio::spawn(async move {
        for (number, piece) in piece.chunks(40_000).enumerate() {
            writes.write_all(piece).await.unwrap();
            // An empty one is not the end.
            assert_eq!(writes.write(&[]).await.unwrap(), 0, "{number}");
        }
        // One direction ends; the other goes on.
        writes.shutdown().await.unwrap();
        assert_eq!(writes.write(b"more").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        writes
    });
    let mut came = Vec::new();
    reads.read_to_end(&mut came).await.unwrap();
    assert!(came == sent, "{} bytes", came.len());
    gateway = reads.unsplit(writing.await.unwrap());
    assert_eq!(gateway.read(&mut [0]).await.unwrap(), 0, "and stays ended");
    echo.await.unwrap();
}

#[tokio::test]
async fn a_stream_that_is_cut_or_changed_is_not_taken_for_a_whole_one() {
    for (what, change) in [
        ("cut between two frames", None),
        ("cut within a frame", Some((usize::MAX, 0))),
        ("another length", Some((0, 0x40))),
        ("another content", Some((5, 1))),
    ] {
        let (mut gateway, mut wire, mut far, mut agent) = apart();
        gateway.write_all(b"a prompt").await.unwrap();
        gateway.flush().await.unwrap();
        let mut frame = vec![0; 2 + 8 + 16];
        wire.read_exact(&mut frame).await.unwrap();
        assert!(!frame.windows(6).any(|bytes| bytes == b"prompt"));
        let whole = frame.clone();
        match change {
            None => {}
            Some((usize::MAX, _)) => frame.truncate(20),
            Some((at, bit)) => frame[at] ^= bit,
        }
        far.write_all(&frame).await.unwrap();
        far.shutdown().await.unwrap();
        let mut came = Vec::new();
        let error = agent.read_to_end(&mut came).await.unwrap_err();
        let (kind, heard) = match change {
            None => (ErrorKind::UnexpectedEof, &b"a prompt"[..]),
            Some((usize::MAX, _)) => (ErrorKind::UnexpectedEof, &b""[..]),
            Some(_) => (ErrorKind::InvalidData, &b""[..]),
        };
        assert_eq!((error.kind(), came.as_slice()), (kind, heard), "{what}: {error}");
        // The same frame twice is one too many.
        let (_, _, mut far, mut agent) = apart();
        far.write_all(&whole).await.unwrap();
        let error = agent.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "of another stream");
    }
}

#[test]
fn each_side_must_have_its_key_and_a_repeated_knock_opens_nothing_new() {
    let (agent, other) = (NoiseSecret::generate(), NoiseSecret::generate());
    let (key, wrong) = (Secret::new("the replica's"), Secret::new("another's"));
    let knock = Knock::begin(&agent.public(), &key).unwrap();
    let refused = |agent: &NoiseSecret, key: &Secret, message: &str| {
        answer(agent, key, message).expect_err("it was let in")
    };
    assert_eq!(refused(&agent, &wrong, knock.message()), SessionError::NotAuthentic);
    assert_eq!(refused(&other, &key, knock.message()), SessionError::NotAuthentic);
    for none in ["", "?", "AAAA", &"A".repeat(64), &"A".repeat(6400)] {
        refused(&agent, &key, none);
    }
    // Each answer is of its own, and only the first one is for this knock.
    let message = knock.message().to_owned();
    let (first, _) = answer(&agent, &key, &message).unwrap();
    let (second, _) = answer(&agent, &key, &message).unwrap();
    assert_ne!(first, second);
    // Whoever has the replica's key is not its agent.
    let (impostor, _) = {
        let knock = Knock::begin(&other.public(), &key).unwrap();
        answer(&other, &key, knock.message()).unwrap()
    };
    assert_eq!(knock.finish(&impostor).err(), Some(SessionError::NotAuthentic));
}
