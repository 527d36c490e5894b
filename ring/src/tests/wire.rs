//! A peer played by the test: what counts, and what is a recording or a forgery.

use super::bed::{KEY, Node, config, socket, wait};
use crate::RingEvent;
use crate::lease::LeaseWant;
use crate::packet::{Body, Codec, Envelope, LeaseAnswer, MAX_DATAGRAM};
use crate::verdict::{Verdict, Word};
use quorate_model::{DatabaseId, Epoch, NodeId};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

const ME: NodeId = NodeId(2);
const RING: NodeId = NodeId(1);

/// Node 2, in the hands of the test. Node 3 exists in the configuration only.
struct Peer {
    socket: UdpSocket,
    codec: Codec,
    ring: SocketAddr,
    incarnation: u64,
    sequence: u64,
}

impl Peer {
    async fn start() -> (Peer, Node) {
        let (ring, peer) = (socket(), socket());
        peer.set_nonblocking(false).unwrap();
        peer.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let address = ring.local_addr().unwrap();
        let nowhere = socket().local_addr().unwrap();
        let peers = [(RING, address), (ME, peer.local_addr().unwrap()), (NodeId(3), nowhere)].into();
        let node = Node::start(Some(ring), config(1, &peers)).await;
        let codec = Codec::new(&KEY);
        (Peer { socket: peer, codec, ring: address, incarnation: 5, sequence: 0 }, node)
    }

    fn seal(&mut self, body: &Body) -> Vec<u8> {
        self.sequence += 1;
        let envelope =
            Envelope { from: ME, to: RING, incarnation: self.incarnation, sequence: self.sequence };
        self.codec.seal(&envelope, body).unwrap()
    }

    fn send_raw(&self, bytes: &[u8]) {
        self.socket.send_to(bytes, self.ring).unwrap();
    }

    fn send(&mut self, body: &Body) -> Vec<u8> {
        let bytes = self.seal(body);
        self.send_raw(&bytes);
        bytes
    }

    /// The first body that came in and that `pick` takes.
    fn receive<T>(&self, pick: impl Fn(Body) -> Option<T>) -> T {
        let end = Instant::now() + super::bed::PATIENCE;
        let mut buffer = [0; MAX_DATAGRAM];
        loop {
            assert!(Instant::now() < end, "nothing came");
            let Ok((len, _)) = self.socket.recv_from(&mut buffer) else { continue };
            let (envelope, body) = self.codec.open(&buffer[..len]).unwrap();
            assert_eq!((envelope.from, envelope.to), (RING, ME));
            if let Some(found) = pick(body) {
                return found;
            }
        }
    }

    /// Becomes a peer that is believed.
    async fn introduce(&mut self, node: &Node) {
        self.send(&Body::Heartbeat { reply: false });
        let nonce = self.receive(|body| match body {
            Body::Challenge { nonce } => Some(nonce),
            _ => None,
        });
        self.send(&Body::Answer { nonce });
        wait("the introduction", || heard(node).is_some()).await;
    }
}

fn heard(node: &Node) -> Option<u64> {
    node.ring.view()[1].last_heartbeat_ms
}

/// Sends again and again, and sees that it never counts as a sign of life.
async fn counts_for_nothing(node: &Node, send: impl Fn()) {
    let mut before = heard(node);
    for _ in 0..40 {
        send();
        tokio::time::sleep(Duration::from_millis(5)).await;
        let now = heard(node);
        assert!(now >= before, "it was heard: {before:?} {now:?}");
        before = now;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_answers_the_challenge_is_heard() {
    let (mut peer, node) = Peer::start().await;
    let recorded = peer.seal(&Body::Heartbeat { reply: false });
    counts_for_nothing(&node, || peer.send_raw(&recorded)).await;
    assert_eq!(heard(&node), None);
    peer.introduce(&node).await;
    assert!(heard(&node).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recordings_forgeries_and_fragments_count_for_nothing() {
    let (mut peer, node) = Peer::start().await;
    peer.introduce(&node).await;
    let genuine = peer.send(&Body::Heartbeat { reply: false });
    tokio::time::sleep(Duration::from_millis(50)).await;
    counts_for_nothing(&node, || peer.send_raw(&genuine)).await;

    let mut forged = peer.seal(&Body::Heartbeat { reply: false });
    let last = forged.len() - 1;
    forged[last] ^= 1;
    counts_for_nothing(&node, || peer.send_raw(&forged)).await;
    counts_for_nothing(&node, || peer.send_raw(&forged[..last])).await;

    let envelope = Envelope { from: ME, to: NodeId(3), incarnation: 5, sequence: 900 };
    let for_another = peer.codec.seal(&envelope, &Body::Heartbeat { reply: false }).unwrap();
    counts_for_nothing(&node, || peer.send_raw(&for_another)).await;

    wait("the suspicion", || node.suspicions().contains(&(2, 1))).await;
    peer.send(&Body::Heartbeat { reply: false });
    wait("the return", || !node.ring.is_suspect(ME)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_is_answered_and_a_verdict_is_told() {
    let (mut peer, node) = Peer::start().await;
    peer.introduce(&node).await;
    peer.receive(|body| (body == Body::Heartbeat { reply: true }).then_some(()));
    let word = Word::Suspect { silent_ms: 321 };
    let verdict = Verdict { subject: NodeId(3), reporter: ME, incarnation: 5, number: 1, word };
    peer.send(&Body::Verdict(Verdict { reporter: NodeId(3), subject: ME, ..verdict }));
    peer.send(&Body::Verdict(verdict));
    let event = RingEvent::Suspect { node: NodeId(3), reporter: ME, silent_ms: 321 };
    wait("the verdict", || node.events.lock().unwrap().iter().any(|(_, told)| *told == event)).await;
    assert!(!node.suspicions().contains(&(2, 3)), "a word in another's name is none");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_counts_once_and_only_for_its_request() {
    let (mut peer, node) = Peer::start().await;
    peer.introduce(&node).await;
    let want = LeaseWant { database: DatabaseId(9), epoch: Epoch::new(0, 1, 0), voters: vec![ME] };
    *node.agent.wants.lock().unwrap() = vec![want];
    let request = |peer: &Peer| {
        peer.receive(|body| match body {
            Body::LeaseRequest(request) => Some(request),
            _ => None,
        })
    };
    let first = request(&peer);
    assert_eq!((first.lease_us, first.entries[0].database), (400_000, DatabaseId(9)));
    let granted = |nonce| Body::LeaseAnswer(LeaseAnswer { nonce, granted: vec![1] });
    peer.send(&granted(first.nonce.wrapping_add(1_000_000)));
    let bytes = peer.send(&granted(first.nonce));
    wait("the grant", || !node.agent.granted.lock().unwrap().is_empty()).await;

    // The same again: as a recording, and in a fresh datagram.
    peer.send_raw(&bytes);
    peer.send(&granted(first.nonce));
    // What is sent after them is handled after them.
    let (counter, next) = (node.agent.granted.lock().unwrap().len(), request(&peer));
    assert_eq!(counter, 1);
    assert_ne!(next.nonce, first.nonce);
    peer.send(&granted(next.nonce));
    wait("the next grant", || node.agent.granted.lock().unwrap().len() >= 2).await;
    assert_eq!(node.agent.granted.lock().unwrap().len(), 2);
}
