//! `DROP REPLICA`: deletes a copy that a forced recovery kept aside. Every other copy is the daemon's to keep.

use super::{Spec, lookup};
use crate::admin::answer::{Answer, Column};
use crate::admin::error::AdminError;
use crate::admin::language::phrase::DatabaseName;
use crate::admin::order::{Order, Session};
use quorate_model::{Change, Command, Refusal, ReplicaId};
use std::sync::Arc;

pub const SPEC: Spec = Spec {
    words: &["DROP", "REPLICA"],
    syntax: "DROP REPLICA s.d r5",
    help: "deletes a copy that a forced recovery kept aside",
    parse: |phrase| Ok(Arc::new(DropReplica { name: phrase.database()?, replica: phrase.replica()? })),
};

#[derive(Debug)]
struct DropReplica {
    name: DatabaseName,
    replica: ReplicaId,
}

#[async_trait::async_trait]
impl Order for DropReplica {
    fn columns(&self) -> &'static [Column] {
        &[]
    }

    async fn run(&self, session: &Session) -> Result<Answer, AdminError> {
        // The coordinator changes the record too, at any time: what it has changed is looked at, and decided anew.
        for _ in 1..TRIES {
            match self.drop_it(session).await {
                Err(stale) if stale.code == STALE => {}
                other => return other,
            }
        }
        self.drop_it(session).await
    }
}

/// How often an order is decided anew when the record has changed meanwhile.
const TRIES: u32 = 10;
/// `serialization_failure`: the record is not the one that was looked at ([`Refusal::Stale`]).
const STALE: &str = "40001";

impl DropReplica {
    async fn drop_it(&self, session: &Session) -> Result<Answer, AdminError> {
        let map = session.fresh_map().await;
        let database = lookup::database(&map, &self.name)?;
        if !database.replicas.contains_key(&self.replica) {
            return Err(Refusal::NoSuchReplica(self.replica).into());
        }
        if !database.is_quarantined(self.replica) {
            let message = format!("{} is not quarantined: it belongs to {}", self.replica, self.name);
            return Err(
                AdminError::new("55000", message).with_hint("MOVE REPLICA takes a copy to another node.")
            );
        }
        let change = Change::DropReplica { replica: self.replica };
        let command = Command::Reconfigure { database: database.id, version: database.version, change };
        session.propose(&format!("drop replica {} of {}", self.replica, self.name), command).await?;
        Ok(Answer::Done("DROP REPLICA"))
    }
}
