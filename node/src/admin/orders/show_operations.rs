//! `SHOW OPERATIONS`: what is being done, and what was done lately.

use super::Spec;
use crate::admin::answer::{Answer, Column, Row, text};
use crate::admin::clock::iso8601;
use crate::admin::error::AdminError;
use crate::admin::order::{Order, Session};
use quorate_model::{Operation, OperationState};
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
        let rows = map.operations.values().map(row).collect();
        Ok(Answer::Rows { tag: "SHOW", columns: COLUMNS, rows })
    }
}

fn row(operation: &Operation) -> Row {
    let error = match &operation.state {
        OperationState::Failed(reason) => Some(reason.as_str()),
        OperationState::Running | OperationState::Done => None,
    };
    vec![
        operation.id.to_string().into(),
        operation.kind.name().into(),
        operation.target.as_str().into(),
        operation.state.name().into(),
        operation.step.as_str().into(),
        error.into(),
        iso8601(operation.started_ms).into(),
        iso8601(operation.updated_ms).into(),
    ]
}
