//! A TCP proxy before the API server, one for each client that is to have a
//! bad network of its own. TLS goes through it untouched.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::ports;

/// Chunks under way in one direction before the sender is held back.
const UNDER_WAY: usize = 256;

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Passes everything.
    Open,
    /// Refuses new connections and has cut the old ones, as a server that is down.
    Refused,
    /// Passes nothing either way and closes nothing: what is sent waits, and
    /// arrives when the link opens again, as TCP's repeats would make it.
    Silent,
    /// Passes requests but no answers: what was asked is done and the asker
    /// does not know. Before opening again, [`Proxy::cut`] makes it lost for good.
    Deaf,
    /// Holds each chunk for so long, each way.
    Slow(Duration),
}

impl Link {
    fn passes(self, way: Way) -> bool {
        match self {
            Self::Open | Self::Slow(_) => true,
            Self::Refused | Self::Silent => false,
            Self::Deaf => way == Way::Request,
        }
    }

    fn delay(self) -> Duration {
        if let Self::Slow(delay) = self { delay } else { Duration::ZERO }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Request,
    Answer,
}

#[derive(Clone, Copy, Debug)]
struct Setting {
    link: Link,
    /// Connections of an earlier age are closed.
    age: u64,
}

/// A running proxy; ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    setting: watch::Sender<Setting>,
}

impl Proxy {
    pub(crate) fn before(target: SocketAddr) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()?));
        let (setting, settings) = watch::channel(Setting { link: Link::Open, age: 0 });
        // On a thread of its own: it outlives the runtime of the test that made it.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::io("a runtime for the proxy"))?;
        let listener = std::net::TcpListener::bind(address)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(Error::io(format!("listening on {address}")))?;
        std::thread::Builder::new()
            .name("proxy".into())
            .spawn(move || runtime.block_on(serve(listener, address, target, settings)))
            .map_err(Error::io("a thread for the proxy"))?;
        Ok(Self { address, setting })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what the network does, for open connections too.
    pub fn set(&self, link: Link) {
        self.setting.send_modify(|setting| {
            setting.link = link;
            if link == Link::Refused {
                setting.age += 1;
            }
        });
    }

    /// Closes all connections that are open, with what they still held.
    pub fn cut(&self) {
        self.setting.send_modify(|setting| setting.age += 1);
    }
}

async fn serve(
    listener: std::net::TcpListener,
    address: SocketAddr,
    target: SocketAddr,
    mut settings: watch::Receiver<Setting>,
) {
    let mut listener = TcpListener::from_std(listener).ok();
    loop {
        let refused = settings.borrow_and_update().link == Link::Refused;
        if refused {
            listener = None;
        } else if listener.is_none() {
            match TcpListener::bind(address).await {
                Ok(bound) => listener = Some(bound),
                Err(error) => {
                    eprintln!("proxy on {address}: {error}; trying again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            }
        }
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = settings.changed() => if changed.is_err() { return },
            accepted = accept => if let Ok((client, _)) = accepted {
                tokio::spawn(connection(client, target, settings.clone()));
            },
        }
    }
}

async fn connection(client: TcpStream, target: SocketAddr, settings: watch::Receiver<Setting>) {
    let age = settings.borrow().age;
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut cut = settings.clone();
    tokio::select! {
        _ = cut.wait_for(|setting| setting.age != age) => {}
        _ = async {
            tokio::join!(
                pump(from_client, to_server, Way::Request, settings.clone()),
                pump(from_server, to_client, Way::Answer, settings.clone()),
            )
        } => {}
    }
}

/// Carries bytes one way. Reading and writing run side by side, so a delay
/// holds each chunk for its time without making the line narrower.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    way: Way,
    mut settings: watch::Receiver<Setting>,
) {
    let (sender, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let now = settings.clone();
    let read = async move {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + now.borrow().link.delay();
            if sender.send((due, buffer[..length].to_vec())).await.is_err() {
                break;
            }
        }
    };
    let write = async move {
        while let Some((due, chunk)) = under_way.recv().await {
            tokio::time::sleep_until(due).await;
            let closed = settings.wait_for(|setting| setting.link.passes(way)).await.is_err();
            if closed || to.write_all(&chunk).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
