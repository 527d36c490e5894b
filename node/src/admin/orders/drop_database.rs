//! `DROP DATABASE`: ends its sessions and deletes every copy.

use super::{Spec, lookup};
use crate::admin::answer::{Answer, Column};
use crate::admin::error::AdminError;
use crate::admin::language::phrase::DatabaseName;
use crate::admin::order::{OPERATION_COLUMNS, Order, Session};
use quorate_model::Command;
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["DROP", "DATABASE"],
    syntax: "DROP DATABASE s.d [KEY 'k']",
    help: "ends its sessions and deletes every copy",
    parse: |phrase| Ok(Arc::new(DropDatabase { name: phrase.database()?, key: phrase.key()? })),
};

#[derive(Debug)]
struct DropDatabase {
    name: DatabaseName,
    key: Option<String>,
}

#[async_trait::async_trait]
impl Order for DropDatabase {
    fn columns(&self) -> &'static [Column] {
        OPERATION_COLUMNS
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        lookup::target(&*session.fresh_map().await, &self.name, self.key.as_deref())?;
        let command = Command::DropDatabase {
            server: self.name.server.clone(),
            name: self.name.database.clone(),
            now_ms: session.context.now_ms(),
        };
        let what = format!("drop database {}", self.name);
        let applied = session.propose_once(&what, self.key.as_ref(), command).await?;
        session.begun("DROP DATABASE", applied).await
    }
}
