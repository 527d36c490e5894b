//! `FORCE RECOVER DATABASE … ACCEPT DATA LOSS`: goes on with one of the replicas that still answer, when too few of
//! them do to know what was acknowledged. The words stand in the order so that nobody gives it by mistake.

use super::{Spec, lookup};
use crate::admin::answer::{Answer, Column};
use crate::admin::error::AdminError;
use crate::admin::language::phrase::DatabaseName;
use crate::admin::order::{OPERATION_COLUMNS, Order, Session};
use quorate_model::Command;
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["FORCE", "RECOVER", "DATABASE"],
    syntax: "FORCE RECOVER DATABASE s.d ACCEPT DATA LOSS [CANDIDATE node] [KEY 'k']",
    help: "gives up what the replicas that do not answer hold, and goes on without them; they are kept aside",
    parse: |phrase| {
        let name = phrase.database()?;
        for word in ["ACCEPT", "DATA", "LOSS"] {
            phrase.keyword(word)?;
        }
        let candidate = if phrase.has("CANDIDATE") { Some(phrase.name("the name of a node")?) } else { None };
        Ok(Arc::new(ForceRecover { name, candidate, key: phrase.key()? }))
    },
};

#[derive(Debug)]
struct ForceRecover {
    name: DatabaseName,
    candidate: Option<String>,
    key: Option<String>,
}

#[async_trait::async_trait]
impl Order for ForceRecover {
    fn columns(&self) -> &'static [Column] {
        OPERATION_COLUMNS
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        let map = session.fresh_map().await;
        let database = lookup::target(&map, &self.name, self.key.as_deref())?;
        let candidate = match &self.candidate {
            Some(name) => Some(lookup::node(&map, name)?.id),
            None => None,
        };
        let command = Command::BeginForceRecover { database, candidate, now_ms: session.context.now_ms() };
        let what = format!("force recover database {} accepting data loss", self.name);
        let applied = session.propose_once(&what, self.key.as_ref(), command).await?;
        session.begun("FORCE RECOVER", applied).await
    }
}
