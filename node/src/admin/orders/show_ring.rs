//! `SHOW RING`: who watches whom, and what was heard last, as this node sees it.

use super::{Spec, lookup};
use crate::admin::answer::{Answer, Column, int, text};
use crate::admin::error::AdminError;
use crate::admin::order::{Order, Session};
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["SHOW", "RING"],
    syntax: "SHOW RING",
    help: "who watches whom, as this node sees it",
    parse: |_| Ok(Arc::new(ShowRing)),
};

const COLUMNS: &[Column] = &[
    int("position"),
    text("node"),
    text("predecessor"),
    text("successor"),
    text("state"),
    int("last_heartbeat_ms"),
    text("reported_by"),
];

#[derive(Debug)]
struct ShowRing;

#[async_trait::async_trait]
impl Order for ShowRing {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        // The ring needs no leader, and is looked at most when there is none.
        let map = session.context.map();
        let name = |node| lookup::node_name(&map, node);
        let rows = session
            .context
            .ring()
            .into_iter()
            .map(|r| {
                vec![
                    r.position.into(),
                    name(r.node).into(),
                    name(r.predecessor).into(),
                    name(r.successor).into(),
                    r.state.into(),
                    r.last_heartbeat_ms.into(),
                    r.reported_by.map(name).into(),
                ]
            })
            .collect();
        Ok(Answer::Rows { tag: "SHOW", columns: COLUMNS, rows })
    }
}
