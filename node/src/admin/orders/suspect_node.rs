//! `SUSPECT NODE`: a diagnostic. Says to the coordinator what the ring's neighbours say when a node is silent, whether
//! it is or not: a false alarm must cost milliseconds and no session.

use super::{Spec, lookup};
use crate::admin::answer::{Answer, Column};
use crate::admin::error::AdminError;
use crate::admin::order::{Order, Session};
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["SUSPECT", "NODE"],
    syntax: "SUSPECT NODE node",
    help: "a diagnostic: treats a node as suspected; its healthy primaries are fenced and elected again",
    parse: |phrase| Ok(Arc::new(SuspectNode { name: phrase.name("the name of a node")? })),
};

#[derive(Debug)]
struct SuspectNode {
    name: String,
}

#[async_trait::async_trait]
impl Order for SuspectNode {
    fn columns(&self) -> &'static [Column] {
        &[]
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        let node = lookup::node(&session.context.map(), &self.name)?.id;
        tracing::info!(user = %session.user, %node, "suspected by an operator");
        session.context.suspect(node).await?;
        Ok(Answer::Done("SUSPECT NODE"))
    }
}
