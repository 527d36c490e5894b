//! `ALTER SERVER … SET`: the options of a logical server.

use super::{Spec, lookup};
use crate::admin::answer::{Answer, Column};
use crate::admin::error::AdminError;
use crate::admin::order::{Order, Session};
use quorate_model::{AllowList, Command};
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["ALTER", "SERVER"],
    syntax: "ALTER SERVER s SET allow = 'all' | '10.0.0.0/8, 192.0.2.7'",
    help: "from which addresses its clients may connect; sessions that are there stay",
    parse: |phrase| {
        let name = phrase.name("the name of a server")?;
        phrase.keyword("SET")?;
        if !phrase.has("ALLOW") {
            return Err(phrase.unexpected(&["ALLOW"]));
        }
        phrase.symbol('=')?;
        let at = phrase.at();
        let value = phrase.text("'all', or addresses and networks")?;
        let allow = AllowList::parse(&value).map_err(|error| {
            AdminError::new("22023", error.to_string())
                .with_position(at)
                .with_hint("Expected 'all', or addresses and networks with commas between them.")
        })?;
        Ok(Arc::new(AlterServer { name, allow }))
    },
};

#[derive(Debug)]
struct AlterServer {
    name: String,
    allow: AllowList,
}

#[async_trait::async_trait]
impl Order for AlterServer {
    fn columns(&self) -> &'static [Column] {
        &[]
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        lookup::server(&*session.fresh_map().await, &self.name)?;
        let command = Command::AllowFrom { server: self.name.clone(), allow: self.allow.clone() };
        session.propose(&format!("alter server {} set allow {}", self.name, self.allow), command).await?;
        Ok(Answer::Done("ALTER SERVER"))
    }
}
