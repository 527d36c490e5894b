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
    syntax: "SWITCHOVER DATABASE s.d [TO node] [KEY 'k']",
    help: "makes another copy the primary; sessions stay",
    parse: |phrase| {
        let name = phrase.database()?;
        let key = phrase.key()?;
        let to = if key.is_none() && phrase.peek().is_some() {
            phrase.keyword("TO")?;
            Some(phrase.name("the name of a node")?)
        } else {
            None
        };
        let key = if key.is_none() { phrase.key()? } else { key };
        Ok(Arc::new(Switchover { name, to, key }))
    },
};

#[derive(Debug)]
struct Switchover {
    name: DatabaseName,
    to: Option<String>,
    key: Option<String>,
}

#[async_trait::async_trait]
impl Order for Switchover {
    fn columns(&self) -> &'static [Column] {
        OPERATION_COLUMNS
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        let map = session.fresh_map().await;
        let database = lookup::target(&map, &self.name, self.key.as_deref())?;
        let to = match &self.to {
            Some(name) => Some(lookup::node(&map, name)?.id),
            None => None,
        };
        if let (Some(node), Some(name)) = (to, &self.to)
            && !session.context.usable_nodes().contains(&node)
            && !lookup::is_repeated(&map, self.key.as_ref())
        {
            return Err(AdminError::new("55000", format!("node \"{name}\" is not alive"))
                .with_hint("SHOW NODES tells which nodes are."));
        }
        let command = Command::BeginSwitchover { database, to, now_ms: session.context.now_ms() };
        let what = format!("switchover database {}", self.name);
        let applied = session.propose_once(&what, self.key.as_ref(), command).await?;
        session.begun("SWITCHOVER", applied).await
    }
}
