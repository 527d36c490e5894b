//! `EXPLAIN FAILOVER`: who could take over now, what is missing, and why nobody did.

use super::{Spec, lookup};
use crate::admin::answer::{Answer, Column, Row, boolean, text};
use crate::admin::error::AdminError;
use crate::admin::language::phrase::DatabaseName;
use crate::admin::order::{Order, Session};
use quorate_model::{PartitionMap, ReplicaId};
use quorate_reconfig_agent::decide::explain::{self, Question, explain};
use std::collections::BTreeSet;
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["EXPLAIN", "FAILOVER"],
    syntax: "EXPLAIN FAILOVER s.d",
    help: "who could take over now, what is missing, and why nobody did",
    parse: |phrase| Ok(Arc::new(ExplainFailover { name: phrase.database()? })),
};

const COLUMNS: &[Column] = &[
    text("replica"),
    text("node"),
    text("role"),
    text("state"),
    text("position"),
    text("counts_in"),
    text("would_cover"),
    boolean("could_lead"),
    text("why"),
];

#[derive(Debug)]
struct ExplainFailover {
    name: DatabaseName,
}

#[async_trait::async_trait]
impl Order for ExplainFailover {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        let map = session.fresh_map().await;
        let database = lookup::database(&map, &self.name)?;
        let reports = session.context.reports().await.into_iter().map(|r| (r.replica, r)).collect();
        let explanation = explain(&Question { map: &map, database, reports: &reports });
        for sentence in explanation.verdict {
            session.notice(sentence).await;
        }
        let rows = explanation.rows.into_iter().map(|r| row(&map, r)).collect();
        Ok(Answer::Rows { tag: "EXPLAIN", columns: COLUMNS, rows })
    }
}

fn row(map: &PartitionMap, row: explain::Row) -> Row {
    let covers: Vec<String> = row.would_cover.iter().map(set).collect();
    vec![
        row.replica.to_string().into(),
        lookup::node_name(map, row.node).into(),
        row.role.into(),
        row.state.into(),
        row.position.map(|p| format!("{} {}", p.epoch, p.lsn)).into(),
        row.counts_in.join(",").into(),
        covers.join(" | ").into(),
        row.could_lead.into(),
        row.why.into(),
    ]
}

fn set(replicas: &BTreeSet<ReplicaId>) -> String {
    let names: Vec<String> = replicas.iter().map(ReplicaId::to_string).collect();
    names.join("+")
}
