//! `SHOW VERSION`: of the daemon that answers.

use super::Spec;
use crate::admin::answer::{Answer, Column, text};
use crate::admin::error::AdminError;
use crate::admin::order::{Order, Session};
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["SHOW", "VERSION"],
    syntax: "SHOW VERSION",
    help: "the version of this node's daemon",
    parse: |_| Ok(Arc::new(ShowVersion)),
};

const COLUMNS: &[Column] = &[text("version")];

#[derive(Debug)]
struct ShowVersion;

#[async_trait::async_trait]
impl Order for ShowVersion {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    async fn run(&self, _session: &Session) -> Result<Answer, AdminError> {
        Ok(Answer::Rows { tag: "SHOW", columns: COLUMNS, rows: vec![vec![crate::VERSION.into()]] })
    }
}
