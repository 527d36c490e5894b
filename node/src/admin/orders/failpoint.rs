//! `FAILPOINT`, `SHOW FAILPOINTS`: for tests of a coordinator's loss, on nodes that were started for it.

use super::Spec;
use crate::admin::answer::{Answer, Column, text};
use crate::admin::error::AdminError;
use crate::admin::order::{Order, Session};
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["FAILPOINT"],
    syntax: "FAILPOINT 'name' 'action'",
    // Not for operators: see `coordinator::failpoint`.
    help: "",
    parse: |phrase| {
        let name = phrase.text("the name of a point, in quotes")?;
        Ok(Arc::new(Failpoint { name, action: phrase.text("an action, in quotes")? }))
    },
};

#[derive(Debug)]
struct Failpoint {
    name: String,
    action: String,
}

#[async_trait::async_trait]
impl Order for Failpoint {
    fn columns(&self) -> &'static [Column] {
        &[]
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        session
            .context
            .failpoint(&self.name, &self.action)
            .map_err(|reason| AdminError::new("55000", reason))?;
        Ok(Answer::Done("FAILPOINT"))
    }
}

pub const SHOW: Spec = Spec {
    words: &["SHOW", "FAILPOINTS"],
    syntax: "SHOW FAILPOINTS",
    help: "",
    parse: |_| Ok(Arc::new(ShowFailpoints)),
};

const COLUMNS: &[Column] = &[text("name")];

/// The points that this daemon passed.
#[derive(Debug)]
struct ShowFailpoints;

#[async_trait::async_trait]
impl Order for ShowFailpoints {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        let rows = session.context.failpoints_passed().into_iter().map(|name| vec![name.into()]).collect();
        Ok(Answer::Rows { tag: "SHOW", columns: COLUMNS, rows })
    }
}
