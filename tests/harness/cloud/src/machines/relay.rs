//! A machine's port at another port of the host, as providers map them: whoever dials must have read
//! the mapping. Where nobody listens inside, the connection ends at once.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// Listens at `here` and carries what comes to `there`. Inside of a runtime only; aborted with all of
/// its connections.
pub(super) fn open(here: Ipv4Addr, there: SocketAddr) -> io::Result<(SocketAddr, AbortHandle)> {
    let listener = std::net::TcpListener::bind((here, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let listener = TcpListener::from_std(listener)?;
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            if let Ok((outside, _)) = listener.accept().await {
                connections.spawn(carry(outside, here, there));
            }
            while connections.try_join_next().is_some() {}
        }
    });
    Ok((address, task.abort_handle()))
}

async fn carry(mut outside: TcpStream, here: Ipv4Addr, there: SocketAddr) -> io::Result<()> {
    // From the operator's address, which is what a cut cable is about.
    let socket = TcpSocket::new_v4()?;
    socket.bind((here, 0).into())?;
    let mut inside = socket.connect(there).await?;
    tokio::io::copy_bidirectional(&mut outside, &mut inside).await.map(drop)
}
