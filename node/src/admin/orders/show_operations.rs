//! `SHOW OPERATIONS`: what is being done, and what was done lately.

use super::{Spec, lookup};
use crate::admin::answer::{Answer, Column, Row, int, text};
use crate::admin::clock::iso8601;
use crate::admin::error::AdminError;
use crate::admin::order::{Order, Session};
use quorate_model::{Operation, PartitionMap};
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["SHOW", "OPERATIONS"],
    syntax: "SHOW OPERATIONS",
    help: "long-running changes, with the step each is at",
    parse: |_| Ok(Arc::new(ShowOperations)),
};

const COLUMNS: &[Column] = &[
    text("operation"),
    text("kind"),
    text("database"),
    text("state"),
    text("step"),
    text("error"),
    text("started"),
    text("updated"),
    int("attempt"),
    text("owner"),
    text("key"),
];

#[derive(Debug)]
struct ShowOperations;

#[async_trait::async_trait]
impl Order for ShowOperations {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        let map = session.fresh_map().await;
        let rows = map.operations.values().map(|o| row(&map, o)).collect();
        Ok(Answer::Rows { tag: "SHOW", columns: COLUMNS, rows })
    }
}

fn row(map: &PartitionMap, operation: &Operation) -> Row {
    vec![
        operation.id.to_string().into(),
        operation.kind.name().into(),
        operation.target.as_str().into(),
        operation.state.name().into(),
        operation.step.to_string().into(),
        operation.state.error().into(),
        iso8601(operation.started_ms).into(),
        iso8601(operation.updated_ms).into(),
        operation.attempt.into(),
        operation.owner.map(|n| lookup::node_name(map, n)).into(),
        operation.key.as_deref().into(),
    ]
}
