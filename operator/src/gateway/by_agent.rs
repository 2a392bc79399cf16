//! Connections to replicas elsewhere go through their agents, encrypted: [`petaflop_agent_api::relay`].

use std::io;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use petaflop_agent_api::relay::{Knock, PATH, PROTOCOL};
use tokio::net::TcpStream;

use super::{Connect, Io, Replica, Tcp, headers};

/// Through the replica's agent where one is named, which proves that it is that agent as we prove that
/// we have the replica's key; else to the server itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByAgent;

#[async_trait]
impl Connect for ByAgent {
    async fn connect(&self, replica: &Replica) -> io::Result<Box<dyn Io>> {
        let Some(agent) = &replica.agent else { return Tcp.connect(replica).await };
        let key = replica.key.as_ref().ok_or_else(|| io::Error::other("its key is not known"))?;
        let knock = Knock::begin(agent, key).map_err(io::Error::other)?;
        let stream = TcpStream::connect(&replica.address).await?;
        // A token is a small write, and must not wait for the next.
        stream.set_nodelay(true)?;
        let (mut sender, connection) =
            http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends when it is no longer HTTP; what it fails with, we are told.
        tokio::spawn(async move { connection.with_upgrades().await.ok() });
        let request = Request::get(PATH)
            .header(header::HOST, headers::host(&replica.address))
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, PROTOCOL)
            .header(PROTOCOL, knock.message())
            .body(Empty::new())
            .map_err(io::Error::other)?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(io::Error::other(format!("its agent answers {}", answer.status())));
        }
        let said = answer.headers().get(PROTOCOL).and_then(|said| said.to_str().ok());
        let keys = knock.finish(said.unwrap_or_default()).map_err(io::Error::other)?;
        let upgraded = hyper::upgrade::on(answer).await.map_err(broken)?;
        let parts = upgraded.downcast::<TokioIo<TcpStream>>();
        let parts = parts.map_err(|_| io::Error::other("not a connection of ours"))?;
        let sealed = keys.over(parts.io.into_inner(), &parts.read_buf);
        Ok(Box::new(sealed.map_err(io::Error::other)?))
    }
}

fn broken(error: hyper::Error) -> io::Error {
    io::Error::other(error)
}
