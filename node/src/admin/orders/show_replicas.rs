//! `SHOW REPLICAS`: every copy, as its own node reports it now.

use super::show_databases::shown_primary;
use super::{Spec, lookup};
use crate::admin::answer::{Answer, Column, Row, int, text};
use crate::admin::error::AdminError;
use crate::admin::order::{Order, Session};
use quorate_model::{Database, PartitionMap, Replica, ReplicaId, ReplicaReport, ReplicaState};
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["SHOW", "REPLICAS"],
    syntax: "SHOW REPLICAS",
    help: "every copy of every database: its node, role, state, position and process",
    parse: |_| Ok(Arc::new(ShowReplicas)),
};

const COLUMNS: &[Column] = &[
    text("server"),
    text("database"),
    text("replica"),
    text("node"),
    text("role"),
    text("state"),
    text("epoch"),
    text("flush_lsn"),
    int("lag_bytes"),
    int("pid"),
    text("data_directory"),
    text("socket"),
];

#[derive(Debug)]
struct ShowReplicas;

#[async_trait::async_trait]
impl Order for ShowReplicas {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        let map = session.fresh_map().await;
        let reports = session.context.reports().await;
        let rows = map
            .databases
            .values()
            .flat_map(|d| d.replicas.iter().map(move |(id, replica)| (d, *id, replica)))
            .map(|(d, id, replica)| row(&map, d, id, replica, reports.iter().find(|r| r.replica == id)))
            .collect();
        Ok(Answer::Rows { tag: "SHOW", columns: COLUMNS, rows })
    }
}

fn role(database: &Database, replica: ReplicaId) -> &'static str {
    if shown_primary(database) == Some(replica) {
        "primary"
    } else if database.members().contains(&replica) {
        "secondary"
    } else {
        "learner"
    }
}

/// Without a report, the map's word is the last one heard.
fn state(replica: &Replica, report: Option<&ReplicaReport>) -> &'static str {
    match (report, replica.state) {
        (_, ReplicaState::Quarantined) => "quarantined",
        // It runs, and counts for nothing yet.
        (Some(report), ReplicaState::Incomplete { .. }) if report.is_healthy() => "incomplete",
        (Some(report), _) => report.run.name(),
        (None, ReplicaState::Incomplete { .. }) => "incomplete",
        (None, ReplicaState::Down { .. }) => "down",
        (None, ReplicaState::Up) => "unreachable",
    }
}

fn row(
    map: &PartitionMap,
    database: &Database,
    id: ReplicaId,
    replica: &Replica,
    report: Option<&ReplicaReport>,
) -> Row {
    vec![
        map.servers.get(&database.server).map(|s| s.name.as_str()).into(),
        database.name.as_str().into(),
        id.to_string().into(),
        lookup::node_name(map, replica.node).into(),
        role(database, id).into(),
        state(replica, report).into(),
        report.map(|r| r.promise.to_string()).into(),
        report.map(|r| r.flush_lsn.to_string()).into(),
        report.map(|r| r.lag_bytes).into(),
        report.and_then(|r| r.pid).into(),
        report.map(|r| r.data_directory.as_str()).into(),
        report.map(|r| r.socket.as_str()).into(),
    ]
}
