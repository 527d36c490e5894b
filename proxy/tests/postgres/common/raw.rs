//! A client that says and sees every byte.

use super::{Cluster, Postgres, soon};
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use quorate_proxy::wire::startup::startup_message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

pub struct RawClient<S = TcpStream>(pub S);

/// One message.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

/// A startup packet of protocol 3 with that minor version.
pub fn startup(minor: u8, parameters: &[(&str, &str)]) -> Vec<u8> {
    let parameters: Vec<_> = parameters.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let mut packet = startup_message("demo", "app", &parameters);
    packet[7] = minor;
    packet
}

impl RawClient {
    pub async fn connect(cluster: &Cluster, node: usize) -> RawClient {
        RawClient(TcpStream::connect(cluster.nodes[node - 1].proxy.address()).await.unwrap())
    }

    pub async fn log_in(cluster: &Cluster, node: usize) -> RawClient {
        let mut raw = RawClient::connect(cluster, node).await;
        raw.authenticate(&startup(0, &[])).await;
        raw.until_ready().await;
        raw
    }
}

impl RawClient<UnixStream> {
    /// Around the proxy.
    pub async fn direct(postgres: &Postgres) -> RawClient<UnixStream> {
        let mut raw = RawClient(UnixStream::connect(postgres.socket().join(".s.PGSQL.5432")).await.unwrap());
        raw.0.write_all(&startup(0, &[])).await.unwrap();
        raw.until_ready().await;
        raw
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> RawClient<S> {
    /// Up to the end of SCRAM, without a channel binding. Returns what came before it.
    pub async fn authenticate(&mut self, startup: &[u8]) -> Vec<(u8, Vec<u8>)> {
        self.0.write_all(startup).await.unwrap();
        let mut scram = ScramSha256::new(b"demo", ChannelBinding::unsupported());
        let mut before = Vec::new();
        loop {
            let (tag, body) = self.message().await;
            if tag == b'R' {
                break;
            }
            before.push((tag, body));
        }
        let first = scram.message();
        let body = [b"SCRAM-SHA-256\0", &(first.len() as u32).to_be_bytes()[..], first].concat();
        self.send(b'p', &body).await;
        let (_, body) = self.message().await;
        scram.update(&body[4..]).unwrap();
        let last = scram.message().to_vec();
        self.send(b'p', &last).await;
        before
    }

    pub async fn send(&mut self, tag: u8, body: &[u8]) {
        self.0.write_all(&message(tag, body)).await.unwrap();
        self.0.flush().await.unwrap();
    }

    pub async fn message(&mut self) -> (u8, Vec<u8>) {
        soon(async {
            let tag = self.0.read_u8().await.unwrap();
            let mut body = vec![0; self.0.read_u32().await.unwrap() as usize - 4];
            self.0.read_exact(&mut body).await.unwrap();
            (tag, body)
        })
        .await
    }

    /// The bodies of all messages up to ReadyForQuery.
    pub async fn until_ready(&mut self) -> Vec<u8> {
        self.messages_until_ready().await.into_iter().flat_map(|(_, body)| body).collect()
    }

    pub async fn messages_until_ready(&mut self) -> Vec<(u8, Vec<u8>)> {
        let mut all = Vec::new();
        loop {
            let (tag, body) = self.message().await;
            all.push((tag, body));
            if tag == b'Z' {
                return all;
            }
        }
    }

    pub async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        soon(self.0.read_to_end(&mut rest)).await.unwrap();
        rest
    }
}
