//! Whether a server on this machine answers its health check.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest time an answer may take.
const LIMIT: Duration = Duration::from_secs(2);

/// Whether `GET /health` at a local port is answered with 200.
pub async fn answers(port: u16) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.ok()?;
        let mut start = [0_u8; 12];
        stream.read_exact(&mut start).await.ok()?;
        start.ends_with(b" 200").then_some(())
    };
    matches!(tokio::time::timeout(LIMIT, ask).await, Ok(Some(())))
}
