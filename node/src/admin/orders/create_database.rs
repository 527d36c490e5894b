//! `CREATE DATABASE`: records the database and where its copies go; the reconfiguration agent does the rest.

use super::{Spec, lookup};
use crate::admin::answer::{Answer, Column};
use crate::admin::error::AdminError;
use crate::admin::language::phrase::DatabaseName;
use crate::admin::order::{OPERATION_COLUMNS, Order, Session};
use quorate_model::Command;
use quorate_model::placement::place_database;
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["CREATE", "DATABASE"],
    syntax: "CREATE DATABASE s.d [KEY 'k']",
    help: "makes a database with three copies in different fault domains",
    parse: |phrase| Ok(Arc::new(CreateDatabase { name: phrase.database()?, key: phrase.key()? })),
};

/// Copies of every database: the primary and two secondaries.
const COPIES: usize = 3;

#[derive(Debug)]
struct CreateDatabase {
    name: DatabaseName,
    key: Option<String>,
}

#[async_trait::async_trait]
impl Order for CreateDatabase {
    fn columns(&self) -> &'static [Column] {
        OPERATION_COLUMNS
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        let map = session.fresh_map().await;
        let placement = if lookup::is_repeated(&map, self.key.as_ref()) {
            Vec::new()
        } else {
            lookup::server(&map, &self.name.server)?;
            place_database(&map, &session.context.usable_nodes(), COPIES).map_err(|no_place| {
                AdminError::new("53000", format!("there is no place for {}: {no_place}", self.name))
                    .with_hint("SHOW NODES tells which nodes are alive, and their fault domains.")
            })?
        };
        let command = Command::CreateDatabase {
            server: self.name.server.clone(),
            name: self.name.database.clone(),
            placement,
            now_ms: session.context.now_ms(),
        };
        let what = format!("create database {}", self.name);
        let applied = session.propose_once(&what, self.key.as_ref(), command).await?;
        session.begun("CREATE DATABASE", applied).await
    }
}
