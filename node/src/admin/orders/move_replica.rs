//! `MOVE REPLICA`: builds a copy on another node, then drops the one it replaces.

use super::{Spec, lookup};
use crate::admin::answer::{Answer, Column};
use crate::admin::error::AdminError;
use crate::admin::language::phrase::DatabaseName;
use crate::admin::order::{OPERATION_COLUMNS, Order, Session};
use quorate_model::Command;
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["MOVE", "REPLICA"],
    syntax: "MOVE REPLICA s.d FROM node TO node [KEY 'k']",
    help: "builds a copy on another node, then drops the one it replaces",
    parse: |phrase| {
        let name = phrase.database()?;
        phrase.keyword("FROM")?;
        let from = phrase.name("the name of a node")?;
        phrase.keyword("TO")?;
        let to = phrase.name("the name of a node")?;
        Ok(Arc::new(MoveReplica { name, from, to, key: phrase.key()? }))
    },
};

#[derive(Debug)]
struct MoveReplica {
    name: DatabaseName,
    from: String,
    to: String,
    key: Option<String>,
}

#[async_trait::async_trait]
impl Order for MoveReplica {
    fn columns(&self) -> &'static [Column] {
        OPERATION_COLUMNS
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        let map = session.fresh_map().await;
        let database = lookup::target(&map, &self.name, self.key.as_deref())?;
        let from = lookup::node(&map, &self.from)?.id;
        let to = lookup::node(&map, &self.to)?.id;
        let repeated = lookup::is_repeated(&map, self.key.as_ref());
        if !repeated && !session.context.usable_nodes().contains(&to) {
            return Err(AdminError::new("55000", format!("node \"{}\" is not alive", self.to))
                .with_hint("SHOW NODES tells which nodes are."));
        }
        let command = Command::BeginMove { database, from, to, now_ms: session.context.now_ms() };
        let what = format!("move replica {}", self.name);
        let applied = session.propose_once(&what, self.key.as_ref(), command).await?;
        session.begun("MOVE REPLICA", applied).await
    }
}
