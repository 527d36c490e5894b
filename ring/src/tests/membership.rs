//! Who is seen, missed, and seen again.

use super::bed::{Bed, Node, config, socket};
use crate::{Ring, RingEvent};
use quorate_model::NodeId;
use std::time::{Duration, Instant};

/// Suspicions of the node that was killed are expected; nobody else may be accused.
fn assert_only(bed: &Bed, suspect: u64) {
    for (id, node) in &bed.nodes {
        let others: Vec<_> =
            node.suspicions().into_iter().filter(|(subject, _)| *subject != suspect).collect();
        assert_eq!(others, [], "told to node {id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_node_is_reported_by_both_neighbours_to_everybody_and_returns() {
    let mut bed = Bed::start(5).await;
    bed.stop(3).await;
    let killed = Instant::now();
    bed.wait("both reports everywhere", |bed| {
        bed.nodes.values().all(|node| {
            let told = node.suspicions();
            told.contains(&(3, 2)) && told.contains(&(3, 4))
        })
    })
    .await;
    let first = |node: &Node| node.events.lock().unwrap()[0].0.duration_since(killed);
    let slowest = bed.nodes.values().map(first).max().unwrap();
    println!("everybody heard of it within {slowest:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert!(bed.nodes.values().all(|node| node.ring.is_suspect(NodeId(3))));
    let row = bed.nodes[&1].ring.view()[2].clone();
    assert_eq!((row.position, row.node, row.state), (3, NodeId(3), "suspect"));
    assert!(matches!(row.reported_by, Some(NodeId(2 | 4))));
    let row = bed.nodes[&1].ring.view()[1].clone();
    assert_eq!((row.predecessor, row.successor), (NodeId(1), NodeId(4)), "the gap is closed");

    bed.restart(3).await;
    bed.wait("everybody to see it again", |bed| {
        bed.nodes.values().all(|node| !node.ring.is_suspect(NodeId(3)) && node.state(3) == "alive")
    })
    .await;
    // The ring's view comes first, its event on a way of its own.
    bed.wait("everybody to be told", |bed| {
        let told = |node: &Node| {
            let events = node.events.lock().unwrap();
            events.last().is_some_and(|(_, last)| *last == RingEvent::Alive { node: NodeId(3) })
        };
        bed.nodes.iter().filter(|(id, _)| **id != 3).all(|(_, node)| told(node))
    })
    .await;
    assert_only(&bed, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rings_of_two_and_three_notice_too() {
    for size in [2, 3] {
        let mut bed = Bed::start(size).await;
        bed.stop(2).await;
        bed.wait("the report", |bed| bed.nodes.values().all(|node| node.ring.is_suspect(NodeId(2)))).await;
        bed.restart(2).await;
        bed.wait("the return", |bed| bed.nodes.values().all(|node| node.state(2) == "alive")).await;
        assert_only(&bed, 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_never_started_is_down() {
    let sockets = [socket(), socket(), socket()];
    let peers = (1..).map(NodeId).zip(sockets.iter().map(|s| s.local_addr().unwrap())).collect();
    let [first, second, never] = sockets;
    drop(never);
    let mut bed = Bed { nodes: Default::default(), peers };
    for (id, socket) in [(1, first), (2, second)] {
        bed.nodes.insert(id, Node::start(Some(socket), config(id, &bed.peers)).await);
    }
    bed.wait("the reports", |bed| bed.nodes.values().all(|node| node.ring.is_suspect(NodeId(3)))).await;
    let row = bed.nodes[&1].ring.view()[2].clone();
    assert_eq!((row.state, row.last_heartbeat_ms), ("down", None));
    assert_only(&bed, 3);
    bed.restart(3).await;
    bed.wait("its arrival", |bed| bed.nodes.values().all(|node| node.state(3) == "alive")).await;
}

/// A thread that was held up accuses nobody when it runs again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_ring_blames_nobody() {
    let bed = Bed::start(3).await;
    *bed.nodes[&2].agent.stall.lock().unwrap() = Some(Duration::from_secs(2));
    bed.wait("the others to miss it", |bed| bed.nodes[&1].ring.is_suspect(NodeId(2))).await;
    bed.wait("its own notice", |bed| !bed.nodes[&2].agent.gaps.lock().unwrap().is_empty()).await;
    bed.wait("its return", |bed| bed.nodes.values().all(|node| !node.ring.is_suspect(NodeId(2)))).await;
    assert_only(&bed, 2);
    assert!(bed.nodes[&2].agent.gaps.lock().unwrap()[0] >= Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_doubt_is_settled_fast() {
    let mut bed = Bed::start(4).await;
    bed.nodes[&1].ring.doubt(NodeId(3));
    bed.stop(3).await;
    // Not a neighbour of 1, but 1 lost its connection to it.
    bed.nodes[&1].ring.doubt(NodeId(3));
    bed.wait("its report", |bed| bed.nodes.values().all(|n| n.suspicions().contains(&(3, 1)))).await;
    assert_only(&bed, 3);
}

#[tokio::test]
async fn faults_of_configuration_are_told() {
    let taken = socket();
    let peers = [(NodeId(1), taken.local_addr().unwrap())].into();
    let good = config(1, &peers);
    let start = async |config| {
        let agent = std::sync::Arc::new(super::bed::Agent::default());
        Ring::start(config, agent, Default::default()).await.map(|_| ()).map_err(|error| error.kind())
    };
    assert_eq!(start(good.clone()).await, Err(std::io::ErrorKind::AddrInUse));
    let bad = [
        crate::RingConfig { node: NodeId(2), ..good.clone() },
        crate::RingConfig { heartbeat: Duration::ZERO, ..good.clone() },
        crate::RingConfig { suspect_after: good.heartbeat, ..good.clone() },
        crate::RingConfig { lease: good.lease_renew, ..good.clone() },
    ];
    for config in bad {
        assert_eq!(start(config).await, Err(std::io::ErrorKind::InvalidInput));
    }
    drop(taken);
    assert_eq!(start(good).await, Ok(()), "a ring of one is a ring");
}
