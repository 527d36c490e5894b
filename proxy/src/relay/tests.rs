#![allow(clippy::unwrap_used)]

use super::*;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::timeout;

/// A relay with its client's and its server's other ends.
async fn relay() -> (Relay, TcpStream, UnixStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (inner, _) = listener.accept().await.unwrap();
    let (near, server) = UnixStream::pair().unwrap();
    let mut relay = Relay::new(Role::Entry, Stream::Tcp(inner), Arc::default());
    relay.attach(Server::remote(Stream::Unix(near.try_into().unwrap())));
    (relay, client, server)
}

const QUERY: &[u8] = b"Q\0\0\0\x0dselect 1\0";

#[tokio::test]
async fn nothing_begins_while_a_cancel_is_on_its_way() {
    let (mut relay, mut client, mut server) = relay().await;
    let slot = Arc::clone(&relay.slot);
    let running = tokio::spawn(async move { relay.event().await });
    let mut got = [0; QUERY.len()];
    client.write_all(QUERY).await.unwrap();
    server.read_exact(&mut got).await.unwrap();
    let asked_for = slot.activity();
    assert!(asked_for.is_busy());
    let cancelling = slot.cancelling();
    // The request ends by itself, and the client has the next one ready.
    server.write_all(b"Z\0\0\0\x05I").await.unwrap();
    client.write_all(QUERY).await.unwrap();
    assert!(timeout(Duration::from_millis(200), server.read_exact(&mut got)).await.is_err());
    assert!(slot.activity() != asked_for, "whoever cancels can see that it has ended");
    drop(cancelling);
    server.read_exact(&mut got).await.unwrap();
    assert_eq!(got, QUERY);
    running.abort();
}

#[tokio::test]
async fn what_comes_while_there_is_something_else_to_do_is_not_lost() {
    let (mut relay, mut client, _server) = relay().await;
    client.write_all(QUERY).await.unwrap();
    while relay.client.is_silent() {
        tokio::task::yield_now().await;
    }
    assert_eq!(look_once(&relay.client, &mut relay.up, || true), Look::Come);
    assert!(!relay.up.has_unjudged());
    assert_eq!(look_once(&relay.client, &mut relay.up, || false), Look::Read);
    assert_eq!(relay.up.unjudged(), QUERY);
    assert_eq!(look_once(&relay.client, &mut relay.up, || false), Look::Nothing);
    assert_eq!(relay.up.unjudged(), QUERY);
}
