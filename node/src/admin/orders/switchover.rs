//! `SWITCHOVER DATABASE`: makes a secondary the primary, without losing a commit or a session.

use super::{Spec, lookup};
use crate::admin::answer::{Answer, Column};
use crate::admin::error::AdminError;
use crate::admin::language::phrase::DatabaseName;
use crate::admin::order::{OPERATION_COLUMNS, Order, Session};
use quorate_model::Command;
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["SWITCHOVER", "DATABASE"],
    syntax: "SWITCHOVER DATABASE s.d [TO node]",
    help: "makes another copy the primary; sessions stay",
    parse: |phrase| {
        let name = phrase.database()?;
        let to = if phrase.peek().is_some() {
            phrase.keyword("TO")?;
            Some(phrase.name("the name of a node")?)
        } else {
            None
        };
        Ok(Arc::new(Switchover { name, to }))
    },
};

#[derive(Debug)]
struct Switchover {
    name: DatabaseName,
    to: Option<String>,
}

#[async_trait::async_trait]
impl Order for Switchover {
    fn columns(&self) -> &'static [Column] {
        OPERATION_COLUMNS
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        let map = session.fresh_map().await;
        let database = lookup::database(&map, &self.name)?.id;
        let to = match &self.to {
            Some(name) => Some(lookup::node(&map, name)?.id),
            None => None,
        };
        if let (Some(node), Some(name)) = (to, &self.to)
            && !session.context.usable_nodes().contains(&node)
        {
            return Err(AdminError::new("55000", format!("node \"{name}\" is not alive"))
                .with_hint("SHOW NODES tells which nodes are."));
        }
        let command = Command::BeginSwitchover { database, to, now_ms: session.context.now_ms() };
        let applied = session.propose(&format!("switchover database {}", self.name), command).await?;
        session.begun("SWITCHOVER", applied).await
    }
}
