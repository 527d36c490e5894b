//! Real sockets and real certificates, on loopback.
#![allow(clippy::unwrap_used)]

mod shared;

use crate::authority::Authority;
use crate::*;
use async_trait::async_trait;
use bytes::Bytes;
use quorate_model::NodeId;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(30);
const N1: NodeId = NodeId(1);
const N2: NodeId = NodeId(2);

/// Says who called and what; "sleep" never answers, "fault" refuses, "panic" panics.
struct Echo;

#[async_trait]
impl Handler for Echo {
    async fn call(&self, from: NodeId, body: Bytes) -> Result<Bytes, Fault> {
        match &body[..] {
            b"sleep" => std::future::pending().await,
            b"fault" => Err(Fault::new("not today")),
            b"panic" => panic!("on purpose"),
            b"huge" => Ok(Bytes::from(vec![0; MAX_FRAME_BYTES])),
            _ => Ok([from.to_string().as_bytes(), b":", &body[..]].concat().into()),
        }
    }
}

/// Sends the hello back as a frame, then every byte.
struct EchoStream;

#[async_trait]
impl StreamHandler for EchoStream {
    async fn accept(&self, _: NodeId, hello: Bytes, mut stream: PeerStream) {
        write_frame(&mut stream, &hello).await.unwrap();
        let (mut reader, mut writer) = tokio::io::split(stream);
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
        let _ = writer.shutdown().await;
    }
}

struct Node {
    peers: Arc<Peers>,
    stop: CancellationToken,
    address: String,
    serving: tokio::task::JoinHandle<()>,
}

impl Node {
    async fn start(identity: Arc<Identity>) -> Node {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let peers = Peers::new(identity, BTreeMap::new());
        peers.register(Service::Agent, Arc::new(Echo));
        peers.register_stream(StreamKind::Tunnel, Arc::new(EchoStream));
        let stop = CancellationToken::new();
        let serving = tokio::spawn(peers.clone().serve(listener, stop.clone()));
        Node { peers, stop, address, serving }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.serving.await.unwrap();
    }

    async fn ask(&self, to: NodeId, body: &'static [u8]) -> Result<Bytes, CallError> {
        self.peers.call(to, Service::Agent, Bytes::from_static(body), SECOND * 5).await
    }
}

fn identity(authority: &Authority, node: NodeId, dir: &Path) -> Arc<Identity> {
    let dir = dir.join(node.to_string());
    authority.issue(node, &dir).unwrap();
    Identity::load(node, &dir).unwrap()
}

/// Two nodes of one cluster, the first of which knows the second.
async fn pair() -> (Node, Node, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(dir.path()).unwrap();
    let one = Node::start(identity(&authority, N1, dir.path())).await;
    let two = Node::start(identity(&authority, N2, dir.path())).await;
    one.peers.set_address(N2, two.address.clone());
    (one, two, dir)
}

#[tokio::test]
async fn a_call_is_answered_and_the_caller_is_known() {
    let (one, _two, _dir) = pair().await;
    assert_eq!(one.ask(N2, b"hello").await.unwrap(), &b"n1:hello"[..]);
    assert_eq!(one.peers.nodes(), [N2]);
}

#[tokio::test]
async fn a_call_to_self_needs_no_address() {
    let (one, _two, _dir) = pair().await;
    assert_eq!(one.ask(N1, b"hello").await.unwrap(), &b"n1:hello"[..]);
    assert_eq!(one.ask(N1, b"fault").await, Err(CallError::Refused(Fault::new("not today"))));
}

#[tokio::test]
async fn faults_panics_and_missing_services_come_back_as_refusals() {
    let (one, _two, _dir) = pair().await;
    assert_eq!(one.ask(N2, b"fault").await, Err(CallError::Refused(Fault::new("not today"))));
    assert!(matches!(one.ask(N2, b"panic").await, Err(CallError::Refused(_))));
    assert!(matches!(one.ask(N2, b"huge").await, Err(CallError::Refused(_))));
    let nobody = one.peers.call(N2, Service::Admin, Bytes::new(), SECOND).await;
    assert!(matches!(nobody, Err(CallError::Refused(_))), "{nobody:?}");
    // The connection has survived all of it.
    assert!(one.ask(N2, b"hello").await.is_ok());
}

#[tokio::test]
async fn concurrent_calls_get_their_own_answers() {
    let (one, _two, _dir) = pair().await;
    let stuck = tokio::spawn({
        let peers = one.peers.clone();
        async move { peers.call(N2, Service::Agent, Bytes::from_static(b"sleep"), SECOND).await }
    });
    let calls = (0..2 * MAX_CALLS_IN_FLIGHT).map(|i| {
        let peers = one.peers.clone();
        async move {
            let body = i.to_string();
            let answer = peers.call(N2, Service::Agent, body.clone().into(), LONG).await.unwrap();
            assert_eq!(answer, format!("n1:{body}").as_bytes());
        }
    });
    futures::future::join_all(calls).await;
    assert_eq!(stuck.await.unwrap(), Err(CallError::Timeout(SECOND)));
}

#[tokio::test]
async fn large_bodies_pass_and_too_large_ones_are_refused_unsent() {
    let (one, _two, _dir) = pair().await;
    let body = Bytes::from(vec![b'x'; 8 * 1024 * 1024]);
    let answer = one.peers.call(N2, Service::Agent, body.clone(), LONG).await.unwrap();
    assert_eq!(answer.len(), body.len() + 3);
    let body = Bytes::from(vec![0; MAX_FRAME_BYTES + 1]);
    let refused = one.peers.call(N2, Service::Agent, body, LONG).await;
    assert_eq!(refused, Err(CallError::TooLarge(MAX_FRAME_BYTES + 1)));
}

#[tokio::test]
async fn a_broken_connection_fails_pending_calls_at_once_and_tells_of_the_loss() {
    let (one, two, _dir) = pair().await;
    one.ask(N2, b"hello").await.unwrap();
    let mut lost = one.peers.on_lost();
    let pending = tokio::spawn({
        let peers = one.peers.clone();
        async move { peers.call(N2, Service::Agent, Bytes::from_static(b"sleep"), LONG).await }
    });
    // A later call on the same connection has been answered, so the one above has arrived too.
    one.ask(N2, b"hello").await.unwrap();
    let begun = Instant::now();
    two.stop().await;
    let outcome = pending.await.unwrap();
    assert!(matches!(outcome, Err(CallError::Unreachable(_))), "{outcome:?}");
    assert_eq!(lost.recv().await.unwrap(), N2);
    assert!(begun.elapsed() < SECOND, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_node_that_comes_back_is_reached_again() {
    let (one, two, dir) = pair().await;
    one.ask(N2, b"hello").await.unwrap();
    let address = two.address.clone();
    let mut lost = one.peers.on_lost();
    two.stop().await;
    assert_eq!(lost.recv().await.unwrap(), N2);
    assert!(matches!(one.ask(N2, b"hello").await, Err(CallError::Unreachable(_))));
    // Between attempts calls fail without trying.
    assert!(matches!(one.ask(N2, b"hello").await, Err(CallError::Unreachable(_))));
    let identity = Identity::load(N2, &dir.path().join("n2")).unwrap();
    let two = Peers::new(identity, BTreeMap::new());
    two.register(Service::Agent, Arc::new(Echo));
    let listener = TcpListener::bind(&address).await.unwrap();
    tokio::spawn(two.serve(listener, CancellationToken::new()));
    let begun = Instant::now();
    while one.ask(N2, b"hello").await.is_err() {
        assert!(begun.elapsed() < SECOND * 5);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_called_side_learns_of_the_callers_loss() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(dir.path()).unwrap();
    let two = Node::start(identity(&authority, N2, dir.path())).await;
    let mut lost = two.peers.on_lost();
    let one = Peers::new(identity(&authority, N1, dir.path()), BTreeMap::from([(N2, two.address.clone())]));
    one.call(N2, Service::Agent, Bytes::from_static(b"hello"), SECOND).await.unwrap();
    drop(one);
    assert_eq!(tokio::time::timeout(SECOND, lost.recv()).await.unwrap().unwrap(), N1);
}

#[tokio::test]
async fn a_stream_carries_raw_bytes_after_its_hello() {
    let (one, _two, _dir) = pair().await;
    let mut stream =
        one.peers.open(N2, StreamKind::Tunnel, Bytes::from_static(b"to d7"), SECOND).await.unwrap();
    assert_eq!(read_frame(&mut stream, 100).await.unwrap(), &b"to d7"[..]);
    let sent: Vec<u8> = (0..1_000_000u32).map(|i| i as u8).collect();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let writing = {
        let sent = sent.clone();
        tokio::spawn(async move {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        })
    };
    let mut received = Vec::new();
    reader.read_to_end(&mut received).await.unwrap();
    writing.await.unwrap();
    assert!(received == sent);
}

#[tokio::test]
async fn a_stream_that_nobody_takes_is_refused() {
    let (one, _two, _dir) = pair().await;
    let refused = one.peers.open(N2, StreamKind::Gate, Bytes::new(), SECOND).await;
    assert!(matches!(refused, Err(CallError::Refused(_))), "{refused:?}");
    let nobody = one.peers.open(NodeId(9), StreamKind::Gate, Bytes::new(), SECOND).await;
    assert!(matches!(nobody, Err(CallError::Unreachable(_))), "{nobody:?}");
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused_by_both_sides() {
    let (one, two, _dir) = pair().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Authority::create(elsewhere.path()).unwrap();
    let stranger = Node::start(identity(&other, N1, elsewhere.path())).await;
    stranger.peers.set_address(N2, two.address.clone());
    let outcome = stranger.ask(N2, b"hello").await;
    assert!(matches!(outcome, Err(CallError::Unreachable(_))), "{outcome:?}");
    one.peers.set_address(N2, stranger.address.clone());
    let outcome = one.ask(N2, b"hello").await;
    assert!(matches!(outcome, Err(CallError::Unreachable(_))), "{outcome:?}");
}

#[tokio::test]
async fn a_node_is_not_taken_for_another_because_of_its_address() {
    let (one, two, _dir) = pair().await;
    one.peers.set_address(NodeId(3), two.address.clone());
    let outcome = one.ask(NodeId(3), b"hello").await;
    assert!(
        matches!(&outcome, Err(CallError::Unreachable(why)) if why.contains("not valid for name")),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_caller_without_a_certificate_gets_nothing() {
    let (_one, two, dir) = pair().await;
    let mut roots = rustls::RootCertStore::empty();
    let ca = std::fs::read(dir.path().join("ca.pem")).unwrap();
    for certificate in
        <rustls::pki_types::CertificateDer as rustls::pki_types::pem::PemObject>::pem_slice_iter(&ca)
    {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = tokio::net::TcpStream::connect(&two.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect("n2.quorate".try_into().unwrap(), tcp).await.unwrap();
    let _ = write_frame(&mut stream, &[1, 0]).await;
    assert!(read_frame(&mut stream, 100).await.is_err());
}

#[tokio::test]
async fn an_identity_is_only_loaded_by_its_node_and_keys_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(dir.path()).unwrap();
    assert!(Authority::create(dir.path()).is_err(), "an authority is never overwritten");
    authority.issue(N1, &dir.path().join("n1")).unwrap();
    assert!(matches!(Identity::load(N2, &dir.path().join("n1")), Err(IdentityError::NotMine { .. })));
    assert!(matches!(Identity::load(N2, &dir.path().join("n2")), Err(IdentityError::Pem { .. })));
    for key in ["ca.key", "n1/node.key"] {
        let mode = std::fs::metadata(dir.path().join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    // What a loaded authority signs is believed like what the first one signed.
    let again = Authority::load(dir.path()).unwrap();
    let one = Node::start(Identity::load(N1, &dir.path().join("n1")).unwrap()).await;
    let two = Node::start(identity(&again, N2, dir.path())).await;
    one.peers.set_address(N2, two.address.clone());
    assert!(one.ask(N2, b"hello").await.is_ok());
}

#[tokio::test]
async fn a_call_costs_little() {
    let (one, _two, _dir) = pair().await;
    one.ask(N2, b"hello").await.unwrap();
    let begun = Instant::now();
    for _ in 0..1000 {
        one.ask(N2, b"hello").await.unwrap();
    }
    println!("one call over loopback: {:?}", begun.elapsed() / 1000);
}
