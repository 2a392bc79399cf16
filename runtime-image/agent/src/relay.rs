//! Gateways call: each of their streams is passed on to the port that the command serves. It listens on
//! the machine's loopback alone, and who is no gateway of its service learns nothing and reaches nothing.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use petaflop_agent_api::relay::Sealing;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::session::{Rejected, Session};

/// Streams at once, each of some 64 KiB. Gateways go elsewhere with more.
pub(crate) const STREAMS: usize = 512;
/// To the command's own port.
const CONNECT: Duration = Duration::from_secs(2);
/// From the handshake to the first byte that it makes possible.
const FIRST: Duration = Duration::from_secs(10);
/// What such bytes are taken by at once.
const PIECE: usize = 16 << 10;
/// Before who did not have the key is told so: it holds its connection meanwhile, of which there are few.
const PAUSE: Duration = Duration::from_secs(1);

/// A stream that is agreed on; it begins when its connection is no longer HTTP.
pub(crate) struct Relay {
    keys: Sealing,
    server: TcpStream,
    upgrade: OnUpgrade,
    _place: OwnedSemaphorePermit,
}

impl Relay {
    /// Lets a gateway in. Returns the answer to its first words, and the stream.
    pub(crate) async fn open(
        session: &Session,
        places: &Arc<Semaphore>,
        knock: &str,
        upgrade: OnUpgrade,
    ) -> Result<(String, Self), Rejected> {
        let (answer, keys) = match session.let_through(knock) {
            Ok(opened) => opened,
            Err(error) => {
                tokio::time::sleep(PAUSE).await;
                return Err(error);
            }
        };
        let place = places.clone().try_acquire_owned().map_err(|_| Rejected::Full)?;
        let port = session.served().ok_or(Rejected::NotServing)?;
        // Before the answer: what is not reached now, the gateway asks of another replica.
        let server = timeout(CONNECT, TcpStream::connect((Ipv4Addr::LOCALHOST, port))).await;
        let server = server.ok().and_then(Result::ok).ok_or(Rejected::NotServing)?;
        // A token is a small write, and must not wait for the next.
        let _ = server.set_nodelay(true);
        Ok((answer, Self { keys, server, upgrade, _place: place }))
    }

    /// Until either side ends or breaks.
    pub(crate) async fn run(self) -> io::Result<()> {
        let Self { keys, mut server, upgrade, _place } = self;
        let upgraded = upgrade.await.map_err(io::Error::other)?;
        let (stream, came) = stream(upgraded)?;
        let mut gateway = keys.over(stream, &came).map_err(io::Error::other)?;
        // Nothing reaches the server before it is clear that the handshake was no repeated one.
        let mut first = vec![0; PIECE];
        let length = timeout(FIRST, gateway.read(&mut first)).await??;
        server.write_all(&first[..length]).await?;
        drop(first);
        copy_bidirectional(&mut gateway, &mut server).await.map(drop)
    }
}

/// The connection itself, and what was read from it already.
fn stream(upgraded: Upgraded) -> io::Result<(TcpStream, bytes::Bytes)> {
    let parts = upgraded.downcast::<TokioIo<TcpStream>>();
    let parts = parts.map_err(|_| io::Error::other("not a connection of ours"))?;
    Ok((parts.io.into_inner(), parts.read_buf))
}
