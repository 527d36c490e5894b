//! `SHOW POOLS`: how the clients of this node share server connections.

use super::Spec;
use crate::admin::answer::{Answer, Column, int, text};
use crate::admin::context::PoolView;
use crate::admin::error::AdminError;
use crate::admin::order::{Order, Session};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["SHOW", "POOLS"],
    syntax: "SHOW POOLS",
    help: "the server connections that clients of this node share, in databases with pool_mode = transaction",
    parse: |_| Ok(Arc::new(ShowPools)),
};

const COLUMNS: &[Column] = &[
    text("server"),
    text("database"),
    int("size"),
    int("used"),
    int("idle"),
    int("waiting"),
    int("longest_wait_ms"),
    int("pinned"),
    text("pinned_by"),
];

#[derive(Debug)]
struct ShowPools;

#[async_trait::async_trait]
impl Order for ShowPools {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        // Of this node alone: the leader knows nothing of it.
        let map = session.context.map();
        let row = |pool: PoolView| {
            let database = map.databases.get(&pool.database);
            let server = database.and_then(|d| map.servers.get(&d.server));
            vec![
                server.map(|s| s.name.as_str()).into(),
                database.map(|d| d.name.as_str()).into(),
                pool.size.into(),
                pool.used.into(),
                pool.idle.into(),
                pool.waiting.into(),
                pool.longest_ms.into(),
                pool.pinned.len().into(),
                reasons(&pool.pinned).into(),
            ]
        };
        let rows = session.context.pools().into_iter().map(row).collect();
        Ok(Answer::Rows { tag: "SHOW", columns: COLUMNS, rows })
    }
}

/// Each reason once, with the number of clients that have it.
fn reasons(pinned: &[String]) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    for why in pinned {
        *counts.entry(why).or_default() += 1;
    }
    counts.iter().map(|(why, count)| format!("{why} ({count})")).collect::<Vec<_>>().join(", ")
}
