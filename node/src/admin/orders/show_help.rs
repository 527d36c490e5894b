//! `SHOW HELP`: the orders, from the same table that reads them.

use super::{ORDERS, Spec};
use crate::admin::answer::{Answer, Column, text};
use crate::admin::error::AdminError;
use crate::admin::order::{Order, Session};
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["SHOW", "HELP"],
    syntax: "SHOW HELP",
    help: "this list",
    parse: |_| Ok(Arc::new(ShowHelp)),
};

const COLUMNS: &[Column] = &[text("order"), text("description")];

#[derive(Debug)]
struct ShowHelp;

#[async_trait::async_trait]
impl Order for ShowHelp {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    async fn run(&self, _session: &Session) -> Result<Answer, AdminError> {
        let told = ORDERS.iter().filter(|s| !s.help.is_empty());
        let rows = told.map(|s| vec![s.syntax.into(), s.help.into()]).collect();
        Ok(Answer::Rows { tag: "SHOW", columns: COLUMNS, rows })
    }
}
