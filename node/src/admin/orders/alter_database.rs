//! `ALTER DATABASE … SET`: the options of a database.

use super::{Spec, lookup};
use crate::admin::answer::{Answer, Column};
use crate::admin::error::AdminError;
use crate::admin::language::phrase::DatabaseName;
use crate::admin::order::{Order, Session};
use quorate_model::{Command, Reads};
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["ALTER", "DATABASE"],
    syntax: "ALTER DATABASE s.d SET reads = 'lease' | 'confirm'",
    help: "when results may leave the primary: while it holds a lease, or after a voter confirmed",
    parse: |phrase| {
        let name = phrase.database()?;
        phrase.keyword("SET")?;
        phrase.keyword("READS")?;
        phrase.symbol('=')?;
        let at = phrase.at();
        let value = phrase.text("'lease' or 'confirm'")?;
        let reads = Reads::named(&value).ok_or_else(|| {
            AdminError::new("22023", format!("\"{value}\" is no value of reads"))
                .with_position(at)
                .with_hint("Expected 'lease' or 'confirm'.")
        })?;
        Ok(Arc::new(AlterDatabase { name, reads }))
    },
};

#[derive(Debug)]
struct AlterDatabase {
    name: DatabaseName,
    reads: Reads,
}

#[async_trait::async_trait]
impl Order for AlterDatabase {
    fn columns(&self) -> &'static [Column] {
        &[]
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        lookup::database(&*session.fresh_map().await, &self.name)?;
        let command = Command::SetReads {
            server: self.name.server.clone(),
            name: self.name.database.clone(),
            reads: self.reads,
        };
        let what = format!("alter database {} set reads = {}", self.name, self.reads.name());
        session.propose(&what, command).await?;
        Ok(Answer::Done("ALTER DATABASE"))
    }
}
