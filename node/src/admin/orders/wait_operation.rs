//! `WAIT OPERATION`: follows an operation to its end and tells each step. It watches this node's own map, so a
//! leader may come and go meanwhile.

use super::Spec;
use crate::admin::answer::{Answer, Column, float, text};
use crate::admin::error::AdminError;
use crate::admin::order::{Order, Session};
use quorate_model::{Operation, OperationId, OperationState, Refusal, Step};
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["WAIT", "OPERATION"],
    syntax: "WAIT OPERATION id",
    help: "returns when the operation has ended; tells each step meanwhile",
    parse: |phrase| Ok(Arc::new(WaitOperation { id: phrase.operation()? })),
};

const COLUMNS: &[Column] = &[text("operation"), text("state"), float("total_ms")];

#[derive(Debug)]
struct WaitOperation {
    id: OperationId,
}

#[async_trait::async_trait]
impl Order for WaitOperation {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        let mut watch = session.context.map_watch();
        session.fresh_map().await;
        let mut told: Option<Step> = None;
        loop {
            let map = watch.borrow_and_update().clone();
            let Some(operation) = map.operations.get(&self.id) else {
                return Err(Refusal::NoSuchOperation(self.id).into());
            };
            if told.as_ref() != Some(&operation.step) {
                session.notice(format!("{}: {}", self.id, operation.step)).await;
                told = Some(operation.step.clone());
            }
            if let Some(end) = ended(operation) {
                return end;
            }
            if watch.changed().await.is_err() {
                return Err(AdminError::new("57P01", "this node is shutting down"));
            }
        }
    }
}

/// The answer, once the operation is over.
fn ended(operation: &Operation) -> Option<Result<Answer, AdminError>> {
    match &operation.state {
        OperationState::Running | OperationState::Cancelling { .. } => None,
        OperationState::Done => {
            let ms = operation.updated_ms.saturating_sub(operation.started_ms) as f64;
            let row = vec![operation.id.to_string().into(), "done".into(), ms.into()];
            Some(Ok(Answer::Rows { tag: "WAIT", columns: COLUMNS, rows: vec![row] }))
        }
        OperationState::Cancelled => Some(Err(AdminError::new(
            "57014",
            format!("{} of {} ({}) was cancelled", operation.kind.name(), operation.target, operation.id),
        ))),
        OperationState::Failed(reason) => Some(Err(AdminError::new(
            "58000",
            format!("{} of {} ({}) failed: {reason}", operation.kind.name(), operation.target, operation.id),
        ))),
    }
}
