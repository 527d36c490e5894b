//! `CANCEL OPERATION`: the way back of what is under way: what it made is removed.

use super::Spec;
use crate::admin::answer::{Answer, Column};
use crate::admin::error::AdminError;
use crate::admin::order::{OPERATION_COLUMNS, Order, Session};
use quorate_model::{Command, OperationId};
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["CANCEL", "OPERATION"],
    syntax: "CANCEL OPERATION id",
    help: "takes back what an operation has done so far; a drop, and a switchover after its freeze, cannot be",
    parse: |phrase| Ok(Arc::new(CancelOperation { id: phrase.operation()? })),
};

#[derive(Debug)]
struct CancelOperation {
    id: OperationId,
}

#[async_trait::async_trait]
impl Order for CancelOperation {
    fn columns(&self) -> &'static [Column] {
        OPERATION_COLUMNS
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        let command = Command::CancelOperation {
            operation: self.id,
            attempt: None,
            because: None,
            now_ms: session.context.now_ms(),
        };
        let applied = session.propose(&format!("cancel operation {}", self.id), command).await?;
        session.begun("CANCEL OPERATION", applied).await
    }
}
