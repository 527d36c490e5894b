//! `SHOW NODES`: the machines, how they are, and what they carry.

use super::Spec;
use crate::admin::answer::{Answer, Column, Row, int, text};
use crate::admin::context::RingRow;
use crate::admin::error::AdminError;
use crate::admin::order::{Order, Session};
use quorate_model::{NodeId, PartitionMap};
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["SHOW", "NODES"],
    syntax: "SHOW NODES",
    help: "the machines, their state, and how many replicas they hold",
    parse: |_| Ok(Arc::new(ShowNodes)),
};

const COLUMNS: &[Column] = &[
    text("node"),
    text("address"),
    text("state"),
    text("fault_domain"),
    text("update_domain"),
    text("raft"),
    int("primaries"),
    int("secondaries"),
    text("version"),
];

#[derive(Debug)]
struct ShowNodes;

#[async_trait::async_trait]
impl Order for ShowNodes {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        let map = session.fresh_map().await;
        let rows = rows(&map, &session.context.ring(), |node| session.context.raft_role(node));
        Ok(Answer::Rows { tag: "SHOW", columns: COLUMNS, rows })
    }
}

fn rows(map: &PartitionMap, ring: &[RingRow], raft_role: impl Fn(NodeId) -> String) -> Vec<Row> {
    map.nodes
        .values()
        .map(|node| {
            let state = ring.iter().find(|r| r.node == node.id).map_or("unknown", |r| r.state.as_str());
            let (primaries, secondaries) = carried(map, node.id);
            vec![
                node.name.as_str().into(),
                node.peer.as_str().into(),
                state.into(),
                node.fault_domain.as_str().into(),
                node.update_domain.as_str().into(),
                raft_role(node.id).into(),
                primaries.into(),
                secondaries.into(),
                node.version.as_str().into(),
            ]
        })
        .collect()
}

/// Primaries and voters that the configurations in force put on a node.
fn carried(map: &PartitionMap, node: NodeId) -> (usize, usize) {
    let count = |holds: &dyn Fn(&quorate_model::Database) -> bool| {
        map.databases.values().filter(|d| holds(d)).count()
    };
    let primaries = count(&|d| d.node_of(d.current.primary) == Some(node));
    let secondaries = count(&|d| d.current.voters.iter().any(|v| d.node_of(*v) == Some(node)));
    (primaries, secondaries)
}
