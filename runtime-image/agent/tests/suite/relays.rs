//! Gateways' streams through a real agent to what its task serves, and what does not get through.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use petaflop_agent_api::keys::{NoisePublic, NoiseSecret};
use petaflop_agent_api::relay::{Knock, PATH, PROTOCOL, Sealed};
use petaflop_agent_api::task::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::operator::{Operator, script, until};
use crate::program::Program;

const SOON: Duration = Duration::from_secs(60);

fn key() -> Secret {
    Secret::new("the replica's")
}

/// An agent whose task serves on the port of this listener, which is the test's.
struct Replica {
    operator: Operator,
    program: Program,
    server: TcpListener,
}

impl Replica {
    async fn start() -> Self {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let line = format!(
            r#"{{"event":"serving","port":{},"model":"m"}}"#,
            server.local_addr().unwrap().port()
        );
        let mut operator = Operator::new();
        let program = Program::start(&operator);
        let mut task = script(&format!("echo '{line}' > progress.jsonl; sleep 600"));
        task.relay = Some(key());
        operator.enrol(program.address, Some(task));
        let mut replica = Self { operator, program, server };
        replica.until_it_serves();
        replica
    }

    fn until_it_serves(&mut self) {
        let Self { operator, program, .. } = self;
        until("it serves", || operator.report(program.address).progress.contains_key("serving"));
    }

    fn agent(&self) -> NoisePublic {
        self.operator.agent.unwrap()
    }

    async fn dial(&self) -> Sealed<TcpStream> {
        dial(self.program.address, &self.agent(), &key()).await.expect("it is let in")
    }

    /// The next connection to what is served.
    async fn accept(&self) -> TcpStream {
        timeout(SOON, self.server.accept()).await.unwrap().unwrap().0
    }

    /// Nobody has come whom nobody took.
    async fn assert_untouched(&self) {
        let touched = timeout(Duration::from_millis(300), self.server.accept()).await;
        assert!(touched.is_err(), "{touched:?}");
    }
}

/// A request's head as a gateway sends it, but for what stands in `more`.
fn head(more: &str) -> String {
    format!(
        "GET {PATH} HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: {PROTOCOL}\r\n{more}\r\n"
    )
}

/// Sends a head. Gives the stream, and the head of the answer.
async fn ask(at: SocketAddr, head: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let byte = timeout(SOON, stream.read_u8()).await.unwrap();
        answer.push(byte.unwrap());
    }
    (stream, String::from_utf8(answer).unwrap())
}

/// As a gateway does; the status where it is refused.
async fn dial(at: SocketAddr, agent: &NoisePublic, key: &Secret) -> Result<Sealed<TcpStream>, u16> {
    let knock = Knock::begin(agent, key).unwrap();
    let (stream, answer) = ask(at, &head(&format!("{PROTOCOL}: {}\r\n", knock.message()))).await;
    let status = answer[9..12].parse().unwrap();
    if status != 101 {
        return Err(status);
    }
    let said = answer.lines().find_map(|line| line.strip_prefix(&format!("{PROTOCOL}: ")));
    Ok(knock.finish(said.unwrap()).unwrap().over(stream, &[]).unwrap())
}

async fn read<const N: usize>(stream: &mut (impl AsyncReadExt + Unpin)) -> [u8; N] {
    let mut bytes = [0; N];
    timeout(SOON, stream.read_exact(&mut bytes)).await.unwrap().unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_the_replicas_key_talks_to_what_the_task_serves() {
    let replica = Replica::start().await;
    let mut gateway = replica.dial().await;
    gateway.write_all(b"hello").await.unwrap();
    let mut server = replica.accept().await;
    assert_eq!(&read::<5>(&mut server).await, b"hello");
    // Each piece as it is written.
    for piece in [b"one", b"two"] {
        server.write_all(piece).await.unwrap();
        assert_eq!(&read::<3>(&mut gateway).await, piece);
    }
    // A direction that is over leaves the other.
    gateway.shutdown().await.unwrap();
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    server.write_all(b"end").await.unwrap();
    assert_eq!(&read::<3>(&mut gateway).await, b"end");
    drop(server);
    assert_eq!(gateway.read(&mut [0]).await.unwrap(), 0, "it ended, and was not cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_key_reaches_nothing_and_learns_nothing() {
    let mut operator = Operator::new();
    let fresh = Program::start(&operator);
    let nobody = NoiseSecret::generate().public();
    assert_eq!(dial(fresh.address, &nobody, &key()).await.err(), Some(403), "not enrolled");
    operator.enrol(fresh.address, Some(script("sleep 600")));
    let agent = operator.agent.unwrap();
    let refused = dial(fresh.address, &agent, &key()).await.err();
    assert_eq!(refused, Some(403), "enrolled, and its task serves nobody");

    let replica = Replica::start().await;
    let (at, agent) = (replica.program.address, replica.agent());
    let knock = Knock::begin(&agent, &Secret::new("another's")).unwrap();
    let nobodys = Knock::begin(&nobody, &key()).unwrap();
    for knock in [knock.message(), nobodys.message(), "", "A", "?", &"A".repeat(64)] {
        let (mut stream, answer) = ask(at, &head(&format!("{PROTOCOL}: {knock}\r\n"))).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{knock}: {answer}");
        let length = answer.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.unwrap().parse().unwrap()];
        stream.read_exact(&mut body).await.unwrap();
        let body = String::from_utf8(body).unwrap();
        assert_eq!(body, "the message is not authentic: it was altered, or made with other keys");
    }
    assert!(ask(at, &head("")).await.1.starts_with("HTTP/1.1 404 "), "no handshake at all");
    // Without asking for another protocol there is none.
    let knock = Knock::begin(&agent, &key()).unwrap();
    let plain =
        format!("GET {PATH} HTTP/1.1\r\nHost: a\r\n{PROTOCOL}: {}\r\n\r\n", knock.message());
    let (mut stream, _) = ask(at, &plain).await;
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    while let Ok((mut touched, _)) = timeout(Duration::from_millis(300), replica.server.accept())
        .await
        .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
    {
        assert_eq!(timeout(SOON, touched.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_recorded_and_is_sent_again_reaches_nobody() {
    let replica = Replica::start().await;
    let at = replica.program.address;
    // All that a gateway sends, as who reads along has it.
    let tap = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tapped = tap.local_addr().unwrap();
    let recording = tokio::spawn(async move {
        let (client, _) = tap.accept().await.unwrap();
        let (mut from, mut back) = client.into_split();
        let (mut answers, mut to) = TcpStream::connect(at).await.unwrap().into_split();
        tokio::spawn(async move { tokio::io::copy(&mut answers, &mut back).await });
        let (mut kept, mut piece) = (Vec::new(), [0; 4096]);
        while let Ok(length @ 1..) = from.read(&mut piece).await {
            kept.extend_from_slice(&piece[..length]);
            to.write_all(&piece[..length]).await.unwrap();
        }
        kept
    });
    let mut gateway = dial(tapped, &replica.agent(), &key()).await.expect("it is let in");
    gateway.write_all(b"a prompt nobody reads").await.unwrap();
    gateway.flush().await.unwrap();
    let mut server = replica.accept().await;
    assert_eq!(&read::<21>(&mut server).await, b"a prompt nobody reads");
    drop((gateway, server));
    let kept = timeout(SOON, recording).await.unwrap().unwrap();
    assert!(!kept.windows(6).any(|bytes| bytes == b"prompt"));

    let mut again = TcpStream::connect(at).await.unwrap();
    again.write_all(&kept).await.unwrap();
    let mut touched = replica.accept().await;
    assert_eq!(timeout(SOON, touched.read(&mut [0])).await.unwrap().unwrap(), 0, "a byte came");
    let mut said = Vec::new();
    let _ = timeout(SOON, again.read_to_end(&mut said)).await.unwrap();
    let end = said.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(said.len(), end, "nothing follows the handshake");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_on_one_side_is_cut_on_the_other() {
    let replica = Replica::start().await;
    // The gateway's end goes without a word.
    let mut gateway = replica.dial().await;
    gateway.write_all(b"hello").await.unwrap();
    let mut server = replica.accept().await;
    assert_eq!(&read::<5>(&mut server).await, b"hello");
    drop(gateway);
    assert_eq!(timeout(SOON, server.read(&mut [0])).await.unwrap().unwrap_or(0), 0);

    // The server's end breaks in the middle of an answer.
    let mut gateway = replica.dial().await;
    gateway.write_all(b"hello").await.unwrap();
    let mut server = replica.accept().await;
    assert_eq!(&read::<5>(&mut server).await, b"hello");
    server.write_all(b"half an ans").await.unwrap();
    assert_eq!(&read::<11>(&mut gateway).await, b"half an ans");
    socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
    drop(server);
    let error = timeout(SOON, gateway.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");

    // Who is let in and says nothing is not waited for.
    let mut silent = replica.dial().await;
    let mut server = replica.accept().await;
    assert_eq!(timeout(SOON, server.read(&mut [0])).await.unwrap().unwrap(), 0);
    assert!(timeout(SOON, silent.read(&mut [0])).await.unwrap().is_err());

    // Nothing is served any more: said at once, so that the gateway asks elsewhere.
    let (at, agent) = (replica.program.address, replica.agent());
    drop(replica.server);
    assert_eq!(dial(at, &agent, &key()).await.err(), Some(503));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_leave_room_for_the_operator() {
    let mut replica = Replica::start().await;
    let mut open = Vec::new();
    for number in 0..200u8 {
        let mut gateway = replica.dial().await;
        gateway.write_all(&[number]).await.unwrap();
        let mut server = replica.accept().await;
        assert_eq!(read::<1>(&mut server).await, [number]);
        open.push((gateway, server));
    }
    // More than it takes connections at once, and it still answers.
    replica.until_it_serves();
    for (gateway, server) in &mut open {
        server.write_all(b"x").await.unwrap();
        assert_eq!(&read::<1>(gateway).await, b"x");
    }
    drop(open);
    replica.assert_untouched().await;
}
