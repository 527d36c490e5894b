//! Leases between real rings.

use super::bed::{Bed, Grant, Node, config, socket};
use crate::clock::boot_now;
use crate::lease::LeaseWant;
use quorate_model::{DatabaseId, Epoch, NodeId};
use std::sync::atomic::Ordering;
use std::time::Duration;

const EPOCH: Epoch = Epoch::new(0, 3, 1);

fn want(database: u64, voters: &[u64]) -> LeaseWant {
    let voters = voters.iter().copied().map(NodeId).collect();
    LeaseWant { database: DatabaseId(database), epoch: EPOCH, voters }
}

/// The latest grant of `by` to `node`.
fn latest(node: &Node, database: u64, by: u64) -> Option<Grant> {
    let granted = node.agent.granted.lock().unwrap();
    granted.iter().rev().find(|g| g.database.0 == database && g.node.0 == by).copied()
}

fn holds(node: &Node, database: u64, by: u64) -> bool {
    latest(node, database, by).is_some_and(|grant| grant.until > boot_now())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_granted_refused_and_expire() {
    let mut bed = Bed::start(3).await;
    bed.nodes[&3].agent.unwilling.store(true, Ordering::SeqCst);
    *bed.nodes[&1].agent.wants.lock().unwrap() =
        (1..=300).map(|database| want(database, &[1, 2, 3])).collect();
    bed.wait("all leases", |bed| (1..=300).all(|database| holds(&bed.nodes[&1], database, 2))).await;
    assert!(latest(&bed.nodes[&1], 1, 3).is_none(), "3 refuses");
    assert!(latest(&bed.nodes[&1], 1, 1).is_none(), "nobody grants to itself");

    // Every lease ends here before the promise ends there.
    let promised = bed.nodes[&2].agent.promised.lock().unwrap().clone();
    let granted = bed.nodes[&1].agent.granted.lock().unwrap().clone();
    for grant in &granted {
        assert_eq!(grant.epoch, EPOCH);
        assert!(
            promised
                .iter()
                .any(|p| p.database == grant.database && p.node == NodeId(1) && p.until > grant.until),
            "{grant:?} without a promise"
        );
    }

    bed.nodes[&3].agent.unwilling.store(false, Ordering::SeqCst);
    bed.wait("the other's leases", |bed| (1..=300).all(|database| holds(&bed.nodes[&1], database, 3))).await;

    bed.stop(2).await;
    let last = latest(&bed.nodes[&1], 7, 2).unwrap();
    bed.wait("its leases to end", |bed| !holds(&bed.nodes[&1], 7, 2)).await;
    assert!(latest(&bed.nodes[&1], 7, 2).unwrap().until >= last.until);
    assert!(holds(&bed.nodes[&1], 7, 3), "those of 3 go on");
}

/// With a renewal every ten minutes, only an order can bring a lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renew_now_asks_at_once() {
    let sockets = [socket(), socket()];
    let peers = (1..).map(NodeId).zip(sockets.iter().map(|s| s.local_addr().unwrap())).collect();
    let mut nodes = Vec::new();
    for (id, socket) in (1..).zip(sockets) {
        let mut config = config(id, &peers);
        config.lease = Duration::from_secs(1_200);
        config.lease_renew = Duration::from_secs(600);
        nodes.push(Node::start(Some(socket), config).await);
    }
    super::bed::wait("a meeting", || nodes[0].state(2) == "alive" && nodes[1].state(1) == "alive").await;
    *nodes[0].agent.wants.lock().unwrap() = vec![want(1, &[2])];
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(latest(&nodes[0], 1, 2).is_none());
    nodes[0].ring.renew_now();
    super::bed::wait("the lease", || holds(&nodes[0], 1, 2)).await;
}
