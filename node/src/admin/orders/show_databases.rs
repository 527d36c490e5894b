//! `SHOW DATABASES`: who holds each database, and whether it takes clients.

use super::{Spec, lookup};
use crate::admin::answer::{Answer, Column, Row, Value, boolean, int, text};
use crate::admin::error::AdminError;
use crate::admin::order::{Order, Session};
use quorate_model::{Database, GateReport, PartitionMap, Phase, ReplicaId, ReplicaReport};
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["SHOW", "DATABASES"],
    syntax: "SHOW DATABASES",
    help: "the databases, where their copies are, and whether they are open",
    parse: |_| Ok(Arc::new(ShowDatabases)),
};

const COLUMNS: &[Column] = &[
    text("server"),
    text("database"),
    text("phase"),
    text("epoch"),
    text("primary"),
    text("secondaries"),
    int("k"),
    boolean("open"),
    int("sessions"),
    int("size_bytes"),
    text("reads"),
    text("commits"),
    text("outcomes"),
    text("pool_mode"),
    int("pool_size"),
];

#[derive(Debug)]
struct ShowDatabases;

#[async_trait::async_trait]
impl Order for ShowDatabases {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        let map = session.fresh_map().await;
        let reports = session.context.reports().await;
        let rows = map.databases.values().map(|d| row(&map, d, &reports)).collect();
        Ok(Answer::Rows { tag: "SHOW", columns: COLUMNS, rows })
    }
}

/// The replica that is primary, or is being made the first one. None while one is elected.
pub fn shown_primary(database: &Database) -> Option<ReplicaId> {
    database.primary().or((database.phase == Phase::Creating).then_some(database.current.primary))
}

fn row(map: &PartitionMap, database: &Database, reports: &[ReplicaReport]) -> Row {
    let name_of = |replica| database.node_of(replica).map(|n| lookup::node_name(map, n));
    let primary = shown_primary(database);
    let report = primary.and_then(|p| reports.iter().find(|r| r.replica == p));
    let open = report.is_some_and(|r| is_open(database, r.gate));
    let secondaries: Vec<String> =
        database.current.members().filter(|r| Some(*r) != primary).filter_map(name_of).collect();
    vec![
        map.servers.get(&database.server).map(|s| s.name.as_str()).into(),
        database.name.as_str().into(),
        database.phase.name().into(),
        database.epoch.to_string().into(),
        primary.and_then(name_of).into(),
        secondaries.join(",").into(),
        database.current.k.into(),
        Value::Bool(open),
        report.map(|r| r.sessions).into(),
        report.map(|r| r.size_bytes).into(),
        database.options.reads.name().into(),
        database.options.commits.name().into(),
        database.options.outcomes.name().into(),
        database.options.pool_mode.name().into(),
        u32::from(database.options.pool_size).into(),
    ]
}

fn is_open(database: &Database, gate: GateReport) -> bool {
    matches!(gate, GateReport::Open(epoch) if epoch.same_reign(database.epoch))
}
