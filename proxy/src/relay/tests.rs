#![allow(clippy::unwrap_used)]

use super::*;
use crate::wire::open_block;
use crate::wire::reply::ErrorReply;
use crate::wire::tracker::Loss;
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

const BEGIN: &[u8] = b"Q\0\0\0\x0abegin\0";
const OPENED: &[u8] = b"C\0\0\0\x0aBEGIN\0Z\0\0\0\x05T";
const ROW: &[u8] = b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05T";

async fn gets(stream: &mut (impl AsyncReadExt + Unpin), expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    timeout(Duration::from_secs(10), stream.read_exact(&mut got)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(expected));
}

async fn gets_nothing(stream: &mut (impl AsyncReadExt + Unpin)) {
    let got = timeout(Duration::from_millis(100), stream.read_u8()).await;
    assert!(got.is_err(), "it got {got:?}");
}

#[tokio::test]
async fn a_block_is_opened_in_front_of_its_first_statement() {
    let (mut relay, mut client, mut server) = relay().await;
    relay.open_after = Duration::from_secs(3600);
    let running = tokio::spawn(async move { relay.event().await });
    for _ in 0..2 {
        client.write_all(BEGIN).await.unwrap();
        gets(&mut client, OPENED).await;
        client.write_all(QUERY).await.unwrap();
        gets(&mut server, &[&open_block::AHEAD[..], QUERY].concat()).await;
        server
            .write_all(&[b"1\0\0\0\x042\0\0\0\x04C\0\0\0\x0aBEGIN\x003\0\0\0\x04", ROW].concat())
            .await
            .unwrap();
        gets(&mut client, ROW).await;
        // Not a second time: PostgreSQL warns of that.
        client.write_all(BEGIN).await.unwrap();
        gets(&mut server, BEGIN).await;
        server.write_all(b"Z\0\0\0\x05I").await.unwrap();
        gets(&mut client, b"Z\0\0\0\x05I").await;
    }
    // What comes in one go is passed on as it is.
    client.write_all(&[BEGIN, QUERY].concat()).await.unwrap();
    gets(&mut server, &[BEGIN, QUERY].concat()).await;
    running.abort();
}

#[tokio::test]
async fn a_block_that_is_opened_alone_is_waited_for() {
    let (mut relay, mut client, mut server) = relay().await;
    let running = tokio::spawn(async move { relay.event().await });
    client.write_all(BEGIN).await.unwrap();
    gets(&mut client, OPENED).await;
    gets(&mut server, &open_block::ALONE).await;
    client.write_all(QUERY).await.unwrap();
    gets_nothing(&mut server).await;
    server.write_all(OPENED).await.unwrap();
    gets(&mut server, QUERY).await;
    server.write_all(ROW).await.unwrap();
    gets(&mut client, ROW).await;
    gets_nothing(&mut client).await;
    running.abort();
}

#[tokio::test]
async fn a_block_that_its_server_refuses_is_lost_with_what_followed() {
    for waits in [false, true] {
        let (mut relay, mut client, mut server) = relay().await;
        if !waits {
            relay.open_after = Duration::from_secs(3600);
        }
        let running = tokio::spawn(async move {
            let event = relay.event().await;
            (relay, event)
        });
        client.write_all(BEGIN).await.unwrap();
        gets(&mut client, OPENED).await;
        if waits {
            gets(&mut server, &open_block::ALONE).await;
        }
        client.write_all(QUERY).await.unwrap();
        if !waits {
            gets(&mut server, &[&open_block::AHEAD[..], QUERY].concat()).await;
        }
        let why = ErrorReply::error("57014", "canceling statement due to user request").bytes();
        server.write_all(&why).await.unwrap();
        let (mut relay, event) = timeout(Duration::from_secs(10), running).await.unwrap().unwrap();
        assert!(matches!(&event, Event::ServerLost(why) if why.contains("user request")), "{event:?}");
        assert_eq!(relay.tracker.loss(&[], false), Loss::Aborted);
        relay.detach();
        relay.abort_with(b"lost".to_vec());
        let failed = [&b"lost"[..], b"Z\0\0\0\x05E"].concat();
        let told = if waits { Vec::new() } else { failed };
        assert_eq!(relay.down.unsent(), told, "in a block that has failed");
        assert_eq!(relay.abort.is_some(), waits, "its statement waits, and is told");
    }
}

#[tokio::test]
async fn a_block_that_no_server_knows_of_fails_with_what_could_not_be_sent() {
    let (mut relay, mut client, _server) = relay().await;
    relay.detach();
    client.write_all(BEGIN).await.unwrap();
    let running = tokio::spawn(async move {
        let event = relay.event().await;
        (relay, event)
    });
    gets(&mut client, OPENED).await;
    client.write_all(QUERY).await.unwrap();
    let (mut relay, event) = running.await.unwrap();
    assert!(matches!(event, Event::Request), "{event:?}");
    relay.abort_with(b"none".to_vec());
    let running = tokio::spawn(async move { relay.event().await });
    gets(&mut client, b"noneZ\0\0\0\x05E").await;
    running.abort();
}
