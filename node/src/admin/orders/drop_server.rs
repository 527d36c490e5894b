//! `DROP SERVER`: removes a tenant that has no databases left.

use super::{Spec, lookup};
use crate::admin::answer::{Answer, Column};
use crate::admin::error::AdminError;
use crate::admin::order::{Order, Session};
use quorate_model::Command;
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["DROP", "SERVER"],
    syntax: "DROP SERVER s",
    help: "removes a logical server that has no databases",
    parse: |phrase| Ok(Arc::new(DropServer { name: phrase.name("the name of a server")? })),
};

#[derive(Debug)]
struct DropServer {
    name: String,
}

#[async_trait::async_trait]
impl Order for DropServer {
    fn columns(&self) -> &'static [Column] {
        &[]
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        lookup::server(&*session.fresh_map().await, &self.name)?;
        let command = Command::DropServer { name: self.name.clone() };
        session.propose(&format!("drop server {}", self.name), command).await?;
        Ok(Answer::Done("DROP SERVER"))
    }
}
